"""The search for a rate: its bracket holds the truth, luck is outvoted, and what is not known is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from secateur.errors import InputError
from secateur.load import rate as rates
from secateur.load.rate import Probe, Rate, cost_per_million, duration, gain, highest_rates, next_rate, search
from secateur.load.scenario import Arrivals, Cores, Run
from secateur.noise import Counters
from secateur.runtime import Target

pytestmark = pytest.mark.alone

LIMIT_MS = 20.0
ALONE = 100.0  # requests a second, one after another
TOLERANCE = 0.05

Valid = Callable[[int, float], bool]  # of the n-th probe, at a rate


def run_of(scenario: str, valid: bool, latency_ms: float = 5.0) -> Run:
    latencies = (latency_ms, latency_ms, latency_ms)
    reasons = () if valid else ("early stopping not satisfied",)
    return Run(
        scenario,
        valid,
        reasons,
        *latencies,
        None,
        ALONE,
        5.0,
        1000,
        1000,
        1.0,
        Cores(((0,),), (1,)),
        Counters(),
        "6",
        "logs",
    )


class Machine:
    """Files with a rate of their own on a clock of its own; a verdict may depend on which probe it is."""

    def __init__(self, *files: Valid, alone_ms: float = 5.0) -> None:
        self.now, self.files, self.alone_ms = 0.0, files, alone_ms
        self.asked: list[tuple[int, float | None, int]] = []

    def ask(self, side: int, arrivals: Arrivals | None, seconds: float, queries: int, number: int) -> Run:
        self.now += seconds
        self.asked.append((side, arrivals.rate if arrivals else None, number))
        if arrivals is None:
            return run_of("single_stream", True, self.alone_ms)
        return run_of("server", self.files[side](number - 2, arrivals.rate))

    def search(self, budget_s: float = 1e6, seconds: float = 1.0, **more: Any) -> tuple[Rate, ...]:
        return search(
            self.ask,
            len(self.files),
            LIMIT_MS,
            seconds=seconds,
            tolerance=TOLERANCE,
            budget_s=budget_s,
            clock=lambda: self.now,
            **more,
        )


def up_to(truth: float) -> Valid:
    return lambda number, rate: rate <= truth


def holds(seen: Rate, truth: float) -> bool:
    return seen.low is not None and seen.high is not None and seen.low <= truth < seen.high


@pytest.mark.parametrize("truth", [2.0, 37.0, 50.0, 99.0, 1234.0])
def test_the_bracket_holds_the_truth_and_is_as_narrow_as_asked(truth: float) -> None:
    (seen,) = Machine(up_to(truth)).search()
    assert holds(seen, truth)
    assert seen.low is not None
    assert seen.high is not None
    assert seen.high / seen.low <= 1 + TOLERANCE
    assert (seen.too_slow, seen.inconclusive) == ("", "")


def test_both_ends_are_probed_again() -> None:
    (seen,) = Machine(up_to(80.0)).search()
    for end in (seen.low, seen.high):
        assert sum(probe.rate == end for probe in seen.probes) == 2


@pytest.mark.parametrize("unlucky", range(12))
def test_one_probe_that_was_lucky_or_unlucky_decides_nothing(unlucky: int) -> None:
    truth = 80.0
    (seen,) = Machine(lambda number, rate: (rate <= truth) != (number == unlucky)).search()
    assert holds(seen, truth)


def test_a_limit_below_a_single_request_is_said_after_asking_twice() -> None:
    machine = Machine(up_to(80.0), alone_ms=21.0)
    (seen,) = machine.search()
    assert len(machine.asked) == 2
    assert (seen.low, seen.high, seen.probes) == (None, None, ())
    assert seen.too_slow == "it is below the latency of a single request, of which even alone 10 % take over 21 ms"


def test_a_file_that_no_rate_is_low_enough_for_is_said_with_loadgens_reason() -> None:
    (seen,) = Machine(up_to(0.0)).search()
    assert seen.low is None
    assert seen.high == ALONE / 2 / 2**5
    assert seen.too_slow == "even 1.562 requests a second are too many for it (LoadGen: early stopping not satisfied)"
    assert str(seen).startswith("no rate keeps the limit of 20 ms: even 1.562")


def test_a_budget_that_ends_first_is_inconclusive_and_says_what_the_next_probe_takes() -> None:
    machine = Machine(up_to(80.0))
    (seen,) = machine.search(budget_s=50.0)
    assert machine.now <= 50
    assert seen.inconclusive == (
        "the budget of 50 s ended after 3 probes, between 70.71 and 100 requests a second; the next, of 84.09 requests a "
        "second, takes 12 s"
    )
    assert (seen.low, seen.high) == (pytest.approx(70.71, rel=1e-4), 100.0)


def test_a_budget_without_room_for_a_probe_says_so() -> None:
    (seen,) = Machine(up_to(80.0)).search(budget_s=5.0)
    assert (seen.low, seen.high) == (None, None)
    assert seen.inconclusive.startswith("the budget of 5 s ended after 0 probes, without a valid rate; the next, of 50")


def test_files_are_probed_in_turns_and_every_probe_has_other_arrivals() -> None:
    machine = Machine(up_to(80.0), up_to(300.0))
    dense, pruned = machine.search()
    sides = [side for side, rate, _ in machine.asked if rate is not None]
    shared = 2 * min(len(dense.probes), len(pruned.probes))
    assert sides[:shared] == [0, 1] * (shared // 2)
    for side in (0, 1):
        numbers = [number for which, _, number in machine.asked if which == side]
        assert len(set(numbers)) == len(numbers)
    assert holds(dense, 80)
    assert holds(pruned, 300)


def test_the_gain_lies_between_what_the_brackets_leave() -> None:
    seen = gain(*Machine(up_to(80.0), up_to(300.0)).search())
    assert seen is not None
    assert seen.low <= 300 / 80 <= seen.high
    assert seen.low < seen.ratio < seen.high
    assert gain(*Machine(up_to(80.0), up_to(0.0)).search()) is None


def test_a_probe_lasts_for_its_queries_and_until_a_growing_queue_shows() -> None:
    assert duration(1e4, LIMIT_MS, 5.0, TOLERANCE) == 5.0
    assert duration(10.0, LIMIT_MS, 5.0, TOLERANCE) == 100.0
    assert duration(1e4, 1000.0, 5.0, TOLERANCE) == 20.0


def test_a_rate_that_is_contested_is_probed_before_any_other() -> None:
    valid, invalid = (Probe(50.0, run_of("server", verdict)) for verdict in (True, False))
    assert next_rate([valid, invalid], 50.0, TOLERANCE) == 50.0
    assert rates.bracket([valid, invalid]) == (None, None)
    assert rates.bracket([valid, invalid, valid]) == (50.0, None)


def test_a_million_requests_cost_the_hours_that_they_take() -> None:
    assert cost_per_million(1e6 / 3600, 0.4) == pytest.approx(0.4)
    assert cost_per_million(100, 0.36) == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["p99_ms", "seconds", "tolerance", "budget_s"])
def test_a_setting_that_is_not_above_0_is_refused(name: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"p99_ms": LIMIT_MS, name: 0.0}
    with pytest.raises(InputError, match=rf"^{name.removesuffix('_s')}: expected a number above 0, got 0"):
        highest_rates([tmp_path / "a.onnx"], Target(), [np.zeros((1, 4))], **settings)


@pytest.mark.slow
def test_a_real_file_with_more_work_answers_fewer_requests(tmp_path: Path) -> None:
    side = 1024
    few, many = (
        models.linear_onnx(tmp_path / f"{columns}.onnx", np.ones((side, columns))) for columns in (side, 8 * side)
    )
    examples = [np.ones((4, side), np.float32)]
    seen = rates.highest_rates(
        [many, few], Target(), examples, 200.0, folder=tmp_path / "logs", seconds=1, tolerance=0.3, budget_s=240
    )
    assert not any(one.too_slow or one.inconclusive for one in seen)
    found = gain(*seen)
    assert found is not None
    assert found.low > 1.5
    assert len(list((tmp_path / "logs" / f"2-{side}").iterdir())) == 1 + len(seen[1].probes)
