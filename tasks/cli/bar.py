"""A training as a terminal shows it: a bar with loss, metric, examples a second and time left. Elsewhere a line an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from secateur.training import Epoch

Callbacks = tuple[Callable[["Epoch"], None], Callable[[int, int, float], None]]  # after an epoch, after a step


@contextmanager
def watched(console: Console, batch: int, metric: str) -> Iterator[Callbacks]:
    """What `secateur.recover` calls back; the bar stands while the context is open."""
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}"),
        TextColumn(metric + " {task.fields[metric]}"),
        TextColumn("{task.fields[pace]} examples/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None, loss="-", metric="-", pace="-")

        def on_epoch(epoch: Epoch) -> None:
            loss = f"loss {epoch.loss:.4f}, " if epoch.epoch else ""
            console.print(f"epoch {epoch.epoch}: {loss}validation {metric} {epoch.accuracy:.4f}, {epoch.seconds:.1f} s")
            progress.update(task, metric=f"{epoch.accuracy:.4f}")

        def on_step(step: int, steps: int, loss: float) -> None:
            pace = progress.tasks[task].speed
            shown = f"{pace * batch:.0f}" if pace else "-"
            progress.update(task, completed=step, total=steps, loss=f"{loss:.4f}", pace=shown)

        yield on_epoch, on_step
