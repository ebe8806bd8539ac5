"""The rules: each passes by the bad end of its interval, and says what it saw in a sentence."""

import math
from functools import partial

import numpy as np
import pytest
from answered import CONFIDENCE, R2, RATIO, answers, regressions
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import InputError
from secateur.gate import bounds
from secateur.gate.bounds import discordant_difference
from secateur.gate.rules import (
    Part,
    accuracy_rule,
    agreement_rule,
    brier_rule,
    calibration_rule,
    ceiling_rule,
    certainty_rule,
    exemplars_rule,
    floor_rule,
    load_rule,
    metric_rule,
    parity_rule,
    speedup_rule,
    worst_rule,
)
from secateur.gate.verdict import FAIL, INCONCLUSIVE, PASS, REPORTED, judge

EXAMPLES = 500


@pytest.mark.parametrize(
    ("gained", "lost", "outcome"), [(5, 5, PASS), (2, 12, INCONCLUSIVE), (8, 11, INCONCLUSIVE), (0, 40, FAIL)]
)
def test_accuracy_is_judged_by_its_bounds(gained: int, lost: int, outcome: str) -> None:
    rule = accuracy_rule(*answers(gained, lost, 450 - gained - lost, 50), drop=0.02, confidence=CONFIDENCE)
    assert rule.outcome == outcome
    assert rule.limit == -0.02


@given(st.integers(0, 20), st.integers(0, 40), st.floats(0.001, 0.1))
@settings(max_examples=40)
def test_accuracy_passes_only_if_the_whole_interval_lies_above_the_limit(gained: int, lost: int, drop: float) -> None:
    rule = accuracy_rule(*answers(gained, lost, EXAMPLES - gained - lost, 0), drop, CONFIDENCE)
    assert (rule.outcome == PASS) == (rule.low > -drop)
    assert (rule.outcome == FAIL) == (rule.high < -drop)


def test_the_accuracy_sentence_gives_the_estimate_the_bound_the_limit_and_the_number_of_examples() -> None:
    rule = accuracy_rule(*answers(5, 5, 440, 50), drop=0.02, confidence=CONFIDENCE)
    for part in ("+0.00 points", "500 test examples", "95% confidence", f"{100 * rule.low:+.2f}", "allowed -2.00"):
        assert part in rule.sentence


@pytest.mark.parametrize(("gained", "lost", "drop"), [(2, 12, 0.025), (10, 12, 0.01), (0, 0, 0.004)])
def test_the_number_of_examples_said_to_be_needed_would_decide(gained: int, lost: int, drop: float) -> None:
    rule = accuracy_rule(*answers(gained, lost, EXAMPLES - gained - lost, 0), drop, CONFIDENCE)
    assert rule.outcome == INCONCLUSIVE
    needed = int(rule.sentence.partition("needs about ")[2].partition(" test examples")[0].replace(",", ""))
    assert needed > EXAMPLES

    def outcome_with(examples: float) -> str:
        g, lost_then = (round(count * examples / EXAMPLES) for count in (gained, lost))
        return accuracy_rule(*answers(g, lost_then, round(examples) - g - lost_then, 0), drop, CONFIDENCE).outcome

    assert outcome_with(1.3 * needed) == PASS
    assert outcome_with(0.6 * needed) == INCONCLUSIVE


def test_no_number_of_examples_is_promised_when_the_estimate_itself_is_too_low() -> None:
    rule = accuracy_rule(*answers(2, 14, 434, 50), drop=0.02, confidence=CONFIDENCE)
    assert rule.outcome == INCONCLUSIVE
    assert "would not let it pass" in rule.sentence


@pytest.mark.parametrize(
    ("worse", "drop", "outcome"), [(0.01, 0.05, PASS), (0.5, 0.07, INCONCLUSIVE), (1.5, 0.05, FAIL)]
)
def test_a_metric_is_judged_by_its_bounds(worse: float, drop: float, outcome: str) -> None:
    judged = metric_rule("r2", *regressions(300, worse), R2, drop, CONFIDENCE)
    assert (judged.name, judged.outcome, judged.limit) == ("r2", outcome, -drop)
    for part in ("r2 changed by", f"{judged.low:+.4f}", "300 test examples", "95% confidence", f"allowed {-drop:+.4f}"):
        assert part in judged.sentence


def test_a_metric_says_how_many_examples_would_decide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "RESAMPLES", 1000)
    judged = metric_rule("r2", *regressions(300, 0.5), R2, 0.07, CONFIDENCE)
    needed = int(judged.sentence.partition("needs about ")[2].partition(" test examples")[0].replace(",", ""))
    assert metric_rule("r2", *regressions(3 * needed, 0.5, seed=1), R2, 0.07, CONFIDENCE).outcome == PASS


def test_a_metric_that_is_too_low_by_itself_is_promised_nothing() -> None:
    judged = metric_rule("r2", *regressions(60, 0.5), R2, 0.05, CONFIDENCE)
    assert judged.outcome == INCONCLUSIVE
    assert "would not let it pass" in judged.sentence


def test_a_metric_that_some_draws_do_not_have_passes_nothing() -> None:
    dense, pruned = regressions(60, 0.01)
    judged = metric_rule(
        "r2", dense, pruned, lambda answers, _: math.nan if answers.min() > dense[0].min() else answers.min(), 0.5, 0.95
    )
    assert judged.outcome != PASS
    assert judge([judged]).outcome != PASS


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [(2.0, 2.4, PASS), (1.9, 2.4, INCONCLUSIVE), (1.5, 2.0, INCONCLUSIVE), (1.5, 1.9, FAIL)],
)
def test_speedup_passes_when_its_low_end_reaches_what_was_asked(low: float, high: float, outcome: str) -> None:
    assert speedup_rule((low + high) / 2, low, high, 2.0, CONFIDENCE).outcome == outcome


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_speedup_that_is_not_a_number_fails(place: int, value: float) -> None:
    figures = [2.2, 2.1, 2.3]
    figures[place] = value
    assert speedup_rule(figures[0], figures[1], figures[2], 2.0, CONFIDENCE).outcome == FAIL


@pytest.mark.parametrize(
    ("error", "outcome"), [(0.0, PASS), (1e-4, PASS), (2e-4, FAIL), (math.inf, FAIL), (math.nan, FAIL)]
)
def test_parity_passes_up_to_its_tolerance(error: float, outcome: str) -> None:
    assert parity_rule(error, 1e-4).outcome == outcome


def test_parity_of_an_int8_file_says_that_it_is_that_of_the_file_it_was_made_from() -> None:
    judged = parity_rule(1e-6, 1e-4, precision="INT8")
    assert judged.outcome == PASS
    assert "said of the float32 file that INT8 was made from" in judged.sentence
    assert "INT8" not in parity_rule(1e-6, 1e-4).sentence


def part(gained: int, lost: int, n: int) -> Part:
    """A slice of `n` examples, of which each model alone gets some right."""
    return n, partial(discordant_difference, gained, lost, n)


def test_the_worst_slice_decides() -> None:
    parts = {"a": part(0, 0, 200), "b": part(1, 12, 200)}
    assert worst_rule("slices", "accuracy", parts, 0.2, CONFIDENCE).outcome == PASS
    judged = worst_rule("slices", "accuracy", parts, 0.08, CONFIDENCE)
    assert judged.outcome == INCONCLUSIVE
    for said in (
        "most in b of 2, by -5.50 points on 200 test examples",
        "allowed -8.00 points",
        "undecided: b; b; needs",
    ):
        assert said in judged.sentence
    assert [one.name for one in judged.parts] == ["a", "b"]
    assert worst_rule("slices", "accuracy", parts, 0.001, CONFIDENCE).outcome == FAIL


def test_a_lone_slice_passes_as_the_whole_would() -> None:
    judged = worst_rule("slices", "accuracy", {"a": part(3, 9, 300)}, 0.05, CONFIDENCE)
    assert (judged.estimate, judged.low, judged.high) == discordant_difference(3, 9, 300, CONFIDENCE)


def test_what_breaks_one_slice_may_be_chance_among_many() -> None:
    broken, fine = part(0, 8, 100), part(0, 0, 100)
    assert worst_rule("slices", "accuracy", {"a": broken}, 0.03, CONFIDENCE).outcome == FAIL
    many = {str(i): fine for i in range(40)} | {"a": broken}
    judged = worst_rule("slices", "accuracy", many, 0.03, CONFIDENCE)
    assert judged.outcome == INCONCLUSIVE
    assert "undecided: " in judged.sentence


def test_without_a_limit_the_worst_slice_is_reported() -> None:
    judged = worst_rule("slices", "accuracy", {"a": part(0, 50, 100)}, None, CONFIDENCE)
    assert (judged.outcome, judged.limit) == (REPORTED, None)
    assert "allowed" not in judged.sentence


def test_no_slice_is_no_rule() -> None:
    with pytest.raises(InputError, match=r"^gate.slices: expected at least one part to judge, got none"):
        worst_rule("slices", "accuracy", {}, 0.1, CONFIDENCE)


@pytest.mark.parametrize(("right", "outcome"), [(480, PASS), (460, INCONCLUSIVE), (420, FAIL)])
def test_a_floor_is_kept_by_the_lower_bound_whatever_the_dense_model_does(right: int, outcome: str) -> None:
    seen = np.arange(EXAMPLES) < right, np.ones(EXAMPLES, bool)
    judged = floor_rule("accuracy", seen, R2, 0.91, CONFIDENCE, right_or_wrong=True)
    assert (judged.name, judged.outcome) == ("floor", outcome)
    assert f"accuracy is {right / EXAMPLES:.4f} on 500 test examples" in judged.sentence


def test_a_floor_of_a_metric_that_is_no_share_is_resampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "RESAMPLES", 1000)
    seen, _ = regressions(100, 0.0)
    judged = floor_rule("r2", seen, R2, 0.5, CONFIDENCE, right_or_wrong=False)
    assert judged.outcome == PASS
    assert judged.low < judged.estimate < judged.high


@pytest.mark.parametrize(("lost", "outcome"), [(10, PASS), (22, INCONCLUSIVE), (50, FAIL)])
def test_exemplars_are_few_by_the_upper_bound(lost: int, outcome: str) -> None:
    judged = exemplars_rule(*answers(60, lost, EXAMPLES - lost - 60, 0), 0.05, CONFIDENCE)
    assert judged.outcome == outcome, "what only the pruned model gets right makes up for nothing"
    assert f"{lost} of 500 test examples that the dense model gets right" in judged.sentence


@pytest.mark.parametrize(("same", "outcome"), [(480, PASS), (455, INCONCLUSIVE), (400, FAIL)])
def test_agreement_is_by_its_lower_bound(same: int, outcome: str) -> None:
    dense = np.zeros(EXAMPLES, int)
    judged = agreement_rule(dense, (np.arange(EXAMPLES) >= same).astype(int), 0.9, CONFIDENCE)
    assert judged.outcome == outcome


def test_the_sentence_of_a_share_says_how_many_examples_would_tell() -> None:
    judged = agreement_rule(np.zeros(EXAMPLES), np.repeat([0, 1], [455, 45]), 0.9, CONFIDENCE)
    needed = int(judged.sentence.partition("needs about ")[2].partition(" test examples")[0].replace(",", ""))
    more = np.repeat([0, 1], [round(0.91 * 1.2 * needed), round(0.09 * 1.2 * needed)])
    assert agreement_rule(np.zeros(len(more)), more, 0.9, CONFIDENCE).outcome == PASS


def probabilities(n: int, off: float) -> tuple[np.ndarray, np.ndarray]:
    """How sure a model is of its answers [N], by so much too sure, and which are right."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.3, 0.8, n)
    return truth + off, rng.random(n) < truth


@pytest.mark.parametrize(("off", "outcome"), [(0.0, PASS), (0.06, INCONCLUSIVE), (0.19, FAIL)])
def test_a_calibration_error_is_absolute_and_the_dense_one_stands_beside_it(off: float, outcome: str) -> None:
    judged = calibration_rule(probabilities(2000, 0.15), probabilities(2000, off), 0.07, CONFIDENCE)
    assert judged.outcome == outcome
    assert "the dense model's 0.14" in judged.sentence


@pytest.mark.parametrize(("rise", "outcome"), [(0.0, PASS), (0.05, INCONCLUSIVE), (0.3, FAIL)])
def test_a_brier_score_may_rise_so_far(rise: float, outcome: str) -> None:
    rng = np.random.default_rng(0)
    dense = rng.uniform(0, 1, EXAMPLES)
    assert brier_rule(dense, dense + rise + 0.3 * rng.normal(size=EXAMPLES), 0.05, CONFIDENCE).outcome == outcome


@pytest.mark.parametrize(("shift", "outcome"), [(0.0, PASS), (-0.05, INCONCLUSIVE), (0.2, FAIL), (-0.2, FAIL)])
def test_probabilities_may_shift_neither_up_nor_down(shift: float, outcome: str) -> None:
    rng = np.random.default_rng(0)
    dense = rng.uniform(0.3, 0.7, EXAMPLES)
    judged = certainty_rule(dense, dense + shift + 0.2 * rng.normal(size=EXAMPLES), 0.05, CONFIDENCE)
    assert (judged.name, judged.outcome) == ("confidence_shift", outcome)


@pytest.mark.parametrize(("low", "high", "outcome"), [(8, 10, PASS), (8, 12, INCONCLUSIVE), (11, 12, FAIL)])
def test_a_cost_keeps_its_limit_by_its_high_end(low: float, high: float, outcome: str) -> None:
    judged = ceiling_rule("p99_ms", (10, low, high), 10, "ms", CONFIDENCE)
    assert judged.outcome == outcome
    assert judged.sentence == f"10 ms, 95% interval {low} to {high}; allowed 10"


@pytest.mark.parametrize(("valid", "outcome"), [(1.0, PASS), (2 / 3, INCONCLUSIVE), (0.0, FAIL)])
def test_a_rate_is_kept_if_loadgen_calls_every_run_valid(valid: float, outcome: str) -> None:
    assert load_rule(valid, 50, 100).outcome == outcome


def test_what_nobody_asked_for_is_reported() -> None:
    dense, pruned = answers(3, 5, 400, 92)
    sure = probabilities(EXAMPLES, 0.0)
    brier = np.linspace(0, 1, EXAMPLES)
    reported = [
        exemplars_rule(dense, pruned, None, CONFIDENCE),
        agreement_rule(dense, pruned, None, CONFIDENCE),
        calibration_rule(sure, sure, None, CONFIDENCE),
        brier_rule(brier, brier[::-1], None, CONFIDENCE),
        certainty_rule(sure[0], sure[0][::-1], None, CONFIDENCE),
    ]
    for rule in reported:
        assert (rule.outcome, rule.limit) == (REPORTED, None)
        assert rule.low <= rule.estimate <= rule.high
        assert "allowed" not in rule.sentence


def test_a_metric_by_document_needs_more_than_by_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    losses, ones, documents = np.repeat(rng.normal(size=40), 10) - 0.1, np.ones(400), np.repeat(np.arange(40), 10)
    pairs = (np.zeros(400), ones), (losses, ones)
    by_document = metric_rule("log_likelihood", *pairs, RATIO, 0.25, CONFIDENCE, documents=documents)
    assert by_document.low < metric_rule("log_likelihood", *pairs, RATIO, 0.25, CONFIDENCE).low
