"""The rules of the gate: each asks one question of the evidence, and answers it by the bad end of an interval.

A limit of None asks for nothing: the figure is reported with its interval and decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from scipy.stats import norm

from secateur.errors import InputError
from secateur.gate.bounds import (
    Answers,
    Bounds,
    Score,
    calibration_error,
    mean_difference,
    paired_difference,
    resampled_difference,
    resampled_score,
    share,
)
from secateur.gate.verdict import FAIL, INCONCLUSIVE, PASS, REPORTED, Rule, percent

HOPELESS = "; more examples of the same kind would not let it pass"
TESTED = "test examples"
BRIER_SPAN = 2.0  # of a Brier score of several classes

Part = tuple[int, Callable[[float], Bounds]]  # how many examples, and the bounds of the metric's change at a confidence


def accuracy_rule(
    dense_right: np.ndarray,
    pruned_right: np.ndarray,
    drop: float,
    confidence: float,
    name: str = "accuracy",
    of: str = TESTED,
) -> Rule:
    """Non-inferiority: the lower bound of the accuracy difference lies above minus the allowed drop; `of` is what examples are called."""
    estimate, low, high = paired_difference(dense_right, pruned_right, confidence)
    outcome = _not_below(low, high, -drop)
    sentence = (
        f"accuracy changed by {100 * estimate:+.2f} points on {len(dense_right)} {of}; with {percent(confidence)} "
        f"confidence by no less than {100 * low:+.2f}, allowed {-100 * drop:+.2f}"
    )
    if outcome == INCONCLUSIVE:
        sentence += _examples_needed(dense_right, pruned_right, estimate, drop, confidence)
    return Rule(name, outcome, -drop, estimate, low, high, sentence, confidence)


def metric_rule(
    metric: str,
    dense: Answers,
    pruned: Answers,
    score: Score,
    drop: float,
    confidence: float,
    seed: int = 0,
    documents: np.ndarray | None = None,
    name: str | None = None,
) -> Rule:
    """Non-inferiority: the lower bound of the metric's difference lies above minus the allowed drop."""
    bounds = estimate, low, high = resampled_difference(dense, pruned, score, confidence, seed, documents)
    outcome = _not_below(low, high, -drop)
    sentence = (
        f"{metric} changed by {estimate:+.4f} on {len(dense[0])} test examples; with {percent(confidence)} confidence by no less "
        f"than {low:+.4f}, allowed {-drop:+.4f}"
    )
    if outcome == INCONCLUSIVE:
        sentence += _more(bounds, -drop, len(dense[0]), most=False)
    return Rule(name or metric, outcome, -drop, estimate, low, high, sentence, confidence)


def worst_rule(
    name: str,
    metric: str,
    parts: Mapping[str, Part],
    drop: float | None,
    confidence: float,
    of: str = TESTED,
) -> Rule:
    """Non-inferiority in every one of several parts (slices of the test set, or corruptions of it), by the worst of them.

    That all pass lets a part through which is too bad only if that very part passes, so each lower bound has the confidence
    itself, and the least of them is one for the worst part (the intersection-union test; Berger, Technometrics 24:295-300,
    1982). That one of many fails is what chance does: the upper bounds hold for all parts at once (Bonferroni), and the least
    of them is one for the worst part too.

    Args:
        name: of the rule.
        metric: its name, for the sentence.
        parts: by name.
        drop: the most that the metric may fall in any part.
        confidence: of either bound.
        of: what examples are called.

    Raises:
        InputError: there is no part.
    """
    if not parts:
        raise InputError(
            f"gate.{name}: expected at least one part to judge, got none; lower `fewest` or leave the rule out"
        )
    at_once = 1 - (1 - confidence) / len(parts)
    limit = None if drop is None else -drop
    found = []
    for part, (n, change) in parts.items():
        (estimate, low, _), (_, _, high) = change(confidence), change(at_once)
        said = f"{_points(metric, estimate)} on {n} {of}, at least {_points(metric, low)}"
        found.append(_rule(part, said, (estimate, low, high), limit, confidence, n, most=False))
    worst, lowest = (min(found, key=lambda rule: getattr(rule, end)) for end in ("estimate", "low"))
    bounds = worst.estimate, lowest.low, min(rule.high for rule in found)
    sentence = (
        f"{metric} changed most in {worst.name} of {len(parts)}, by {_points(metric, worst.estimate)} on "
        f"{parts[worst.name][0]} {of}; with {percent(confidence)} confidence in none by less than {_points(metric, bounds[1])}"
    )
    if drop is None:
        return Rule(name, REPORTED, None, *bounds, sentence, confidence, tuple(found))
    sentence += f", allowed {_points(metric, -drop)}"
    outcomes = {rule.outcome for rule in found}
    outcome = next(one for one in (FAIL, INCONCLUSIVE, PASS) if one in outcomes)
    if outcome != PASS:
        sentence += f"; {'too low' if outcome == FAIL else 'undecided'}: " + ", ".join(
            rule.name for rule in found if rule.outcome == outcome
        )
    if outcome == INCONCLUSIVE:
        bounds_of_lowest = lowest.estimate, lowest.low, lowest.high
        sentence += f"; {lowest.name}" + _more(bounds_of_lowest, -drop, parts[lowest.name][0], most=False)
    return Rule(name, outcome, -drop, *bounds, sentence, confidence, tuple(found))


def floor_rule(
    metric: str,
    seen: Answers,
    score: Score,
    floor: float,
    confidence: float,
    *,
    right_or_wrong: bool,
    seed: int = 0,
    documents: np.ndarray | None = None,
) -> Rule:
    """The metric itself, whatever the dense model's: its lower bound reaches the floor. Of accuracy the bound is exact."""
    answers, targets = seen
    if right_or_wrong:
        bounds = share(int((answers == targets).sum()), len(answers), confidence)
    else:
        bounds = resampled_score(seen, score, confidence, seed, documents)
    said = f"{metric} is {bounds[0]:.4f} on {len(answers)} test examples, with {percent(confidence)} confidence at least {bounds[1]:.4f}"
    return _rule("floor", said, bounds, floor, confidence, len(answers), most=False)


def exemplars_rule(dense_right: np.ndarray, pruned_right: np.ndarray, limit: float | None, confidence: float) -> Rule:
    """The share of examples that the dense model gets right and the pruned one does not.

    Pruning-identified exemplars (Hooker et al., "What Do Compressed Deep Neural Networks Forget?", 2019) are those where the
    answers of many pruned models agree on something else; here there is one pruned model, the one that ships.
    """
    n, lost = len(dense_right), int((dense_right & ~pruned_right).sum())
    bounds = share(lost, n, confidence)
    said = (
        f"{lost} of {n} test examples that the dense model gets right the pruned one gets wrong, {bounds[0]:.2%}, with "
        f"{percent(confidence)} confidence at most {bounds[2]:.2%}"
    )
    return _rule("exemplars", said, bounds, limit, confidence, n, most=True, shown=".2%")


def agreement_rule(dense: np.ndarray, pruned: np.ndarray, limit: float | None, confidence: float) -> Rule:
    """The share of examples that both models give the same answer [N] to, right or wrong."""
    bounds = share(int((dense == pruned).sum()), len(dense), confidence)
    said = f"both models give the same answer to {bounds[0]:.2%} of {len(dense)} test examples, with {percent(confidence)} confidence to at least {bounds[1]:.2%}"
    return _rule("agreement", said, bounds, limit, confidence, len(dense), most=False, shown=".2%")


def calibration_rule(
    dense: tuple[np.ndarray, np.ndarray],
    pruned: tuple[np.ndarray, np.ndarray],
    limit: float | None,
    confidence: float,
) -> Rule:
    """The expected calibration error of the pruned model itself; the dense model's stands beside it.

    Args:
        dense: the probability that it gives each answer [N], and whether that is right [N].
        pruned: the same of the pruned model.
        limit: the largest error.
        confidence: of either bound.
    """
    bounds, before = calibration_error(*pruned, confidence), calibration_error(*dense, confidence)
    said = (
        f"calibration error is {bounds[0]:.4f} ({bounds[1]:.4f} to {bounds[2]:.4f}) on {len(pruned[0])} test examples, the "
        f"dense model's {before[0]:.4f} ({before[1]:.4f} to {before[2]:.4f})"
    )
    return _rule("ece", said, bounds, limit, confidence, len(pruned[0]), most=True)


def brier_rule(dense: np.ndarray, pruned: np.ndarray, limit: float | None, confidence: float) -> Rule:
    """How much the Brier score rises, the squared distance of probabilities from the truth (Monthly Weather Review 78, 1950).

    Unlike the calibration error it is a mean over examples [N], so that models are compared in pairs.
    """
    bounds = mean_difference(dense, pruned, confidence, BRIER_SPAN)
    said = f"the Brier score rose by {bounds[0]:+.4f} on {len(dense)} test examples, with {percent(confidence)} confidence by at most {bounds[2]:+.4f}"
    return _rule("brier", said, bounds, limit, confidence, len(dense), most=True)


def certainty_rule(dense: np.ndarray, pruned: np.ndarray, limit: float | None, confidence: float) -> Rule:
    """How far the mean probability that a model gives its answers [N] shifts, up or down.

    Two one-sided tests (Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15:657-680, 1987): both bounds must lie
    within the limit.
    """
    bounds = estimate, low, high = mean_difference(dense, pruned, confidence, 1.0)
    sentence = (
        f"the mean probability of the answers shifted by {estimate:+.4f} on {len(dense)} test examples, with {percent(confidence)} "
        f"confidence either way by {low:+.4f} to {high:+.4f}"
    )
    if limit is None:
        return Rule("confidence_shift", REPORTED, None, *bounds, sentence, confidence)
    sentence += f"; allowed {limit:.4g} either way"
    inside, outside = -limit <= low and high <= limit, low > limit or high < -limit
    outcome = PASS if inside else FAIL if outside else INCONCLUSIVE
    if outcome == INCONCLUSIVE:
        sentence += _needed(len(dense), max(high - estimate, estimate - low), limit - abs(estimate))
    return Rule("confidence_shift", outcome, limit, *bounds, sentence, confidence)


def speedup_rule(estimate: float, low: float, high: float, minimum: float, confidence: float) -> Rule:
    """The interval's low end reaches the asked speedup."""
    outcome = FAIL if not all(map(math.isfinite, (estimate, low, high))) else PASS if low >= minimum else INCONCLUSIVE
    if outcome == INCONCLUSIVE and high < minimum:
        outcome = FAIL
    sentence = f"{estimate:.2f}x faster, {percent(confidence)} interval {low:.2f} to {high:.2f}; asked for at least {minimum:.2f}x"
    return Rule("speedup", outcome, minimum, estimate, low, high, sentence, confidence)


def ceiling_rule(name: str, bounds: Bounds, limit: float, unit: str, confidence: float | None) -> Rule:
    """What was measured of the file itself, the less the better: the interval's high end keeps the limit.

    `confidence` is None where there is nothing to be uncertain of, such as the size of a file.
    """
    estimate, low, high = bounds
    between = "" if confidence is None else f", {percent(confidence)} interval {low:.4g} to {high:.4g}"
    return _rule(name, f"{estimate:.4g} {unit}{between}", bounds, limit, confidence, None, most=True)


def load_rule(valid: float, rate: float, p99_ms: float) -> Rule:
    """MLPerf LoadGen calls all runs at a rate VALID, a share of 1: 99 % of the requests in time, with its 99 % confidence."""
    outcome = PASS if valid == 1 else INCONCLUSIVE if valid else FAIL
    sentence = f"LoadGen called {valid:.0%} of the runs VALID at {rate:g} requests a second within {p99_ms:g} ms"
    return Rule("qps", outcome, 1.0, valid, valid, valid, sentence, 0.99)


def with_note(rule: Rule, note: str) -> Rule:
    """The rule with something more in its sentence."""
    return replace(rule, sentence=f"{rule.sentence}; {note}") if note else rule


def parity_rule(error: float, tolerance: float, *, precision: str = "") -> Rule:
    """ONNX gives what torch gives. A NaN fails.

    With a lower `precision`, such as INT8, the error is that of the float32 file that the judged one was made from: rounding is
    what it does, and whether it is too much only the metric says.
    """
    outcome = PASS if error <= tolerance else FAIL
    sentence = f"ONNX outputs differ from torch's by at most {error:.1e} of the largest; allowed {tolerance:.0e}"
    if precision:
        sentence += f"; said of the float32 file that {precision} was made from, {precision} itself is proven by its metric alone"
    return Rule("parity", outcome, tolerance, error, error, error, sentence)


def _rule(
    name: str,
    said: str,
    bounds: Bounds,
    limit: float | None,
    confidence: float | None,
    n: int | None,
    *,
    most: bool,
    shown: str = ".4g",
) -> Rule:
    """A figure that may be `most` a limit, or must be at least one; a bound that lies on the limit keeps it."""
    _, low, high = bounds
    if limit is None:
        return Rule(name, REPORTED, None, *bounds, said, confidence)
    if most:
        outcome = PASS if high <= limit else FAIL if low > limit else INCONCLUSIVE
    else:
        outcome = PASS if low >= limit else FAIL if high < limit else INCONCLUSIVE
    said += f"; {'allowed' if most else 'asked for at least'} {limit:{shown}}"
    if outcome == INCONCLUSIVE and n is not None:
        said += _more(bounds, limit, n, most=most)
    return Rule(name, outcome, limit, *bounds, said, confidence)


def _not_below(low: float, high: float, limit: float) -> str:
    return PASS if low > limit else FAIL if high < limit else INCONCLUSIVE


def _points(metric: str, value: float) -> str:
    return f"{100 * value:+.2f} points" if metric == "accuracy" else f"{value:+.4f}"


def _more(bounds: Bounds, limit: float, n: int, *, most: bool) -> str:
    """How many examples would tell, if the interval narrows with their square root."""
    estimate, low, high = bounds
    if not all(map(math.isfinite, bounds)):
        return ""
    return _needed(n, high - estimate, limit - estimate) if most else _needed(n, estimate - low, estimate - limit)


def _needed(n: int, reach: float, room: float) -> str:
    return HOPELESS if room <= 0 else _number(n * (reach / room) ** 2, n)


def _number(examples: float, seen: int) -> str:
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
    return _number(max(by_variance, by_rarity), len(dense_right))
