"""The gate: its interval against a likelihood maximised by brute force, and verdicts that never pass on missing evidence."""

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from secateur import InputError, gate
from secateur.gate import (
    FAIL,
    INCONCLUSIVE,
    PASS,
    Rule,
    accuracy_rule,
    judge,
    metric_rule,
    paired_difference,
    parity_rule,
    resampled_difference,
    speedup_rule,
)
from secateur.objectives import OBJECTIVES

CONFIDENCE = 0.95
EXAMPLES = 500


def answers(gained: int, lost: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Which examples the dense and the pruned model get right."""
    counts = (gained, lost, both, neither)
    return np.repeat([False, True, True, False], counts), np.repeat([True, False, True, False], counts)


def score_by_brute_force(gained: int, lost: int, n: int, delta: float) -> float:
    """The score of a difference, its nuisance parameter found by maximising the likelihood on ever finer grids."""
    low, high = max(0.0, -delta), (1 - delta) / 2
    for _ in range(8):
        loss = np.linspace(low, high, 201)
        gain = loss + delta
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = [(gained, gain), (lost, loss), (n - gained - lost, 1 - gain - loss)]
            likelihood = sum(np.where(count > 0, count * np.log(np.clip(p, 0, 1)), 0) for count, p in parts)
        best = int(np.argmax(likelihood))
        low, high = loss[max(best - 1, 0)], loss[min(best + 1, 200)]
    variance = n * (2 * loss[best] + delta - delta**2)
    return float((gained - lost - n * delta) / math.sqrt(variance))


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 60), st.sampled_from([0.9, 0.95, 0.99]))
@settings(max_examples=60)
def test_the_bounds_are_where_the_score_of_the_maximised_likelihood_reaches_the_quantile(
    gained: int, lost: int, others: int, confidence: float
) -> None:
    n = gained + lost + others
    assume(n > 0)
    estimate, low, high = paired_difference(*answers(gained, lost, others, 0), confidence)
    z = float(norm.ppf(confidence))
    assert estimate == (gained - lost) / n
    assert -1 <= low <= estimate <= high <= 1
    if gained < n and lost < n:
        assert score_by_brute_force(gained, lost, n, low) == pytest.approx(z, abs=2e-3)
        assert score_by_brute_force(gained, lost, n, high) == pytest.approx(-z, abs=2e-3)


@pytest.mark.parametrize("n", [1, 20, 360, 10_000])
def test_without_discordant_pairs_the_bounds_are_those_of_the_closed_form(n: int) -> None:
    z2 = float(norm.ppf(CONFIDENCE)) ** 2
    estimate, low, high = paired_difference(*answers(0, 0, n - n // 2, n // 2), CONFIDENCE)
    assert estimate == 0
    assert (low, high) == pytest.approx((-z2 / (n + z2), z2 / (n + z2)), abs=1e-9)


@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 60))
@settings(max_examples=40)
def test_exchanging_the_models_mirrors_the_interval(gained: int, lost: int, others: int) -> None:
    dense, pruned = answers(gained, lost, others, 0)
    estimate, low, high = paired_difference(dense, pruned, CONFIDENCE)
    assert paired_difference(pruned, dense, CONFIDENCE) == pytest.approx((-estimate, -high, -low), abs=1e-9)


@pytest.mark.parametrize("n", [1, 30])
def test_when_every_pair_is_discordant_the_far_bound_is_that_of_the_closed_form(n: int) -> None:
    z2 = float(norm.ppf(CONFIDENCE)) ** 2
    far = (n - z2) / (n + z2)
    assert paired_difference(*answers(n, 0, 0, 0), CONFIDENCE) == pytest.approx((1, far, 1), abs=1e-9)
    assert paired_difference(*answers(0, n, 0, 0), CONFIDENCE) == pytest.approx((-1, -1, -far), abs=1e-9)


@pytest.mark.parametrize(("gain", "loss"), [(0.0, 0.02), (0.02, 0.05), (0.1, 0.1)])
def test_the_lower_bound_lies_below_the_truth_as_often_as_it_claims(gain: float, loss: float) -> None:
    rng = np.random.default_rng(0)
    draws = rng.multinomial(150, [gain, loss, 1 - gain - loss], size=1500)
    bounds = {
        (g, lost): paired_difference(*answers(g, lost, others, 0), CONFIDENCE)[1]
        for g, lost, others in {tuple(map(int, row)) for row in draws}
    }
    covered = np.mean([bounds[int(g), int(lost)] <= gain - loss for g, lost, _ in draws])
    assert covered > CONFIDENCE - 0.025


def test_more_examples_narrow_the_interval() -> None:
    widths = []
    for times in (1, 4, 16):
        _, low, high = paired_difference(*answers(3 * times, 5 * times, 90 * times, 2 * times), CONFIDENCE)
        widths.append(high - low)
    assert widths[0] > 1.7 * widths[1] > 1.7**2 * widths[2]


@pytest.mark.parametrize(
    ("dense", "pruned"),
    [(np.ones(5, bool), np.ones(6, bool)), (np.ones((5, 1), bool), np.ones((5, 1), bool)), (np.ones(0, bool),) * 2],
    ids=["lengths", "dimensions", "empty"],
)
def test_answers_to_different_examples_are_refused(dense: np.ndarray, pruned: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"^gate: expected the same test examples for both, got \("):
        paired_difference(dense, pruned, CONFIDENCE)


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


R2 = OBJECTIVES["regression"].score
RATIO = OBJECTIVES["masked_lm"].score


def regressions(n: int, worse: float, seed: int = 0) -> tuple[gate.Answers, gate.Answers]:
    """Answers of a dense model whose error has deviation 0.5, and of one whose error is `worse` times as large beside it."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=n)
    dense = target + 0.5 * rng.normal(size=n)
    return (dense, target), (dense + 0.5 * worse * rng.normal(size=n), target)


def test_a_mean_is_resampled_to_the_interval_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    before, after, ones = rng.normal(size=800), rng.normal(size=800) - 0.1, np.ones(800)
    estimate, low, high = resampled_difference((before, ones), (after, ones), RATIO, CONFIDENCE)
    reach = norm.ppf(CONFIDENCE) * (after - before).std() / math.sqrt(800)
    assert estimate == pytest.approx((after - before).mean())
    assert (low, high) == pytest.approx((estimate - reach, estimate + reach), abs=0.05 * reach)


def test_the_resampled_bound_lies_below_the_truth_as_often_as_it_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "RESAMPLES", 300)
    worse, truth = 0.5, -(0.25**2)  # R2 is 1 - the error's variance over the target's, which is 1
    bounds = [resampled_difference(*regressions(150, worse, seed), R2, CONFIDENCE)[1] for seed in range(300)]
    assert np.mean(np.array(bounds) <= truth) > CONFIDENCE - 0.025


def test_pairing_narrows_the_interval() -> None:
    dense, pruned = regressions(300, 0.1)
    _, low, high = resampled_difference(dense, pruned, R2, CONFIDENCE)
    _, other_low, other_high = resampled_difference(dense, regressions(300, 0.1, seed=1)[1], R2, CONFIDENCE)
    assert 4 * (high - low) < other_high - other_low


def test_the_seed_decides_the_draws() -> None:
    pairs = regressions(100, 0.5)
    assert resampled_difference(*pairs, R2, CONFIDENCE, 1) == resampled_difference(*pairs, R2, CONFIDENCE, 1)
    assert resampled_difference(*pairs, R2, CONFIDENCE, 1) != resampled_difference(*pairs, R2, CONFIDENCE, 2)


@pytest.mark.parametrize("n", [20, 500])
def test_equal_answers_prove_no_more_than_their_number_can(n: int) -> None:
    target = np.random.default_rng(0).normal(size=n)
    estimate, low, high = resampled_difference((target, target), (target, target), R2, CONFIDENCE)
    assert estimate == 0
    assert (-low, high) == pytest.approx((1 - 0.05 ** (1 / n),) * 2)


def test_answers_that_differ_only_in_what_counts_are_no_equal_ones() -> None:
    found, said = np.full(500, 2), np.full(500, 4)
    _, low, high = resampled_difference((found, said), (found, said + np.arange(500) % 2), RATIO, CONFIDENCE)
    assert high - low < 2 * (1 - 0.05 ** (1 / 500))


@pytest.mark.parametrize("cut", [slice(1, None), slice(0, 0)], ids=["lengths", "empty"])
def test_metrics_of_different_examples_are_refused(cut: slice) -> None:
    dense, pruned = regressions(20, 0.5)
    with pytest.raises(InputError, match=r"^gate: expected the same test examples for both, got 20 and"):
        resampled_difference(dense, (pruned[0][cut], pruned[1][cut]), R2, CONFIDENCE)


@pytest.mark.parametrize(
    ("worse", "drop", "outcome"), [(0.01, 0.05, PASS), (0.5, 0.07, INCONCLUSIVE), (1.5, 0.05, FAIL)]
)
def test_a_metric_is_judged_by_its_bounds(worse: float, drop: float, outcome: str) -> None:
    judged = metric_rule("r2", *regressions(300, worse), R2, drop, CONFIDENCE)
    assert (judged.name, judged.outcome, judged.limit) == ("r2", outcome, -drop)
    for part in ("r2 changed by", f"{judged.low:+.4f}", "300 test examples", "95% confidence", f"allowed {-drop:+.4f}"):
        assert part in judged.sentence


def test_a_metric_says_how_many_examples_would_decide() -> None:
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
    judged = parity_rule(1e-6, 1e-4, int8=True)
    assert judged.outcome == PASS
    assert "said of the float file that INT8 was made from" in judged.sentence
    assert "INT8" not in parity_rule(1e-6, 1e-4).sentence


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
