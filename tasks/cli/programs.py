"""`secateur inspect`, `cut` and `recover`: the library on `.pt2` files, without any server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import InputError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from secateur.allocate import Goal
    from secateur.data import Dataset
    from secateur.inspection import Inspection
    from secateur.recovery import Recovered
    from secateur.training import Settings
    from tasks.cli.bar import Callbacks

VALIDATION = 0.1  # of the examples, where none are given to validate with


@dataclass(frozen=True)
class Order:
    """What to remove: layers, then units, then single weights; what is None stays."""

    layers: float | None = None
    layer_kind: str = "layer"
    layer_criterion: str | None = None
    ratio: float | None = None
    parameters: float | None = None
    macs: float | None = None
    kinds: tuple[str, ...] | None = None
    criterion: str = "l2"
    allocation: str = "uniform"
    curves: Path | None = None
    align: int = 1
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    weights: float | None = None
    nm: str | None = None
    weight_criterion: str = "magnitude"
    seed: int = 0


@dataclass(frozen=True)
class Lesson:
    """What a cut program is recovered with; `settings` is a YAML file like the `recovery` section of a recipe."""

    teacher: Path
    data: Path
    validation: Path | None = None
    objective: str = "classification"
    settings: Path | None = None
    epochs: int = 10
    seed: int = 0


def inspect(model: Path) -> Inspection:
    """Read a program and tell what it is made of."""
    from secateur import program as programs
    from secateur.inspection import inspect

    return inspect(programs.load(model))


def cut(model: Path, output: Path, order: Order, calibration: Path | None, say: Callable[[str], None]) -> None:
    """Cut a program as ordered and write it, with its lineage inside; reports go to `say` as they come.

    Raises:
        InputError: an order that contradicts itself or removes nothing, or what the library refuses.
    """
    goals = _check(order, model, output)
    from secateur import program as programs
    from secateur.readers import arrays

    program, lineage = programs.load(model), programs.lineage(model)
    batches = arrays.batches(calibration, program) if calibration else ()
    for made, record, report in _steps(program, order, goals, batches):
        lineage = programs.descend(lineage, programs.digest(program), record)
        program = made
        say(str(report))
    _write(program, output, lineage)


def _write(program: ExportedProgram, output: Path, lineage: Mapping[str, Any]) -> None:
    from secateur import program as programs

    beside = output.with_name(f".{output.stem}.new.pt2")
    programs.save(program, beside, lineage)
    os.replace(beside, output)


def recover(
    model: Path, output: Path, lesson: Lesson, watched: Callable[[int, str], AbstractContextManager[Callbacks]]
) -> Recovered | None:
    """Train a cut program and write the best candidate; zeros that `cut` set in single weights stay.

    Its state is kept in a folder beside the output, so that the same call goes on where a killed one was, and removed at
    the end. Under torchrun all processes train as one; the first one writes, and the others give None.

    Args:
        watched: given the batch size and the name of the metric, opens what is called back.

    Raises:
        InputError: an output that cannot be, or what the library refuses.
    """
    _check_output(model, output)
    settings = _settings(lesson)
    from secateur import checkpoints, distributed, recovery, sparsity
    from secateur import program as programs
    from secateur.objectives import identity_of, objective_of

    objective = objective_of(lesson.objective)
    student, lineage, teacher = programs.load(model), programs.lineage(model), programs.load(lesson.teacher)
    dataset = _dataset(lesson, student)
    place = output.with_name(f".{output.stem}.checkpoints")
    with distributed.joined(), ExitStack() as stack:
        first = distributed.rank() == 0
        callbacks = stack.enter_context(watched(settings.batch, objective.metric)) if first else (_nothing, _nothing)
        recovered = recovery.recover(
            student,
            teacher,
            dataset,
            settings,
            objective=lesson.objective,
            masks=sparsity.recorded_masks(student, lineage),
            checkpoint=checkpoints.in_folder(place),
            on_epoch=callbacks[0],
            on_step=callbacks[1],
        )
    if not first:
        return None
    learnt = {"data": dataset.digest, "objective": identity_of(lesson.objective), "epoch": recovered.best.epoch}
    _write(recovered.program, output, lineage | learnt)
    shutil.rmtree(place, ignore_errors=True)
    return recovered


def _nothing(*told: object) -> None:
    """Says nothing: of several processes the first one does."""


def _dataset(lesson: Lesson, student: ExportedProgram) -> Dataset:
    from secateur import data, data_checks
    from secateur import program as programs
    from secateur.readers import arrays

    names = tuple(programs.input_specs(student))
    train = data.labelled_for(arrays.npz(lesson.data, names), lesson.objective)
    if lesson.validation is not None:
        validation = data.labelled_for(arrays.npz(lesson.validation, names), lesson.objective)
    else:
        train, validation = data.carve(train, VALIDATION, lesson.seed)
    dataset = data.Dataset(train, validation, validation)  # recovery has no say over a test split
    data_checks.check_fits(dataset, student, lesson.objective)
    return dataset


def _settings(lesson: Lesson) -> Settings:
    from secateur.training import Settings
    from tasks import recipe

    text = lesson.settings.read_text(encoding="utf-8") if lesson.settings else "{}"
    section = recipe.section(recipe.Recovery, text, f"settings {lesson.settings}")
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if section.processes not in (1, started):
        raise InputError(
            f"processes: expected {section.processes} processes, as settings {lesson.settings} says, got {started}; start the "
            f"command by torchrun --nproc-per-node {section.processes} --no-python"
        )
    return Settings(epochs=lesson.epochs, seed=lesson.seed, **section.training)


def _check(order: Order, model: Path, output: Path) -> list[tuple[str, float]]:
    """The one goal for units, if any."""
    goals = [(name, share) for name in ("ratio", "parameters", "macs") if (share := getattr(order, name)) is not None]
    if len(goals) > 1:
        raise InputError(
            f"goal: expected one of --ratio, --parameters, --macs, got {' and '.join(n for n, _ in goals)}"
        )
    if order.weights is not None and order.nm is not None:
        raise InputError("weights: expected --weights or --nm, got both")
    if not goals and order.layers is None and order.weights is None and order.nm is None:
        raise InputError(
            "goal: expected at least one of --ratio, --parameters, --macs, --layers, --weights, --nm, got none"
        )
    _check_output(model, output)
    return goals


def _check_output(model: Path, output: Path) -> None:
    if output.resolve() == model.resolve():
        raise InputError(f"output: expected another file than the model, got {output}; that model is kept")
    if output.suffix != ".pt2":
        raise InputError(f"output: expected a name that ends in .pt2, got {output.name}")
    if not output.parent.is_dir():
        raise InputError(f"output: expected a folder that exists, got {output.parent}; create it first")


def _steps(program: ExportedProgram, order: Order, goals: list[tuple[str, float]], batches: Sequence[Any]) -> Any:
    """Each removal in turn: the program that it made, what the lineage keeps of it, and its report."""
    import secateur
    from secateur.pruning import DEFAULT_KINDS

    if order.layers is not None:
        criterion = order.layer_criterion or ("influence" if batches else "last")
        program, depth = secateur.drop_branches(
            program,
            share=order.layers,
            kind=order.layer_kind,
            criterion=criterion,
            calibration=batches,
            seed=order.seed,
        )
        yield program, {"criterion": criterion, "seed": order.seed, "dropped": depth.dropped}, depth
    for name, share in goals:
        goals_by_name: dict[str, type[Goal]] = {
            "ratio": secateur.Ratio,
            "parameters": secateur.Parameters,
            "macs": secateur.Macs,
        }
        goal = goals_by_name[name](share)
        choice: dict[str, Any] = {
            "kinds": order.kinds or DEFAULT_KINDS,
            "include": order.include,
            "exclude": order.exclude,
            "criterion": order.criterion,
            "calibration": batches,
            "seed": order.seed,
        }
        measured = (
            secateur.sensitivity(program, path=order.curves, **choice) if order.allocation == "sensitivity" else None
        )
        program, report = secateur.prune(
            program, goal=goal, allocation=order.allocation, curves=measured, align=order.align, **choice
        )
        record = {"goal": str(goal), "criterion": order.criterion, "seed": order.seed, "kept": report.kept}
        yield program, record, report
    if order.weights is not None or order.nm is not None:
        pattern = secateur.Unstructured(order.weights) if order.weights is not None else _nm(str(order.nm))
        program, _, zeros = secateur.sparsify(
            program, pattern=pattern, criterion=order.weight_criterion, calibration=batches, seed=order.seed
        )
        yield program, {"pattern": str(pattern), "criterion": order.weight_criterion, "seed": order.seed}, zeros


def _nm(text: str) -> Any:
    import secateur

    n, colon, m = text.partition(":")
    if not (colon and n.isdecimal() and m.isdecimal()):
        raise InputError(f"nm: expected two numbers such as 2:4, got {text!r}")
    return secateur.NM(int(n), int(m))
