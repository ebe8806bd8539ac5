"""What a file costs on its target, by itself, with an interval: over fresh processes, as everything that is timed here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from secateur import compare
from secateur.gate.bounds import Bounds
from secateur.measure import FOR_P99, request_of, summarise
from secateur.runtime import Target
from secateur.worker import working


def costs(path: str | Path, target: Target, columns: Sequence[np.ndarray], confidence: float) -> tuple[Bounds, Bounds]:
    """The 99th percentile of request times in ms, and the peak memory in 10^6 bytes that the file adds to a process.

    Each of several fresh processes gives one of both, from as many requests as a 99th percentile takes; the interval is that
    of the median over processes (`compare.interval`), for where a process lies in memory makes it faster or slower as long as
    it lives.

    Args:
        path: of the ONNX file.
        target: what it is run on.
        columns: the inputs of examples [N, ...], in the program's order.
        confidence: of the interval; its ends are as sure as (1 + confidence) / 2.

    Raises:
        InputError: the file cannot be loaded, or its outputs are not finite.
    """
    request = request_of(columns, target)
    p99, memory = [], []
    for _ in range(compare.fewest_rounds(confidence)):
        with working([path], target, request) as (worker,):
            block = worker.block(FOR_P99, lead=FOR_P99 // 20)
        p99.append(summarise(block.seconds, target.batch).p99_ms)
        memory.append(block.peak_bytes / 1e6)
    found = []
    for values in (np.array(p99, dtype=float), np.array(memory)):
        found.append((float(np.median(values)), *compare.interval(values, confidence)))
    return found[0], found[1]
