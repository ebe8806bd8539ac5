"""From evidence to a verdict: every rule that is asked for, and beside them what can be said without being asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.errors import InputError
from secateur.gate import rules, slices
from secateur.gate.bounds import BINS, Answers, Bounds, paired_difference, resampled_difference
from secateur.gate.evidence import Evidence, Seen, check
from secateur.gate.verdict import INCONCLUSIVE, Rule, Verdict, confidence_at, judge, shared_out
from secateur.objectives import Objective

LARGEST_DIFFERENCE = 1.0  # of a share, where nothing is known of it


@dataclass(frozen=True)
class Asked:
    """What the evidence must prove; None asks for nothing.

    Limits are in the units of the evidence: drops, shares and errors in 0..1, or in those of another metric. `look` is the
    how-manieth verdict on the model this is by this test set; beyond `looks` the confidence of whatever rests on it is
    corrected. Where a sweep has made `candidates`, of which one will serve, the test set judges `judged` of them, and what rests
    on it is corrected for those; the measured figures, by which they were chosen, were measured with a confidence that is
    corrected for all candidates (`figures_confidence`).
    """

    confidence: float = 0.95
    drop: float | None = None
    floor: float | None = None
    slices_drop: float | None = None
    fewest: int = 30  # examples of a slice
    exemplars: float | None = None
    agreement: float | None = None
    ece: float | None = None
    brier: float | None = None
    confidence_shift: float | None = None
    robustness_drop: float | None = None
    incumbent_drop: float | None = None
    speedup: float | None = None
    parity: float | None = None
    p99_ms: float | None = None
    memory_mb: float | None = None
    size_mb: float | None = None
    qps: tuple[float, float] | None = None  # requests a second, and the limit of their 99th percentile in ms
    precision: str = ""  # a lower one of what ships, such as INT8, so that parity is said of another file
    look: int = 1
    looks: int = 3
    candidates: int = 1
    judged: int = 1
    seed: int = 0


def verdict_on(
    evidence: Evidence, asked: Asked, objective: Objective, digest: str | None = None, beside: Sequence[Rule] = ()
) -> Verdict:
    """Check the evidence and judge it.

    Args:
        evidence: what was answered and measured.
        asked: the limits.
        objective: the metric, and whether answers are right or wrong.
        digest: of the test set that the verdict is to be on, where it is known.
        beside: rules that were decided elsewhere.

    Raises:
        InputError: the evidence is not of the metric or the test set, is about different examples or not finite, or lacks
            what a rule asks for; or nothing is asked.
    """
    if evidence.metric != objective.metric:
        raise InputError(
            f"gate: expected evidence by {objective.metric}, got {evidence.metric}; evaluate the files again"
        )
    check(evidence, digest)
    confidence = confidence_of(asked)
    found = _of_metric(evidence, asked, objective, confidence) + _of_parts(evidence, asked, objective, confidence)
    return judge([*found, *_of_classes(evidence, asked, objective, confidence), *_of_figures(evidence, asked), *beside])


def confidence_of(asked: Asked) -> float:
    """What rests on the test set is judged with, at this look."""
    return confidence_at(asked.confidence, asked.look, asked.looks, asked.judged)


def figures_confidence(asked: Asked) -> float:
    """What the measured figures are judged with."""
    return shared_out(asked.confidence, asked.candidates)


def unknown(name: str, drop: float, why: str) -> Rule:
    """A rule that cannot be answered, and does not let anything pass."""
    return Rule(name, INCONCLUSIVE, -drop, 0.0, -LARGEST_DIFFERENCE, LARGEST_DIFFERENCE, why)


def _of_metric(evidence: Evidence, asked: Asked, objective: Objective, confidence: float) -> list[Rule]:
    """The metric against the dense model's, against the incumbent's, and itself."""
    found, seed, documents = [], asked.seed, evidence.documents
    against = [(objective.metric, evidence.dense, asked.drop)]
    if asked.incumbent_drop is not None and evidence.incumbent is not None:
        against.append(("incumbent", evidence.incumbent, asked.incumbent_drop))
    for name, other, drop in against:
        if drop is None:
            continue
        if objective.right_or_wrong:
            found.append(rules.accuracy_rule(other.right, evidence.pruned.right, drop, confidence, name))
        else:
            pairs = other.pair, evidence.pruned.pair
            rule = rules.metric_rule(objective.metric, *pairs, objective.score, drop, confidence, seed, documents, name)
            found.append(rule)
    if asked.floor is not None:
        rule = rules.floor_rule(
            objective.metric,
            evidence.pruned.pair,
            objective.score,
            asked.floor,
            confidence,
            right_or_wrong=objective.right_or_wrong,
            seed=seed,
            documents=documents,
        )
        found.append(rule)
    return found


def _of_parts(evidence: Evidence, asked: Asked, objective: Objective, confidence: float) -> list[Rule]:
    """The metric in every slice, and under every corruption."""
    found, documents = [], evidence.documents
    members, small = slices.parts_of(evidence.slices, asked.fewest)
    if evidence.slices and (members or asked.slices_drop is not None):
        parts = {
            name: _part(
                _taken(evidence.dense, positions),
                _taken(evidence.pruned, positions),
                objective,
                asked.seed,
                None if documents is None else documents[positions],
            )
            for name, positions in members.items()
        }
        rule = rules.worst_rule("slices", objective.metric, parts, asked.slices_drop, confidence)
        note = f"{len(small)} of fewer than {asked.fewest} examples not judged" if small else ""
        found.append(rules.with_note(rule, note))
    elif asked.slices_drop is not None:
        raise InputError("gate.slices: expected slices in the evidence, got none; evaluate the files again")
    if evidence.changed:
        parts = {
            name: _part(
                dense.pair,
                pruned.pair,
                objective,
                asked.seed,
                documents if dense.digest == evidence.dense.digest else None,
            )
            for name, (dense, pruned) in evidence.changed.items()
        }
        found.append(rules.worst_rule("robustness", objective.metric, parts, asked.robustness_drop, confidence))
    elif asked.robustness_drop is not None:
        raise InputError(
            "gate.robustness: expected answers to changed examples in the evidence, got none; evaluate again"
        )
    return found


def _of_classes(evidence: Evidence, asked: Asked, objective: Objective, confidence: float) -> list[Rule]:
    """What is only known of answers that are right or wrong, and of probabilities."""
    dense, pruned = evidence.dense, evidence.pruned
    limits = {name: getattr(asked, name) for name in ("exemplars", "agreement", "ece", "brier", "confidence_shift")}
    if not objective.right_or_wrong:
        _refuse(limits, f"answers that are right or wrong, {objective.metric} has none")
        return []
    found = [
        rules.exemplars_rule(dense.right, pruned.right, asked.exemplars, confidence),
        rules.agreement_rule(dense.answers, pruned.answers, asked.agreement, confidence),
    ]
    of_probabilities = {name: limits[name] for name in ("ece", "brier", "confidence_shift")}
    if dense.certainty is None or pruned.certainty is None or dense.brier is None or pruned.brier is None:
        _refuse(of_probabilities, "the probabilities of both files' answers, there are none")
        return found
    if len(dense.ids) >= 2 * BINS:
        pairs = (dense.certainty, dense.right), (pruned.certainty, pruned.right)
        found.append(rules.calibration_rule(*pairs, asked.ece, confidence))
    else:
        _refuse({"ece": asked.ece}, f"{2 * BINS} test examples, got {len(dense.ids)}")
    found.append(rules.brier_rule(dense.brier, pruned.brier, asked.brier, confidence))
    found.append(rules.certainty_rule(dense.certainty, pruned.certainty, asked.confidence_shift, confidence))
    return found


def _of_figures(evidence: Evidence, asked: Asked) -> list[Rule]:
    """What was measured of the file that ships."""
    found, measured_with = [], figures_confidence(asked)
    if asked.speedup is not None:
        found.append(rules.speedup_rule(*_figure(evidence, "speedup"), asked.speedup, measured_with))
    if asked.parity is not None:
        found.append(rules.parity_rule(_figure(evidence, "parity")[0], asked.parity, precision=asked.precision))
    ceilings = {"p99_ms": ("ms", measured_with), "memory_mb": ("MB", measured_with), "size_mb": ("MB", None)}
    for name, (unit, confidence) in ceilings.items():
        if (limit := getattr(asked, name)) is not None:
            found.append(rules.ceiling_rule(name, _figure(evidence, name), limit, unit, confidence))
    if asked.qps is not None:
        found.append(rules.load_rule(_figure(evidence, "qps")[0], *asked.qps))
    return found


def _figure(evidence: Evidence, name: str) -> Bounds:
    if name not in evidence.measured:
        raise InputError(
            f"gate.{name}: expected the evidence to hold it, got {', '.join(evidence.measured) or 'no figure'}; measure it, or leave "
            "the rule out"
        )
    return evidence.measured[name]


def _refuse(limits: dict[str, float | None], needs: str) -> None:
    if asked := [name for name, limit in limits.items() if limit is not None]:
        raise InputError(f"gate.{asked[0]}: expected {needs}; leave the rule out")


def _part(dense: Answers, pruned: Answers, objective: Objective, seed: int, documents: np.ndarray | None) -> rules.Part:
    def change(confidence: float) -> Bounds:
        if objective.right_or_wrong:
            return paired_difference(dense[0] == dense[1], pruned[0] == pruned[1], confidence)
        return resampled_difference(dense, pruned, objective.score, confidence, seed, documents)

    return len(dense[0]), change


def _taken(side: Seen, positions: np.ndarray) -> Answers:
    return side.answers[positions], side.targets[positions]
