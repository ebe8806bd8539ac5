"""What else a machine did while something was measured on it: preemptions, other processes, stolen time, clock rates."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

PREEMPTED_OFTEN = 20.0  # a second: a quiet machine has a few
BUSY = 0.05  # share of the cores' time that others, or the host, may take before it is said
CLOCK_VARIES = 0.05


@dataclass(frozen=True)
class Counters:
    """Counts of a stretch of time, or since the start; times in seconds, of all cores in question together."""

    wall: float = 0.0
    cores: int = 1
    preempted: int = 0  # involuntary context switches of this process
    own: float = 0.0  # CPU time of this process
    busy: float = 0.0  # of the cores, whoever used them
    stolen: float = 0.0  # by the machine's host
    megahertz: float | None = None  # mean over the cores, where the system tells

    def since(self, start: Counters) -> Counters:
        """The counts between an earlier snapshot and this one."""
        return Counters(
            self.wall - start.wall,
            self.cores,
            self.preempted - start.preempted,
            self.own - start.own,
            self.busy - start.busy,
            self.stolen - start.stolen,
            self.megahertz,
        )


@dataclass(frozen=True)
class Noise:
    """What disturbed a measurement, over all of it; shares are of the cores' time."""

    preempted_per_s: float
    others: float
    stolen: float
    clock_range: float | None  # (highest - lowest) / highest clock rate; None where the system does not tell

    def __str__(self) -> str:
        found = [
            (self.preempted_per_s > PREEMPTED_OFTEN, f"{self.preempted_per_s:.0f} preemptions a second"),
            (self.others > BUSY, f"other processes on these cores for {self.others:.0%} of the time"),
            (self.stolen > BUSY, f"{self.stolen:.0%} of the time taken by the machine's host"),
            ((self.clock_range or 0) > CLOCK_VARIES, f"a clock rate that varied by {self.clock_range or 0:.0%}"),
        ]
        return ", ".join(words for seen, words in found if seen) or "none seen"


def snapshot(cores: Sequence[int]) -> Counters:
    """The counts up to now; those of cores are 0 where the system does not tell (Linux does, in proc(5))."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    busy, stolen = _core_times(cores)
    return Counters(
        time.perf_counter(),
        max(1, len(cores)),
        usage.ru_nivcsw,
        usage.ru_utime + usage.ru_stime,
        busy,
        stolen,
        _megahertz(cores),
    )


def summed(parts: Iterable[Counters]) -> Noise:
    """The noise of a measurement in parts."""
    seen = list(parts)
    wall = sum(part.wall for part in seen) or 1e-9
    time_of_cores = sum(part.wall * part.cores for part in seen) or 1e-9
    clocks = [part.megahertz for part in seen if part.megahertz]
    return Noise(
        preempted_per_s=sum(part.preempted for part in seen) / wall,
        others=max(0.0, sum(part.busy - part.own for part in seen) / time_of_cores),
        stolen=sum(part.stolen for part in seen) / time_of_cores,
        clock_range=(max(clocks) - min(clocks)) / max(clocks) if clocks else None,
    )


def peak_resident() -> int:
    """Peak resident bytes of this process; `ru_maxrss` would start at the parent's peak, this starts at exec."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _core_times(cores: Sequence[int]) -> tuple[float, float]:
    """Seconds that the cores were busy, and that their host took from them."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0
    names, tick = {f"cpu{core}" for core in cores}, os.sysconf("SC_CLK_TCK")
    rows = [[int(x) for x in line.split()[1:9]] for line in stat.read_text().splitlines() if line.split()[0] in names]
    # user nice system idle iowait irq softirq steal
    busy = sum(sum(row[:3]) + row[5] + row[6] for row in rows)
    return busy / tick, sum(row[7] for row in rows) / tick


def _megahertz(cores: Sequence[int]) -> float | None:
    places = [Path(f"/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq") for core in cores]
    rates = [int(place.read_text()) / 1000 for place in places if place.exists()]
    return sum(rates) / len(rates) if rates else None
