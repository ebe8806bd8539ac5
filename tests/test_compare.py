"""Files in turns: the ratio that was planted is found, its interval holds what it claims, and time is not wasted."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from secateur.compare import FEWEST_ROUNDS, LEAD_S, Comparison, compare, in_rounds, interval
from secateur.errors import InputError
from secateur.noise import Counters
from secateur.runtime import Target
from secateur.worker import Block

SLOW_MS, FAST_MS = 10.0, 4.0

Cost = Callable[[int], float]  # milliseconds of the n-th request of all


class Machine:
    """Two sides on a clock of their own: every request takes the time that its cost says, times what its process has drawn."""

    def __init__(self, *costs: Cost, spread: float = 0.0, start_s: float = 0.0, first_slower: float = 0.0) -> None:
        self.now, self.requests, self.start_s, self.first_slower = 0.0, 0, start_s, first_slower
        self.rounds: list[list[int]] = []
        self.costs, self.spread, self.rng = costs, spread, np.random.default_rng(len(costs))

    @contextmanager
    def fresh(self, swapped: bool) -> Iterator[Any]:
        self.now += self.start_s
        self.rounds.append([])
        luck = np.exp(self.rng.normal(0, self.spread, 2))
        luck[int(swapped)] *= 1 + self.first_slower
        yield tuple(self.side(number, cost, luck[number]) for number, cost in enumerate(self.costs))

    def side(self, number: int, cost: Cost, luck: float) -> Callable[[int, int], Block]:
        def block(requests: int, lead: int) -> Block:
            self.rounds[-1].append(number)
            times = []
            for _ in range(lead + requests):
                times.append(luck * cost(self.requests) / 1e3)
                self.requests += 1
            self.now += sum(times)
            return Block(np.array(times[lead:]), Counters(wall=sum(times)), 0)

        return block

    def compare(self, **options: Any) -> Comparison:
        return in_rounds(self.fresh, clock=lambda: self.now, **options)


def steady(milliseconds: float) -> Cost:
    return lambda _: milliseconds


def noisy(milliseconds: float, seed: int, machine: Cost = lambda _: 1.0) -> Cost:
    """A request time with log-normal noise, on a machine whose own speed may change; every fifth request is disturbed."""
    rng = np.random.default_rng(seed)

    def cost(request: int) -> float:
        disturbed = 3.0 if rng.random() < 0.2 else 1.0
        return milliseconds * float(rng.lognormal(0, 0.05)) * disturbed * machine(request)

    return cost


def test_the_speedup_of_a_planted_delay_is_found_exactly() -> None:
    seen = Machine(steady(SLOW_MS), steady(FAST_MS)).compare(budget_s=20)
    assert (seen.speedup, seen.low, seen.high) == pytest.approx((2.5, 2.5, 2.5))
    assert (seen.first.p50_ms, seen.second.p50_ms) == pytest.approx((SLOW_MS, FAST_MS))
    assert seen.settled


def test_what_is_started_first_is_each_file_as_often() -> None:
    """The process that is started and timed first may be slower for as long as it lives."""
    machine = Machine(noisy(FAST_MS, 1), noisy(FAST_MS, 2), spread=0.01, first_slower=0.03)
    seen = machine.compare(budget_s=120)
    assert seen.low < 1 < seen.high
    assert seen.speedup == pytest.approx(1, abs=0.012)


def test_exchanging_the_files_inverts_the_speedup() -> None:
    assert Machine(steady(FAST_MS), steady(SLOW_MS)).compare(budget_s=20).speedup == pytest.approx(0.4)


@pytest.mark.parametrize("until", [0.05, 0.02])
@pytest.mark.parametrize("ratio", [1.0, 1.2])
def test_the_interval_contains_the_truth_about_as_often_as_it_claims(ratio: float, until: float) -> None:
    """A against A, and against a copy a fifth faster, where processes differ by half a percent from the file that they run,
    on a machine that becomes three times slower on the way."""
    contained = 0
    repetitions = 30
    for seed in range(repetitions):
        slower = lambda request: 3.0 if request > 500 else 1.0  # noqa: E731
        machine = Machine(noisy(ratio, seed, slower), noisy(1.0, 1000 + seed, slower), spread=0.005)
        machine.rng = np.random.default_rng(seed)
        seen = machine.compare(budget_s=1000, until=until, seed=seed)
        contained += seen.low <= ratio <= seen.high
        assert seen.half_width <= until
    assert contained / repetitions >= 0.8  # of a wrong interval it was 0.6


def test_it_goes_on_until_the_interval_is_narrow_enough_and_no_longer() -> None:
    rounds = []
    for until in (0.1, 0.01, 0.006):
        seen = Machine(noisy(SLOW_MS, 1), noisy(FAST_MS, 2), spread=0.005).compare(budget_s=6000, until=until)
        assert seen.half_width <= until
        assert not seen.inconclusive
        rounds.append(seen.rounds)
    assert rounds[0] == FEWEST_ROUNDS
    assert rounds == sorted(rounds)
    assert rounds[-1] > FEWEST_ROUNDS


def test_an_interval_that_stays_too_wide_is_inconclusive_and_says_what_it_would_take() -> None:
    seen = Machine(noisy(SLOW_MS, 1), noisy(FAST_MS, 2)).compare(budget_s=30, until=0.0001)
    assert seen.seconds <= 30
    assert seen.inconclusive.startswith("the interval is ±")
    assert "asked was ±0.01%; as noisy as it was, that takes about" in seen.inconclusive


def test_a_budget_without_room_for_an_interval_is_exceeded_by_as_little_as_it_takes() -> None:
    seen = Machine(noisy(SLOW_MS, 1), noisy(FAST_MS, 2), start_s=1.0).compare(budget_s=1, until=1e-6)
    assert seen.rounds == FEWEST_ROUNDS
    assert "asked was ±0.00%" in seen.inconclusive


def test_the_warm_up_lasts_as_long_as_times_have_a_trend() -> None:
    warming = lambda request: 10.0 - min(request, 100) * 0.08  # noqa: E731 (from 10 to 2 ms)
    seen = Machine(warming, warming).compare(budget_s=60, until=0.05)
    assert seen.settled == 1
    assert seen.first.p90_ms < 4.0


def test_times_that_never_settle_are_said() -> None:
    worse = lambda request: 1.0 + request / 100  # noqa: E731
    assert Machine(worse, worse).compare(budget_s=1000, until=0.5).settled == 0


def test_both_files_of_a_pair_are_near_each_other_and_neither_is_always_first() -> None:
    machine = Machine(steady(SLOW_MS), steady(SLOW_MS))
    machine.compare(budget_s=20)
    pairs = np.concatenate([np.array(blocks[4:]) for blocks in machine.rounds]).reshape(
        -1, 2
    )  # 4 tell how long they take
    assert (pairs.sum(axis=1) == 1).all()
    assert set(pairs[:, 0]) == {0, 1}


def test_the_first_requests_of_a_block_are_not_timed() -> None:
    """The caches hold what the other file left: as if the first millisecond after a change took ten times as long."""
    last: list[int] = []

    class Cold(Machine):
        def side(self, number: int, cost: Cost, luck: float) -> Callable[[int, int], Block]:
            block = super().side(number, cost, luck)

            def answered(requests: int, lead: int) -> Block:
                changed = last != [number]
                last[:] = [number]
                made = block(requests, lead)
                if changed and lead * 0.5e-3 < LEAD_S:
                    made.seconds[0] *= 10
                return made

            return answered

    assert Cold(steady(0.5), steady(0.5)).compare(budget_s=20).first.p90_ms == pytest.approx(0.5)


def test_a_file_whose_weights_leave_the_cache_is_timed_as_it_serves() -> None:
    """Of 14 MB the requests after a change take 1.2, 1.09, 1.04 times as long as those that follow; few of a block's are left."""
    cold = {0: (1.2, 1.09, 1.04), 1: (1.02, 1.0, 1.0)}

    class Cold(Machine):
        def side(self, number: int, cost: Cost, luck: float) -> Callable[[int, int], Block]:
            block = super().side(number, cost, luck)

            def answered(requests: int, lead: int) -> Block:
                made = block(requests, lead)
                for at, factor in enumerate(cold[number][lead:][:requests]):
                    made.seconds[at] *= factor
                return made

            return answered

    assert Cold(steady(3.4), steady(1.2)).compare(budget_s=20).speedup == pytest.approx(3.4 / 1.2, rel=0.01)


def test_the_same_samples_give_the_same_interval() -> None:
    seen = [Machine(noisy(SLOW_MS, 1), noisy(FAST_MS, 2)).compare(budget_s=20, seed=5) for _ in range(2)]
    assert seen[0].speedup == seen[1].speedup
    assert (seen[0].low, seen[0].high) == (seen[1].low, seen[1].high)
    assert seen[0].low < seen[0].speedup < seen[0].high


def test_a_higher_confidence_gives_a_wider_interval() -> None:
    values = np.random.default_rng(0).normal(size=50)
    widths = [np.subtract(*interval(values, confidence)[::-1]) for confidence in (0.8, 0.95, 0.99)]
    assert widths == sorted(widths)
    assert widths[0] < widths[2]


def test_an_interval_of_a_median_lies_between_sorted_values_by_the_binomial_distribution() -> None:
    """Of 12 values the third and the tenth from below: P(2 or fewer of 12 coins) is 1.9 %, of 3 or fewer 7.3 %."""
    assert interval(np.random.default_rng(0).permutation(np.arange(12.0)), 0.95) == (2.0, 9.0)


@pytest.mark.parametrize(("confidence", "rounds"), [(0.9, 6), (0.95, 6), (0.99, 8), (0.999, 11)])
def test_a_higher_confidence_takes_more_rounds(confidence: float, rounds: int) -> None:
    seen = Machine(steady(SLOW_MS), steady(FAST_MS)).compare(budget_s=1000, until=0.1, confidence=confidence)
    assert seen.rounds == rounds


@pytest.mark.parametrize("until", [0.0, -1.0, math.nan])
def test_a_half_width_that_cannot_be_is_refused(until: float, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^until: expected a half-width and a budget above 0"):
        compare(tmp_path / "a", tmp_path / "b", Target(), [np.zeros((1, 4))], until=until)


@pytest.mark.alone
def test_real_files_are_compared_and_more_work_is_slower(tmp_path: Path) -> None:
    side = 512
    few, many = (
        models.linear_onnx(tmp_path / f"{columns}.onnx", np.ones((side, columns))) for columns in (side, 8 * side)
    )
    told: list[Comparison | None] = []
    inputs = [np.ones((4, side), np.float32)]
    seen = compare(
        many, few, Target(batch=4), inputs, until=0.2, budget_s=60, on_round=lambda _, seen: told.append(seen)
    )
    assert seen.low > 1.5
    assert told[: FEWEST_ROUNDS - 1] == [None] * (FEWEST_ROUNDS - 1)
    assert told[-1] == seen
