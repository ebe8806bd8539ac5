"""Latency and speedup on a clock that the tests turn, so that every figure is known before it is measured."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import models
import numpy as np
import pytest

from secateur import measure
from secateur.errors import InputError
from secateur.measure import WARM_UP, compare, latency, peak_memory, request_of, summarise
from secateur.runtime import Target, run

INPUTS = models.vectors(8)
SLOW_MS, FAST_MS = 10.0, 4.0
BLOCKS = 12
MEGABYTE = 2**20

Cost = Callable[[int], float]  # milliseconds of the n-th request since the clock started


@pytest.fixture
def turn_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Cost]], list[tuple[str, int]]]:
    """Make each request to a file take the time it is given; returns the requests as (file, examples)."""

    def turn(costs: dict[str, Cost]) -> list[tuple[str, int]]:
        now, requests = [0.0], []

        def serve(session: str, inputs: np.ndarray) -> None:
            now[0] += costs[session](len(requests)) / 1e3
            requests.append((session, len(inputs)))

        monkeypatch.setattr(measure, "open_session", lambda path, target: str(path))
        monkeypatch.setattr(measure, "run", serve)
        monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))
        return requests

    return turn


def noisy(milliseconds: float, seed: int, machine: Cost = lambda _: 1.0) -> Cost:
    """A request time with log-normal noise, on a machine whose own speed may change."""
    rng = np.random.default_rng(seed)
    return lambda request: milliseconds * float(rng.lognormal(0, 0.1)) * machine(request)


def test_percentiles_and_throughput_are_those_of_the_samples() -> None:
    seen = summarise(np.arange(1, 2001) / 1e3, batch=4)
    assert (seen.p50_ms, seen.p90_ms, seen.p99_ms) == pytest.approx((1000.5, 1800.1, 1980.01))
    assert seen.throughput == pytest.approx(4 / 1.0005)
    assert seen.samples == 2000


@pytest.mark.parametrize(("samples", "reported"), [(30, False), (999, False), (1000, True)])
def test_p99_is_given_only_when_ten_samples_lie_beyond_it(samples: int, reported: bool) -> None:
    assert (summarise(np.full(samples, 0.001), batch=1).p99_ms is not None) == reported


def test_latency_leaves_the_warm_up_out(turn_clock: Callable[..., Any]) -> None:
    requests = turn_clock({"a": lambda n: 500.0 if n < WARM_UP // 2 - 1 else 2.0})
    seen = latency("a", Target(), [INPUTS], budget_s=1.0)
    assert (seen.p50_ms, seen.p90_ms) == pytest.approx((2.0, 2.0))
    assert seen.samples == len(requests) - WARM_UP == pytest.approx(500, abs=1)


@pytest.mark.parametrize(("milliseconds", "samples"), [(1000.0, 30), (10.0, 300), (0.01, 5000)])
def test_latency_samples_fill_the_budget_within_bounds(
    turn_clock: Callable[..., Any], milliseconds: float, samples: int
) -> None:
    turn_clock({"a": lambda _: milliseconds})
    assert latency("a", Target(), [INPUTS], budget_s=3.0).samples == pytest.approx(samples, abs=1)


def test_throughput_counts_the_examples_of_a_batch(turn_clock: Callable[..., Any]) -> None:
    requests = turn_clock({"a": lambda _: 2.0})
    assert latency("a", Target(batch=8), [INPUTS], budget_s=0.1).throughput == pytest.approx(4000)
    assert {examples for _, examples in requests} == {8}


def test_a_batch_larger_than_the_examples_at_hand_is_not_counted_as_full(turn_clock: Callable[..., Any]) -> None:
    requests = turn_clock({"a": lambda _: 2.0})
    try:
        seen = latency("a", Target(batch=16), [INPUTS], budget_s=0.1)
    except InputError:
        return  # as good: the figure that was asked for cannot be measured
    assert seen.throughput == pytest.approx(requests[-1][1] / 2e-3)


def test_a_request_is_cut_to_the_length_of_the_target() -> None:
    tokens, mask = models.tokens(3), np.ones((3, models.LENGTH), np.int64)
    request = request_of([tokens, mask], Target(batch=2, length=3))
    assert [column.shape for column in request] == [(2, 3), (2, 3)]
    assert np.array_equal(request[0], tokens[:2, :3])


@pytest.mark.parametrize("column", [models.tokens(3), np.zeros(3)], ids=["short", "no-positions"])
def test_examples_shorter_than_the_length_of_the_target_are_refused(column: np.ndarray) -> None:
    with pytest.raises(
        InputError, match=rf"^target.length: expected at most the \d positions .*, got {models.LENGTH + 1}"
    ):
        request_of([models.vectors(3).repeat(3, 1), column], Target(length=models.LENGTH + 1))


def test_the_speedup_of_a_planted_delay_is_found_exactly(turn_clock: Callable[..., Any]) -> None:
    turn_clock({"slow": lambda _: SLOW_MS, "fast": lambda _: FAST_MS})
    seen = compare("slow", "fast", Target(), [INPUTS], blocks=BLOCKS)
    assert (seen.speedup, seen.low, seen.high) == pytest.approx((2.5, 2.5, 2.5))
    assert (seen.first.p50_ms, seen.second.p50_ms) == pytest.approx((SLOW_MS, FAST_MS))
    assert (seen.blocks, seen.confidence) == (BLOCKS, 0.95)


def test_exchanging_the_files_inverts_the_speedup(turn_clock: Callable[..., Any]) -> None:
    turn_clock({"slow": lambda _: SLOW_MS, "fast": lambda _: FAST_MS})
    assert compare("fast", "slow", Target(), [INPUTS], blocks=BLOCKS).speedup == pytest.approx(0.4)


@pytest.mark.parametrize("ratio", [1.0, 1.2])
def test_the_interval_contains_the_truth_about_as_often_as_it_claims(
    turn_clock: Callable[..., Any], ratio: float
) -> None:
    """A against A, and against a copy a fifth faster, on a machine that becomes three times slower on the way."""
    contained = 0
    repetitions = 60
    for seed in range(repetitions):
        slower = lambda request: 3.0 if request > 200 else 1.0  # noqa: E731 (half of the blocks)
        turn_clock({"a": noisy(SLOW_MS * ratio, seed, slower), "b": noisy(SLOW_MS, 1000 + seed, slower)})
        seen = compare("a", "b", Target(), [INPUTS], blocks=30, seed=seed)
        contained += seen.low <= ratio <= seen.high
    assert 0.85 <= contained / repetitions < 1.0


def test_a_disturbance_between_the_two_files_disturbs_both(turn_clock: Callable[..., Any]) -> None:
    requests = turn_clock({"a": lambda _: SLOW_MS, "b": lambda _: SLOW_MS})
    compare("a", "b", Target(), [INPUTS], blocks=BLOCKS, block_s=0.05)
    timed = [name for name, _ in requests[2 * WARM_UP :]]
    blocks = [set(timed[start : start + 10]) for start in range(0, len(timed), 10)]  # five requests of each file
    assert blocks == [{"a", "b"}] * BLOCKS
    firsts = {timed[start] for start in range(0, len(timed), 10)}
    assert firsts == {"a", "b"}  # neither file always comes first


def test_the_same_samples_give_the_same_interval(turn_clock: Callable[..., Any]) -> None:
    seen = []
    for _ in range(2):
        turn_clock({"a": noisy(SLOW_MS, 1), "b": noisy(FAST_MS, 2)})
        seen.append(compare("a", "b", Target(), [INPUTS], blocks=BLOCKS, seed=5))
    assert seen[0] == seen[1]
    assert seen[0].low < seen[0].speedup < seen[0].high


def test_a_higher_confidence_gives_a_wider_interval(turn_clock: Callable[..., Any]) -> None:
    widths = []
    for confidence in (0.8, 0.95, 0.99):
        turn_clock({"a": noisy(SLOW_MS, 1), "b": noisy(FAST_MS, 2)})
        seen = compare("a", "b", Target(), [INPUTS], blocks=BLOCKS, confidence=confidence)
        widths.append(seen.high - seen.low)
    assert widths == sorted(widths)
    assert widths[0] < widths[2]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("measure") / "small.onnx"
    return models.linear_onnx(path, np.ones((models.FEATURES, models.CLASSES)))


def test_a_delay_planted_in_a_real_session_is_seen(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delayed: list[Any] = []

    def with_delay(session: Any, inputs: np.ndarray) -> np.ndarray:
        if not delayed:
            delayed.append(session)
        if session is delayed[0]:
            time.sleep(0.002)
        return run(session, inputs)

    monkeypatch.setattr(measure, "run", with_delay)
    seen = compare(small, small, Target(), [INPUTS], blocks=5, block_s=0.01)
    assert seen.low > 3
    assert seen.first.p50_ms > 2


def test_peak_memory_grows_with_the_weights(small: Path, tmp_path: Path) -> None:
    side = 2048  # 16 MiB of weights
    large = models.linear_onnx(tmp_path / "large.onnx", np.ones((side, side)))
    few = peak_memory(small, Target(), [np.zeros((1, models.FEATURES), np.float32)])
    many = peak_memory(large, Target(), [np.zeros((1, side), np.float32)])
    assert few > 0
    assert many - few > 10 * MEGABYTE


def test_a_file_whose_memory_cannot_be_measured_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)the process that measures memory failed: .*nowhere.onnx"):
        peak_memory(tmp_path / "nowhere.onnx", Target(), [np.zeros((1, 4), np.float32)])
