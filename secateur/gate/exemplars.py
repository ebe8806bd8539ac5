"""Pruning-identified exemplars (Hooker et al. 2019): which examples only the dense model gets right, and of which classes.

Where a model forgets says more than how much: a small share that gathers in one class is that class's loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import hypergeom

KEPT = 50  # the worst, to be looked at


@dataclass(frozen=True)
class ClassLoss:
    """What a class lost. `p` is the chance that so many of all exemplars fall into it by chance, corrected for the number of
    classes."""

    label: int
    examples: int
    lost: int
    p: float


@dataclass(frozen=True)
class Exemplars:
    """Positions of the worst exemplars in the test set, the surest wrong answers first, and the classes, most lost first."""

    lost: int
    worst: tuple[int, ...]
    classes: tuple[ClassLoss, ...]


def exemplars(
    dense_right: np.ndarray, pruned_right: np.ndarray, labels: np.ndarray, certainty: np.ndarray | None
) -> Exemplars:
    """Find them.

    Args:
        dense_right: which examples [N] the dense model gets right.
        pruned_right: which the pruned model does.
        labels: the class of each [N].
        certainty: the probability that the pruned model gives its answers [N], to sort by; without, the order stays.
    """
    lost = dense_right & ~pruned_right
    positions = np.flatnonzero(lost)
    if certainty is not None:
        positions = positions[np.argsort(-certainty[positions], kind="stable")]
    return Exemplars(len(positions), tuple(positions[:KEPT].tolist()), _classes(lost, labels))


def _classes(lost: np.ndarray, labels: np.ndarray) -> tuple[ClassLoss, ...]:
    """Fisher's exact test of each class against the others, one-sided, corrected by Holm (Scandinavian Journal of Statistics
    6:65-70, 1979)."""
    names, number = np.unique(labels, return_inverse=True)
    sizes, counts = np.bincount(number), np.bincount(number[lost], minlength=len(names))
    chances = hypergeom.sf(counts - 1, len(labels), int(lost.sum()), sizes)
    order = np.argsort(chances, kind="stable")
    holm = np.empty(len(names))
    holm[order] = np.minimum(1, np.maximum.accumulate(chances[order] * np.arange(len(names), 0, -1)))
    found = [
        ClassLoss(int(name), int(size), int(count), float(p))
        for name, size, count, p in zip(names, sizes, counts, holm, strict=True)
        if count
    ]
    return tuple(sorted(found, key=lambda one: (one.p, -one.lost)))
