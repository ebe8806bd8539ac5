"""The reliability gate: evidence in, verdict out. Passes on bounds, never on point estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

from secateur.errors import InputError

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
RESAMPLES = 10_000
HOPELESS = "; more examples of the same kind would not let it pass"
FEW = 30  # examples: of fewer that differ, resamples do not tell what others would do

Answers = tuple[np.ndarray, np.ndarray]  # answers and targets, a row of each for every example
Score = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Rule:
    """One rule's finding: the bound that was asked, the interval that was seen, and a sentence for a person."""

    name: str
    outcome: str
    limit: float
    estimate: float
    low: float
    high: float
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """Pass only if every rule passes; fail if one is proven broken; else inconclusive."""

    outcome: str
    reason: str
    rules: tuple[Rule, ...]


def paired_difference(
    dense_right: np.ndarray, pruned_right: np.ndarray, confidence: float
) -> tuple[float, float, float]:
    """Accuracy of pruned minus dense on the same examples, with one-sided bounds at `confidence` on either side.

    Score interval for the difference of matched proportions (Tango, Statistics in Medicine 17:891-908, 1998), which
    holds its level with few or no discordant pairs, where the Wald interval does not.

    Returns:
        (estimate, low, high)
    """
    if dense_right.shape != pruned_right.shape or dense_right.ndim != 1 or not len(dense_right):
        raise InputError(
            f"gate: expected the same test examples for both, got {dense_right.shape} and {pruned_right.shape}"
        )
    n = len(dense_right)
    gained = int((pruned_right & ~dense_right).sum())
    lost = int((dense_right & ~pruned_right).sum())
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


def accuracy_rule(dense_right: np.ndarray, pruned_right: np.ndarray, drop: float, confidence: float) -> Rule:
    """Non-inferiority: the lower bound of the accuracy difference lies above minus the allowed drop."""
    estimate, low, high = paired_difference(dense_right, pruned_right, confidence)
    outcome = _outcome(low, high, drop)
    sentence = (
        f"accuracy changed by {100 * estimate:+.2f} points on {len(dense_right)} test examples; with {confidence:.0%} "
        f"confidence by no less than {100 * low:+.2f}, allowed {-100 * drop:+.2f}"
    )
    if outcome == INCONCLUSIVE:
        sentence += _examples_needed(dense_right, pruned_right, estimate, drop, confidence)
    return Rule("accuracy", outcome, -drop, estimate, low, high, sentence)


def resampled_difference(
    dense: Answers, pruned: Answers, score: Score, confidence: float, seed: int = 0
) -> tuple[float, float, float]:
    """A metric of pruned minus dense on the same examples, with one-sided bounds at `confidence` on either side.

    Paired bootstrap by percentiles (Efron and Tibshirani 1993, chapters 8 and 13): examples are drawn anew, both models'
    answers to them together, and the metric is computed again, for it need not be a mean. Where fewer than 30 examples
    differ the draws are too much alike, and the bounds lie at least as far out as the share of examples that may differ
    though none of so many did (the exact binomial bound of Clopper and Pearson 1934), as if that share of the metric were lost.

    Args:
        dense: answers and targets of the dense model, [N, ...] each.
        pruned: the pruned model's, in the same order.
        score: the metric over any rows of them; larger is better.
        confidence: of either bound.
        seed: of the draws.

    Returns:
        (estimate, low, high), not finite where the metric is not in some draw.
    """
    counts = {len(rows) for rows in (*dense, *pruned)}
    if len(counts) != 1 or 0 in counts:
        raise InputError(
            f"gate: expected the same test examples for both, got {len(dense[0])} and {len(pruned[0])} answers to "
            f"{len(dense[1])} and {len(pruned[1])} targets"
        )
    n, rng = len(dense[0]), np.random.default_rng(seed)
    differences = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(0, n, n)
        after, before = (score(answers[drawn], targets[drawn]) for answers, targets in (pruned, dense))
        differences[i] = after - before
    estimate = score(*pruned) - score(*dense)
    low, high = np.quantile(differences, [1 - confidence, confidence])
    differs = [(before != after).reshape(n, -1).any(axis=1) for before, after in zip(dense, pruned, strict=True)]
    if (differs[0] | differs[1]).sum() < FEW:
        unseen = 1 - (1 - confidence) ** (1 / n)
        low, high = np.minimum(low, estimate - unseen), np.maximum(high, estimate + unseen)
    return estimate, float(low), float(high)


def metric_rule(
    metric: str, dense: Answers, pruned: Answers, score: Score, drop: float, confidence: float, seed: int = 0
) -> Rule:
    """Non-inferiority: the lower bound of the metric's difference lies above minus the allowed drop."""
    estimate, low, high = resampled_difference(dense, pruned, score, confidence, seed)
    outcome = _outcome(low, high, drop)
    sentence = (
        f"{metric} changed by {estimate:+.4f} on {len(dense[0])} test examples; with {confidence:.0%} confidence by no less "
        f"than {low:+.4f}, allowed {-drop:+.4f}"
    )
    if outcome == INCONCLUSIVE and math.isfinite(low):
        room = estimate + drop
        sentence += _needed(len(dense[0]) * ((estimate - low) / room) ** 2, len(dense[0])) if room > 0 else HOPELESS
    return Rule(metric, outcome, -drop, estimate, low, high, sentence)


def _outcome(low: float, high: float, drop: float) -> str:
    return PASS if low > -drop else FAIL if high < -drop else INCONCLUSIVE


def _needed(examples: float, seen: int) -> str:
    return f"; needs about {math.ceil(max(examples, seen + 1) / 100) * 100:,} test examples to tell"


def _examples_needed(
    dense_right: np.ndarray, pruned_right: np.ndarray, estimate: float, drop: float, confidence: float
) -> str:
    room = estimate + drop
    if room <= 0:
        return HOPELESS
    z = float(norm.ppf(confidence))
    discordant = float((dense_right != pruned_right).mean())
    by_variance = z**2 * (discordant - estimate**2) / room**2
    by_rarity = z**2 * (1 - room) / room  # what Tango's bound needs though no pair differs
    return _needed(max(by_variance, by_rarity), len(dense_right))


def speedup_rule(estimate: float, low: float, high: float, minimum: float, confidence: float) -> Rule:
    """The interval's low end reaches the asked speedup."""
    outcome = FAIL if not all(map(math.isfinite, (estimate, low, high))) else PASS if low >= minimum else INCONCLUSIVE
    if outcome == INCONCLUSIVE and high < minimum:
        outcome = FAIL
    sentence = (
        f"{estimate:.2f}x faster, {confidence:.0%} interval {low:.2f} to {high:.2f}; asked for at least {minimum:.2f}x"
    )
    return Rule("speedup", outcome, minimum, estimate, low, high, sentence)


def parity_rule(error: float, tolerance: float, *, int8: bool = False) -> Rule:
    """ONNX gives what torch gives. A NaN fails.

    With `int8` the error is that of the file in floating point that the judged one was quantised from: rounding is what
    quantisation does, and whether it is too much only the metric says.
    """
    outcome = PASS if error <= tolerance else FAIL
    sentence = f"ONNX outputs differ from torch's by at most {error:.1e} of the largest; allowed {tolerance:.0e}"
    if int8:
        sentence += "; said of the float file that INT8 was made from, INT8 itself is proven by its metric alone"
    return Rule("parity", outcome, tolerance, error, error, error, sentence)


def judge(rules: Sequence[Rule]) -> Verdict:
    """Combine the rules; the reason is the first thing a person should read.

    Raises:
        InputError: there is no rule.
    """
    if not rules:
        raise InputError("gate: expected at least one rule, got none; a gate without rules would pass everything")
    checked = [r if all(map(math.isfinite, (r.estimate, r.low, r.high))) else _missing(r) for r in rules]
    for outcome in (FAIL, INCONCLUSIVE):
        against = [rule for rule in checked if rule.outcome == outcome]
        if against:
            return Verdict(outcome, "; ".join(f"{rule.name}: {rule.sentence}" for rule in against), tuple(checked))
    return Verdict(PASS, "; ".join(rule.sentence for rule in checked), tuple(checked))


def _missing(rule: Rule) -> Rule:
    return Rule(
        rule.name,
        FAIL,
        rule.limit,
        rule.estimate,
        rule.low,
        rule.high,
        f"no finite figure was measured ({rule.sentence})",
    )
