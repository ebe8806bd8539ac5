"""Wins accuracy back after a cut: trains the cut program with the dense one as teacher."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import tracking
from tasks.recipe import Recipe
from tasks.references import Cut, Pinned, Plan, Recovered

if TYPE_CHECKING:
    from secateur import recovery
    from secateur.checkpoints import Checkpoint
    from secateur.recovery import Epoch

REPORT_SECONDS = 60


@tracking.remembered
def run(pinned: Pinned, plan: Plan, cut: Cut) -> Recovered:
    """Train, keep the epoch best on validation. Killed and started again, it goes on from its last finished epoch."""
    from secateur import program as programs
    from secateur import recovery
    from tasks import datasets

    recipe = Recipe.model_validate(pinned.recipe)
    settings = recovery.Settings(epochs=plan.epochs[cut.cycle - 1], seed=recipe.seed, **recipe.recovery.model_dump())
    with tracking.fetched(cut.program) as path:
        student, lineage = programs.load(path), programs.lineage(path)
    with tracking.fetched(pinned.program) as path:
        teacher = programs.load(path)
    recovered = recovery.recover(
        student,
        teacher,
        datasets.load(recipe, pinned.inputs),
        settings,
        checkpoint=_checkpoint(cut.run_id),
        on_epoch=lambda epoch: _log_epoch(cut.run_id, epoch, settings.epochs),
        on_step=_reporter(cut.run_id, settings.batch),
    )
    print(_verdict(recovered), flush=True)
    tracking.log(cut.run_id, {"accuracy_norms_reestimated": recovered.adapted}, step=cut.cycle)
    tracking.describe(cut.run_id, _verdict(recovered))
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "model.pt2"
        programs.save(recovered.program, path, lineage | {"epoch": recovered.best.epoch})
        file = tracking.put(cut.run_id, path, "recovered")
    return Recovered(
        cycle=cut.cycle,
        run_id=cut.run_id,
        program=file,
        kept=recovered.kept,
        accuracy_before=recovered.history[0].accuracy,
        epochs=len(recovered.history) - 1,
        seconds=sum(epoch.seconds for epoch in recovered.history),
        sparsity=cut.sparsity,
    )


def _verdict(recovered: recovery.Recovered) -> str:
    """What was kept and why, in a sentence."""
    before, best = recovered.history[0].accuracy, recovered.best
    norms = "" if recovered.adapted is None else f", {recovered.adapted:.4f} with its norms measured again"
    as_cut = f"validation accuracy was {before:.4f} as cut{norms}"
    if recovered.kept == "trained":
        return f"Training helped: {as_cut}, and {best.accuracy:.4f} after epoch {best.epoch}, which is kept."
    which = "the program as it was cut" if recovered.kept == "cut" else "the program with its norms measured again"
    return f"Training did not help: {as_cut}; {which} is kept."


def _log_epoch(run_id: str, epoch: Epoch, of: int) -> None:
    print(
        f"epoch {epoch.epoch}/{of}: loss {epoch.loss:.4f}, validation accuracy {epoch.accuracy:.4f}, {epoch.seconds:.1f} s",
        flush=True,
    )
    loss = epoch.loss if epoch.epoch else None
    tracking.log(run_id, {"recovery_loss": loss, "recovery_accuracy": epoch.accuracy}, step=epoch.epoch)


def _reporter(run_id: str, batch: int) -> Callable[[int, int, float], None]:
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
        tracking.log(run_id, {"recovery_step_loss": loss, "recovery_examples_per_second": pace * batch}, step=step)
        last_step, last_time = step, time.monotonic()

    return report


def _checkpoint(run_id: str) -> Checkpoint:
    """The last epoch's state, in the cycle's run, so that a worker on another machine can go on from it."""
    from secateur.checkpoints import Checkpoint

    def save(content: bytes) -> None:
        tracking.put_bytes(run_id, content, "checkpoint", "last.pt")

    def load() -> list[bytes]:
        stored = tracking.get_bytes(run_id, "checkpoint/last.pt")
        return [stored] if stored else []

    return Checkpoint(save, load)
