"""A step's training: what it tells MLflow, its metrics' names begun by `phase`, and where it keeps its state."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tasks import tracking, workers

if TYPE_CHECKING:
    from secateur.checkpoints import Checkpoint
    from secateur.recovery import Recovered
    from secateur.training import Epoch, Settings
    from tasks.recipe import Recipe
    from tasks.references import File, Pinned

REPORT_SECONDS = 60
STORE_SECONDS = 300  # between two states in MLflow


def taught(
    pinned: Pinned,
    recipe: Recipe,
    program: File,
    settings: Settings,
    *,
    run_id: str,
    phase: str,
    place: str,
    rounding: int | None = None,
) -> tuple[Recovered, dict[str, Any]]:
    """A stored program trained with the dense one as teacher, its zeros kept, and its lineage.

    Args:
        place: what the checkpoints are called, on the worker's disk and in the run.
        rounding: as in `recover`, for a program that will run in integers.
    """
    from secateur import program as programs
    from secateur import recovery, sparsity
    from tasks import datasets

    with tracking.fetched(program) as path:
        student, lineage = programs.load(path), programs.lineage(path)
    with tracking.fetched(pinned.program) as path:
        teacher = programs.load(path)
    with checkpoint(run_id, place) as kept:
        recovered = recovery.recover(
            student,
            teacher,
            datasets.load(recipe, pinned.inputs),
            settings,
            objective=recipe.objective,
            masks=sparsity.recorded_masks(student, lineage),
            rounding=rounding,
            checkpoint=kept,
            on_epoch=lambda epoch: log_epoch(run_id, phase, pinned.metric, epoch, settings.epochs),
            on_step=reporter(run_id, phase, settings.batch),
        )
    return recovered, lineage


def log_epoch(run_id: str, phase: str, metric: str, epoch: Epoch, of: int) -> None:
    """Print and log what an epoch ended with."""
    print(
        f"epoch {epoch.epoch}/{of}: {f'loss {epoch.loss:.4f}' if epoch.epoch else 'as it was cut'}, validation {metric} "
        f"{epoch.accuracy:.4f}, {epoch.seconds:.1f} s",
        flush=True,
    )
    loss = epoch.loss if epoch.epoch else None
    tracking.log(run_id, {f"{phase}_loss": loss, f"{phase}_{metric}": epoch.accuracy}, step=epoch.epoch)


def reporter(run_id: str, phase: str, batch: int) -> Callable[[int, int, float], None]:
    """Prints and logs a line a minute, so that a long epoch is seen to move."""
    last_step, last_time = 0, time.monotonic()

    def report(step: int, steps: int, loss: float) -> None:
        nonlocal last_step, last_time
        seconds = time.monotonic() - last_time
        if seconds < REPORT_SECONDS:
            return
        pace = (step - last_step) / seconds
        print(
            f"step {step}/{steps}: loss {loss:.4f}, {pace * batch:.0f} examples/s, "
            f"{(steps - step) / pace / 60:.0f} min left",
            flush=True,
        )
        tracking.log(run_id, {f"{phase}_step_loss": loss, f"{phase}_examples_per_second": pace * batch}, step=step)
        last_step, last_time = step, time.monotonic()

    return report


@contextmanager
def checkpoint(run_id: str, name: str) -> Iterator[Checkpoint]:
    """The last two states on this disk, and every few minutes in the run, where a worker on another machine finds them.

    A state that the store does not take is said and costs no more than itself: the training does not depend on it, and
    its result is stored by other means. After the end the last state is in the run alone. Another release finds none of
    this one's states: it may train otherwise, so it begins again.
    """
    from secateur import checkpoints, distributed

    own = f"{name}.{tracking.code_digest()[:12]}"
    folder = workers.cache_folder() / run_id
    near, far = checkpoints.in_folder(folder / own), in_run(run_id, own)
    yield checkpoints.also(near, far)
    if distributed.rank() == 0:
        if last := checkpoints.newest(near.load()):
            far.save(last)
        for left in folder.glob(f"{name}.*"):  # other releases' too
            shutil.rmtree(left, ignore_errors=True)


def in_run(run_id: str, name: str) -> Checkpoint:
    """The last two states as artifacts of a run, written in turn."""
    from secateur import checkpoints

    places = [f"{name}.even", f"{name}.odd"]  # the first is written next

    def save(content: bytes) -> None:
        try:
            tracking.put_bytes(run_id, content, "checkpoint", places[0])
            places.reverse()
        except Exception as error:  # whatever the store has to say
            print(
                f"checkpoint not stored in MLflow ({type(error).__name__}: {error}); training goes on, the one before stays",
                flush=True,
            )

    def load() -> list[bytes]:
        found = {place: tracking.get_bytes(run_id, f"checkpoint/{place}") for place in places}
        newest = checkpoints.newest(content for content in found.values() if content is not None)
        if found[places[0]] == newest:
            places.reverse()
        return [newest] if newest else []

    return checkpoints.Checkpoint(save, load, STORE_SECONDS)
