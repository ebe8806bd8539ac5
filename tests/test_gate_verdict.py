"""The verdict: that of the worst rule, and never a pass on missing evidence."""

import math

import pytest

from secateur import InputError
from secateur.gate.verdict import FAIL, INCONCLUSIVE, PASS, REPORTED, Rule, confidence_at, judge, percent, shared_out


def rule(name: str, outcome: str, estimate: float = 1.0) -> Rule:
    return Rule(name, outcome, 0.0, estimate, 1.0, 1.0, f"{name} was measured")


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ([PASS], PASS),
        ([PASS, PASS], PASS),
        ([PASS, INCONCLUSIVE], INCONCLUSIVE),
        ([INCONCLUSIVE, PASS, FAIL], FAIL),
        ([FAIL, FAIL], FAIL),
    ],
)
def test_the_verdict_is_that_of_the_worst_rule(outcomes: list[str], verdict: str) -> None:
    assert judge([rule(f"rule{i}", outcome) for i, outcome in enumerate(outcomes)]).outcome == verdict


def test_the_reason_names_the_rules_that_stand_against() -> None:
    verdict = judge([rule("accuracy", PASS), rule("speedup", FAIL), rule("parity", INCONCLUSIVE)])
    assert verdict.reason == "speedup: speedup was measured"


def test_a_gate_without_rules_is_refused() -> None:
    with pytest.raises(InputError, match=r"^gate: expected at least one rule, got none"):
        judge([])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_rule_that_passed_without_a_finite_figure_fails(value: float) -> None:
    verdict = judge([rule("accuracy", PASS), rule("speedup", PASS, estimate=value)])
    assert verdict.outcome == FAIL
    assert "speedup: no finite figure was measured" in verdict.reason
    assert [r.outcome for r in verdict.rules] == [PASS, FAIL]


def test_what_is_only_reported_decides_nothing() -> None:
    reported = Rule("ece", REPORTED, None, math.nan, 0.0, 1.0, "the error was not measured")
    verdict = judge([rule("accuracy", PASS), reported])
    assert (verdict.outcome, verdict.reason) == (PASS, "accuracy was measured")
    assert verdict.rules[1] == reported
    with pytest.raises(InputError, match=r"^gate: expected at least one rule, got none"):
        judge([reported])


def test_rules_that_contradict_each_other_are_refused() -> None:
    strict = Rule("floor", PASS, 0.9, 0.95, 0.91, 0.97, "is 0.95")
    with pytest.raises(InputError, match=r"^gate: expected one limit for floor, got 0\.9 and 0\.5, which contradict"):
        judge([strict, Rule("floor", PASS, 0.5, 0.95, 0.91, 0.97, "is 0.95")])
    assert judge([strict, strict]).outcome == PASS


@pytest.mark.parametrize(("look", "confidence"), [(1, 0.95), (10, 0.95), (11, 1 - 0.05 / 11), (50, 0.999)])
def test_looks_beyond_the_free_ones_share_the_error(look: int, confidence: float) -> None:
    assert confidence_at(0.95, look, 10) == pytest.approx(confidence)


@pytest.mark.parametrize(
    ("look", "judged", "error"), [(1, 1, 0.05), (1, 2, 0.025), (3, 2, 0.025), (4, 2, 0.0125), (4, 8, 0.00625)]
)
def test_finalists_share_the_error_from_the_first_on_or_the_looks_where_they_are_more(
    look: int, judged: int, error: float
) -> None:
    assert confidence_at(0.95, look, 3, judged) == pytest.approx(1 - error)


def test_bounds_that_share_an_error_spend_all_of_it_and_no_more() -> None:
    assert 7 * (1 - shared_out(0.9, 7)) == pytest.approx(0.1)
    assert shared_out(0.9, 1) == pytest.approx(0.9)


def test_a_high_confidence_is_not_rounded_to_certainty() -> None:
    assert [percent(confidence) for confidence in (0.95, 1 - 0.05 / 6, 1 - 0.05 / 64)] == ["95%", "99.17%", "99.92%"]
