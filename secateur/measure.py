"""Latency, memory and sizes of an ONNX file on a target; figures with enough samples behind them, or none."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from secateur.errors import InputError
from secateur.runtime import Target
from secateur.worker import working

SAMPLES_BEYOND = 10  # a percentile is reported when at least this many samples lie beyond it
WARM_UP = 50  # requests, of slow files as many as fit into a tenth of the budget
FEWEST, MOST = 30, 5000  # requests that are timed
CHUNK = 1 << 20  # bytes of a file that are read at a time
FOR_P99 = 100 * SAMPLES_BEYOND  # requests without which there is none
PERCENTS = (1, 2, *range(5, 100, 5), 98, 99)  # that draw a distribution


@dataclass(frozen=True)
class Latency:
    """Milliseconds per request of one batch, and requests' examples per second.

    `curve` draws the distribution: percents of the requests with the milliseconds that they took at most.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float | None
    throughput: float
    samples: int
    curve: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Sizes:
    """Bytes of an ONNX file: on disk, compressed as on a wire (gzip), and of its weights once they are loaded."""

    file: int
    gzip: int
    weights: int


def sizes(path: str | Path) -> Sizes:
    """What a file takes before it computes anything. Zeros cost memory, but hardly a byte of a compressed file."""
    compressor, compressed = zlib.compressobj(wbits=zlib.MAX_WBITS | 16), 0
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            compressed += len(compressor.compress(chunk))
    compressed += len(compressor.flush())
    weights = sum(_bytes_of(tensor) for tensor in onnx.load(path).graph.initializer)
    return Sizes(Path(path).stat().st_size, compressed, weights)


def _bytes_of(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize


def request_of(columns: Sequence[np.ndarray], target: Target) -> list[np.ndarray]:
    """One batch of every input [N, ...], of the target's size and length, examples repeated where there are fewer.

    Raises:
        InputError: the examples are shorter than the target's length, or so many do not fit into memory.
    """
    try:
        return shortened([column[np.arange(target.batch) % len(column)] for column in columns], target)
    except MemoryError as error:
        raise InputError(
            f"target.batch: expected as many examples as memory holds, {target.batch:,} do not fit: {error}"
        ) from error


def shortened(columns: Sequence[np.ndarray], target: Target) -> list[np.ndarray]:
    """Of each example the first positions, as many as the target's length says, all of them where it says nothing.

    Raises:
        InputError: the examples are shorter than that.
    """
    if target.length is None:
        return list(columns)
    shortest = min(column.shape[1] if column.ndim > 1 else 0 for column in columns)
    if target.length > shortest:
        raise InputError(
            f"target.length: expected at most the {shortest} positions of the examples, got {target.length}; latency is "
            "measured on real examples"
        )
    return [column[:, : target.length] for column in columns]


def summarise(seconds: np.ndarray, batch: int) -> Latency:
    """Percentiles of request times; p99, like the ends of the curve, only when ten samples lie beyond it."""
    p50, p90, p99 = np.percentile(seconds * 1e3, [50, 90, 99])
    enough = len(seconds) >= FOR_P99
    drawn = [percent for percent in PERCENTS if min(percent, 100 - percent) * len(seconds) >= FOR_P99]
    return Latency(
        float(p50),
        float(p90),
        float(p99) if enough else None,
        float(batch / seconds.mean()),
        len(seconds),
        tuple(zip(drawn, map(float, np.percentile(seconds * 1e3, drawn)), strict=True)),
    )


def latency(
    path: str | Path, target: Target, columns: Sequence[np.ndarray], budget_s: float = 3.0, fewest: int = FEWEST
) -> Latency:
    """Request times of one file, warm-up left out: as many as fit into the time budget, and at least `fewest`.

    `columns` are the inputs of examples [N, ...], in the program's order.

    Raises:
        InputError: the file cannot be loaded, or its outputs are not finite.
    """
    with working([path], target, request_of(columns, target)) as (worker,):
        first = float(np.median(worker.block(3).seconds))
        warm = int(np.clip(budget_s / 10 / first, 1, WARM_UP))
        per_request = float(np.median(worker.block(warm).seconds))
        count = int(np.clip(budget_s / per_request, fewest, max(MOST, fewest)))
        return summarise(worker.block(count).seconds, target.batch)


def peak_memory(path: str | Path, target: Target, columns: Sequence[np.ndarray]) -> int:
    """Peak resident bytes that loading and running the file adds to a fresh process.

    Raises:
        InputError: the file cannot be loaded, or its outputs are not finite.
    """
    with working([path], target, request_of(columns, target)) as (worker,):
        return worker.block(10).peak_bytes
