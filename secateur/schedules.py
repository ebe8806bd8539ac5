"""How much is gone after each cycle: pure functions of cycle, cycles and the final share."""

from __future__ import annotations

from collections.abc import Callable

Schedule = Callable[[int, int, float], float]


def one_shot(cycle: int, cycles: int, final: float) -> float:
    """Everything in the first cycle."""
    return final if cycle else 0.0


def linear(cycle: int, cycles: int, final: float) -> float:
    """final t, with t = cycle / cycles."""
    return final * cycle / cycles


def cubic(cycle: int, cycles: int, final: float) -> float:
    """final (1 - (1 - t)^3): much early, little late (Zhu and Gupta, "To prune, or not to prune", 2017)."""
    return final * (1 - (1 - cycle / cycles) ** 3)


def exponential(cycle: int, cycles: int, final: float) -> float:
    """1 - (1 - final)^t: each cycle removes the same share of what the one before left (Han et al. 2015)."""
    return 1 - (1 - final) ** (cycle / cycles)


SCHEDULES: dict[str, Schedule] = {
    "one_shot": one_shot,
    "linear": linear,
    "cubic": cubic,
    "exponential": exponential,
}
