"""Predicted against measured speedup of whole models: two convolutional, two transformers, random weights, three cuts each.

`make bench-predict` runs it and writes `predict.json` and `predict.md`. Dense and pruned model answer by turns, one request
each, and the speedup is the ratio of the median times: by the clock, and, where the target has one thread, by the time that
this thread had the processor, which other work on the machine disturbs less. Programs, files and the times of the operations
are kept in the cache, so that a run that is stopped goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.export import Dim, ExportedProgram

from benchmarks import machine
from benchmarks.context import Row, say
from benchmarks.engine.report import table as markdown_table
from secateur import allocate, onnx_export, pruning, replay
from secateur import program as programs
from secateur.axes.infer import AxisInfo, infer
from secateur.latency.table import measure
from secateur.pruning import DEFAULT_KINDS, Choice
from secateur.runtime import Target, open_session, run

TOKENS, VOCABULARY = 128, 30_000
IMAGE = (3, 224, 224)
CLASSES: dict[str, Any] = {"num_labels": 1000}
FEWEST, SECONDS = 15, 12.0  # requests to each model of a comparison, at least; how long they go on
ALIGN = 8
UNEVEN = (0.2, 0.9)  # shares that stay are drawn between these
Shares = Callable[[AxisInfo, np.random.Generator], float]  # of an axis, what goes
CUTS: dict[str, Shares] = {
    "uniform 25 %": lambda info, rng: 0.25,
    "uniform 50 %": lambda info, rng: 0.5,
    "uneven": lambda info, rng: 1 - float(rng.uniform(*UNEVEN)),
}


class Logits(nn.Module):
    """A classifier of the transformers library, with logits alone as output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model(inputs).logits


def resnet50() -> nn.Module:
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**CLASSES))


def mobilenet_v2() -> nn.Module:
    return transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(**CLASSES))


def bert_base() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig())


def vit_small() -> nn.Module:
    config = transformers.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, **CLASSES)
    return transformers.ViTForImageClassification(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-50": resnet50,
    "MobileNetV2": mobilenet_v2,
    "BERT-base": bert_base,
    "ViT-S": vit_small,
}


@dataclass(frozen=True)
class Bench:
    """What all models are measured with; `cache` keeps programs, files and the times of operations."""

    target: Target
    cache: Path
    seed: int


def main() -> None:
    """Measure, print the table, write the files after each row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
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
            rows = sorted([*rows, row], key=lambda one: list(MODELS).index(one["model"]))
            store(asked.out, rows, bench)
    Console().print(printed(rows))


def kept(path: Path, asked: Sequence[str]) -> list[Row]:
    """The rows of the last run, but for the models that are asked for now."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [row for row in rows if row["model"] not in asked]


def measured(name: str, bench: Bench) -> Iterator[Row]:
    """A row per cut of one model."""
    program = dense_program(name, bench)
    dense = onnx_of(program, bench.cache / f"{name}.onnx")
    inputs = example(name, bench.seed)
    clock, processor = by_turns([dense], bench.target, inputs)
    started = time.perf_counter()
    latencies = measure(
        program,
        bench.target,
        dense=float(np.median(processor if bench.target.threads == 1 else clock)),
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
        row |= speedups([dense, pruned], bench.target, inputs) | {"untimed": latencies.untimed, "table_s": took}
        say(f"{name}, {cut}: {row['predicted']:.3f} predicted, {row['processor']:.3f} / {row['clock']:.3f} measured")
        yield row


def dense_program(name: str, bench: Bench) -> ExportedProgram:
    """A model with random weights; those that would be all zeros or all ones differ too, as in a trained one."""
    path = bench.cache / f"{name}.pt2"
    if not path.exists():
        torch.manual_seed(bench.seed)
        model = Logits(MODELS[name]()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02 if parameter.dim() == 1 else 0.0)
        inputs = torch.from_numpy(np.concatenate([example(name, bench.seed)] * 2))
        torch.export.save(torch.export.export(model, (inputs,), dynamic_shapes=({0: Dim.AUTO},)), path)
    return torch.export.load(path)


def example(name: str, seed: int) -> np.ndarray:
    """One input of a model."""
    rng = np.random.default_rng(seed)
    if name == "BERT-base":
        return rng.integers(0, VOCABULARY, (1, TOKENS))
    return rng.standard_normal((1, *IMAGE), dtype=np.float32)


def onnx_of(program: ExportedProgram, path: Path) -> Path:
    """The program's ONNX file, written unless it is there."""
    if not path.exists():
        beside = path.with_suffix(".new")
        onnx_export.export(program, beside)
        beside.rename(path)
    return path


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


def speedups(paths: Sequence[Path], target: Target, inputs: np.ndarray) -> Row:
    """The second file's speedup over the first: by the clock, and by processor time (NaN with several threads)."""
    clock, processor = (np.median(seconds, axis=1) for seconds in by_turns(paths, target, inputs))
    one = target.threads == 1
    before, after = processor if one else clock
    return {
        "clock": float(clock[0] / clock[1]),
        "processor": float(processor[0] / processor[1]) if one else math.nan,
        "dense_ms": float(before * 1e3),
        "pruned_ms": float(after * 1e3),
    }


def by_turns(paths: Sequence[Path], target: Target, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of requests [file, request] by the clock and of this thread's processor time; the files answer by turns."""
    sessions = [open_session(path, target) for path in paths]
    rows: list[list[tuple[float, float]]] = []
    end = time.perf_counter() + SECONDS * len(paths)
    while len(rows) <= FEWEST or time.perf_counter() < end:
        rows.append([])
        for session in sessions:
            clock, processor = time.perf_counter(), time.thread_time()
            run(session, inputs)
            rows[-1].append((time.perf_counter() - clock, time.thread_time() - processor))
    seconds = np.array(rows[1:])  # the first warms up
    return seconds[:, :, 0].T, seconds[:, :, 1].T


def error_of(row: Row) -> float:
    """Of the predicted speedup, relative to the measured one."""
    measured = row["clock"] if math.isnan(row["processor"]) else row["processor"]
    return row["predicted"] / measured - 1


HEAD = ("model", "cut", "dense, ms", "pruned, ms", "predicted", "measured, processor", "measured, clock", "error")


def cells(row: Row) -> list[str]:
    """One line of the table."""
    numbers = [f"{row[key]:.2f}" for key in ("dense_ms", "pruned_ms", "predicted", "processor", "clock")]
    return [row["model"], row["cut"], *numbers, f"{error_of(row):+.1%}"]


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
        "program. Measured: dense and pruned file by turns, ratio of median times; the error is against the time that the "
        "processor worked, where the target has one thread, since other work on the machine disturbs the clock.",
        markdown_table(HEAD, map(cells, rows)),
        f"Largest error {max(errors):.1%}, mean {np.mean(errors):.1%}. Times of operations, where not kept from before: {took}.",
        f"`{said['command']}` on {said['date']}, code {said['code']}, seed {bench.seed}, {bench.target.threads} thread(s) for "
        f"the runtime. {said['machine']}; {versions}.",
    ]
    (out / "predict.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
