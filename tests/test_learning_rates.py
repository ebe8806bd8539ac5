"""Learning rates: from nothing up to the whole rate, and down again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.learning_rates import LEARNING_RATES, cosine, one_cycle, rewind

WARM_UP = 0.1


@pytest.mark.parametrize("name", LEARNING_RATES)
@given(done=st.floats(0, 1), warm_up=st.floats(0, 0.9))
def test_no_factor_is_negative_or_above_one(name: str, done: float, warm_up: float) -> None:
    assert 0 <= LEARNING_RATES[name](done, warm_up) <= 1 + 1e-12


@pytest.mark.parametrize("name", LEARNING_RATES)
def test_the_whole_rate_is_reached_when_the_warm_up_ends(name: str) -> None:
    schedule = LEARNING_RATES[name]
    assert schedule(WARM_UP, WARM_UP) == pytest.approx(1)
    rising = [schedule(WARM_UP * i / 10, WARM_UP) for i in range(11)]
    falling = [schedule(WARM_UP + (1 - WARM_UP) * i / 10, WARM_UP) for i in range(11)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)


def test_the_cosine_is_half_way_down_in_the_middle_and_ends_at_nothing() -> None:
    assert cosine(0.5, 0.0) == pytest.approx(0.5)
    assert cosine(1.0, WARM_UP) == pytest.approx(0)


def test_rewinding_goes_back_to_the_steps_of_the_first_training() -> None:
    assert [rewind(done, 0.0) for done in (0.0, 0.49, 0.5, 0.74, 0.75, 1.0)] == [1, 1, 0.1, 0.1, 0.01, 0.01]


def test_one_cycle_starts_at_a_twenty_fifth() -> None:
    assert one_cycle(0.0, 0.3) == pytest.approx(1 / 25)
