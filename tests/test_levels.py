"""Levels are upper bounds of what the test set saw."""

import numpy as np

from secateur.monitoring.levels import CONFIDENCE, levels_of
from secateur.monitoring.shadow import Shadow

N, RATE = 300, 0.05


def drawn(rng: np.random.Generator) -> Shadow:
    return Shadow(
        (rng.random(N) < RATE).astype(float), rng.uniform(0, 0.2, N), rng.normal(0, 0.05, N), rng.integers(0, 3, N)
    )


def test_a_level_lies_above_the_truth_as_often_as_it_promises() -> None:
    below = sum(levels_of(drawn(np.random.default_rng(seed))).disagreement < RATE for seed in range(1000))
    assert below <= 1000 * (1 - CONFIDENCE) + 3


def test_no_disagreement_at_all_is_not_a_level_of_nothing() -> None:
    seen = Shadow(np.zeros(N), np.full(N, 0.1), np.zeros(N), np.zeros(N, int))
    assert 0.01 < levels_of(seen).disagreement < 0.05


def test_more_doubt_explains_more_and_never_more_than_all() -> None:
    levels = levels_of(drawn(np.random.default_rng(0)))
    low, high, all_ = levels.explained(np.array([0.0, 0.3, 1e9]))
    assert low < levels.disagreement < high < all_ == 1
    mean = levels.explained(drawn(np.random.default_rng(0)).doubt).mean()  # type: ignore[arg-type]
    assert abs(mean - levels.disagreement) < 1e-9


def test_rare_answers_have_no_level_of_their_own() -> None:
    seen = Shadow(np.zeros(N), np.full(N, 0.1), np.zeros(N), np.array([0] * (N - 3) + [1] * 3))
    classes = levels_of(seen).classes
    assert classes is not None
    assert set(classes.answers) == {"0"}


def test_what_a_slice_may_lose_is_what_the_gate_allowed_or_else_let_through() -> None:
    right = np.ones(N, bool), np.arange(N) >= 12
    slices = {"bad": np.arange(100), "good": np.arange(100, N)}
    seen = drawn(np.random.default_rng(0))
    found = levels_of(seen, right, 0.02, slices).labels
    assert found is not None
    assert 0.12 < found.slices["bad"] < 0.3, "12 of 100 were lost on the test set"
    assert 0.02 < found.slices["good"] < 0.1, "of 200 none, but 200 prove no 2 %"
    judged = levels_of(seen, right, 0.02, slices, slices_drop=0.15).labels
    assert judged is not None
    assert judged.slices == {"bad": 0.15, "good": 0.15}
    assert judged.drop == 0.02
