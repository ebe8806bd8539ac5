"""What a training tells MLflow while it runs, and where it keeps its state. `phase` begins the names of its metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tasks import tracking

if TYPE_CHECKING:
    from secateur.checkpoints import Checkpoint
    from secateur.training import Epoch

REPORT_SECONDS = 60


def log_epoch(run_id: str, phase: str, epoch: Epoch, of: int) -> None:
    """Print and log what an epoch ended with."""
    print(
        f"epoch {epoch.epoch}/{of}: loss {epoch.loss:.4f}, validation accuracy {epoch.accuracy:.4f}, {epoch.seconds:.1f} s",
        flush=True,
    )
    loss = epoch.loss if epoch.epoch else None
    tracking.log(run_id, {f"{phase}_loss": loss, f"{phase}_accuracy": epoch.accuracy}, step=epoch.epoch)


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


def checkpoint(run_id: str, name: str) -> Checkpoint:
    """The last state under this name in the cycle's run, so that a worker on another machine can go on from it."""
    from secateur.checkpoints import Checkpoint

    def save(content: bytes) -> None:
        tracking.put_bytes(run_id, content, "checkpoint", name)

    def load() -> list[bytes]:
        stored = tracking.get_bytes(run_id, f"checkpoint/{name}")
        return [stored] if stored else []

    return Checkpoint(save, load)
