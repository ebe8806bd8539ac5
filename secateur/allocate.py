"""Turns a goal into how many units each axis keeps: an order in which steps are taken, and how far to go along it."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import sympy

from secateur.axes.infer import AxisInfo, Structure
from secateur.axes.terms import Widths
from secateur.branches import Droppable, without
from secateur.errors import InputError

ALIGNED_KINDS = ("channel", "width", "embedding")  # a head count has no vector width to fill
DEAREST = 32  # times the price of the step that first goes beyond a goal, at which no remainder is worth it
Curves = Mapping[str, Mapping[float, float]]  # by axis name: loss at each share removed, 0.0 included


@dataclass(frozen=True)
class Ratio:
    """Remove this share of the units of the chosen axes: of each under uniform allocation, of all otherwise."""

    share: float


@dataclass(frozen=True)
class Parameters:
    """Remove this share of the program's parameters."""

    share: float


@dataclass(frozen=True)
class Macs:
    """Remove this share of the program's multiply-accumulates."""

    share: float


@dataclass(frozen=True)
class KvCache:
    """Remove this share of the keys and values that a decoder keeps for each position."""

    share: float


@dataclass(frozen=True)
class Speedup:
    """Make the program this many times as fast, by what a latency table predicts.

    `latency` gives seconds at widths by axis name: `secateur.latency.table.LatencyTable.predict`.
    """

    times: float
    latency: Callable[[Mapping[str, int]], float] = field(repr=False)

    @property
    def share(self) -> float:
        """Of the latency, what goes."""
        return 1 - 1 / self.times


Goal = Ratio | Parameters | Macs | KvCache


class Step(NamedTuple):
    """Narrow axis number `which` to `width`; steps are taken in the order of `key`."""

    key: float
    which: int
    width: int


def ladder(info: AxisInfo, align: int, floor: float) -> list[int]:
    """The widths an axis may have, from dense downwards: multiples of `align`, at least `floor` of it, at least one step."""
    step = min(align, info.size) if info.kind in ALIGNED_KINDS else 1
    lowest = max(step, info.minimum, int(np.ceil(info.size * floor)))
    return [info.size, *(w for w in range((info.size - 1) // step * step, 0, -step) if w >= lowest)]


def uniform_order(
    axes: Sequence[AxisInfo], ladders: Sequence[list[int]], scores: Mapping[str, np.ndarray]
) -> list[Step]:
    """The same share off every axis, as nearly as the ladders allow; of equal shares the least important units first."""
    steps = global_order(axes, ladders, scores)
    return sorted((Step(1 - s.width / axes[s.which].size, s.which, s.width) for s in steps), key=lambda s: s.key)


def global_order(
    axes: Sequence[AxisInfo], ladders: Sequence[list[int]], scores: Mapping[str, np.ndarray]
) -> list[Step]:
    """The least important units anywhere first. Scores are divided by their axis's mean magnitude, so that axes of unlike
    magnitude compare; a step costs the mean of the units it takes, and never less than the step before it."""
    steps: list[Step] = []
    for i, (info, widths) in enumerate(zip(axes, ladders, strict=True)):
        ranked = np.sort(scores[info.name] / max(float(np.abs(scores[info.name]).mean()), np.finfo(float).tiny))
        cost = -np.inf
        for wider, width in pairwise(widths):
            cost = max(cost, float(ranked[info.size - wider : info.size - width].mean()))
            steps.append(Step(cost, i, width))
    return sorted(steps, key=lambda s: (s.key, -s.width / axes[s.which].size, s.which))


def grouped_order(
    axes: Sequence[AxisInfo], ladders: Sequence[list[int]], scores: Mapping[str, np.ndarray]
) -> list[Step]:
    """Global within each kind, the same share off every kind."""
    total = {kind: sum(info.size for info in axes if info.kind == kind) for kind in {info.kind for info in axes}}
    taken = dict.fromkeys(total, 0)
    widths = [info.size for info in axes]
    steps: list[Step] = []
    for step in global_order(axes, ladders, scores):
        kind = axes[step.which].kind
        taken[kind] += widths[step.which] - step.width
        widths[step.which] = step.width
        steps.append(Step(taken[kind] / total[kind], step.which, step.width))
    return sorted(steps, key=lambda s: s.key)


def sensitivity_order(
    axes: Sequence[AxisInfo], ladders: Sequence[list[int]], curves: Curves, count: Callable[[Widths], int]
) -> list[Step]:
    """The least loss for what the goal counts first, from curves of loss against share, interpolated.

    No axis is cut further than its curve was measured. Losses of axes add up only while each is cut a little: one alone may
    lose nearly everything at small loss, as a residual block can, but not several.
    """
    dense = count({})
    steps: list[Step] = []
    for i, (info, widths) in enumerate(zip(axes, ladders, strict=True)):
        shares, losses = (np.array(x) for x in zip(*sorted(curves[info.name].items()), strict=True))
        cost = -np.inf
        for wider, width in pairwise(w for w in widths if 1 - w / info.size <= shares[-1]):
            extra = np.interp([1 - width / info.size, 1 - wider / info.size], shares, losses)
            saved = count({info.axis: wider}) - count({info.axis: width})
            cost = max(cost, float(extra[0] - extra[1]) / max(saved / dense, 1e-12))
            steps.append(Step(cost, i, width))
    return sorted(steps, key=lambda s: (s.key, -s.width / axes[s.which].size, s.which))


ORDERS = {"uniform": uniform_order, "global": global_order, "grouped": grouped_order}  # by scores
ALLOCATIONS = (*ORDERS, "sensitivity", "knapsack")


def measure_of(
    goal: Goal | Speedup,
    structure: Structure,
    axes: Sequence[AxisInfo],
    symbols: dict[sympy.Symbol, int],
    branches: Sequence[Droppable] = (),
) -> Callable[[Widths], int]:
    """What the goal counts, as a function of the widths that are left; a branch is gone at width 0."""
    if isinstance(goal, Speedup):
        names = {info.axis: info.name for info in (*axes, *(branch.info for branch in branches))}
        # nanoseconds, since counts are whole
        return lambda widths: round(goal.latency({names[axis]: width for axis, width in widths.items()}) * 1e9)

    def dropped(widths: Widths) -> tuple[int, ...]:
        return tuple(i for i, branch in enumerate(branches) if widths.get(branch.info.axis, 1) == 0)

    def units(widths: Widths) -> int:
        lost = {info.axis for i in dropped(widths) for info in branches[i].inside}
        return sum(widths.get(info.axis, info.size) for info in axes if info.axis not in lost)

    @functools.cache
    def remaining(gone: tuple[int, ...]) -> Structure:
        return without(structure, {node for number in gone for node in branches[number].nodes}) if gone else structure

    if isinstance(goal, Ratio):
        return units
    if isinstance(goal, Macs):
        return lambda widths: remaining(dropped(widths)).count_macs(symbols, widths)
    if isinstance(goal, KvCache):
        return lambda widths: remaining(dropped(widths)).count_cache(widths)
    return lambda widths: remaining(dropped(widths)).count_parameters(widths)


def reach(
    axes: Sequence[AxisInfo],
    ladders: Sequence[list[int]],
    steps: Sequence[Step],
    goal: Goal | Speedup,
    count: Callable[[Widths], int],
) -> Widths:
    """Take steps in order as far as the goal allows, then those of later ones that still fit, so that what is missing is
    less than any axis's next step; a last step beyond the goal is taken where that lands nearer. No axis is worn away for a
    remainder: a later step that takes DEAREST times the share of its axis, for what it gives, is left alone. A speedup is a
    promise: the first step beyond is always taken, and what is not needed then is given back, of a long step a part.

    Raises:
        InputError: the goal lies beyond what all the steps give; the message says what that is.
    """
    dense = count({})

    after = functools.partial(_after, axes, steps)

    def removed(widths: Widths) -> float:
        return 1 - count(widths) / dense

    if goal.share > (reachable := removed(after(len(steps)))):
        branches = sum(info.minimum == 0 for info in axes)
        what = f"{len(axes) - branches} axes" + (f" and {branches} branches" if branches else "")
        raise InputError(
            f"goal: {goal} asks for more than these {what} can give: expected a share of at most {reachable:.3f}, "
            f"got {goal.share}; allow more kinds, a smaller alignment or a lower floor"
        )
    taken = max(steps_needed(axes, steps, goal, count) - 1, 0)
    if isinstance(goal, Speedup):
        return _given_back(axes, ladders, steps[: taken + 1], after(taken + 1), lambda w: removed(w) >= goal.share)
    widths = after(taken)
    too_far: dict[int, Step] = {}  # the next step of each axis whose next step overshoots
    too_dear: set[int] = set()

    def price(step: Step, gain: float) -> float:
        info = axes[step.which]
        return (widths[info.axis] - step.width) / info.size / max(gain, np.finfo(float).tiny)

    so_far = removed(widths)
    dearest = DEAREST * price(steps[taken], removed(after(taken + 1)) - so_far)
    for step in steps[taken:]:
        if step.which not in too_far and step.which not in too_dear:
            narrower = widths | {axes[step.which].axis: step.width}
            reached = removed(narrower)
            if reached > goal.share:
                too_far[step.which] = step
            elif price(step, reached - so_far) > dearest:
                too_dear.add(step.which)
            else:
                widths, so_far = narrower, reached
        if len(too_far) + len(too_dear) == len(axes):
            break
    beyond = [widths | {axes[step.which].axis: step.width} for step in too_far.values()]
    return min([widths, after(taken + 1), *beyond], key=lambda w: abs(removed(w) - goal.share))


def steps_needed(
    axes: Sequence[AxisInfo], steps: Sequence[Step], goal: Goal | Speedup, count: Callable[[Widths], int]
) -> int:
    """How many steps in order meet the goal; all of them where none does."""
    dense = count({})
    return bisect.bisect_left(
        range(len(steps)), goal.share, key=lambda taken: 1 - count(_after(axes, steps, taken)) / dense
    )


def _after(axes: Sequence[AxisInfo], steps: Sequence[Step], taken: int) -> Widths:
    return {info.axis: info.size for info in axes} | {axes[s.which].axis: s.width for s in steps[:taken]}


def _given_back(
    axes: Sequence[AxisInfo],
    ladders: Sequence[list[int]],
    steps: Sequence[Step],
    widths: Widths,
    fast_enough: Callable[[Widths], bool],
) -> Widths:
    """Undo of the latest steps, the dearest, as much as the goal is met without."""
    before: list[int] = []
    at = {info.axis: info.size for info in axes}
    for step in steps:
        before.append(at[axes[step.which].axis])
        at[axes[step.which].axis] = step.width
    for step, wider in reversed(list(zip(steps, before, strict=True))):
        axis = axes[step.which].axis
        if widths[axis] == step.width:
            between = [width for width in ladders[step.which] if step.width < width <= wider]  # widest first
            widths = next(filter(fast_enough, [widths | {axis: width} for width in between]), widths)
    return widths


def nearest(axes: Sequence[AxisInfo], ladders: Sequence[list[int]], share: float) -> Widths:
    """For each axis by itself the allowed width nearest to the share; of two as near, the wider."""
    return {
        info.axis: min(widths, key=lambda w: (abs(info.size * (1 - share) - w), -w))
        for info, widths in zip(axes, ladders, strict=True)
    }
