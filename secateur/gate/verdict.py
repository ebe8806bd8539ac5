"""The verdict: rules, each with the bound that was asked and the interval that was seen, combined into one outcome."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.errors import InputError

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
REPORTED = "reported"  # of a rule that nobody asked for: it decides nothing


@dataclass(frozen=True)
class Rule:
    """One rule's finding: the bound that was asked, the interval that was seen, and a sentence for a person.

    `confidence` is that of either bound; None where nothing was drawn. A rule over several slices holds one for each.
    """

    name: str
    outcome: str
    limit: float | None
    estimate: float
    low: float
    high: float
    sentence: str
    confidence: float | None = None
    parts: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Pass only if every rule passes; fail if one is proven broken; else inconclusive."""

    outcome: str
    reason: str
    rules: tuple[Rule, ...]


def judge(rules: Sequence[Rule]) -> Verdict:
    """Combine the rules; the reason is the first thing a person should read.

    Raises:
        InputError: none of them decides anything, or two of one name ask for different things.
    """
    if all(rule.outcome == REPORTED for rule in rules):
        raise InputError("gate: expected at least one rule, got none; a gate without rules would pass everything")
    limits: dict[str, float | None] = {}
    for rule in rules:
        if limits.setdefault(rule.name, rule.limit) != rule.limit:
            raise InputError(
                f"gate: expected one limit for {rule.name}, got {limits[rule.name]} and {rule.limit}, which contradict each "
                "other; ask for one of them"
            )
    checked = [_missing(rule) if rule.outcome != REPORTED and not _finite(rule) else rule for rule in rules]
    for outcome in (FAIL, INCONCLUSIVE):
        against = [rule for rule in checked if rule.outcome == outcome]
        if against:
            return Verdict(outcome, "; ".join(f"{rule.name}: {rule.sentence}" for rule in against), tuple(checked))
    return Verdict(PASS, "; ".join(rule.sentence for rule in checked if rule.outcome == PASS), tuple(checked))


def shared_out(confidence: float, among: int) -> float:
    """The confidence of each of so many bounds that hold all at once with this one.

    Bonferroni (Dunn, Journal of the American Statistical Association 56:52-64, 1961): whatever they depend on each other.
    """
    return 1 - (1 - confidence) / among


def confidence_at(confidence: float, look: int, looks: int, judged: int = 1) -> float:
    """The confidence to judge with when a test set is used for its `look`-th verdict on a model, `looks` being free.

    Each further look is another chance for a model that is too bad. Beyond the limit the error is shared out over all looks
    up to now, and where `judged` files wait for the place that one of them will take, over these from the first on.
    """
    return shared_out(confidence, max(judged, look if look > looks else 1))


def percent(confidence: float) -> str:
    """A confidence as people read it, with as many digits as tell it from certainty."""
    return f"{100 * confidence:.4g}%"


def _finite(rule: Rule) -> bool:
    return all(map(math.isfinite, (rule.estimate, rule.low, rule.high)))


def _missing(rule: Rule) -> Rule:
    return dataclasses.replace(rule, outcome=FAIL, sentence=f"no finite figure was measured ({rule.sentence})")
