"""A against B: two ONNX files timed in turns until their ratio is known well enough, with its interval."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import binom, kendalltau

from secateur import noise
from secateur.errors import InputError
from secateur.measure import Latency, request_of, summarise
from secateur.noise import Noise
from secateur.runtime import Target
from secateur.worker import Block, working

BLOCK_S = 0.005  # shorter than most of what disturbs a machine, so that both files of a pair meet it
LEAD_S = 0.002  # of every block, not timed: the caches hold what the other file left there
LEADS, LONGEST_LEAD_S = 3, 0.012  # requests that refill them with a file of some megabytes, unless they take this long
QUARTILE = 0.25  # of a block's times: whatever disturbs a request only adds to it
ROUND_S = 2.0  # of pairs in a round, about what its processes take to start on a busy machine
PAIRS = (5, 50)  # of a round, at least and at most
SETTLED_PAIRS = 6  # that show no trend
TREND = 0.05  # level of the test for a trend
WARM_UP_S = 2.0  # after which a round is measured whether its times have settled or not
FEWEST_ROUNDS = 6  # a median has no 95 % interval from fewer
LOOK_AGAIN = 1.5  # times as many rounds until the next look at the interval

Side = Callable[[int, int], Block]  # times so many requests, after so many that are not timed
Fresh = Callable[[bool], AbstractContextManager[tuple[Side, Side]]]  # the second side's process first, or the first's
OnRound = Callable[[int, "Comparison | None"], None]  # of how many rounds, None while they are too few


@dataclass(frozen=True)
class Comparison:
    """Speedup of the second file over the first: the ratio of their latencies, with its interval.

    `until` is the half-width that was asked for, relative to the speedup; None if any would do. `settled` is the share of
    rounds whose times had no trend any more when they were measured.
    """

    speedup: float
    low: float
    high: float
    confidence: float
    rounds: int
    blocks: int  # of each file
    first: Latency
    second: Latency
    noise: Noise
    seconds: float
    settled: float = 1.0
    until: float | None = None

    @property
    def half_width(self) -> float:
        """Half of the interval, relative to the speedup."""
        return math.sqrt(self.high / self.low) - 1

    @property
    def inconclusive(self) -> str:
        """Why the interval is wider than asked; nothing where it is not."""
        if self.until is None or self.half_width <= self.until:
            return ""
        needed = self.seconds * (self.half_width / self.until) ** 2
        return (
            f"the interval is ±{self.half_width:.2%} wide after {self.seconds:.0f} s, asked was ±{self.until:.2%}; as noisy as "
            f"it was, that takes about {needed:.0f} s (noise: {self.noise})"
        )

    def __str__(self) -> str:
        return (
            f"{self.speedup:.3f}x, {self.confidence:.0%} interval {self.low:.3f} to {self.high:.3f} ({self.rounds} rounds of "
            f"fresh processes, {self.blocks} blocks each, {self.seconds:.0f} s, noise: {self.noise})"
        )


@dataclass(frozen=True)
class _Round:
    """One pair of processes: the log of the speedup that they showed, and all that they timed."""

    log: float
    pairs: tuple[tuple[Block, Block], ...]
    settled: bool


def compare(
    first: str | Path,
    second: str | Path,
    target: Target,
    columns: Sequence[np.ndarray],
    *,
    confidence: float = 0.95,
    until: float | None = None,
    budget_s: float = 30.0,
    seed: int = 0,
    on_round: OnRound = lambda number, seen: None,
) -> Comparison:
    """Time two files in turns, each in fresh processes pinned to the same cores, until the interval is narrow enough.

    `columns` are the inputs of examples [N, ...], in the program's order. Without `until` the whole budget is used; it is
    exceeded where it has no room for the fewest rounds that give an interval.

    Raises:
        InputError: a file cannot be loaded or its outputs are not finite.
    """
    if not 0 < confidence < 1 or (until is not None and not until > 0) or not budget_s > 0:
        raise InputError(
            f"until: expected a half-width and a budget above 0 and a confidence in 0..1, got {until}, {budget_s} s and "
            f"{confidence}"
        )
    request = request_of(columns, target)

    @contextmanager
    def fresh(swapped: bool) -> Iterator[tuple[Side, Side]]:
        with working([second, first] if swapped else [first, second], target, request) as (a, b):
            yield (b.block, a.block) if swapped else (a.block, b.block)

    return in_rounds(
        fresh,
        batch=target.batch,
        confidence=confidence,
        until=until,
        budget_s=budget_s,
        seed=seed,
        on_round=on_round,
    )


def in_rounds(
    fresh: Fresh,
    *,
    batch: int = 1,
    confidence: float = 0.95,
    until: float | None = None,
    budget_s: float = 30.0,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
    on_round: OnRound = lambda number, seen: None,
) -> Comparison:
    """Rounds of fresh processes; in each, blocks of both sides in pairs, every pair in random order.

    What disturbs the machine disturbs both blocks of a pair. A round's speedup is the median over its pairs of the ratio of
    their times, of each block its lower quartile: on a busy machine that is known several times as well as a mean of
    means, and on a quiet one they agree. What counts for the interval is rounds: where a process happens to lie in memory
    makes it faster or slower for as long as it lives (Mytkowicz et al., ASPLOS 2009; Kalibera and Jones, ISMM 2013), and
    no number of blocks tells that from the file. Which process is started and timed first is such a thing too, worth one or two
    percent to a file of milliseconds, so of every two rounds each file is first in one, in random order.

    Whether the interval is narrow enough is looked at after ever more rounds: looking at each would stop at a lucky one.
    """
    began, rng = clock(), np.random.default_rng(seed)
    rounds: list[_Round] = []
    swapped = False
    look = fewest = fewest_rounds(confidence)
    while True:
        swapped = bool(rng.integers(2)) if len(rounds) % 2 == 0 else not swapped
        rounds.append(_round(fresh, swapped, rng, clock))
        spent = clock() - began
        seen = _compared(rounds, batch, confidence, spent, until) if len(rounds) >= fewest else None
        on_round(len(rounds), seen)
        if seen and spent * (1 + 1 / len(rounds)) > budget_s:
            return seen
        if seen and len(rounds) == look:
            if until is not None and seen.half_width <= until:
                return seen
            look = math.ceil(LOOK_AGAIN * look)


def fewest_rounds(confidence: float) -> int:
    """As few rounds as give an interval of this confidence."""
    return max(FEWEST_ROUNDS, math.ceil(1 - math.log2(1 - confidence)))


def interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Of the median, between two of the sorted values: exact whatever the distribution (David and Nagaraja, "Order
    Statistics", 2003, section 7.1). Resampling promises too much for few values, and for many where it is looked at again
    and again."""
    n = len(values)
    below = int(binom.ppf((1 - confidence) / 2, n, 0.5))
    if binom.cdf(below, n, 0.5) > (1 - confidence) / 2:
        below -= 1
    ordered = np.sort(values)
    return float(ordered[below]), float(ordered[n - 1 - below])


def _compared(
    rounds: Sequence[_Round], batch: int, confidence: float, seconds: float, until: float | None
) -> Comparison:
    logs = np.array([one.log for one in rounds])
    low, high = interval(logs, confidence)
    pairs = [pair for one in rounds for pair in one.pairs]
    first, second = (summarise(np.concatenate([pair[side].seconds for pair in pairs]), batch) for side in (0, 1))
    return Comparison(
        speedup=math.exp(np.median(logs)),
        low=math.exp(low),
        high=math.exp(high),
        confidence=confidence,
        rounds=len(rounds),
        blocks=len(pairs),
        first=first,
        second=second,
        noise=noise.summed(block.counters for pair in pairs for block in pair),
        seconds=seconds,
        settled=sum(one.settled for one in rounds) / len(rounds),
        until=until,
    )


def _round(fresh: Fresh, swapped: bool, rng: np.random.Generator, clock: Callable[[], float]) -> _Round:
    with fresh(swapped) as sides:
        counts = {place: _requests(sides[place]) for place in ((1, 0) if swapped else (0, 1))}

        def pair() -> tuple[Block, Block]:
            if rng.integers(2):
                b = sides[1](*counts[1])
                return sides[0](*counts[0]), b
            return sides[0](*counts[0]), sides[1](*counts[1])

        settled = _warm_up(pair, clock)
        pairs: list[tuple[Block, Block]] = []
        began = clock()
        while len(pairs) < PAIRS[0] or (len(pairs) < PAIRS[1] and clock() - began < ROUND_S):
            pairs.append(pair())
    logs = [math.log(undisturbed(a) / undisturbed(b)) for a, b in pairs]
    return _Round(float(np.median(logs)), tuple(pairs), settled)


def _requests(side: Side) -> tuple[int, int]:
    """How many requests make a block of a side, and how many lead in."""
    first = float(side(1, 1).seconds[0])
    seconds = undisturbed(side(max(1, min(50, round(BLOCK_S / first))), 1))
    leads = max(1, math.ceil(LEAD_S / seconds), min(LEADS, int(LONGEST_LEAD_S / seconds)))
    return max(1, round(BLOCK_S / seconds)), leads


def undisturbed(block: Block) -> float:
    return float(np.quantile(block.seconds, QUARTILE))


def _warm_up(pair: Callable[[], tuple[Block, Block]], clock: Callable[[], float]) -> bool:
    """Run pairs until neither side's times have a trend (Kendall's rank test); whether it came to that in time."""
    began = clock()
    seen: list[list[float]] = []
    while len(seen) < SETTLED_PAIRS or clock() - began < WARM_UP_S:
        seen.append([undisturbed(block) for block in pair()])
        if len(seen) >= SETTLED_PAIRS and not any(map(_has_trend, np.array(seen[-SETTLED_PAIRS:]).T)):
            return True
    return False


def _has_trend(times: np.ndarray) -> bool:
    return bool(kendalltau(np.arange(len(times)), times).pvalue < TREND)
