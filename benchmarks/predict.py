"""Predicted against measured speedup of whole models: two convolutional, two transformers, random weights, three cuts each.

`make bench-predict` runs it and writes `predict.json` and `predict.md`. Measured is what `secateur compare` measures. Programs, files
and the times of the operations are kept in the cache, so that a run that is stopped goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
from rich.console import Console
from rich.table import Table
from torch.export import ExportedProgram

from benchmarks import machine
from benchmarks.context import Row, say
from benchmarks.engine.report import table as markdown_table
from benchmarks.shapes import dense_program, example, onnx_of
from secateur import allocate, pruning, replay
from secateur import program as programs
from secateur.axes.infer import AxisInfo, infer
from secateur.compare import compare
from secateur.latency.table import measure
from secateur.measure import latency
from secateur.pruning import DEFAULT_KINDS, Choice
from secateur.runtime import Target

UNTIL, SECONDS = 0.01, 90.0  # half-width of a measured speedup's interval, and how long it may take
ALIGN = 8
UNEVEN = (0.2, 0.9)  # shares that stay are drawn between these
Shares = Callable[[AxisInfo, np.random.Generator], float]  # of an axis, what goes
CUTS: dict[str, Shares] = {
    "uniform 25 %": lambda info, rng: 0.25,
    "uniform 50 %": lambda info, rng: 0.5,
    "uneven": lambda info, rng: 1 - float(rng.uniform(*UNEVEN)),
}


NAMES = ("ResNet-50", "MobileNetV2", "BERT-base", "ViT-S")


@dataclass(frozen=True)
class Bench:
    """What all models are measured with; `cache` keeps programs, files and the times of operations."""

    target: Target
    cache: Path
    seed: int


def main() -> None:
    """Measure, print the table, write the files after each row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cache", type=Path, default=Path(".bench/predict"))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    asked.cache.mkdir(parents=True, exist_ok=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(Target(threads=asked.threads), asked.cache, asked.seed)
    rows = kept(asked.out / "predict.json", asked.models)
    for name in asked.models:
        for row in measured(name, bench):
            rows = sorted([*rows, row], key=lambda one: NAMES.index(one["model"]))
            store(asked.out, rows, bench)
    Console().print(printed(rows))


def kept(path: Path, asked: Sequence[str]) -> list[Row]:
    """The rows of the last run, but for the models that are asked for now."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [row for row in rows if row["model"] not in asked]


def measured(name: str, bench: Bench) -> Iterator[Row]:
    """A row per cut of one model."""
    program = dense_program(name, bench.cache, bench.seed)
    dense = onnx_of(program, bench.cache / f"{name}.onnx")
    inputs = example(name, bench.seed)
    alone = latency(dense, bench.target, [inputs], SECONDS / 10)
    started = time.perf_counter()
    latencies = measure(
        program,
        bench.target,
        dense=alone.p50_ms / 1e3,
        kinds=DEFAULT_KINDS,
        align=ALIGN,
        folder=bench.cache / "times",
    )
    took = time.perf_counter() - started
    say(
        f"{name}: {len(latencies.timed)} operations in {took:.0f} s; not timed: {', '.join(latencies.untimed) or 'none'}"
    )
    for cut, shares in CUTS.items():
        widths = widths_of(program, shares, bench.seed)
        pruned = bench.cache / f"{name} {cut}.onnx"
        if not pruned.exists():
            onnx_of(replay(program, {axis: range(width) for axis, width in widths.items()})[0], pruned)
        row: Row = {"model": name, "cut": cut, "predicted": latencies.predict({}) / latencies.predict(widths)}
        seen = compare(dense, pruned, bench.target, [inputs], until=UNTIL, budget_s=SECONDS, seed=bench.seed)
        row |= {"measured": seen.speedup, "low": seen.low, "high": seen.high, "inconclusive": seen.inconclusive}
        row |= {"dense_ms": seen.first.p50_ms, "pruned_ms": seen.second.p50_ms, "noise": str(seen.noise)}
        row |= {"untimed": latencies.untimed, "table_s": took}
        say(f"{name}, {cut}: {row['predicted']:.3f} predicted, {seen}")
        yield row


def widths_of(program: ExportedProgram, shares: Shares, seed: int) -> dict[str, int]:
    """Aligned widths of a cut, by axis name."""
    rng = np.random.default_rng(seed)
    structure = infer(programs.graph_module(program, shared=True))
    widths = {}
    for info in pruning.choose_axes(structure, Choice()):
        ladder = allocate.ladder(info, ALIGN, floor=0.0)
        (width,) = allocate.nearest([info], [ladder], shares(info, rng)).values()
        if width < info.size:
            widths[info.name] = width
    return widths


def error_of(row: Row) -> float:
    """Of the predicted speedup, relative to the measured one."""
    return row["predicted"] / row["measured"] - 1


HEAD = ("model", "cut", "dense, ms", "pruned, ms", "predicted", "measured", "95 % interval", "error")


def cells(row: Row) -> list[str]:
    """One line of the table."""
    numbers = [f"{row[key]:.2f}" for key in ("dense_ms", "pruned_ms", "predicted", "measured")]
    return [row["model"], row["cut"], *numbers, f"{row['low']:.2f} to {row['high']:.2f}", f"{error_of(row):+.1%}"]


def printed(rows: Sequence[Row]) -> Table:
    """The rows on a terminal."""
    table = Table(*HEAD, title="speedup, predicted and measured")
    for row in rows:
        table.add_row(*cells(row))
    return table


def store(out: Path, rows: Sequence[Row], bench: Bench) -> None:
    """Write what is measured so far as JSON and as a page of Markdown."""
    used = machine.versions() | {"onnxruntime": ort.__version__}
    said: Row = {
        "command": "make bench-predict" + (f" THREADS={bench.target.threads}" if bench.target.threads > 1 else ""),
        "date": datetime.date.today().isoformat(),
        "seed": bench.seed,
        "code": machine.commit(),
        "machine": machine.in_words(),
        "target": vars(bench.target),
        "versions": used,
    }
    (out / "predict.json").write_text(json.dumps(said | {"rows": list(rows)}, indent=1) + "\n", encoding="utf-8")
    versions = ", ".join(f"{name} {version}" for name, version in used.items())
    took = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in {r["model"]: r["table_s"] for r in rows}.items())
    errors = [abs(error_of(row)) for row in rows]
    page = [
        "# Predicted and measured speedup",
        "Written by `make bench-predict`; the numbers are in `predict.json`.",
        "Models of these shapes with random weights, one example, in ONNX Runtime. Predicted: from the latency table of the dense "
        "program. Measured: dense and pruned file in turns, each in fresh processes, as `secateur compare` does.",
        markdown_table(HEAD, map(cells, rows)),
        f"Largest error {max(errors):.1%}, mean {np.mean(errors):.1%}. Times of operations, where not kept from before: {took}.",
        f"`{said['command']}` on {said['date']}, code {said['code']}, seed {bench.seed}, {bench.target.threads} thread(s) for "
        f"the runtime. {said['machine']}; {versions}.",
    ]
    (out / "predict.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
