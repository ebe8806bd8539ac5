"""The rows: each makes its models, measures dense against pruned in turns, and says what it was asked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from benchmarks.context import Row, say
from benchmarks.shapes import dense_program, example, onnx_of
from secateur import aiming, compare, gains, machine, measure, prune, quantization
from secateur.allocate import Ratio, Speedup
from secateur.decoding import speed as decoding
from secateur.latency import table
from secateur.load import rate as load
from secateur.pruning import DEFAULT_KINDS, Report
from secateur.runtime import Target
from secateur.sparsity import Unstructured, sparsify

UNTIL, BUDGET_S = 0.01, 120.0
ALIGN = 8
CALIBRATION = 64  # examples that INT8 takes its ranges from
GOAL = 2.0
PATIENCE = 5.0  # times the dense model's median: the limit that 99 % of the requests keep
# Near half of what a request alone allows 99 of 100 keep that limit or just do not, so that the dense bracket is looked for among
# low rates, of which a probe of 1,000 requests takes minutes; the ratio asked needs no narrower brackets than this.
RATE_BUDGET_S, RATE_SECONDS, RATE_TOLERANCE = 3600.0, 10.0, 0.15
PROMPT, TOKENS, BATCHES = 128, 32, (1, 4)


@dataclass(frozen=True)
class Bench:
    """What all rows are measured with; `cache` keeps programs, files and the times of operations."""

    target: Target
    cache: Path
    seed: int


def compared(
    dense: Path, pruned: Path, bench: Bench, name: str, batch: int = 1, budget_s: float = BUDGET_S
) -> dict[str, Any]:
    """The speedup of a file with its interval."""
    target = Target(threads=bench.target.threads, batch=batch)
    seen = compare.compare(
        dense, pruned, target, [example(name, bench.seed)], until=UNTIL, budget_s=budget_s, seed=bench.seed
    )
    say(f"{pruned.stem}, batch {batch}: {seen}")
    return {
        "ratio": seen.speedup,
        "low": seen.low,
        "high": seen.high,
        "dense_ms": seen.first.p50_ms,
        "pruned_ms": seen.second.p50_ms,
        "noise": str(seen.noise),
        "inconclusive": seen.inconclusive,
    }


def _kept(path: Path, make: Callable[[], ExportedProgram]) -> ExportedProgram:
    """A program that is made once."""
    if not path.exists():
        torch.export.save(make(), path.with_suffix(".new.pt2"))
        path.with_suffix(".new.pt2").rename(path)
    return torch.export.load(path)


def _dense(name: str, bench: Bench) -> tuple[ExportedProgram, Path]:
    program = dense_program(name, bench.cache, bench.seed)
    return program, onnx_of(program, bench.cache / f"{name}.onnx")


def _halved(name: str, bench: Bench) -> Path:
    """Half the units of every axis gone, widths aligned."""
    path = bench.cache / f"{name} half.onnx"
    if path.exists():
        return path
    program = dense_program(name, bench.cache, bench.seed)
    return onnx_of(prune(program, goal=Ratio(0.5), align=ALIGN)[0], path)


def _int8(dense: Path, bench: Bench, name: str) -> Path:
    """The INT8 form of a file, its ranges from examples as the model is given them."""
    path = dense.with_name(f"{dense.stem} int8.onnx")
    if not path.exists():
        examples = np.concatenate([example(name, bench.seed + number) for number in range(CALIBRATION)])
        quantization.quantise(dense, path, [examples], bench.target)
    return path


def resnet_half(bench: Bench) -> list[Row]:
    """Half the channels, batch 1 and 8."""
    _, dense = _dense("ResNet-50", bench)
    pruned = _halved("ResNet-50", bench)
    return [
        {
            "what": f"ResNet-50 224x224, half the channels, batch {batch}",
            "asked": "at least 3.3x",
            **(seen := compared(dense, pruned, bench, "ResNet-50", batch)),
            "held": seen["ratio"] >= 3.3,
        }
        for batch in (1, 8)
    ]


def resnet_int8(bench: Bench) -> list[Row]:
    """The same in INT8, and the dense one in INT8 beside it."""
    _, dense = _dense("ResNet-50", bench)
    rows: list[Row] = []
    for what, file, least in (
        ("ResNet-50, half the channels + INT8", _halved("ResNet-50", bench), 6.0),
        ("ResNet-50, dense in INT8", dense, None),
    ):
        seen = compared(dense, _int8(file, bench, "ResNet-50"), bench, "ResNet-50")
        rows.append(
            {
                "what": what,
                "asked": f"at least {least:g}x" if least else "to stand beside",
                **seen,
                "held": None if least is None else seen["ratio"] >= least,
            }
        )
    return rows


def resnet_goal(bench: Bench) -> list[Row]:
    """A speedup that is asked for: by the knapsack, and by the same share off every axis."""
    program, dense = _dense("ResNet-50", bench)
    inputs = [example("ResNet-50", bench.seed)]
    latencies = table.measure(
        program,
        bench.target,
        dense=measure.latency(dense, bench.target, inputs, 10.0).p50_ms / 1e3,
        kinds=DEFAULT_KINDS,
        align=ALIGN,
        folder=bench.cache / "times",
    )

    def shoot(allocation: str, times: float) -> tuple[float, tuple[Report, dict[str, Any]]]:
        path = bench.cache / f"goal {allocation} {times:.4f}.onnx"
        pruned, report = prune(program, goal=Speedup(times, latencies.predict), allocation=allocation, align=ALIGN)
        seen = compared(dense, onnx_of(pruned, path), bench, "ResNet-50")
        return seen["ratio"], (report, seen)

    rows: list[Row] = []
    removed: dict[str, float] = {}
    for allocation in ("uniform", "knapsack"):
        shots = aiming.aim(functools.partial(shoot, allocation), GOAL)
        shot = aiming.best(shots, GOAL)
        report, seen = shot.made
        removed[allocation] = report.sparsity
        rows.append(
            {
                "what": f"ResNet-50, goal speedup {GOAL:g}, {allocation}",
                "asked": "within 5 % of the goal",
                **seen,
                "held": abs(shot.reached / GOAL - 1) <= 0.05,
                "note": f"{report.sparsity:.1%} of the parameters removed, {len(shots)} cuts measured",
            }
        )
    fewer = 1 - removed["knapsack"] / removed["uniform"]
    rows[-1]["asked"] += ", at least 25 % fewer parameters removed than uniform"
    rows[-1]["note"] += f", {fewer:.0%} fewer than uniform"
    rows[-1]["held"] = rows[-1]["held"] and fewer >= 0.25
    return rows


def bert(bench: Bench) -> list[Row]:
    """40 % of the heads and of the feed-forward width: does the time follow the arithmetic?"""
    program, dense = _dense("BERT-base", bench)
    pruned, report = prune(program, goal=Ratio(0.4), kinds=("head", "width"), align=ALIGN)
    seen = compared(dense, onnx_of(pruned, bench.cache / "BERT-base 40.onnx"), bench, "BERT-base")
    macs = report.macs_before / report.macs_after
    return [
        {
            "what": "BERT-base-shaped, sequence 128, 40 % of heads and FFN width",
            "asked": "within 15 % of the MAC ratio",
            **seen,
            "held": abs(seen["ratio"] / macs - 1) <= 0.15,
            "note": f"MACs {macs:.3f}x less",
        }
    ]


def llama(bench: Bench) -> list[Row]:
    """Half the groups of keys and values: the cache, the first token, and those after it."""
    program = dense_program("Llama-100M", bench.cache, bench.seed)
    pruned, _ = prune(program, goal=Ratio(0.5), kinds=("kv_group",))
    dense_files, pruned_files = (
        decoding.export(one, bench.cache, f"Llama-100M {name}") for name, one in (("dense", program), ("half", pruned))
    )
    report = decoding.measure(
        pruned_files,
        dense_files,
        prompt=PROMPT,
        tokens=TOKENS,
        batches=BATCHES,
        threads=bench.target.threads,
        budget_s=BUDGET_S,
        seed=bench.seed,
        say=say,
    )
    before = report.dense_bytes_per_token
    assert before
    rows: list[Row] = []
    for one in report.rows:
        first, token = one.first_token_speedup, one.token_speedup
        assert one.dense
        assert first
        assert token
        rows.append(
            {
                "what": f"Llama-shaped, 110 M, half the KV groups, batch {one.batch}: time a token with {PROMPT} cached",
                "asked": "KV bytes a token halved",
                "ratio": token.value,
                "low": token.low,
                "high": token.high,
                "dense_ms": one.dense.token_ms.value,
                "pruned_ms": one.model.token_ms.value,
                "held": 2 * report.bytes_per_token == before,
                "note": f"{before:,} -> {report.bytes_per_token:,} bytes a token; first token {first.value:.3f}x ({first.low:.3f} to "
                f"{first.high:.3f}); {one.dense.tokens_per_s.value:.0f} -> {one.model.tokens_per_s.value:.0f} tokens/s",
            }
        )
    return rows


def served(bench: Bench) -> list[Row]:
    """Requests a second within a limit that 99 % keep."""
    _, dense = _dense("ResNet-50", bench)
    inputs = [example("ResNet-50", bench.seed)]
    limit = PATIENCE * measure.latency(dense, bench.target, inputs, 10.0).p50_ms
    rates = load.highest_rates(
        [dense, _halved("ResNet-50", bench)],
        bench.target,
        inputs,
        limit,
        seconds=RATE_SECONDS,
        tolerance=RATE_TOLERANCE,
        budget_s=RATE_BUDGET_S,
        seed=bench.seed,
        on_probe=lambda side, probe, low, high: say(
            f"{('dense', 'pruned')[side]}: {probe.rate:.2f}/s {'VALID' if probe.run.valid else 'INVALID'}"
        ),
    )
    gained = load.gain(*rates)
    row: Row = {
        "what": f"ResNet-50, half the channels: requests/s with p99 within {limit:.0f} ms (LoadGen, Server)",
        "asked": "at least 2.5x",
        "note": f"dense {rates[0]}; pruned {rates[1]}",
    }
    if gained is None:
        return [row | {"inconclusive": "a bracket is open", "held": None}]
    return [row | {"ratio": gained.ratio, "low": gained.low, "high": gained.high, "held": gained.ratio >= 2.5}]


def unstructured(bench: Bench) -> list[Row]:
    """Nine in ten weights zero: what it buys in time, and on the wire."""
    program, dense = _dense("ResNet-50", bench)
    path = bench.cache / "ResNet-50 sparse.onnx"
    if not path.exists():
        onnx_of(sparsify(program, pattern=Unstructured(0.9))[0], path)
    seen = compared(dense, path, bench, "ResNet-50")
    gain = gains.gain("unstructured", bench.target.provider, machine.here())
    before, after = (measure.sizes(file).gzip for file in (dense, path))
    return [
        {
            "what": "ResNet-50, 90 % of the weights zero",
            "asked": "about 1.0x, and the plan had said so",
            **seen,
            "held": 0.95 <= seen["ratio"] <= 1.05 and gain.buys == "disk",
            "note": f"the plan says: {gain.buys} ({gain.why}); gzip {before / 1e6:.1f} -> {after / 1e6:.1f} MB, {before / after:.2f}x",
        }
    ]


ROWS: dict[str, Callable[[Bench], Sequence[Row]]] = {
    "resnet-half": resnet_half,
    "resnet-int8": resnet_int8,
    "resnet-goal": resnet_goal,
    "bert": bert,
    "llama": llama,
    "served": served,
    "unstructured": unstructured,
}
