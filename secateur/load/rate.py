"""The highest rate of requests that a file answers within a limit of latency, as a bracket that LoadGen's verdicts give."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.load.scenario import Arrivals, Run, check_positive, kept, run
from secateur.runtime import Target

QUERIES = 1000  # of a probe at least: ten lie beyond the 99th percentile
QUERIES_ALONE = 20  # at least: ten lie beyond the median
START = 0.5  # of what a request alone would allow: the first probe
HALVINGS = 5  # of the first rate, after which no rate is held to be low enough
VOTES = 2  # probes that agree, and are more than those that do not, before an end of the bracket is believed

Ask = Callable[[int, Arrivals | None, float, int, int], Run]
"""Runs Server, or SingleStream without arrivals, of a file for so many seconds and queries at least; the last is its number."""


@dataclass(frozen=True)
class Probe:
    """One run of Server at a rate, queries a second."""

    rate: float
    run: Run


@dataclass(frozen=True)
class Rate:
    """Requests a second, one example each, with 99 % of them answered within `p99_ms` milliseconds.

    `low` is the highest rate that LoadGen called VALID, `high` the lowest above it that it called INVALID, each by most of
    its probes; None where there is none. LoadGen asks for 99 % confidence, so the truth may lie a little above `low`.
    `too_slow` says why no rate keeps the limit, `inconclusive` why the bracket is not what was asked for; both are empty
    where it is.
    """

    p99_ms: float
    low: float | None
    high: float | None
    tolerance: float  # how far apart the ends may be, relative to the lower
    alone: Run  # SingleStream: one request after another
    probes: tuple[Probe, ...]
    seconds: float  # that the search took, with that of others beside it
    too_slow: str = ""
    inconclusive: str = ""

    @property
    def at_low(self) -> Run | None:
        """The last VALID run at the lower end."""
        return next((one.run for one in reversed(self.probes) if one.rate == self.low and one.run.valid), None)

    def __str__(self) -> str:
        if self.too_slow:
            return f"no rate keeps the limit of {self.p99_ms:g} ms: {self.too_slow}"
        low, high = ("unknown" if end is None else f"{end:,.4g}" for end in (self.low, self.high))
        return f"{low} to {high} requests a second within {self.p99_ms:g} ms ({len(self.probes)} probes)"


@dataclass(frozen=True)
class Gain:
    """How many times the requests of another file: between the ends that the two brackets leave, and their middle."""

    ratio: float
    low: float
    high: float


OnProbe = Callable[[int, Probe, float | None, float | None], None]  # which file, and its bracket up to now
OnStart = Callable[[int, Arrivals | None, float], None]  # which file, what it is asked (None: alone), and for how long


def highest_rates(
    paths: Sequence[str | Path],
    target: Target,
    columns: Sequence[np.ndarray],
    p99_ms: float,
    *,
    folder: str | Path | None = None,
    seconds: float = 5.0,
    tolerance: float = 0.05,
    budget_s: float = 300.0,
    parallel: int = 1,
    seed: int = 0,
    on_start: OnStart = lambda side, arrivals, seconds: None,
    on_probe: OnProbe = lambda side, probe, low, high: None,
) -> tuple[Rate, ...]:
    """The highest rate of each file, their probes in turns, so that what changes on the machine changes for all of them.

    Args:
        paths: of ONNX files with the same inputs.
        target: `threads` for each request; at most `batch` requests that wait are computed together.
        columns: the inputs of examples [N, ...], in the program's order.
        p99_ms: the limit that 99 % of the requests shall keep, from their arrival to their answer.
        folder: where LoadGen's settings and logs stay, one folder for each probe; without it they are thrown away.
        seconds: of a probe at least. It lasts longer where its rate or the limit is such that less would show nothing.
        tolerance: how far apart the bracket's ends may be, relative to the lower.
        budget_s: for all files together; the first runs, of requests alone, are done in any case.
        parallel: requests that are computed at once, each on its own cores.
        seed: of the arrivals; every probe has others.

    Raises:
        InputError: as `run`, or a limit, duration, tolerance or budget is not above 0.
    """
    for name, value in {"p99_ms": p99_ms, "seconds": seconds, "tolerance": tolerance, "budget": budget_s}.items():
        check_positive(name, value)

    with kept(folder) as place:

        def ask(side: int, arrivals: Arrivals | None, seconds: float, queries: int, number: int) -> Run:
            kind = "single_stream" if arrivals is None else "server"
            name = f"{number:02}-{kind}" + (f"-{arrivals.rate:.4g}" if arrivals else "")
            return run(
                paths[side],
                target,
                columns,
                kind,
                place / f"{side + 1}-{Path(paths[side]).stem}" / name,
                seconds=seconds,
                queries=queries,
                arrivals=arrivals,
                parallel=parallel,
                seed=seed + number,
            )

        return search(
            ask,
            len(paths),
            p99_ms,
            seconds=seconds,
            tolerance=tolerance,
            budget_s=budget_s,
            parallel=parallel,
            on_start=on_start,
            on_probe=on_probe,
        )


def runs_at(
    path: str | Path,
    target: Target,
    columns: Sequence[np.ndarray],
    arrivals: Arrivals,
    *,
    count: int = 3,
    seconds: float = 5.0,
    tolerance: float = 0.05,
    seed: int = 0,
) -> list[Run]:
    """So many runs of Server at one rate, each with other arrivals, long enough to see a rate that is too high by the tolerance.

    Raises:
        InputError: as `run`.
    """
    lasts = duration(arrivals.rate, arrivals.p99_ms, seconds, tolerance)
    with kept(None) as place:
        return [
            run(
                path,
                target,
                columns,
                "server",
                place / str(number),
                seconds=lasts,
                queries=QUERIES,
                arrivals=arrivals,
                seed=seed + number,
            )
            for number in range(count)
        ]


def search(
    ask: Ask,
    sides: int,
    p99_ms: float,
    *,
    seconds: float,
    tolerance: float,
    budget_s: float,
    parallel: int = 1,
    clock: Callable[[], float] = time.monotonic,
    on_start: OnStart = lambda side, arrivals, seconds: None,
    on_probe: OnProbe = lambda side, probe, low, high: None,
) -> tuple[Rate, ...]:
    """`highest_rates`, of whatever answers when asked.

    The bracket is all that is kept: a rate is valid or invalid by most of its probes, and which one is probed next follows
    from them. So a probe that was lucky or unlucky is outvoted, and the search goes back where it led it astray.
    """
    began = clock()
    alone, too_slow = zip(*(_alone(ask, side, p99_ms, seconds, on_start) for side in range(sides)), strict=True)
    probes: list[list[Probe]] = [[] for _ in range(sides)]
    stopped = [""] * sides

    def probe(side: int) -> bool:
        """Take the next probe of a file, if there is one to take."""
        rate = next_rate(probes[side], START * parallel * alone[side].throughput, tolerance)
        if too_slow[side] or stopped[side] or rate is None:
            return False
        lasts = duration(rate, p99_ms, seconds, tolerance)
        if clock() - began + lasts > budget_s:
            stopped[side] = _stopped(probes[side], rate, lasts, budget_s)
            return False
        arrivals = Arrivals(rate, p99_ms)
        on_start(side, arrivals, lasts)
        seen = Probe(rate, ask(side, arrivals, lasts, QUERIES, len(probes[side]) + 2))
        probes[side].append(seen)
        on_probe(side, seen, *bracket(probes[side]))
        return True

    taken = [True]
    while any(taken):
        taken = [probe(side) for side in range(sides)]
    return tuple(
        _rate(
            p99_ms,
            tolerance,
            alone[side],
            tuple(probes[side]),
            clock() - began,
            too_slow[side],
            stopped[side],
        )
        for side in range(sides)
    )


def bracket(probes: Sequence[Probe]) -> tuple[float | None, float | None]:
    """The highest rate below the lowest invalid one that is valid, and that one, by most of the probes of each."""
    votes = _votes(probes)
    high = min((rate for rate, (yes, no) in votes.items() if no > yes), default=None)
    low = max((rate for rate, (yes, no) in votes.items() if yes > no and (high is None or rate < high)), default=None)
    return low, high


def next_rate(probes: Sequence[Probe], start: float, tolerance: float) -> float | None:
    """Where to probe next: double, halve (after a second look), bisect, then again at both ends; None when the bracket stands."""
    if not probes:
        return start
    votes = _votes(probes)
    contested = [rate for rate, (yes, no) in votes.items() if yes == no]
    if contested:
        return contested[0]
    low, high = bracket(probes)
    if high is None:
        return 2 * max(votes)
    if low is None and max(votes[high]) >= VOTES and high > start / 2**HALVINGS:  # lower probes last longer
        return high / 2
    if low is not None and high / low > 1 + tolerance:
        return math.sqrt(low * high)
    return next((end for end in (low, high) if end is not None and max(votes[end]) < VOTES), None)


def duration(rate: float, p99_ms: float, seconds: float, tolerance: float) -> float:
    """Seconds of a probe: enough for its queries, and enough to see a rate that is too high by the tolerance.

    What arrives faster than it is answered waits ever longer, but after `t` seconds only for the tolerance times `t`: a
    shorter probe calls such a rate valid.
    """
    return max(seconds, QUERIES / rate, p99_ms / 1e3 / tolerance)


def gain(first: Rate, second: Rate) -> Gain | None:
    """How many times the requests of the first file the second one answers; None where a bracket has no end."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return None
    middle = math.sqrt(second.low * second.high / (first.low * first.high))
    return Gain(middle, second.low / first.high, second.high / first.low)


def cost_per_million(rate: float, price_per_hour: float) -> float:
    """What a million requests cost at a rate (a second) on a machine with a price per hour."""
    return price_per_hour * 1e6 / (3600 * rate)


def _votes(probes: Sequence[Probe]) -> dict[float, tuple[int, int]]:
    """By rate, how many probes were valid and how many not."""
    votes: dict[float, tuple[int, int]] = defaultdict(lambda: (0, 0))
    for probe in probes:
        yes, no = votes[probe.rate]
        votes[probe.rate] = (yes + probe.run.valid, no + (not probe.run.valid))
    return votes


def _alone(ask: Ask, side: int, p99_ms: float, seconds: float, on_start: OnStart) -> tuple[Run, str]:
    """SingleStream, and why no rate keeps the limit where it says so twice."""
    for number in range(VOTES):
        on_start(side, None, seconds)
        alone = ask(side, None, seconds, QUERIES_ALONE, number)
        percent, latency = (50, alone.p50_ms) if alone.p90_ms is None else (90, alone.p90_ms)
        assert latency is not None
        if latency <= p99_ms:
            return alone, ""
    return (
        alone,
        f"it is below the latency of a single request, of which even alone {100 - percent} % take over {latency:.3g} ms",
    )


def _stopped(probes: Sequence[Probe], rate: float, lasts: float, budget_s: float) -> str:
    low, high = bracket(probes)
    count = f"{len(probes)} probe{'s' * (len(probes) != 1)}"
    found = (
        f"between {low:,.4g} and {high:,.4g} requests a second"
        if low is not None and high is not None
        else f"without {'a valid' if low is None else 'an invalid'} rate"
    )
    reasons = ", ".join(probes[-1].run.reasons) if probes and low is None else ""
    return (
        f"the budget of {budget_s:.0f} s ended after {count}, {found}; the next, of {rate:,.4g} requests a second, takes {lasts:.0f} s"
        + (f" (LoadGen: {reasons})" if reasons else "")
    )


def _rate(
    p99_ms: float,
    tolerance: float,
    alone: Run,
    probes: tuple[Probe, ...],
    seconds: float,
    too_slow: str,
    stopped: str,
) -> Rate:
    low, high = bracket(probes)
    if not too_slow and not stopped and low is None:
        reasons = ", ".join(probes[-1].run.reasons)
        too_slow = f"even {high:,.4g} requests a second are too many for it (LoadGen: {reasons})"
    return Rate(p99_ms, low, high, tolerance, alone, probes, seconds, too_slow, stopped)
