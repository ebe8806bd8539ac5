"""Looks at what served for an hour or more, and judges: healthy, watch, breach or unknown, and whose fault it is.

The dense model is given the same inputs. What makes it worse too is the world's; what makes only the pruned one worse is ours, and
the dense model would serve better.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from secateur.gate import rules
from secateur.gate.bounds import paired_difference
from secateur.gate.verdict import PASS, Rule
from secateur.monitoring import detectors
from secateur.monitoring.detectors import Detector
from secateur.monitoring.drift import Difference
from secateur.monitoring.levels import Levels, OfLabels
from secateur.monitoring.shadow import Shadow

HEALTHY, WATCH, BREACH, UNKNOWN = "healthy", "watch", "breach", "unknown"
OURS, WORLD, NOBODY = "ours", "the world's", ""
LOOKS = 10_000  # on the average until a false breach
SUSPICIOUS = 1_000  # on the average until a false watch
FEWEST = 30  # examples that a look needs to say that all is well
CONFIDENCE = 0.95  # of the gate's own rules, on labels
SLOW_SHARE = 0.05  # of requests that may take longer than all but one of a hundred did when the file was validated
DISAGREEMENT, UNEXPLAINED, ACCURACY, WRONG, LATENCY = (
    "disagreement",
    "unexplained",
    "accuracy lost",
    "dense errors",
    "latency",
)
SURER, LESS_SURE = "surer", "less sure"
LABELLED = "examples whose labels came"
OF_CLASS, OF_SLICE = "answer ", "slice "


@dataclass(frozen=True)
class Observed:
    """What came since the last look: both models' answers, latencies [N], and answers to examples whose labels came since."""

    shadow: Shadow
    latency_ms: np.ndarray
    labelled: Labelled | None = None


@dataclass(frozen=True)
class Labelled:
    """Answers of both models and the truth [N], which of them are of this look's own requests, and each slice's positions by its name."""

    dense: np.ndarray
    pruned: np.ndarray
    truth: np.ndarray
    own: np.ndarray
    slices: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One question: what was seen in this look, the level, how strong the evidence is, and how it reads.

    `looks` is how many looks it takes on the average until as much evidence comes by chance; `cause` whose fault a breach is.
    """

    name: str
    outcome: str
    cause: str
    mean: float
    level: float
    examples: int
    looks: float
    sentence: str


@dataclass(frozen=True)
class Judged:
    """A look's verdict: the outcome, whose fault it is, one sentence why, and all findings.

    `rules` are the gate's own on the labels of this look alone. They are for people: asked again and again, a rule of 95 % is missed by chance.
    """

    outcome: str
    cause: str
    reason: str
    findings: tuple[Finding, ...]
    drift: tuple[Difference, ...]
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True)
class _Question:
    name: str
    values: np.ndarray
    levels: np.ndarray | float
    words: str
    lowest: float = 0.0
    cause: str = NOBODY  # whose a breach is; what is nobody's can only be watched


def judge(
    before: Mapping[str, Detector],
    observed: Observed | None,
    levels: Levels,
    drift: tuple[Difference, ...] = (),
    slow_ms: float | None = None,
) -> tuple[Judged, dict[str, Detector]]:
    """Take a look.

    Args:
        before: every detector by its name, as the last look left it; none at the first.
        observed: what came since; None where nothing did.
        levels: what the gate saw.
        drift: how inputs and the dense model's outputs differ from the test set's.
        slow_ms: latency that one of a hundred requests exceeded when the file was validated, where that is known.

    Returns:
        The verdict, and the detectors after it.
    """
    if observed is None:
        why = "nothing was observed; without data nothing is known, which is not the same as healthy"
        return Judged(UNKNOWN, NOBODY, why, (), drift), dict(before)
    asked = _questions(observed, levels, slow_ms)
    among = number_of(levels, slow_ms)
    after, findings = dict(before), []
    for question in asked:
        after[question.name] = detectors.look(
            before.get(question.name, Detector()), question.values, question.levels, question.lowest
        )
        findings.append(_found(question, after[question.name], among))
    labelled = (observed.labelled, levels.labels) if observed.labelled and levels.labels else None
    if labelled and (cleared := _cleared(*labelled)):
        findings = [_less(one, cleared) if one.name == UNEXPLAINED else one for one in findings]
    judged = _verdict(tuple(findings), drift, len(observed.shadow))
    return replace(judged, rules=_rules(*labelled) if labelled else ()), after


def number_of(levels: Levels, slow_ms: float | None = None) -> int:
    """How many questions are asked at most: a false alarm of any of them is one."""
    of_classes = 3 + len(levels.classes.answers) if levels.classes else 0
    of_labels = 2 + len(levels.labels.slices) if levels.labels else 0
    return 1 + of_classes + of_labels + (slow_ms is not None)


def _questions(observed: Observed, levels: Levels, slow_ms: float | None) -> list[_Question]:
    seen = observed.shadow
    words = "the pruned model answers otherwise than the dense one"
    asked = [_Question(DISAGREEMENT, seen.parted, levels.disagreement, words)]
    if levels.classes and seen.doubt is not None and seen.shift is not None and seen.answers is not None:
        words = "the pruned model parts from the dense one where that one has no more doubt than it had"
        asked += [
            _Question(UNEXPLAINED, seen.parted, levels.explained(seen.doubt), words, cause=OURS),
            _Question(SURER, seen.shift, levels.classes.surer, "the pruned model is surer than the dense one", -1.0),
            _Question(
                LESS_SURE,
                -seen.shift,
                levels.classes.less_sure,
                "the pruned model is less sure than the dense one",
                -1.0,
            ),
        ]
        for name, level in levels.classes.answers.items():
            of_class = seen.answers.astype(str) == name
            words = f"the pruned model answers otherwise where the dense one says {name}"
            asked.append(_Question(f"{OF_CLASS}{name}", seen.parted[of_class], level, words))
    if slow_ms is not None:
        slow = (observed.latency_ms[np.isfinite(observed.latency_ms)] > slow_ms).astype(float)
        asked.append(_Question(LATENCY, slow, SLOW_SHARE, f"requests take longer than {slow_ms:.3g} ms"))
    return asked + (_of_labels(observed.labelled, levels.labels) if observed.labelled and levels.labels else [])


def _of_labels(seen: Labelled, levels: OfLabels) -> list[_Question]:
    wrong = (seen.dense != seen.truth).astype(float)
    lost = (seen.pruned != seen.truth).astype(float) - wrong
    words = "the accuracy of the pruned model lies below the dense one's by more than the recipe allows"
    asked = [
        _Question(ACCURACY, lost, levels.drop, words, -1.0, OURS),
        _Question(WRONG, wrong, levels.wrong, "the dense model too is wrong more often than it was", cause=WORLD),
    ]
    for name, level in levels.slices.items():
        of_slice = lost[seen.slices.get(name, np.zeros(0, dtype=int))]
        words = (
            f"in {name} the accuracy of the pruned model lies below the dense one's by more than the gate saw or allows"
        )
        asked.append(_Question(f"{OF_SLICE}{name}", of_slice, level, words, -1.0, OURS))
    return asked


def _cleared(seen: Labelled, levels: OfLabels) -> str:
    """What labels of the very requests that are looked at say for the pruned model; empty where they do not, or are too few.

    Labels of earlier requests say nothing of those that came since.
    """
    own = np.flatnonzero(seen.own)
    if len(own) < FEWEST:
        return ""
    rule = rules.accuracy_rule(
        (seen.dense == seen.truth)[own], (seen.pruned == seen.truth)[own], levels.drop, CONFIDENCE, of=LABELLED
    )
    return rule.sentence if rule.outcome == PASS else ""


def _less(finding: Finding, cleared: str) -> Finding:
    """A finding that labels outrank: whoever parts from the dense model may be right."""
    if finding.outcome != BREACH:
        return finding
    return replace(finding, outcome=WATCH, sentence=f"{finding.sentence}; yet {cleared}")


def _rules(seen: Labelled, levels: OfLabels) -> tuple[Rule, ...]:
    """The gate's non-inferiority on the labels that came, of all examples and of the worst slice."""
    if len(seen.truth) < FEWEST:
        return ()
    dense, pruned = seen.dense == seen.truth, seen.pruned == seen.truth
    found = [rules.accuracy_rule(dense, pruned, levels.drop, CONFIDENCE, of=LABELLED)]
    positions = {name: seen.slices[name] for name in levels.slices if len(seen.slices.get(name, ())) >= FEWEST}
    if positions:
        parts = {name: (len(at), partial(paired_difference, dense[at], pruned[at])) for name, at in positions.items()}
        found.append(rules.worst_rule("slices", "accuracy", parts, levels.slices_drop, CONFIDENCE, of=LABELLED))
    return tuple(found)


def _found(question: _Question, detector: Detector, among: int) -> Finding:
    n = len(question.values)
    mean = float(question.values.mean()) if n else 0.0
    level = float(np.mean(question.levels)) if n else 0.0
    looks = float(np.exp(detector.evidence)) / among
    outcome = HEALTHY
    if looks >= SUSPICIOUS:
        outcome = BREACH if question.cause and looks >= LOOKS else WATCH
    sentence = f"{question.words}: {mean:.2%} of {n} examples in this look, level {level:.2%}"
    if outcome != HEALTHY:
        weighs = "" if mean > level else ", and the looks before weigh more"
        sentence += f"{weighs}; by chance so much comes once in {looks:,.0f} looks"
    return Finding(question.name, outcome, question.cause, mean, level, n, looks, sentence)


def _verdict(findings: tuple[Finding, ...], drift: tuple[Difference, ...], examples: int) -> Judged:
    """Ours before the world's before what only wants watching."""
    drifted = [one.name for one in drift if one.drifted]
    for cause in (OURS, WORLD):
        against = [one for one in findings if one.outcome == BREACH and one.cause == cause]
        if against:
            reason = "; ".join([*_against(against), _whose(cause, against, findings), *_drift_said(drifted)])
            return Judged(BREACH, cause, reason, findings, drift)
    watched = [one for one in findings if one.outcome != HEALTHY]
    if watched or drifted:
        cause = WORLD if drifted and not any(one.cause == OURS for one in watched) else NOBODY
        reason = "; ".join([*(one.sentence for one in watched), *_drift_said(drifted)])
        return Judged(WATCH, cause, reason, findings, drift)
    if examples < FEWEST:
        why = f"{examples} examples are too few to say that all is well, {FEWEST} at least are needed"
        return Judged(UNKNOWN, NOBODY, why, findings, drift)
    parted = next(one for one in findings if one.name == DISAGREEMENT)
    reason = f"{examples} examples: both models answer alike to {1 - parted.mean:.2%}, no level has risen"
    return Judged(HEALTHY, NOBODY, reason, findings, drift)


def _against(findings: list[Finding]) -> list[str]:
    """The finding that says most, whole, and the names of the others."""
    first, *others = sorted(findings, key=lambda one: one.name != ACCURACY)
    return [first.sentence, *([f"likewise {', '.join(one.name for one in others)}"] if others else [])]


def _whose(cause: str, against: list[Finding], findings: tuple[Finding, ...]) -> str:
    both = any(one.name == WRONG and one.outcome != HEALTHY for one in findings)
    if cause == WORLD:
        return "it hurts both models, the dense one would serve no better: train anew on such data"
    if [one.name for one in against] == [UNEXPLAINED]:
        return "without labels nothing says which of the two is right: that they answer alike is what was proven, and no longer holds"
    if both:
        return "the dense model has become worse too, the pruned one by more: the dense one serves better until both are trained anew"
    return "the dense model is as good as it was: what is lost is the pruning's, and the dense model serves better"


def _drift_said(drifted: list[str]) -> list[str]:
    if not drifted:
        return []
    shown = ", ".join(drifted[:5]) + (f" and {len(drifted) - 5} more" if len(drifted) > 5 else "")
    return [f"the data are no longer those of the test set: {shown}"]
