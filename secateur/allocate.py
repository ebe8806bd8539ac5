"""Turns a goal into how many units each axis keeps."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sympy

from secateur.axes.infer import AxisInfo, Structure
from secateur.axes.terms import Widths
from secateur.errors import InputError

ALIGNED_KINDS = ("channel", "width", "embedding")  # a head count has no vector width to fill


@dataclass(frozen=True)
class Ratio:
    """Remove this share of the units of every chosen axis."""

    share: float


@dataclass(frozen=True)
class Parameters:
    """Remove this share of the program's parameters."""

    share: float


@dataclass(frozen=True)
class Macs:
    """Remove this share of the program's multiply-accumulates."""

    share: float


Goal = Ratio | Parameters | Macs


def measure_of(goal: Goal, structure: Structure, symbols: dict[sympy.Symbol, int]) -> Callable[[Widths], int]:
    """What the goal counts, as a function of the widths that are left."""
    if isinstance(goal, Macs):
        return lambda widths: structure.count_macs(symbols, widths)
    return structure.count_parameters


def uniform(
    structure: Structure, axes: Sequence[AxisInfo], goal: Goal, symbols: dict[sympy.Symbol, int], align: int
) -> Widths:
    """The same share off every axis, as nearly as alignment allows, so that the goal is met within one step of one axis.

    Widths of channels, FFNs and embeddings stay multiples of `align`; every axis keeps at least one step.

    Raises:
        InputError: the goal lies beyond what these axes can give; the message says what they can.
    """
    if isinstance(goal, Ratio):
        return {info.axis: _nearest(info, goal.share, align) for info in axes}
    steps = sorted(
        ((1 - width / info.size, index, width) for index, info in enumerate(axes) for width in _ladder(info, align)[1:])
    )
    count = measure_of(goal, structure, symbols)
    dense = count({})

    def after(taken: int) -> Widths:
        widths = {info.axis: info.size for info in axes}
        for _, index, width in steps[:taken]:
            widths[axes[index].axis] = width
        return widths

    reachable = 1 - count(after(len(steps))) / dense
    if goal.share > reachable:
        raise InputError(
            f"goal: {goal} asks for more than these axes can give: expected a share of at most {reachable:.3f} "
            f"(align {align}, {len(axes)} axes), got {goal.share}; allow more kinds or a smaller alignment"
        )
    taken = bisect.bisect_left(range(len(steps)), goal.share, key=lambda k: 1 - count(after(k)) / dense)
    candidates = [after(k) for k in (max(taken - 1, 0), taken)]
    return min(candidates, key=lambda widths: abs(1 - count(widths) / dense - goal.share))


def _ladder(info: AxisInfo, align: int) -> list[int]:
    """The widths an axis may have, from dense downwards."""
    step = min(align, info.size) if info.kind in ALIGNED_KINDS else 1
    return [info.size, *range((info.size - 1) // step * step, 0, -step)]


def _nearest(info: AxisInfo, share: float, align: int) -> int:
    return min(_ladder(info, align), key=lambda width: (abs(info.size * (1 - share) - width), -width))
