"""From evidence to a verdict: what is asked decides, what is not is reported, and what is missing never passes."""

import dataclasses

import numpy as np
import pytest
from test_gate_evidence import DIGEST, IDS, evidence, side

from secateur import InputError
from secateur.gate.evidence import Evidence, Seen
from secateur.gate.judging import Asked, unknown, verdict_on
from secateur.gate.verdict import INCONCLUSIVE, PASS, REPORTED
from secateur.objectives import OBJECTIVES

CLASSES = OBJECTIVES["classification"]
WHOLE = evidence(
    slices={"label": np.array(["label 0", "label 1"] * 20)},
    changed={"noise": (side(), side())},
    incumbent=side(),
    measured={
        "speedup": (2.0, 1.9, 2.1),
        "parity": (1e-6,) * 3,
        "p99_ms": (5.0, 4.0, 6.0),
        "memory_mb": (50.0, 49.0, 51.0),
        "size_mb": (1.0,) * 3,
        "qps": (1.0,) * 3,
    },
)
ALL = Asked(
    drop=0.2,
    floor=0.5,
    slices_drop=0.4,
    fewest=10,
    exemplars=0.2,
    agreement=0.8,
    ece=0.6,
    brier=0.3,
    confidence_shift=0.2,
    robustness_drop=0.2,
    incumbent_drop=0.2,
    speedup=1.5,
    parity=1e-4,
    p99_ms=10.0,
    memory_mb=60.0,
    size_mb=2.0,
    qps=(50.0, 100.0),
)


def test_everything_that_is_asked_decides() -> None:
    verdict = verdict_on(WHOLE, ALL, CLASSES, DIGEST)
    assert verdict.outcome == PASS, verdict.reason
    assert [rule.name for rule in verdict.rules] == [
        *("accuracy", "incumbent", "floor", "slices", "robustness", "exemplars", "agreement", "ece", "brier"),
        *("confidence_shift", "speedup", "parity", "p99_ms", "memory_mb", "size_mb", "qps"),
    ]
    assert all(rule.outcome == PASS for rule in verdict.rules)


def test_what_is_not_asked_is_reported_and_decides_nothing() -> None:
    verdict = verdict_on(WHOLE, Asked(drop=0.2, fewest=10), CLASSES)
    assert verdict.outcome == PASS
    assert {rule.name for rule in verdict.rules if rule.outcome == REPORTED} == {
        *("slices", "robustness", "exemplars", "agreement", "ece", "brier", "confidence_shift")
    }
    assert verdict.reason.startswith("accuracy changed by")


def test_nothing_asked_is_refused() -> None:
    with pytest.raises(InputError, match=r"^gate: expected at least one rule, got none"):
        verdict_on(WHOLE, Asked(), CLASSES)


@pytest.mark.parametrize("name", ["speedup", "parity", "p99_ms", "memory_mb", "size_mb", "qps"])
def test_a_figure_that_is_asked_for_and_missing_is_refused(name: str) -> None:
    left = {key: value for key, value in WHOLE.measured.items() if key != name}
    with pytest.raises(InputError, match=rf"^gate\.{name}: expected the evidence to hold it, got "):
        verdict_on(dataclasses.replace(WHOLE, measured=left), ALL, CLASSES)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"slices": {}}, r"^gate\.slices: expected slices in the evidence, got none"),
        ({"changed": {}}, r"^gate\.robustness: expected answers to changed examples in the evidence, got none"),
        (
            {"pruned": side(brier=None)},
            r"^gate\.ece: expected the probabilities of both files' answers, there are none",
        ),
        ({"metric": "r2"}, r"^gate: expected evidence by accuracy, got r2; evaluate the files again"),
    ],
)
def test_a_rule_without_its_evidence_is_refused(changes: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        verdict_on(dataclasses.replace(WHOLE, **changes), ALL, CLASSES)


def test_evidence_on_another_test_set_gives_no_verdict() -> None:
    with pytest.raises(InputError, match=r"^gate: expected answers to the test set dddddddddddd"):
        verdict_on(WHOLE, ALL, CLASSES, "d" * 64)


def test_slices_that_are_all_too_small_cannot_be_asked_for() -> None:
    with pytest.raises(
        InputError, match=r"^gate\.slices: expected at least one part to judge, got none; lower `fewest`"
    ):
        verdict_on(WHOLE, dataclasses.replace(ALL, fewest=30), CLASSES)
    assert verdict_on(WHOLE, Asked(drop=0.2), CLASSES).outcome == PASS, "nobody asked for them"


def test_small_slices_are_counted_in_the_sentence() -> None:
    by = np.array(["label 0"] * 35 + ["label 1"] * 5)
    verdict = verdict_on(dataclasses.replace(WHOLE, slices={"label": by}), ALL, CLASSES)
    (rule,) = (rule for rule in verdict.rules if rule.name == "slices")
    assert "1 of fewer than 10 examples not judged" in rule.sentence


def test_a_look_too_many_asks_for_more_certainty() -> None:
    free, late = (verdict_on(WHOLE, dataclasses.replace(ALL, look=look), CLASSES).rules for look in (3, 4))
    assert late[0].confidence == pytest.approx(1 - 0.05 / 4)
    assert late[0].low < free[0].low
    assert [rule.confidence for rule in late if rule.name == "speedup"] == [0.95], "no test set was used for it"


def test_what_cannot_be_answered_lets_nothing_pass() -> None:
    verdict = verdict_on(WHOLE, ALL, CLASSES, beside=[unknown("incumbent", 0.2, "it takes other inputs")])
    assert (verdict.outcome, verdict.reason) == (INCONCLUSIVE, "incumbent: it takes other inputs")


def numbers(error: float) -> Seen:
    """Answers to a regression."""
    targets = np.linspace(0, 1, 40)
    return Seen(DIGEST, IDS, targets + error * np.cos(np.arange(40)), targets)


def test_other_metrics_are_judged_by_the_bootstrap_in_slices_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.gate.bounds.RESAMPLES", 200)
    found = Evidence(
        "r2",
        numbers(0.01),
        numbers(0.011),
        {},
        slices={"site": np.array(["a", "b"] * 20)},
        documents=np.repeat(np.arange(20), 2),
    )
    asked = Asked(drop=0.3, floor=0.5, slices_drop=0.3, fewest=10)
    verdict = verdict_on(found, asked, OBJECTIVES["regression"])
    assert [rule.name for rule in verdict.rules] == ["r2", "floor", "slices"]
    assert verdict.outcome == PASS, verdict.reason
    with pytest.raises(InputError, match=r"^gate\.agreement: expected answers that are right or wrong, r2 has none"):
        verdict_on(found, dataclasses.replace(asked, agreement=0.9), OBJECTIVES["regression"])
