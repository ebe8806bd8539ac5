"""Latency, memory and speedup of ONNX files on a target; figures with enough samples behind them, or none."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from secateur.errors import InputError
from secateur.runtime import Target, open_session, run

SAMPLES_BEYOND = 10  # a percentile is reported when at least this many samples lie beyond it
WARM_UP = 50


@dataclass(frozen=True)
class Latency:
    """Milliseconds per request of one batch, and requests' examples per second."""

    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    throughput: float
    samples: int


@dataclass(frozen=True)
class Comparison:
    """Speedup of the second file over the first: the ratio of their latencies, with a bootstrap interval over blocks."""

    speedup: float
    low: float
    high: float
    confidence: float
    blocks: int
    first: Latency
    second: Latency


def _time_requests(session: ort.InferenceSession, request: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Seconds of `count` requests in a row."""
    stamps = np.empty(count + 1)
    stamps[0] = time.perf_counter()
    for i in range(1, count + 1):
        run(session, *request)
        stamps[i] = time.perf_counter()
    return np.diff(stamps)


def request_of(columns: Sequence[np.ndarray], target: Target) -> list[np.ndarray]:
    """One batch of every input [N, ...], of the target's size, examples repeated where there are fewer.

    Of each example the first positions, as many as the target's length says, all of them where it says nothing.

    Raises:
        InputError: the examples are shorter than that.
    """
    batch = [column[np.arange(target.batch) % len(column)] for column in columns]
    if target.length is None:
        return batch
    shortest = min(column.shape[1] if column.ndim > 1 else 0 for column in batch)
    if target.length > shortest:
        raise InputError(
            f"target.length: expected at most the {shortest} positions of the examples, got {target.length}; latency is "
            "measured on real examples"
        )
    return [column[:, : target.length] for column in batch]


def summarise(seconds: np.ndarray, batch: int) -> Latency:
    """Percentiles of request times; p99 only when ten samples lie beyond it."""
    p50, p90, p99 = np.percentile(seconds * 1e3, [50, 90, 99])
    enough = len(seconds) * 0.01 >= SAMPLES_BEYOND
    return Latency(float(p50), float(p90), float(p99) if enough else None, float(batch / seconds.mean()), len(seconds))


def latency(path: str | Path, target: Target, columns: Sequence[np.ndarray], budget_s: float = 3.0) -> Latency:
    """Request times of one file, warm-up left out: at least enough for p99, within the time budget if that allows it.

    `columns` are the inputs of examples [N, ...], in the program's order.
    """
    session = open_session(path, target)
    request = request_of(columns, target)
    per_request = float(np.median(_time_requests(session, request, WARM_UP)))
    count = int(np.clip(budget_s / per_request, 30, 5000))
    return summarise(_time_requests(session, request, count), target.batch)


def compare(
    first: str | Path,
    second: str | Path,
    target: Target,
    columns: Sequence[np.ndarray],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    blocks: int = 60,
    block_s: float = 0.05,
) -> Comparison:
    """Time two files alternately, in blocks of random order, so that what disturbs the machine disturbs both.

    The speedup is the geometric mean over blocks of the ratio of median times; the interval resamples whole blocks
    (percentile bootstrap, Efron and Tibshirani 1993), because neighbouring requests are not independent.
    """
    rng = np.random.default_rng(seed)
    sessions = [open_session(path, target) for path in (first, second)]
    request = request_of(columns, target)
    counts = [max(5, int(block_s / np.median(_time_requests(s, request, WARM_UP)))) for s in sessions]
    times: list[list[np.ndarray]] = [[], []]
    for _ in range(blocks):
        for which in rng.permutation(2):
            times[which].append(_time_requests(sessions[which], request, counts[which]))
    medians = np.array([[np.median(block) for block in blocks_of] for blocks_of in times])
    ratios = np.log(medians[0] / medians[1])
    resampled = ratios[rng.integers(0, blocks, (4000, blocks))].mean(axis=1)
    low, high = np.exp(np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2]))
    summaries = [summarise(np.concatenate(blocks_of), target.batch) for blocks_of in times]
    return Comparison(float(np.exp(ratios.mean())), float(low), float(high), confidence, blocks, *summaries)


def peak_memory(path: str | Path, target: Target, columns: Sequence[np.ndarray]) -> int:
    """Peak resident bytes that loading and running the file adds to a fresh process; of `columns` only sizes and types count."""
    inputs = [(one.shape, str(one.dtype)) for one in request_of(columns, target)]
    request = json.dumps({"path": str(path), "target": vars(target), "inputs": inputs})
    done = subprocess.run(
        [sys.executable, "-m", "secateur.measure"],
        input=request,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed: {done.stderr.strip()[-500:]}")
    return int(json.loads(done.stdout)["bytes"])


def _peak_in_this_process() -> None:
    """The body of the fresh process: reads a request from standard input, prints the growth of its peak."""
    request = json.loads(sys.stdin.read())
    before = _peak_resident()
    session = open_session(request["path"], Target(**request["target"]))
    inputs = [np.zeros(shape, dtype=dtype) for shape, dtype in request["inputs"]]
    for _ in range(10):
        run(session, *inputs)
    print(json.dumps({"bytes": _peak_resident() - before}))


def _peak_resident() -> int:
    """Peak resident bytes of this process; `ru_maxrss` would start at the parent's peak, this starts at exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


if __name__ == "__main__":
    _peak_in_this_process()
