"""Whether examples are still like those of the test set: one test for each thing that can be told of them, corrected for how many.

Of many examples the smallest difference is significant. So beside each test stands how large the difference is, and only one that
is both counts as drift.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax
from scipy.stats import chi2_contingency, ks_2samp

from secateur.data import chunks

FEWEST = 30  # examples of either side
MOST = 500  # examples of either side whose distances to all others are computed
MOST_FEATURES = 64  # columns of a table that are looked at one by one
BINS = 10  # of a population stability index, equally full in the reference
LARGE = {"ks": 0.1, "chi2": 0.1, "mmd": 0.02}  # least size that matters: PSI, PSI, and the share of the widest distance
NUMBER, KIND, VECTOR = "number", "kind", "vector"


@dataclass(frozen=True)
class Feature:
    """One thing that is told of every example: numbers [N], kinds [N] or vectors [N, D]."""

    name: str
    type: str
    values: np.ndarray


@dataclass(frozen=True)
class Difference:
    """How one feature differs from the reference.

    `size` is the population stability index of numbers and kinds, and of vectors the squared maximum mean discrepancy.
    `p_value` is that of the test alone, before it is corrected.
    """

    name: str
    test: str
    size: float
    p_value: float
    drifted: bool = False


def features(inputs: Mapping[str, np.ndarray], outputs: np.ndarray, embedding: np.ndarray | None) -> list[Feature]:
    """What is told of examples: of a table each column, of anything else mean and deviation; answers and how sure they are.

    Args:
        inputs: by name, [N, ...] each.
        outputs: of one model, [N, ...]; logits [N, C] have classes.
        embedding: of the same model, [N, D].
    """
    found = [feature for name, column in inputs.items() for feature in _of_input(name, column)]
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        found.append(Feature("answer", KIND, outputs.argmax(1)))
        found.append(Feature("certainty", NUMBER, softmax(outputs.astype(np.float64), axis=1).max(1)))
    else:
        found.append(Feature("output", NUMBER, outputs.reshape(len(outputs), -1).mean(1)))
    if embedding is not None:
        found.append(Feature("embedding", VECTOR, embedding))
    return found


def _of_input(name: str, column: np.ndarray) -> list[Feature]:
    if column.ndim == 2 and column.dtype.kind == "f" and column.shape[1] <= MOST_FEATURES:
        return [Feature(f"{name}[{i}]", NUMBER, column[:, i].astype(float)) for i in range(column.shape[1])]
    if column.ndim == 1:
        return [Feature(name, NUMBER, column.astype(float))]
    rows = [part.reshape(len(part), -1).astype(np.float64) for part in chunks(column)]
    means, deviations = (np.concatenate([f(part, axis=1) for part in rows]) for f in (np.mean, np.std))
    return [Feature(f"{name} mean", NUMBER, means), Feature(f"{name} deviation", NUMBER, deviations)]


def compare(reference: list[Feature], now: list[Feature], alpha: float, seed: int) -> list[Difference]:
    """Test every feature that both have; `drifted` are those that all together are found in a share `alpha` of looks by chance.

    Holm's correction (Scandinavian Journal of Statistics 6:65-70, 1979), which needs no independence.
    """
    others = {feature.name: feature for feature in now}
    pairs = [(one, others[one.name]) for one in reference if one.name in others]
    found = [_tested(one.name, one.type, one.values, other.values, alpha / len(pairs), seed) for one, other in pairs]
    drifted: set[str] = set()
    for place, one in enumerate(sorted(found, key=lambda difference: difference.p_value)):
        if one.p_value > alpha / (len(found) - place):
            break
        drifted.add(one.name)
    return [
        Difference(one.name, one.test, one.size, one.p_value, one.name in drifted and one.size >= LARGE[one.test])
        for one in found
    ]


def _tested(name: str, type_: str, before: np.ndarray, after: np.ndarray, alpha: float, seed: int) -> Difference:
    if min(len(before), len(after)) < FEWEST:
        return Difference(name, {NUMBER: "ks", KIND: "chi2", VECTOR: "mmd"}[type_], 0.0, 1.0)
    if type_ == NUMBER:
        return Difference(name, "ks", psi(before, after), float(ks_2samp(before, after).pvalue))
    if type_ == KIND:
        counts = _counts(before, after)
        p_value = float(chi2_contingency(counts).pvalue) if counts.shape[1] > 1 else 1.0
        return Difference(name, "chi2", _psi_of(counts), p_value)
    size, p_value = discrepancy(before, after, alpha, seed)
    return Difference(name, "mmd", size, p_value)


def psi(before: np.ndarray, after: np.ndarray) -> float:
    """The population stability index over tenths of the reference: below 0.1 little, above 0.25 much by common use in credit scoring."""
    edges = np.unique(np.quantile(before, np.linspace(0, 1, BINS + 1)[1:-1]))
    counts = [
        np.bincount(np.searchsorted(edges, side, side="right"), minlength=len(edges) + 1) for side in (before, after)
    ]
    return _psi_of(np.array(counts))


def _psi_of(counts: np.ndarray) -> float:
    """Of counts [2, K]; half an example more in each, so that an empty one is no infinity."""
    shares = (counts + 0.5) / (counts + 0.5).sum(1, keepdims=True)
    return float(((shares[1] - shares[0]) * np.log(shares[1] / shares[0])).sum())


def _counts(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How often each kind is on either side [2, K]; those that are too rare to test are one kind."""
    kinds = np.unique(np.concatenate([before, after]))
    counts = np.array([[(side == kind).sum() for kind in kinds] for side in (before, after)])
    expected = counts.sum(0) * min(len(before), len(after)) / (len(before) + len(after))
    rare = expected < 5  # Cochran's rule: the distribution of the statistic does not hold below
    merged = np.column_stack([counts[:, ~rare], counts[:, rare].sum(1)]) if rare.any() else counts
    return merged[:, merged.sum(0) > 0]


def discrepancy(before: np.ndarray, after: np.ndarray, alpha: float, seed: int) -> tuple[float, float]:
    """The squared maximum mean discrepancy of vectors [N, D] and [M, D], and how often chance gives as much.

    Gretton et al., "A kernel two-sample test", Journal of Machine Learning Research 13, 2012: a Gaussian kernel as wide as the median
    distance, by permutations, enough of them to tell `alpha`. Of many vectors some are drawn.
    """
    rng = np.random.default_rng(seed)
    sides = [side if len(side) <= MOST else side[rng.permutation(len(side))[:MOST]] for side in (before, after)]
    n, m = map(len, sides)
    both = np.concatenate(sides).astype(np.float64).reshape(n + m, -1)
    squares = (both**2).sum(1)
    distances = np.maximum(squares[:, None] + squares[None, :] - 2 * both @ both.T, 0)
    width = float(np.median(distances[np.triu_indices(n + m, 1)]))
    if width <= 0:
        return 0.0, 1.0
    kernel = np.exp(-distances / width)
    np.fill_diagonal(kernel, 0.0)
    permutations = min(math.ceil(2 / alpha), 20_000)
    signs = np.empty((permutations + 1, n + m))
    for i in range(permutations + 1):
        order = rng.permutation(n + m) if i else np.arange(n + m)
        signs[i, order[:n]], signs[i, order[n:]] = 1.0, 0.0
    total, inner = kernel.sum(), signs @ kernel
    first = (inner * signs).sum(1)  # within the first side
    across = inner.sum(1) - first
    second = total - first - 2 * across
    found = first / (n * (n - 1)) + second / (m * (m - 1)) - 2 * across / (n * m)
    at_least = int((found[1:] >= found[0]).sum())
    return float(found[0]), (at_least + 1) / (permutations + 1)
