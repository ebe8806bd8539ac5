"""`secateur decode`: a causal language model with a cache of keys and values, timed token by token, without any server."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tasks.cli import files

if TYPE_CHECKING:
    from secateur.decoding.speed import Figure, Pace, Report


@dataclass(frozen=True)
class Race:
    """What is timed, and beside what."""

    model: Path
    dense: Path | None = None
    prompt: int = 128
    tokens: int = 32
    batches: str = "1,4,8"
    threads: int = 1
    budget_s: float = 30.0
    seed: int = 0


def decode(race: Race, say: Callable[[str], None]) -> Report:
    """Export with a cache, prove that nothing changed, and time; what goes on is told to `say`.

    Raises:
        InputError: a number that is none, or what the library refuses.
    """
    batches = files.batch_sizes(race.batches)
    from secateur import program as programs
    from secateur.decoding import speed

    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:

        def exported(path: Path, name: str) -> speed.Files:
            say(f"{path.name}: split into prompt and step, and exported")
            return speed.export(programs.load(path), Path(folder), name)

        return speed.measure(
            exported(race.model, "model"),
            exported(race.dense, "dense") if race.dense is not None else None,
            prompt=race.prompt,
            tokens=race.tokens,
            batches=batches,
            threads=race.threads,
            budget_s=race.budget_s,
            seed=race.seed,
            say=say,
        )


def told(race: Race, seen: Report) -> list[RenderableType]:
    """Each batch with the figures of both models and their ratio, each with its interval; then what the cache takes."""
    table = Table("batch", "", title=f"prompt of {seen.prompt}, {seen.tokens} tokens after it", title_justify="left")
    for title in ("first token, ms", "each token, ms", "tokens a second"):
        table.add_column(title, justify="right")
    for row in seen.rows:
        if race.dense is not None and row.dense is not None:
            table.add_row(str(row.batch), race.dense.name, *_figures(row.dense))
        table.add_row("" if row.dense else str(row.batch), race.model.name, *_figures(row.model))
        if row.token_speedup is not None:
            speedups = (row.first_token_speedup, row.token_speedup, row.token_speedup)
            table.add_row("", "speedup", *(_figure(one, "x") for one in speedups if one is not None), end_section=True)
    lines = [f"Cache: {seen.bytes_per_token:,} bytes per token in {race.model.name}"]
    if race.dense is not None and seen.dense_bytes_per_token is not None:
        share = seen.bytes_per_token / seen.dense_bytes_per_token
        lines[0] += f", {seen.dense_bytes_per_token:,} in {race.dense.name}: {share:.2f} of it"
    lines.append("Medians over rounds of fresh processes, with 95 % intervals. Choosing a token is not timed.")
    return [table, *map(Text, lines)]


def _figures(pace: Pace) -> list[str]:
    figures: tuple[Figure, ...] = (pace.first_token_ms, pace.token_ms, pace.tokens_per_s)
    return [_figure(one) for one in figures]


def _figure(one: Figure, unit: str = "") -> str:
    value, low, high = (
        f"{number:,.0f}" if number >= 1000 else f"{number:.3g}" for number in (one.value, one.low, one.high)
    )
    return f"{value}{unit}\n{low} to {high}"
