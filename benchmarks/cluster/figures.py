"""Arithmetic on what was measured: percentiles, rates, and what a number of prunings a day needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

DAY_S = 86_400
PEAK = 3.0  # the busiest hour of a day against its mean
FULL = 0.7  # of a core or a device that may be used, so that queues stay short
DAYS_KEPT = 30


@dataclass(frozen=True)
class Costs:
    """Of one pruning: processor seconds by component, tasks, requests to MLflow, bytes kept by database."""

    cpu_s: Mapping[str, float]
    tasks: float
    requests: float
    bytes_kept: Mapping[str, float]
    measuring_min: float  # of a device
    recovery_min: Sequence[float]  # of a train worker: each gives a column


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """The median, the 99th percentile (the least value that 99 % do not exceed) and the count; none of no values."""
    if not values:
        return None
    ordered = sorted(values)
    p50, p99 = (ordered[max(math.ceil(share * len(ordered)) - 1, 0)] for share in (0.5, 0.99))
    return {"p50": p50, "p99": p99, "n": len(ordered)}


def recorded_as(task_id: str) -> str:
    """The recorded step of a task: `cycle_2.cut` is `cut_2`."""
    group, _, name = task_id.rpartition(".")
    return f"{name}_{group.rpartition('_')[2]}" if group else name


def used(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> dict[str, float]:
    """Cores that each component used between two readings of its processor seconds; one that is gone used none."""
    return {name: max(after[name] - before.get(name, 0.0), 0.0) / seconds for name in after}


def kept_per_run(grown: float, at_start: float, started: int, done: float) -> float:
    """Bytes that a run leaves in a database: what every started run wrote at its start, and the rest by what was done.

    `grown` is all that the database grew by while `started` runs started and tasks worth `done` runs were done.
    """
    return at_start / started + max(grown - at_start, 0.0) / done


def sizing(per_day: int, costs: Costs) -> dict[str, float | int | list[int]]:
    """What so many prunings a day need.

    A component's cores: prunings in a second of the busiest hour (PEAK times the mean) times its processor seconds for
    each, over FULL. One process of a component uses at most one core, so as many processes as whole cores. Devices and
    train workers: minutes for each, over the FULL minutes of a day: a queue may smooth them over the day.
    """
    rate = per_day / DAY_S * PEAK
    cores = {name: rate * seconds / FULL for name, seconds in costs.cpu_s.items()}
    day_min = DAY_S / 60 * FULL
    row: dict[str, float | int | list[int]] = {
        "per_day": per_day,
        "tasks_per_min": rate * costs.tasks * 60,
        "requests_per_s": rate * costs.requests,
        "devices": max(math.ceil(per_day * costs.measuring_min / day_min), 1),
        "train_workers": [max(math.ceil(per_day * minutes / day_min), 1) for minutes in costs.recovery_min],
        "cores": sum(cores.values()),
    }
    row |= {f"{name} processes": max(math.ceil(value), 1) for name, value in cores.items()}
    row |= {f"{name} GB": per_day * DAYS_KEPT * size / 1e9 for name, size in costs.bytes_kept.items()}
    return row
