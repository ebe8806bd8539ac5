"""Intervals: held against a likelihood maximised by brute force, closed forms, and how often they hold the truth."""

import math

import numpy as np
import pytest
from answered import CONFIDENCE, R2, RATIO, answers, regressions
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from secateur import InputError
from secateur.gate import bounds
from secateur.gate.bounds import (
    BINS,
    calibration_error,
    discordant_difference,
    mean_difference,
    paired_difference,
    resampled_difference,
    resampled_score,
    share,
)


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


def test_a_mean_is_resampled_to_the_interval_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(0)
    before, after, ones = rng.normal(size=800), rng.normal(size=800) - 0.1, np.ones(800)
    estimate, low, high = resampled_difference((before, ones), (after, ones), RATIO, CONFIDENCE)
    reach = norm.ppf(CONFIDENCE) * (after - before).std() / math.sqrt(800)
    assert estimate == pytest.approx((after - before).mean())
    assert (low, high) == pytest.approx((estimate - reach, estimate + reach), abs=0.05 * reach)


def test_the_resampled_bound_lies_below_the_truth_as_often_as_it_claims(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "RESAMPLES", 200)
    monkeypatch.setattr(bounds, "LEFT_OUT", 30)
    worse, truth = 0.5, -(0.25**2)  # R2 is 1 - the error's variance over the target's, which is 1
    lows = [resampled_difference(*regressions(150, worse, seed), R2, CONFIDENCE)[1] for seed in range(300)]
    assert np.mean(np.array(lows) <= truth) > CONFIDENCE - 0.025


def test_pairing_narrows_the_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "RESAMPLES", 1000)
    dense, pruned = regressions(300, 0.1)
    _, low, high = resampled_difference(dense, pruned, R2, CONFIDENCE)
    _, other_low, other_high = resampled_difference(dense, regressions(300, 0.1, seed=1)[1], R2, CONFIDENCE)
    assert 4 * (high - low) < other_high - other_low


def test_the_seed_decides_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "RESAMPLES", 300)
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


@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 60))
@settings(max_examples=20)
def test_counts_say_what_the_answers_do(gained: int, lost: int, others: int) -> None:
    assume(n := gained + lost + others)
    assert discordant_difference(gained, lost, n, CONFIDENCE) == paired_difference(
        *answers(gained, lost, others, 0), CONFIDENCE
    )


@pytest.mark.parametrize(("count", "n"), [(0, 50), (3, 50), (50, 50)])
def test_the_bounds_of_a_share_are_where_the_binomial_tail_is_the_level(count: int, n: int) -> None:
    estimate, low, high = share(count, n, CONFIDENCE)
    assert low <= estimate == count / n <= high
    assert binom.cdf(count, n, high) == pytest.approx(0.05 if count < n else 1)
    assert binom.sf(count - 1, n, low) == pytest.approx(0.05 if count else 1)


def test_documents_are_drawn_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)
    losses, ones, documents = np.repeat(rng.normal(size=60), 10), np.ones(600), np.repeat(np.arange(60), 10)
    shuffled = rng.permutation(600)
    pairs = (np.zeros(600), ones), (losses[shuffled], ones)
    _, low, high = resampled_difference(*pairs, RATIO, CONFIDENCE)
    _, wide_low, wide_high = resampled_difference(*pairs, RATIO, CONFIDENCE, documents=documents[shuffled])
    assert (wide_high - wide_low) / (high - low) == pytest.approx(math.sqrt(10), rel=0.1)


def test_documents_must_be_as_many_as_examples() -> None:
    pairs = regressions(20, 0.5)
    with pytest.raises(InputError, match=r"^gate: expected a document for each of 20 test examples, got \(3,\)"):
        resampled_difference(*pairs, R2, CONFIDENCE, documents=np.arange(3))


def test_a_score_of_one_model_has_the_interval_of_its_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds, "RESAMPLES", 2000)
    values = np.random.default_rng(0).normal(size=400)
    estimate, low, high = resampled_score((values, np.ones(400)), RATIO, CONFIDENCE)
    reach = norm.ppf(CONFIDENCE) * values.std() / 20
    assert (estimate, low, high) == pytest.approx(
        (values.mean(), values.mean() - reach, values.mean() + reach), abs=0.02
    )


def test_a_mean_difference_without_skewness_is_students() -> None:
    before = np.zeros(400)
    after = np.concatenate([norm.ppf(np.arange(1, 201) / 401), -norm.ppf(np.arange(1, 201) / 401)])
    estimate, low, high = mean_difference(before, after, CONFIDENCE, 1.0)
    assert estimate == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(-low) == pytest.approx(1.6487 * after.std() / 20, rel=1e-3)


def test_the_bounds_of_a_skewed_mean_hold_the_truth_as_often_as_they_claim_where_students_do_not() -> None:
    rng, n, before = np.random.default_rng(0), 60, np.zeros(60)
    held, students = [], []
    for _ in range(2000):
        after = rng.lognormal(0, 1.0, n)
        truth = math.exp(0.5)
        _, _, high = mean_difference(before, after, CONFIDENCE, 1.0)
        held.append(truth <= high)
        students.append(truth <= after.mean() + 1.671 * after.std(ddof=1) / math.sqrt(n))
    assert np.mean(students) < 0.91
    assert np.mean(held) > np.mean(students) + 0.015


def test_equal_numbers_prove_no_more_than_their_count() -> None:
    same = np.linspace(0, 1, 500)
    assert mean_difference(same, same, CONFIDENCE, 2.0)[2] == pytest.approx(2 * (1 - 0.05 ** (1 / 500)))


def test_a_calibration_error_is_the_distance_of_probability_and_share_of_right_answers_bin_by_bin() -> None:
    certainty = np.repeat([0.6, 0.9], 15 * BINS)
    right = np.concatenate([np.arange(15 * BINS) % 10 < 5, np.ones(15 * BINS, bool)])
    estimate, low, high = calibration_error(certainty, right, CONFIDENCE)
    assert estimate == pytest.approx(0.1, abs=0.03)
    assert low < 0.1 < high


@pytest.mark.parametrize("off", [0.0, 0.05, 0.15])
def test_the_upper_bound_of_a_calibration_error_lies_above_the_truth_as_often_as_it_claims(off: float) -> None:
    rng, held = np.random.default_rng(0), []
    for _ in range(600):
        truth = rng.uniform(0.3, 0.8, 300)
        _, low, high = calibration_error(truth + off, rng.random(300) < truth, CONFIDENCE)
        held.append((off <= high, low <= off))
    assert np.mean(held, axis=0).min() > CONFIDENCE - 0.025


@pytest.mark.parametrize("n", [1, 2 * BINS - 1])
def test_bins_of_fewer_than_two_have_no_calibration_error(n: int) -> None:
    with pytest.raises(InputError, match=rf"^gate: expected a probability for each answer, {2 * BINS} at least"):
        calibration_error(np.full(n, 0.5), np.ones(n, bool), CONFIDENCE)


def test_means_of_different_examples_are_refused() -> None:
    with pytest.raises(InputError, match=r"^gate: expected the same test examples for both"):
        mean_difference(np.zeros(3), np.zeros(4), CONFIDENCE, 1.0)
