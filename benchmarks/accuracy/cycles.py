"""Cut and recover in cycles through the library, and what is kept between runs."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

import secateur
from benchmarks import counts
from benchmarks.accuracy.scales import Recipe
from benchmarks.context import Context, Row, say
from secateur import checkpoints, distributed, training
from secateur import program as programs
from secateur.data import Dataset, Split
from secateur.objectives import objective_of
from secateur.recovery import Recovered
from secateur.schedules import SCHEDULES
from secateur.sparsity import Masks
from secateur.training import Epoch

Cut = Callable[[ExportedProgram, float], tuple[ExportedProgram, Masks]]  # program, share of the dense one that is gone
Step = Callable[[ExportedProgram, float, int], tuple[ExportedProgram, Recovered]]  # program, share, cycle


@dataclass(frozen=True)
class Subject:
    """What is pruned: the dense program, who teaches it what it lost, its data, and what it is trained for."""

    dense: ExportedProgram
    data: Dataset
    objective: str = "classification"

    def score(self, program: ExportedProgram, split: Split) -> float:
        """The objective's metric, on the GPU where there is one."""
        module = programs.move(programs.graph_module(program), distributed.device())
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third less time for images
        return training.evaluate(module, split, objective_of(self.objective))


def in_cycles(
    subject: Subject, cut: Cut, share: float, recipe: Recipe, seed: int, folder: Path
) -> tuple[ExportedProgram, Row]:
    """The program after the last cycle, and the row's numbers; test is looked at, never chosen on.

    What each cycle gave is kept in the folder, and the training under way too: a run that is cut off goes on.
    """
    began, program = time.monotonic(), subject.dense
    step = functools.partial(_cycle, subject, cut, recipe, seed, folder)
    for cycle in range(1, recipe.cycles):
        removed = SCHEDULES[recipe.schedule](cycle, recipe.cycles, share)
        program = _in_file(folder / f"{cycle}.pt2", functools.partial(_recovered, step, program, removed, cycle))
    after_cut, recovered = step(program, share, recipe.cycles)
    row = result(subject, after_cut, recovered.program)
    row |= {"validation": recovered.best.accuracy, "kept": recovered.kept, "epochs": len(recovered.history) - 1}
    shutil.rmtree(folder, ignore_errors=True)
    return recovered.program, row | {"seconds": round(time.monotonic() - began)}


def result(subject: Subject, cut: ExportedProgram, recovered: ExportedProgram) -> Row:
    """Accuracies on test, and what is left of parameters and MACs, counted in the programs."""
    dense, left = counts.macs(subject.dense), counts.macs(recovered)
    return {
        "dense": subject.score(subject.dense, subject.data.test),
        "cut": subject.score(cut, subject.data.test),
        "recovered": subject.score(recovered, subject.data.test),
        "sparsity": 1 - counts.weights(recovered) / counts.weights(subject.dense),
        "macs": left,
        "macs_ratio": dense / left,
    }


def _recovered(step: Step, program: ExportedProgram, removed: float, cycle: int) -> ExportedProgram:
    return step(program, removed, cycle)[1].program


def _cycle(
    subject: Subject,
    cut: Cut,
    recipe: Recipe,
    seed: int,
    folder: Path,
    program: ExportedProgram,
    removed: float,
    cycle: int,
) -> tuple[ExportedProgram, Recovered]:
    """One cut and its recovery."""
    student, masks = cut(program, removed)
    settings, images = recipe.of_cycle(cycle, seed)
    say(f"cycle {cycle} of {recipe.cycles}: {removed:.1%} gone, {settings.epochs} epochs of recovery")
    recovered = secateur.recover(
        student,
        subject.dense,
        drawn(subject.data, images, seed + 1000 * cycle),
        settings,
        objective=subject.objective,
        masks=masks,
        checkpoint=checkpoints.in_folder(folder / f"training-{cycle}"),
        on_epoch=lambda epoch: tell(epoch, settings.epochs),
    )
    return student, recovered


def tell(epoch: Epoch, epochs: int) -> None:
    """A line per epoch, with how long the rest will take."""
    left = f", about {(epochs - epoch.epoch) * epoch.seconds / 60:.1f} minutes left" if epoch.epoch else ""
    loss = f"loss {epoch.loss:.3f}" if epoch.epoch else "as it was cut"
    say(f"  epoch {epoch.epoch} of {epochs}: {loss}, validation {epoch.accuracy:.4f}{left}")


def drawn(data: Dataset, count: int | None, seed: int) -> Dataset:
    """The data with some examples of train; all of them where no number is given."""
    if count is None or count >= len(data.train):
        return data
    chosen = np.random.default_rng(seed).permutation(len(data.train))[:count]
    return Dataset(data.train.take(chosen), data.validation, data.test)


def kept(context: Context, name: str, settings: Row, make: Callable[[], ExportedProgram]) -> ExportedProgram:
    """A program that takes long to make, from the cache; of several processes that want it one makes it."""
    path = context.cache / f"{name}-{digest(settings)}.pt2"
    with _alone(path):
        return _in_file(path, make)


def working_folder(context: Context, row: str, label: str, seed: int, settings: Row) -> Path:
    """Where a part keeps what it has until it is done."""
    return context.cache / "running" / f"{row}-{label}-{seed}-{digest(settings)}".replace(" ", "-").replace("/", "-")


def digest(settings: Row) -> str:
    """Short, equal for equal settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _in_file(path: Path, make: Callable[[], ExportedProgram]) -> ExportedProgram:
    """What the file holds; made and written first where there is none. Always read, so that both runs go on from the same."""
    if not path.exists():
        program = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"new-{path.name}")
        programs.save(program, beside)
        beside.replace(path)
    return programs.load(path)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
