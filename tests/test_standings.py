"""Candidates compared: fronts are what Pareto says, a rung drops nobody for a worse one, and the best of many is no lucky one."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.gate.bounds import discordant_difference
from secateur.gate.verdict import FAIL, INCONCLUSIVE, PASS, shared_out
from secateur.standings import Candidate, dominates, fronts, in_order, survivors, to_be_judged, worth

DROP = 0.02
changes = st.sampled_from([-0.08, -0.03, -0.02, -0.01, 0.0, 0.01])
speedups = st.sampled_from([0.8, 1.0, 1.5, 2.0, 3.0])
outcomes = st.sampled_from([PASS, INCONCLUSIVE, FAIL])


def candidate(
    name: str = "a",
    change: float = 0.0,
    speedup: float = 2.0,
    size: float = 100.0,
    outcome: str = PASS,
    change_low: float | None = None,
) -> Candidate:
    """A candidate whose bad ends lie a little below what was seen."""
    low = change - 0.005 if change_low is None else change_low
    return Candidate(name, change, low, speedup, 0.98 * speedup, size, outcome)


@st.composite
def several(draw: st.DrawFn) -> list[Candidate]:
    """Up to nine candidates, many of them alike in something."""
    drawn = draw(st.lists(st.tuples(changes, speedups, st.sampled_from([50.0, 100.0]), outcomes), max_size=9))
    return [candidate(f"c{number}", *values) for number, values in enumerate(drawn)]


def names(candidates: Sequence[Candidate]) -> list[str]:
    return [one.name for one in candidates]


@given(several())
def test_whoever_is_not_on_the_front_is_beaten_by_one_who_is(candidates: list[Candidate]) -> None:
    first, *others = fronts(candidates) or [[]]
    assert not any(dominates(one, other) for one in first for other in first)
    for one in (one for front in others for one in front):
        assert any(dominates(best, one) for best in first)


@given(several())
def test_fronts_hold_every_candidate_once(candidates: list[Candidate]) -> None:
    assert sorted(names([one for front in fronts(candidates) for one in front])) == sorted(names(candidates))


@given(several(), st.integers(2, 4))
def test_a_rung_lets_one_of_every_eta_go_on_and_nobody_before_one_who_beats_them(
    candidates: list[Candidate], eta: int
) -> None:
    going = survivors(candidates, DROP, eta)
    assert len(going) == math.ceil(len(candidates) / eta)
    left = [one for one in candidates if one not in going]
    assert not any(dominates(one, kept) for one in left for kept in going)


@given(several(), st.randoms(use_true_random=False))
def test_the_order_does_not_depend_on_that_of_the_file(candidates: list[Candidate], draw: object) -> None:
    mixed = list(candidates)
    draw.shuffle(mixed)  # type: ignore[attr-defined]
    for order in (in_order, to_be_judged):
        assert names(order(mixed, DROP)) == names(order(candidates, DROP))


@given(changes, changes, speedups, speedups)
def test_more_is_never_worth_less(change: float, other: float, speedup: float, faster: float) -> None:
    less = candidate(change=min(change, other), speedup=min(speedup, faster))
    more = candidate(change=max(change, other), speedup=max(speedup, faster))
    assert worth(more, DROP) >= worth(less, DROP)


def test_missing_the_budget_by_as_much_again_is_worth_half_the_speed() -> None:
    keeps, misses = candidate(speedup=1.5, change_low=-DROP), candidate(speedup=3.0, change_low=-2 * DROP)
    assert worth(keeps, DROP) == pytest.approx(worth(misses, DROP))
    assert worth(candidate(change_low=-0.5 * DROP), DROP) == worth(candidate(change_low=0.0), DROP)


def test_no_loss_allowed_is_a_budget_too() -> None:
    assert worth(candidate(change_low=-0.01), 0.0) == pytest.approx(worth(candidate(change_low=0.0), 0.0) - 1)


@given(several())
def test_who_breaks_a_bound_on_validation_is_not_judged(candidates: list[Candidate]) -> None:
    judged = to_be_judged(candidates, DROP)
    assert {one.name for one in judged} == {one.name for one in candidates if one.outcome != FAIL}


def test_a_slower_one_that_keeps_every_bound_is_judged_before_a_faster_one_that_may_not() -> None:
    sure, doubtful = candidate("sure", speedup=1.5), candidate("doubtful", speedup=3.0, outcome=INCONCLUSIVE)
    faster = candidate("faster", speedup=1.7)
    assert names(to_be_judged([doubtful, sure, faster], DROP)) == ["faster", "sure", "doubtful"]


def test_of_equally_fast_ones_the_smaller_file_comes_first() -> None:
    large, small = candidate("a", size=100.0), candidate("b", size=50.0)
    assert names(to_be_judged([large, small], DROP)) == ["b", "a"]


def test_the_best_of_many_that_are_too_bad_passes_no_more_often_than_one_may() -> None:
    rng, n, candidates, sweeps, confidence = np.random.default_rng(0), 500, 8, 400, 0.95

    def let_through(level: float) -> float:
        """The share of sweeps in which some candidate, each exactly as bad as is allowed, seems good enough."""
        passed = 0
        for _ in range(sweeps):
            lost = rng.binomial(n, DROP + 0.02, candidates)
            gained = rng.binomial(n, 0.02, candidates)
            best = int(np.argmax(gained - lost))
            passed += discordant_difference(int(gained[best]), int(lost[best]), n, level)[1] > -DROP
        return passed / sweeps

    assert let_through(shared_out(confidence, candidates)) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / sweeps)
    assert let_through(confidence) > 0.15
