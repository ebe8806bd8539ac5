"""`secateur compare`, `explain` and `quantize`: what is done with ONNX files alone, without any server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from secateur.errors import InputError

if TYPE_CHECKING:
    import numpy as np

    from secateur.batches import AtBatch
    from secateur.compare import OnRound
    from secateur.explain.difference import Difference, Pair
    from secateur.half import Halved
    from secateur.quantization import Quantised
    from secateur.runtime import Target


@dataclass(frozen=True)
class Match:
    """What is compared, and how long; `target` is a YAML file like the `target` section of a recipe."""

    first: Path
    second: Path
    target: Path | None = None
    examples: Path | None = None
    length: int | None = None
    batches: str = ""  # by comma; those of the target where there are none
    until: float = 0.01
    budget_s: float = 60.0
    confidence: float = 0.95
    seed: int = 0


def compare(match: Match, on_round: OnRound) -> tuple[AtBatch, ...]:
    """Time both files in turns, at each batch size of the match, or at the target's where it names none.

    Raises:
        InputError: the files take different inputs, or what the library refuses.
    """
    from secateur import batches

    sizes = batch_sizes(match.batches) if match.batches else []
    paths = (match.first, match.second)
    target, columns = requests_of(
        paths, match.target, match.examples, match.length, match.seed, max(sizes, default=None)
    )
    return batches.at_batches(
        match.first,
        match.second,
        target,
        sizes or [target.batch],
        columns,
        confidence=match.confidence,
        until=match.until,
        budget_s=match.budget_s,
        seed=match.seed,
        on_round=on_round,
    )


def batch_sizes(text: str) -> list[int]:
    """Numbers by comma.

    Raises:
        InputError: something else.
    """
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise InputError(f"batches: expected numbers by comma, such as 1,4,8, got {text!r}")
    return [int(part) for part in parts]


def explain(match: Match) -> Difference:
    """Profile both files, dense first, and say where the second is slower than its work promised.

    Raises:
        InputError: the files take different inputs, or what the library refuses.
    """
    from secateur.explain import difference

    target, columns = requests_of((match.first, match.second), match.target, match.examples, match.length, match.seed)
    return difference.explain(match.first, match.second, target, columns, match.budget_s / 2)


def requests_of(
    paths: Sequence[Path],
    target: Path | None,
    examples: Path | None,
    length: int | None,
    seed: int,
    batch: int | None = None,
) -> tuple[Target, list[np.ndarray]]:
    """The target of a YAML file like a recipe's section, and examples that all the files take, of a file or made up.

    Those that are made up are as many as `batch` says, or the target's batch.

    Raises:
        InputError: the files take different inputs, or one of the files or settings cannot be used.
    """
    from secateur import requests

    if length is not None and length < 1:
        raise InputError(f"length: expected at least 1, got {length}")
    where = target_from(target)
    inputs, *others = (requests.inputs_of(path, where) for path in paths)
    for other in others:
        if other != inputs:
            raise InputError(f"model: expected files with the same inputs, got {inputs} and {other}")
    if examples:
        return where, requests.read(examples, inputs)
    return where, requests.made_up(inputs, batch or where.batch, length or where.length, seed)


def quantise(
    model: Path, output: Path, examples: Path, target_file: Path | None, calibration: int, method: str, seed: int
) -> Quantised:
    """Write the INT8 form of a file, calibrated on so many of the examples, drawn by the seed.

    Raises:
        InputError: no example is asked for, or what the library refuses.
    """
    import numpy as np

    from secateur import quantization, requests

    if calibration < 1:
        raise InputError(f"calibration: expected at least 1 example, got {calibration}")
    target = target_from(target_file)
    columns = requests.read(examples, requests.inputs_of(model, target))
    drawn = np.sort(np.random.default_rng(seed).permutation(len(columns[0]))[:calibration])
    return quantization.quantise(model, output, [column[drawn] for column in columns], target, method=method)


def halve(model: Path, output: Path, examples: Path, target_file: Path | None) -> Halved:
    """Write the FP16 form of a file, which must answer some of the examples with finite numbers.

    Raises:
        InputError: what the library refuses.
    """
    from secateur import half, requests

    target = target_from(target_file)
    return half.halve(model, output, requests.read(examples, requests.inputs_of(model, target)), target)


def target_from(path: Path | None) -> Target:
    """The target that a YAML file says, or the CPU."""
    from secateur.runtime import Target
    from tasks import recipe

    if path is None:
        return Target()
    if not path.is_file():
        raise InputError(f"target: expected a YAML file like the target section of a recipe, got {path}")
    section = recipe.section(recipe.TargetSection, path.read_text(encoding="utf-8"), f"target {path}")
    return Target(**section.settings)


@contextmanager
def watched(console: Console) -> Iterator[OnRound]:
    """A line that is rewritten as the interval narrows, on a terminal; elsewhere nothing until the end."""
    if not console.is_terminal:
        yield lambda number, seen: None
        return
    with Live(Text("starting"), console=console, transient=True, auto_refresh=False) as live:
        yield lambda number, seen: live.update(
            Text(f"round {number}: {seen or 'too few for an interval'}"), refresh=True
        )


def told(match: Match, seen: Sequence[AtBatch]) -> list[RenderableType]:
    """At each batch size both files' figures, and the speedup with its interval; where that is wider than asked, why."""
    return [part for one in seen for part in _told(match, one)]


def _told(match: Match, at: AtBatch) -> list[RenderableType]:
    seen, table = at.compared, Table()
    table.add_column(f"batch {at.batch}")
    for path in (match.first, match.second):
        table.add_column(path.name, justify="right", overflow="fold")
    for title, name in (("latency p50", "p50_ms"), ("latency p90", "p90_ms"), ("latency p99", "p99_ms")):
        table.add_row(title, *(_milliseconds(getattr(side, name)) for side in (seen.first, seen.second)))
    table.add_row("examples a second", *(f"{side.throughput:,.0f}" for side in (seen.first, seen.second)))
    table.add_row("peak memory", *(f"{size / 2**20:,.1f} MiB" for size in (at.first_memory, at.second_memory)))
    table.add_row("requests timed", *(f"{side.samples:,}" for side in (seen.first, seen.second)))
    lines = [f"{match.second.name} against {match.first.name}, batch {at.batch}: {seen}"]
    if seen.low <= 1 <= seen.high:
        lines.append("The interval holds 1: neither is shown to be faster.")
    if seen.settled < 1:
        lines.append(f"In {1 - seen.settled:.0%} of the rounds times still had a trend when they were measured.")
    if seen.inconclusive:
        lines.append(f"Inconclusive: {seen.inconclusive}")
    return [table, *map(Text, lines)]


def _milliseconds(value: float | None) -> str:
    return "too few requests" if value is None else f"{value:.3f} ms"


def explained(match: Match, seen: Difference, most: int = 12) -> list[RenderableType]:
    """The nodes that lost most against their promise, the ratios of the whole, and the reasons."""
    table = Table(title="nodes, those that lost most against their promise first")
    for head in ("node", "operator", "dense, ms", "pruned, ms", "work", "time"):
        table.add_column(head, justify="left" if head in ("node", "operator") else "right", overflow="fold")
    for pair in [pair for pair in seen.pairs if pair.why][:most]:
        table.add_row(pair.node.name, pair.node.op, *_numbers(pair))
    return [*([table] if table.row_count else []), Text(str(seen))]


def _numbers(pair: Pair) -> list[str]:
    times = ["-" if node is None else f"{node.seconds * 1e3:.3f}" for node in (pair.dense, pair.pruned)]
    if pair.dense is None or pair.pruned is None:
        return [*times, "-", "-"]
    work = (pair.dense.macs / pair.pruned.macs) if pair.pruned.macs else pair.dense.bytes / max(pair.pruned.bytes, 1)
    return [*times, f"{work:.2f}x less", f"{pair.dense.seconds / max(pair.pruned.seconds, 1e-9):.2f}x less"]
