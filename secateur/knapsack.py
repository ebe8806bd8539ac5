"""The knapsack: the least importance given up for a goal, over the widths of axes and over whole branches together.

Importance is counted in units of an axis's mean magnitude. A branch takes all the units that live in it alone with it, so its
importance is what is left of theirs, and what it saves is all that it takes at those widths, norms and reshapes included.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.allocate import Goal, Speedup, Step, reach, steps_needed
from secateur.axes.infer import AxisInfo
from secateur.axes.terms import Widths
from secateur.branches import Droppable
from secateur.errors import InputError

NEAR = 4  # branches about which the greedy answer is doubted
Count = Callable[[Widths], int]


@dataclass(frozen=True)
class Items:
    """What may be given up: units of axes along their ladders, and branches, of each kind at most so many.

    `scores` are by axis name, those of the axes that live in a branch included.
    """

    axes: Sequence[AxisInfo]
    ladders: Sequence[list[int]]
    scores: Mapping[str, np.ndarray]
    branches: Sequence[Droppable] = ()
    most: Mapping[str, int] = field(default_factory=dict)

    @property
    def infos(self) -> list[AxisInfo]:
        """The axes and then the branches, each an axis of one unit: what the numbers of steps count."""
        return [*self.axes, *(branch.info for branch in self.branches)]

    @property
    def rungs(self) -> list[list[int]]:
        """The widths that each of these may have, from dense downwards."""
        return [*self.ladders, *([branch.info.size, 0] for branch in self.branches)]


def knapsack(items: Items, goal: Goal | Speedup, count: Count) -> Widths:
    """The widths, 0 for a branch that goes, that keep most of the importance among those that meet the goal.

    The greedy answer to a knapsack is wrong by less than its last step. Branches are few and their steps large, so the sets
    that differ from the greedy one in the branches that lie nearest to the goal are tried too, each filled up with
    widths, and so is the set of none: what may be dropped never costs importance.

    Raises:
        InputError: the goal lies beyond what everything together gives.
    """
    corners = _corners(items, count)
    greedy = knapsack_order(items, count, corners=corners)
    sets: list[tuple[int, ...]] = []
    if items.branches:
        sets = [furthest(items, count), (), *_nearby(items, greedy, steps_needed(items.infos, greedy, goal, count))]
    orders = [knapsack_order(items, count, dropped, corners) for dropped in dict.fromkeys(sets)]
    found: list[Widths] = []
    refused: list[InputError] = []
    for steps in (*orders, greedy):
        try:
            found.append(reach(items.infos, items.rungs, steps, goal, count))
        except InputError as error:  # the first is of everything that can go
            refused.append(error)
    if not found:
        raise refused[0]
    dense = count({})

    def missed(widths: Widths) -> float:
        away = goal.share - (1 - count(widths) / dense)
        return round(max(away, 0.0) if isinstance(goal, Speedup) else abs(away), 2)

    return min(found, key=lambda widths: (missed(widths), -importance(items, widths)))


def importance(items: Items, widths: Widths) -> float:
    """What is kept at these widths, of each axis its strongest units, in units of its mean magnitude."""
    gone = [branch for branch in items.branches if widths.get(branch.info.axis, 1) == 0]
    lost = {info.axis for branch in gone for info in branch.inside}
    inside = [info for branch in items.branches for info in branch.inside]
    kept = 0.0
    for info in {info.axis: info for info in (*items.axes, *inside)}.values():
        if info.axis not in lost:
            width = widths.get(info.axis, info.size)
            kept += float(np.sort(_relative(items.scores[info.name]))[info.size - width :].sum())
    return kept


def held(branch: Droppable, scores: Mapping[str, np.ndarray]) -> float:
    """The importance of all units that live in a branch."""
    return sum(float(_relative(scores[info.name]).sum()) for info in branch.inside)


def most_dropped(branches: Sequence[Droppable], floor: float) -> dict[str, int]:
    """How many branches of each kind may go: at least one stays, as of the units of an axis, and the floor's share of them."""
    return {
        kind: number - max(1, int(np.ceil(number * floor)))
        for kind, number in Counter(branch.info.kind for branch in branches).items()
    }


def furthest(items: Items, count: Count) -> tuple[int, ...]:
    """The branches, by number, without which the count is least when every axis is at its narrowest."""
    widths = {info.axis: rungs[-1] for info, rungs in zip(items.axes, items.ladders, strict=True)}
    left = [count(widths | {branch.info.axis: 0}) for branch in items.branches]
    spare, chosen = Counter(items.most), []
    for number in np.argsort(left, kind="stable").tolist():
        kind = items.branches[number].info.kind
        if spare[kind]:
            spare[kind] -= 1
            chosen.append(number)
    return tuple(sorted(chosen))


def knapsack_order(
    items: Items,
    count: Count,
    dropped: Sequence[int] | None = None,
    corners: Sequence[Sequence[int]] | None = None,
) -> list[Step]:
    """The least importance for what the goal counts first, counted anew at what is left so far.

    The greedy answer to a knapsack (Dantzig, Operations Research 1957): importance is given up where a unit of it buys most.
    Time falls in stairs, so an axis stops only at widths where the next one is dearer than those before (the corners of the
    convex hull of importance against time, as a Lagrangian would have it). What an axis saves shrinks with those that it is
    multiplied with, so what was too dear stays so, and only the cheapest is counted again (Minoux, Optimization Techniques
    1978). So does what a branch saves: narrowing it, as long as that is cheaper than dropping it, leaves what is dearer.

    Args:
        dropped: the branches that go, by number, before any axis narrows; without it, whichever are cheapest.
        corners: of each axis the rungs to stop at, where they are known.
    """
    search = _Search(items, count, [list(rungs) for rungs in corners or _corners(items, count)])
    for number in dropped or ():
        search.take(len(items.axes) + number, -np.inf)
    queue = [search.price(i) for i in range(len(items.axes) + (0 if dropped is not None else len(items.branches)))]
    queue = [each for each in queue if each[0] < np.inf]
    heapq.heapify(queue)
    while queue:
        asked, i = search.price(heapq.heappop(queue)[1])
        if queue and asked > queue[0][0]:
            heapq.heappush(queue, (asked, i))
        elif asked < np.inf:
            search.take(i, asked)
            heapq.heappush(queue, search.price(i))
    return search.steps


class _Search:
    """Where a greedy search has come to."""

    def __init__(self, items: Items, count: Count, corners: list[list[int]]) -> None:
        self.steps: list[Step] = []
        self._items, self._count, self._corners = items, count, corners
        self._lost = [
            _importance_lost(items.scores[info.name], w) for info, w in zip(items.axes, items.ladders, strict=True)
        ]
        self._widths = {info.axis: info.size for info in items.infos}
        self._now = self._dense = count(self._widths)
        self._rungs = [0] * len(items.axes)
        self._numbers = {info.axis: i for i, info in enumerate(items.axes)}
        self._gone: set[int] = set()  # axes of dropped branches, and the branches
        self._spare = Counter(items.most)

    def price(self, i: int) -> tuple[float, int]:
        """Of the way to an axis's next corner, or of a branch, with the number; infinite where there is none."""
        if i in self._gone or not (self._corners[i] if i < len(self._items.axes) else self._spare[self._kind(i)]):
            return np.inf, i
        if i < len(self._items.axes):
            rung = self._corners[i][0]
            given, width = float(self._lost[i][rung] - self._lost[i][self._rungs[i]]), self._items.ladders[i][rung]
        else:
            given, width = sum(map(self._left, self._items.branches[i - len(self._items.axes)].inside)), 0
        saved = (self._now - self._count(self._widths | {self._items.infos[i].axis: width})) / self._dense
        return given / max(saved, 1e-12), i

    def take(self, i: int, key: float) -> None:
        """Go to an axis's next corner, or drop a branch."""
        axis, width = self._items.infos[i].axis, 0
        if i < len(self._items.axes):
            self._rungs[i] = self._corners[i].pop(0)
            width = self._items.ladders[i][self._rungs[i]]
        else:
            inside = self._items.branches[i - len(self._items.axes)].inside
            self._gone |= {i, *(self._numbers[info.axis] for info in inside if info.axis in self._numbers)}
            self._spare[self._kind(i)] -= 1
        self._widths[axis] = width
        self._now = self._count(self._widths)
        self.steps.append(Step(key, i, width))

    def _kind(self, i: int) -> str:
        return self._items.branches[i - len(self._items.axes)].info.kind

    def _left(self, info: AxisInfo) -> float:
        """The importance that is left of an axis."""
        whole = float(_relative(self._items.scores[info.name]).sum())
        number = self._numbers.get(info.axis)
        return whole if number is None else whole - float(self._lost[number][self._rungs[number]])


def _nearby(items: Items, greedy: Sequence[Step], needed: int) -> list[tuple[int, ...]]:
    """The sets of branches that differ from those of the first `needed` steps in the `NEAR` that lie nearest to them."""
    first = len(items.axes)
    at = {step.which - first: position for position, step in enumerate(greedy) if step.which >= first}
    numbers = range(len(items.branches))
    near = sorted(numbers, key=lambda number: abs(at.get(number, len(greedy)) - needed + 0.5))[:NEAR]
    sure = [number for number in numbers if number not in near and at.get(number, len(greedy)) < needed]
    sets = []
    for size in range(len(near) + 1):
        for some in itertools.combinations(near, size):
            dropped = tuple(sorted([*sure, *some]))
            kinds = Counter(items.branches[number].info.kind for number in dropped)
            if all(number <= items.most.get(kind, 0) for kind, number in kinds.items()):
                sets.append(dropped)
    return sets


def _corners(items: Items, count: Count) -> list[list[int]]:
    """For each axis the rungs at which importance against time turns, beside the others at their widest."""
    dense = {info.axis: info.size for info in items.infos}
    return [
        _hull(
            _importance_lost(items.scores[info.name], widths),
            np.array([count(dense | {info.axis: width}) for width in widths]),
        )
        for info, widths in zip(items.axes, items.ladders, strict=True)
    ]


def _hull(lost: np.ndarray, left: np.ndarray) -> list[int]:
    """The corners of a convex hull: from each, the next is the cheapest of all that are narrower."""
    corners, at = [], 0
    while at < len(lost) - 1:
        prices = (lost[at + 1 :] - lost[at]) / np.maximum(left[at] - left[at + 1 :], 1e-12 * left[0])
        at += 1 + int(prices.argmin())
        corners.append(at)
    return corners


def _importance_lost(scores: np.ndarray, widths: Sequence[int]) -> np.ndarray:
    """What is gone at each width."""
    gone = np.concatenate([[0.0], np.cumsum(np.sort(_relative(scores)))])
    return gone[len(scores) - np.array(widths)]


def _relative(scores: np.ndarray) -> np.ndarray:
    """In units of the axis's mean magnitude."""
    return scores / max(float(np.abs(scores).mean()), np.finfo(float).tiny)
