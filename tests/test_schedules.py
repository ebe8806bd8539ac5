"""Schedules start at nothing, end at everything that was asked, never go back, and follow their formulas."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.schedules import SCHEDULES

finals = st.floats(0.01, 0.99)
names = st.sampled_from(sorted(SCHEDULES))


@given(names, st.integers(1, 20), finals)
def test_a_schedule_climbs_from_nothing_to_the_final_share(name: str, cycles: int, final: float) -> None:
    shares = [SCHEDULES[name](cycle, cycles, final) for cycle in range(cycles + 1)]
    assert shares[0] == 0
    assert shares[-1] == pytest.approx(final)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(shares))


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("one_shot", [0.8, 0.8, 0.8, 0.8]),
        ("linear", [0.2, 0.4, 0.6, 0.8]),
        # 0.8 (1 - (3/4)^3), 0.8 (1 - (2/4)^3), 0.8 (1 - (1/4)^3): Zhu and Gupta's s_t with s_i = 0
        ("cubic", [0.4625, 0.7, 0.7875, 0.8]),
        # each cycle leaves 0.2^(1/4) = 0.66874 of what it found
        ("exponential", [0.33126, 0.55279, 0.70093, 0.8]),
    ],
)
def test_a_schedule_follows_its_formula(name: str, shares: list[float]) -> None:
    assert [SCHEDULES[name](cycle, 4, 0.8) for cycle in (1, 2, 3, 4)] == pytest.approx(shares, abs=1e-5)


@given(st.integers(2, 10), finals)
def test_exponential_takes_the_same_share_of_what_is_left_in_every_cycle(cycles: int, final: float) -> None:
    left = [1 - SCHEDULES["exponential"](cycle, cycles, final) for cycle in range(cycles + 1)]
    assert [b / a for a, b in itertools.pairwise(left)] == pytest.approx([left[1]] * cycles)


@given(st.integers(2, 10), finals)
def test_cubic_takes_ever_less(cycles: int, final: float) -> None:
    shares = [SCHEDULES["cubic"](cycle, cycles, final) for cycle in range(cycles + 1)]
    steps = [b - a for a, b in itertools.pairwise(shares)]
    assert all(a > b for a, b in itertools.pairwise(steps))
