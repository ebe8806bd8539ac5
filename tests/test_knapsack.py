"""The knapsack over widths and whole branches: near to the best there is, and never worse for what else may go."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import fx

from secateur.allocate import Speedup, global_order, grouped_order, ladder, measure_of, reach, uniform_order
from secateur.axes.infer import AxisInfo, Structure
from secateur.axes.terms import Axis
from secateur.axes.trace import Trace
from secateur.branches import Branch, Droppable
from secateur.errors import InputError
from secateur.knapsack import Items, furthest, importance, knapsack, most_dropped

NOTHING = Structure((), {}, {}, frozenset(), Trace())  # a speedup needs no counts


def axis(size: int, kind: str, name: str) -> AxisInfo:
    return AxisInfo(name, kind, Axis(size), size, (), normalised=False, frozen=None)


class Chain:
    """Layers one behind the other, each as wide as its axis: time is a sum of in x out, in stairs where asked."""

    def __init__(self, seed: int, stairs: bool) -> None:
        rng = np.random.default_rng(seed)
        drawn = enumerate(zip(rng.integers(24, 97, 8), KINDS_OF_CHAIN, strict=True))
        self.axes = [axis(int(size), kind, f"{i}:{kind}") for i, (size, kind) in drawn]
        self.scores = {info.name: rng.lognormal(0, rng.uniform(0.2, 1.5), info.size) for info in self.axes}
        self.ladders = [ladder(info, 4, floor=0.0) for info in self.axes]
        self.best = {
            name: [0.0, *np.cumsum(np.sort(scores)[::-1] / scores.mean()).tolist()]
            for name, scores in self.scores.items()
        }
        self.costs = rng.lognormal(0, 1, len(self.axes) + 1).tolist()
        self.step = 16 if stairs else 1

    def seconds(self, widths: Mapping[str, int]) -> float:
        sizes = [8, *(-(-widths.get(info.name, info.size) // self.step) * self.step for info in self.axes), 8]
        return sum(cost * x * y for cost, x, y in zip(self.costs, sizes, sizes[1:], strict=False))

    def kept(self, widths: Mapping[str, int]) -> float:
        """Importance that stays: of each axis its best units, over its mean."""
        return sum(self.best[name][width] for name, width in widths.items())

    def greedy(self, goal: Speedup) -> dict[str, int]:
        count = measure_of(goal, NOTHING, self.axes, {})
        widths = knapsack(Items(self.axes, self.ladders, self.scores), goal, count)
        return {info.name: widths[info.axis] for info in self.axes}

    def lagrangian(self, goal: Speedup) -> dict[str, int]:
        """For each price of a second the widths of which no single one should change (from dense and from the narrowest); of all
        that are fast enough, those that keep most."""
        budget = self.seconds({}) / goal.times
        best: dict[str, int] = {info.name: widths[-1] for info, widths in zip(self.axes, self.ladders, strict=True)}
        for price in np.geomspace(1e-5, 1, 60):
            for start in (0, -1):
                widths = {info.name: rungs[start] for info, rungs in zip(self.axes, self.ladders, strict=True)}
                widths = self._settled(widths, price)
                if self.seconds(widths) <= budget and self.kept(widths) > self.kept(best):
                    best = widths
        return best

    def _settled(self, widths: dict[str, int], price: float) -> dict[str, int]:
        while True:
            before = dict(widths)
            for info, rungs in zip(
                self.axes, self.ladders, strict=True
            ):  # the best of each axis beside the others as they are
                worth = [self.kept(w) - price * self.seconds(w) for w in (widths | {info.name: r} for r in rungs)]
                widths = widths | {info.name: rungs[int(np.argmax(worth))]}
            if widths == before:
                return widths


KINDS_OF_CHAIN = ("channel", "head", "width", "channel", "channel", "head", "width", "width")


@given(st.integers(0, 10_000), st.sampled_from([1.3, 2.0, 3.0]), st.booleans())
@settings(max_examples=8)
def test_a_greedy_and_a_lagrangian_answer_to_a_speedup_agree(seed: int, times: float, stairs: bool) -> None:
    chain = Chain(seed, stairs)
    goal = Speedup(times, chain.seconds)
    greedy, other = chain.greedy(goal), chain.lagrangian(goal)
    assert chain.seconds(greedy) <= chain.seconds({}) / times
    assert chain.kept(greedy) >= 0.98 * chain.kept(other)


@given(st.integers(0, 10_000), st.sampled_from([1.3, 2.0, 3.0]))
@settings(max_examples=20)
def test_the_knapsack_keeps_no_less_than_other_allocations_of_the_same_speedup(seed: int, times: float) -> None:
    chain = Chain(seed, stairs=False)
    goal = Speedup(times, chain.seconds)
    count = measure_of(goal, NOTHING, chain.axes, {})
    kept = chain.kept(chain.greedy(goal))
    for order in (uniform_order, global_order, grouped_order):
        widths = reach(chain.axes, chain.ladders, order(chain.axes, chain.ladders, chain.scores), goal, count)
        assert kept >= 0.98 * chain.kept({info.name: widths[info.axis] for info in chain.axes})


@given(st.integers(0, 10_000), st.floats(1.05, 4.0), st.booleans())
@settings(max_examples=20)
def test_a_speedup_is_reached_and_not_overdone_by_a_step(seed: int, times: float, stairs: bool) -> None:
    chain = Chain(seed, stairs)
    goal = Speedup(times, chain.seconds)
    widths = chain.greedy(goal)
    dense = chain.seconds({})
    assert chain.seconds(widths) <= dense / times
    largest = max(
        chain.seconds(widths | {info.name: rungs[rungs.index(widths[info.name]) - 1]}) - chain.seconds(widths)
        for info, rungs in zip(chain.axes, chain.ladders, strict=True)
        if widths[info.name] < info.size
    )
    assert dense / times - chain.seconds(widths) <= largest


UNITS = {"head": 24, "width": 40}  # of the axis that lives in a branch
PER_UNIT, FIXED = 1.0, 10.0  # seconds of a unit, and of a branch beside its units: norms and reshapes


def whole(kind: str, number: int, inside: Sequence[AxisInfo]) -> Droppable:
    """A branch that holds these axes."""
    nowhere = fx.Graph().placeholder("x")
    name = f"{number}:{kind}"
    info = AxisInfo(name, kind, Axis(1), 1, (), normalised=False, frozen=None, minimum=0)
    return Droppable(info, Branch(str(number), kind, nowhere, nowhere, (), 0), frozenset(), tuple(inside))


class Residuals:
    """Layers of an attention and an MLP on one stream. A branch takes a fixed time beside that of its units."""

    def __init__(self, seed: int, layers: int) -> None:
        rng = np.random.default_rng(seed)
        kinds = [("attention", "head"), ("mlp", "width")] * layers
        axes = [axis(UNITS[kind], kind, f"{i}:{kind}") for i, (_, kind) in enumerate(kinds)]
        scores = {info.name: rng.lognormal(0, rng.uniform(0.2, 1.5), info.size) for info in axes}
        ladders = [ladder(info, 1, floor=0.0) for info in axes]
        branches = [whole(kind, i, [axes[i]]) for i, (kind, _) in enumerate(kinds)]
        self.items = Items(axes, ladders, scores, branches, most_dropped(branches, floor=0.0))
        self.widths_alone = Items(axes, ladders, scores)
        self.units = {info.name: rng.lognormal(0, 0.5) * PER_UNIT for info in axes}
        self.fixed = {branch.info.name: rng.lognormal(0, 0.5) * FIXED for branch in branches}

    def seconds(self, widths: Mapping[str, int]) -> float:
        total = 10.0
        for info, branch in zip(self.items.axes, self.items.branches, strict=True):
            if widths.get(branch.info.name, 1):
                total += self.fixed[branch.info.name] + self.units[info.name] * widths.get(info.name, info.size)
        return total

    def solved(self, goal: Speedup, items: Items) -> dict[str, int]:
        widths = knapsack(items, goal, measure_of(goal, NOTHING, items.axes, {}, items.branches))
        return {info.name: widths[info.axis] for info in items.infos}

    def kept(self, widths: Mapping[str, int]) -> float:
        return importance(
            self.items, {info.axis: widths[info.name] for info in self.items.infos if info.name in widths}
        )

    def options(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of each branch the seconds and the importance: without it, and with 1, 2, ... units."""
        found = []
        for info, branch in zip(self.items.axes, self.items.branches, strict=True):
            scores = np.sort(self.items.scores[info.name])[::-1]
            seconds = self.fixed[branch.info.name] + self.units[info.name] * np.arange(1, info.size + 1)
            found.append((np.array([0.0, *seconds]), np.array([0.0, *np.cumsum(scores / scores.mean())])))
        return found

    def fastest(self, items: Items) -> float:
        """The largest speedup that these items give."""
        count = measure_of(Speedup(2.0, self.seconds), NOTHING, items.axes, {}, items.branches)
        narrowest = {info.name: rungs[-1] for info, rungs in zip(items.axes, items.ladders, strict=True)}
        gone = {items.branches[number].info.name: 0 for number in furthest(items, count)}
        return self.seconds({}) / self.seconds(narrowest | gone)


def brute_force(made: Residuals, budget: float) -> float:
    """The most that can be kept within a budget, of two layers, by looking at every allocation."""
    options = made.options()
    seconds, kept = (np.ix_(*(option[i] for option in options)) for i in range(2))
    present = np.ix_(*(np.minimum(np.arange(len(option[0])), 1) for option in options))
    both = (present[0] + present[2] > 0) & (present[1] + present[3] > 0)  # of each kind one stays
    return float(np.where(both & (10.0 + sum(seconds) <= budget), sum(kept), 0.0).max())


@given(st.integers(0, 10_000), st.floats(0.05, 0.7))  # beyond, so few units are left that one is more than two per cent
@settings(max_examples=15)
def test_with_branches_the_answer_is_within_two_per_cent_of_the_best_of_all(seed: int, far: float) -> None:
    made = Residuals(seed, layers=2)
    times = made.fastest(made.items) ** far * 0.999
    assume(times > 1.01)
    widths = made.solved(Speedup(times, made.seconds), made.items)
    assert made.seconds(widths) <= made.seconds({}) / times
    assert made.kept(widths) >= 0.98 * brute_force(made, made.seconds({}) / times)


def lagrangian(made: Residuals, budget: float) -> float:
    """The most that is kept within a budget at any price of a second, of each branch the best width or none of it."""
    best = 0.0
    for price in np.geomspace(1e-3, 1e2, 400):
        options = [(s, k, int(np.argmax(k - price * s))) for s, k in made.options()]
        dropped = [b.info.kind for b, (_, _, i) in zip(made.items.branches, options, strict=True) if i == 0]
        within = all(dropped.count(kind) <= most for kind, most in made.items.most.items())
        if within and 10.0 + sum(s[i] for s, _, i in options) <= budget:
            best = max(best, float(sum(k[i] for _, k, i in options)))
    return best


@given(st.integers(0, 10_000), st.sampled_from([1.3, 2.0, 3.0]))
@settings(max_examples=6)
def test_with_branches_too_a_greedy_and_a_lagrangian_answer_agree(seed: int, times: float) -> None:
    made = Residuals(seed, layers=4)
    widths = made.solved(Speedup(times, made.seconds), made.items)
    assert made.kept(widths) >= 0.98 * lagrangian(made, made.seconds({}) / times)


@given(st.integers(0, 10_000), st.floats(0.05, 1.0))
@settings(max_examples=15)
def test_that_branches_may_go_too_never_costs_importance(seed: int, far: float) -> None:
    made = Residuals(seed, layers=3)
    times = made.fastest(made.widths_alone) ** far * 0.999
    assume(times > 1.01)
    goal = Speedup(times, made.seconds)
    alone, together = (made.solved(goal, items) for items in (made.widths_alone, made.items))
    assert made.seconds(together) <= made.seconds({}) / times
    assert made.kept(together) >= made.kept(alone)


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.5]))
@settings(max_examples=10)
def test_a_speedup_beyond_what_widths_give_is_reached_by_branches_and_some_of_each_kind_stay(
    seed: int, floor: float
) -> None:
    made = Residuals(seed, layers=4)
    items = dataclasses.replace(made.items, most=most_dropped(made.items.branches, floor))
    goal = Speedup(0.999 * made.fastest(items), made.seconds)
    with pytest.raises(InputError, match=r"^goal: .*more than these 8 axes can give"):
        made.solved(goal, made.widths_alone)
    widths = made.solved(goal, items)
    assert made.seconds(widths) <= made.seconds({}) / goal.times
    for kind in ("attention", "mlp"):
        stay = sum(widths[branch.info.name] for branch in items.branches if branch.info.kind == kind)
        assert stay == max(1, math.ceil(4 * floor))


def test_a_speedup_beyond_what_everything_gives_is_refused_with_what_that_is() -> None:
    made = Residuals(0, layers=2)
    most = 1 - 1 / made.fastest(made.items)
    with pytest.raises(InputError, match=rf"^goal: .*these 4 axes and 4 branches can give: .* at most {most:.3f}"):
        made.solved(Speedup(1.01 * made.fastest(made.items), made.seconds), made.items)
