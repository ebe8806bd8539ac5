"""Drift is what differs beyond chance and by enough to matter, whatever the number of features."""

import numpy as np
import pytest

from secateur.monitoring.drift import KIND, NUMBER, VECTOR, Feature, compare, discrepancy, features, psi

ALPHA = 0.01
N = 400


def numbers(rng: np.random.Generator, shift: float = 0.0, count: int = 5, n: int = N) -> list[Feature]:
    return [Feature(f"x{i}", NUMBER, rng.normal(shift if i == 0 else 0.0, 1.0, n)) for i in range(count)]


def test_of_like_examples_drift_is_found_no_more_often_than_asked() -> None:
    alarms = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        alarms += any(one.drifted for one in compare(numbers(rng, count=20), numbers(rng, count=20), ALPHA, seed))
    assert alarms <= 300 * ALPHA + 3 * np.sqrt(300 * ALPHA)


def test_one_feature_of_many_that_has_moved_is_named() -> None:
    rng = np.random.default_rng(0)
    found = compare(numbers(rng), numbers(rng, shift=1.0), ALPHA, 0)
    assert [one.name for one in found if one.drifted] == ["x0"]


def test_what_is_significant_and_tiny_is_no_drift() -> None:
    rng = np.random.default_rng(0)
    (found,) = compare(numbers(rng, count=1, n=50_000), numbers(rng, 0.05, count=1, n=50_000), ALPHA, 0)
    assert found.p_value < ALPHA
    assert not found.drifted


def test_kinds_that_are_answered_more_often_have_drifted() -> None:
    rng = np.random.default_rng(0)
    before, after = (Feature("answer", KIND, rng.choice(4, N, p=p)) for p in ([0.25] * 4, [0.55, 0.15, 0.15, 0.15]))
    (found,) = compare([before], [after], ALPHA, 0)
    assert found.drifted
    assert found.test == "chi2"


def test_a_kind_that_is_new_counts_and_rare_ones_do_not_alone() -> None:
    rng = np.random.default_rng(0)
    before = Feature("answer", KIND, rng.integers(0, 3, N))
    rare = Feature("answer", KIND, np.append(rng.integers(0, 3, N - 1), 9))
    new = Feature("answer", KIND, rng.integers(0, 4, N))
    assert not compare([before], [rare], ALPHA, 0)[0].drifted
    assert compare([before], [new], ALPHA, 0)[0].drifted


def test_vectors_whose_means_are_alike_may_differ_otherwise() -> None:
    rng = np.random.default_rng(0)
    before, wider = rng.normal(0, 1, (N, 8)), rng.normal(0, 2, (N, 8))
    (found,) = compare([Feature("embedding", VECTOR, before)], [Feature("embedding", VECTOR, wider)], ALPHA, 0)
    assert found.drifted


def test_discrepancy_of_like_vectors_has_a_level_p_value() -> None:
    p_values = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p_values.append(discrepancy(rng.normal(size=(60, 3)), rng.normal(size=(60, 3)), 0.05, seed)[1])
    assert np.mean(np.array(p_values) <= 0.1) <= 0.25
    assert 0.3 < np.mean(p_values) < 0.7


def test_few_examples_say_nothing() -> None:
    rng = np.random.default_rng(0)
    assert not compare(numbers(rng, n=20), numbers(rng, 3.0, n=20), ALPHA, 0)[0].drifted


def test_psi_of_equal_examples_is_nothing_and_of_others_is_large() -> None:
    values = np.random.default_rng(0).normal(size=1000)
    assert psi(values, values) == pytest.approx(0)
    assert psi(values, values + 1) > 0.25
    assert psi(np.zeros(100), np.zeros(100)) == pytest.approx(0)


def test_a_table_is_told_column_by_column_and_an_image_by_its_pixels() -> None:
    logits = np.eye(3)[np.zeros(N, int)]
    table = features({"x": np.zeros((N, 4), np.float32)}, logits, None)
    image = features({"x": np.zeros((N, 1, 8, 8), np.float32)}, logits, np.zeros((N, 5)))
    assert [one.name for one in table] == ["x[0]", "x[1]", "x[2]", "x[3]", "answer", "certainty"]
    assert [one.name for one in image] == ["x mean", "x deviation", "answer", "certainty", "embedding"]
    assert [one.name for one in features({}, np.zeros((N, 1)), None)] == ["output"]
