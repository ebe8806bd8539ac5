"""Two ONNX files at several batch sizes: a ratio with its interval at each, and the memory that each file takes there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from secateur import measure
from secateur.compare import Comparison, OnRound, compare
from secateur.errors import InputError
from secateur.runtime import Target


@dataclass(frozen=True)
class AtBatch:
    """Both files with requests of one size."""

    batch: int
    compared: Comparison
    first_memory: int  # bytes that loading and running the file adds to a fresh process, at the most
    second_memory: int

    def __str__(self) -> str:
        first, second = (f"{size / 2**20:,.0f} MiB" for size in (self.first_memory, self.second_memory))
        return f"batch {self.batch}: {self.compared.inconclusive or self.compared}; peak memory {first} and {second}"


def at_batches(
    first: str | Path,
    second: str | Path,
    target: Target,
    batches: Sequence[int],
    columns: Sequence[np.ndarray],
    *,
    confidence: float = 0.95,
    until: float | None = None,
    budget_s: float = 30.0,
    seed: int = 0,
    on_round: OnRound = lambda number, seen: None,
) -> tuple[AtBatch, ...]:
    """Compare two files at each batch size in turn; the other settings are those of `compare`, the budget is of each size.

    `columns` are the inputs of examples [N, ...], repeated where a batch has more than N of them.

    Raises:
        InputError: no sizes, a batch that does not fit into memory, or what `compare` refuses.
    """
    if not batches or min(batches) < 1 or len(set(batches)) < len(batches):
        said = ", ".join(map(str, batches)) or "none"
        raise InputError(f"batches: expected different numbers of examples, each at least 1, got {said}")
    found = []
    for batch in batches:
        where = replace(target, batch=batch)
        compared = compare(
            first,
            second,
            where,
            columns,
            confidence=confidence,
            until=until,
            budget_s=budget_s,
            seed=seed,
            on_round=on_round,
        )
        memory = (measure.peak_memory(path, where, columns) for path in (first, second))
        found.append(AtBatch(batch, compared, *memory))
    return tuple(found)
