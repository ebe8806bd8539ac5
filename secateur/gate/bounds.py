"""Intervals for what the gate asks: an estimate, and below and above it a bound that holds with a confidence of its own.

Each bound is one-sided: at confidence 0.95 the truth lies below the lower one in 5 % of the cases, and above the upper one in
another 5 %. A rule that passes on one of them lets what is truly too bad pass in 5 % of the cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, norm, t

from secateur.errors import InputError

RESAMPLES = 10_000
LEFT_OUT = 500  # parts of the examples that are left out in turn, to see how skewed a statistic is
FEW = 30  # examples: of fewer that differ, resamples do not tell what others would do
BINS = 15  # of a calibration error (Guo et al., ICML 2017)

Bounds = tuple[float, float, float]  # estimate, low, high
Answers = tuple[np.ndarray, np.ndarray]  # answers and targets, a row of each for every example
Score = Callable[[np.ndarray, np.ndarray], float]


def paired_difference(dense_right: np.ndarray, pruned_right: np.ndarray, confidence: float) -> Bounds:
    """Accuracy of pruned minus dense on the same examples [N].

    Raises:
        InputError: they are not the same examples, or none.
    """
    if dense_right.shape != pruned_right.shape or dense_right.ndim != 1 or not len(dense_right):
        raise InputError(
            f"gate: expected the same test examples for both, got {dense_right.shape} and {pruned_right.shape}"
        )
    gained = int((pruned_right & ~dense_right).sum())
    lost = int((dense_right & ~pruned_right).sum())
    return discordant_difference(gained, lost, len(dense_right), confidence)


def discordant_difference(gained: int, lost: int, n: int, confidence: float) -> Bounds:
    """The same from counts: how many of `n` examples only the pruned model gets right, and how many only the dense one.

    Score interval for the difference of matched proportions (Tango, Statistics in Medicine 17:891-908, 1998), which
    holds its level with few or no discordant pairs, where the Wald interval does not.
    """
    estimate, z = (gained - lost) / n, float(norm.ppf(confidence))

    def score(delta: float) -> float:
        b = -gained - lost + (2 * n - gained + lost) * delta
        c = -lost * delta * (1 - delta)
        q = (math.sqrt(max(b * b - 8 * n * c, 0)) - b) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        return (
            (gained - lost - n * delta) / math.sqrt(variance)
            if variance > 0
            else math.copysign(math.inf, estimate - delta)
        )

    edge = 1e-12
    low = brentq(lambda d: score(d) - z, -1 + edge, estimate - edge) if estimate > -1 + 2 * edge else -1.0
    high = brentq(lambda d: score(d) + z, estimate + edge, 1 - edge) if estimate < 1 - 2 * edge else 1.0
    return estimate, float(low), float(high)


def share(count: int, n: int, confidence: float) -> Bounds:
    """A share of `n` examples: the exact binomial bounds (Clopper and Pearson, Biometrika 26:404-413, 1934)."""
    low = float(beta.ppf(1 - confidence, count, n - count + 1)) if count else 0.0
    high = float(beta.ppf(confidence, count + 1, n - count)) if count < n else 1.0
    return count / n, low, high


def resampled_difference(
    dense: Answers,
    pruned: Answers,
    score: Score,
    confidence: float,
    seed: int = 0,
    documents: np.ndarray | None = None,
) -> Bounds:
    """A metric of pruned minus dense on the same examples.

    Paired bootstrap: examples are drawn anew, both models' answers to them together, and the metric is computed again, for it
    need not be a mean. Which percentiles of the draws are the bounds follows from their bias and skewness (BCa; Efron, Journal
    of the American Statistical Association 82:171-185, 1987), and lies further out the fewer examples there are (Hesterberg,
    The American Statistician 69:371-386, 2015): where few examples lose much, the plain ones let too much pass.
    Examples of one document are not independent of each other, so documents are drawn whole (the cluster bootstrap;
    Davison and Hinkley 1997, section 3.8).
    Where fewer than 30 of them differ the draws are too much alike, and the bounds lie at least as far out as the share that
    may differ though none of so many did (`share`), as if that share of the metric were lost.

    Args:
        dense: answers and targets of the dense model, [N, ...] each.
        pruned: the pruned model's, in the same order.
        score: the metric over any rows of them; larger is better.
        confidence: of either bound.
        seed: of the draws.
        documents: which one each example [N] is of; without, each is its own.

    Returns:
        (estimate, low, high), not finite where the metric is not in some draw.

    Raises:
        InputError: they are not the same examples, or none.
    """
    counts = {len(rows) for rows in (*dense, *pruned)}
    if len(counts) != 1 or 0 in counts:
        raise InputError(
            f"gate: expected the same test examples for both, got {len(dense[0])} and {len(pruned[0])} answers to "
            f"{len(dense[1])} and {len(pruned[1])} targets"
        )
    n = len(dense[0])
    groups = _grouped(documents, n)

    def difference(drawn: np.ndarray) -> float:
        after, before = (score(answers[drawn], targets[drawn]) for answers, targets in (pruned, dense))
        return after - before

    estimate, low, high = _resampled(difference, n, groups, confidence, seed)
    differs = [(before != after).reshape(n, -1).any(axis=1) for before, after in zip(dense, pruned, strict=True)]
    different = differs[0] | differs[1]
    number = int(different.sum()) if groups is None else sum(bool(different[group].any()) for group in groups)
    if number < FEW:
        _, _, unseen = share(0, n if groups is None else len(groups), confidence)
        low, high = np.minimum(low, estimate - unseen), np.maximum(high, estimate + unseen)
    return estimate, float(low), float(high)


def resampled_score(
    seen: Answers, score: Score, confidence: float, seed: int = 0, documents: np.ndarray | None = None
) -> Bounds:
    """A metric of one model, by the bootstrap of `resampled_difference`."""
    answers, targets = seen
    n = len(answers)
    return _resampled(lambda drawn: score(answers[drawn], targets[drawn]), n, _grouped(documents, n), confidence, seed)


def _grouped(documents: np.ndarray | None, n: int) -> list[np.ndarray] | None:
    """The positions of each document's examples."""
    if documents is None:
        return None
    if documents.shape != (n,):
        raise InputError(f"gate: expected a document for each of {n} test examples, got {documents.shape}")
    _, number = np.unique(documents, return_inverse=True)
    order = np.argsort(number, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(number[order])) + 1)


def _resampled(
    statistic: Callable[[np.ndarray], float], n: int, groups: Sequence[np.ndarray] | None, confidence: float, seed: int
) -> Bounds:
    """Of a statistic of the positions of examples: the percentiles that BCa chooses; not finite where a draw is not."""
    rng, values = np.random.default_rng(seed), np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        if groups is None:
            values[i] = statistic(rng.integers(0, n, n))
        else:
            values[i] = statistic(np.concatenate([groups[g] for g in rng.integers(0, len(groups), len(groups))]))
    estimate = statistic(np.arange(n))
    if not (math.isfinite(estimate) and np.isfinite(values).all()):
        return estimate, math.nan, math.nan
    below = float((values < estimate).mean() + (values == estimate).mean() / 2)
    bias = float(norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES)))
    acceleration = _acceleration(statistic, n, groups)
    count = n if groups is None else len(groups)
    wider = math.sqrt(count / (count - 1)) * t.ppf(confidence, count - 1) if count > 1 else math.inf
    z = bias + np.array([-wider, wider])
    shares = norm.cdf(bias + z / np.maximum(1 - acceleration * z, 0.1))
    low, high = np.quantile(values, shares, method="weibull")  # which few draws do not make too narrow
    return estimate, float(low), float(high)


def _acceleration(statistic: Callable[[np.ndarray], float], n: int, groups: Sequence[np.ndarray] | None) -> float:
    """How fast the standard error changes with the statistic: a sixth of its skewness, by leaving some examples out."""
    parts = min(n if groups is None else len(groups), LEFT_OUT)
    if parts < 2:
        return 0.0
    out = np.arange(n) % parts
    if groups is not None:
        for number, group in enumerate(groups):
            out[group] = number % parts
    left = np.array([statistic(np.flatnonzero(out != part)) for part in range(parts)])
    if not np.isfinite(left).all():
        return 0.0
    away = left.mean() - left
    square = float((away**2).sum())
    return float((away**3).sum()) / (6 * square**1.5) if square > 0 else 0.0


def mean_difference(before: np.ndarray, after: np.ndarray, confidence: float, span: float) -> Bounds:
    """The mean of `after` minus `before` on the same examples [N], of numbers that differ by at most `span`.

    Student's interval with its skewness removed (Hall, Journal of the Royal Statistical Society B 54:221-228, 1992): a few
    examples that lose much make the plain one pass too often. Fewer than 30 that differ widen it as in `resampled_difference`.

    Raises:
        InputError: they are not the same examples, or fewer than two.
    """
    if before.shape != after.shape or before.ndim != 1 or len(before) < 2:
        raise InputError(
            f"gate: expected the same test examples for both, two at least, got {before.shape} and {after.shape}"
        )
    differences = after.astype(float) - before.astype(float)
    n, estimate, deviation = len(differences), float(differences.mean()), float(differences.std())
    low = high = estimate
    if deviation > 0:
        skewness = float((((differences - estimate) / deviation) ** 3).mean())
        reach = float(t.ppf(confidence, n - 1)) / math.sqrt(n)
        low, high = (estimate - deviation * _unskewed(end, skewness, n) for end in (reach, -reach))
    if (differences != 0).sum() < FEW:
        _, _, unseen = share(0, n, confidence)
        low, high = min(low, estimate - span * unseen), max(high, estimate + span * unseen)
    return estimate, low, high


def _unskewed(quantile: float, skewness: float, n: int) -> float:
    """The inverse of Hall's transformation g(x) = x + a x^2 / 3 + a^2 x^3 / 27 + a / 6n, a the skewness."""
    if abs(skewness) < 1e-8:
        return quantile
    return float(3 / skewness * (np.cbrt(1 + skewness * (quantile - skewness / (6 * n))) - 1))


def calibration_error(certainty: np.ndarray, right: np.ndarray, confidence: float) -> Bounds:
    """Expected calibration error: how far the probability that a model gives its answers [N] is from how often they are right.

    Mean over 15 bins of equally many examples of |probability - share right| (Guo et al., ICML 2017; equal bins: Roelofs et
    al., AISTATS 2022), so a sum of absolute means. An absolute value never lies below the number with the sign that the truth
    would give it; so the estimate is too high rather than too low (Kumar et al., NeurIPS 2019), and the upper bound, which adds
    the standard error of the sum with its signs, holds its level at any size of the bins. The lower bound first takes away
    what chance alone adds: the mean of a folded normal distribution above its mode, of a gap no larger than the data allow.

    Raises:
        InputError: not as many probabilities as answers, or too few for bins of two.
    """
    n = len(certainty)
    if certainty.shape != right.shape or certainty.ndim != 1 or n < 2 * BINS:
        raise InputError(
            f"gate: expected a probability for each answer, {2 * BINS} at least, got {certainty.shape} and {right.shape}"
        )
    gaps = (certainty.astype(float) - right)[np.argsort(certainty, kind="stable")]
    bins, z = np.array_split(gaps, BINS), float(norm.ppf(confidence))
    sums = np.array([abs(float(part.sum())) / n for part in bins])
    errors = np.array([math.sqrt(len(part) * float(part.var(ddof=1))) / n for part in bins])
    estimate, reach = float(sums.sum()), z * float(np.sqrt((errors**2).sum()))
    least = np.maximum(sums - z * errors, 0)
    near = least / np.where(errors > 0, errors, 1)
    chance = errors * math.sqrt(2 / math.pi) * np.exp(-(near**2) / 2) - 2 * least * norm.cdf(-near)
    return estimate, max(0.0, estimate - float(chance.sum()) - reach), min(1.0, estimate + reach)
