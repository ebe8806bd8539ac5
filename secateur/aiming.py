"""Aims at a measured ratio: asks an allocation for more or for less until what comes of it measures as wanted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

BAND = (1.0, 1.05)  # of what is wanted: reached is never below it and hardly above
EXPONENTS = (0.3, 1.2)  # of what is measured against what is asked, as far as one shot is believed
SAME = 0.002  # relative: two asks so near give the same cut


@dataclass(frozen=True)
class Shot(Generic[T]):
    """What was asked, what was measured of it, and what was made."""

    asked: float
    reached: float
    made: T


def aim(
    shoot: Callable[[float], tuple[float, T]],
    wanted: float,
    *,
    most: float = math.inf,
    tries: int = 4,
    on_shot: Callable[[Shot[T]], None] = lambda shot: None,
) -> list[Shot[T]]:
    """Shots in the order in which they were made; `best` says which of them counts.

    Ratios are of the dense program to what is left, above 1. Measured and asked are taken as reached = asked^e, with e of the
    last shot, and between two shots on either side of what is wanted as a line in their logarithms: a time falls in stairs,
    and a model of it is off by some per cent, but both rise together.

    Args:
        shoot: makes what is asked and tells what it measures.
        most: the largest ratio that can be asked for.
    """
    goal = math.log(wanted) + math.log(BAND[0] * BAND[1]) / 2
    shots: list[Shot[T]] = []
    asked = min(math.exp(goal), most)
    while len(shots) < tries and not any(abs(math.log(asked / shot.asked)) < SAME for shot in shots):
        reached, made = shoot(asked)
        shots.append(Shot(asked, reached, made))
        on_shot(shots[-1])
        if _within(reached, wanted):
            break
        asked = min(_next(shots, goal), most)
    return shots


def best(shots: Sequence[Shot[T]], wanted: float) -> Shot[T]:
    """The shot that comes nearest above what is wanted, or if none does, nearest below."""
    above = [shot for shot in shots if shot.reached >= BAND[0] * wanted]
    if above:
        return min(above, key=lambda shot: shot.reached)
    return max(shots, key=lambda shot: shot.reached)


def _within(reached: float, wanted: float) -> bool:
    return BAND[0] * wanted <= reached <= BAND[1] * wanted


def _next(shots: Sequence[Shot[T]], goal: float) -> float:
    """What to ask for, by the logarithms of what the shots reached."""
    seen = [(math.log(shot.asked), math.log(shot.reached)) for shot in shots]
    below = max(((x, y) for x, y in seen if y < goal), key=lambda one: one[1], default=None)
    above = min(((x, y) for x, y in seen if y >= goal), key=lambda one: one[1], default=None)
    if below and above and below[0] < above[0]:
        return math.exp(below[0] + (above[0] - below[0]) * (goal - below[1]) / (above[1] - below[1]))
    asked, reached = seen[-1]
    exponent = min(max(reached / asked, EXPONENTS[0]), EXPONENTS[1])
    return math.exp(max(asked + (goal - reached) / exponent, SAME))
