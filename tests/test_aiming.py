"""Aiming: however what is measured answers to what is asked, the shots close in on what is wanted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.aiming import BAND, Shot, aim, best

WANTED = 2.0


@given(wanted=st.floats(1.1, 10), exponent=st.floats(0.4, 1.15), factor=st.floats(0.9, 1.1))
def test_a_smooth_answer_is_met_within_the_band_in_a_few_shots(wanted: float, exponent: float, factor: float) -> None:
    shots = aim(lambda asked: (factor * asked**exponent, None), wanted, tries=5)
    assert BAND[0] * wanted <= best(shots, wanted).reached <= BAND[1] * wanted
    assert all(shot.asked > 1 for shot in shots)


def test_one_shot_is_enough_where_the_prediction_holds() -> None:
    assert len(aim(lambda asked: (asked, None), WANTED)) == 1


def test_where_time_falls_in_stairs_the_lowest_stair_above_what_is_wanted_counts() -> None:
    stairs = [1.0, 1.7, 2.4, 3.1]
    shots = aim(lambda asked: (max(stair for stair in stairs if stair <= asked), None), WANTED, tries=6)
    assert best(shots, WANTED).reached == 2.4


def test_what_cannot_be_asked_is_not_and_the_best_reached_counts() -> None:
    shots = aim(lambda asked: (0.9 * asked, None), WANTED, most=1.6)
    assert [shot.asked for shot in shots] == [1.6]
    assert best(shots, WANTED).reached == pytest.approx(0.9 * 1.6)


@given(st.lists(st.floats(0.5, 8), min_size=1, max_size=8))
def test_whatever_is_measured_there_are_as_many_shots_as_tries_at_most(answers: list[float]) -> None:
    left = iter([*answers, *[1.0] * 8])
    seen: list[Shot[str]] = []
    shots = aim(lambda asked: (next(left), "made"), WANTED, tries=4, on_shot=seen.append)
    assert 1 <= len(shots) <= 4
    assert shots == seen
    assert all(math.isfinite(shot.asked) and shot.asked > 1 for shot in shots)
    assert best(shots, WANTED) in shots
