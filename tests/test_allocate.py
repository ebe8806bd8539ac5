"""A goal becomes widths: as near to it as alignment allows, never beyond by more than half a step."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import program as programs
from secateur.allocate import (
    ALIGNED_KINDS,
    Goal,
    Macs,
    Parameters,
    Ratio,
    Speedup,
    Step,
    global_order,
    grouped_order,
    ladder,
    measure_of,
    nearest,
    reach,
    sensitivity_order,
    uniform_order,
)
from secateur.axes.infer import AxisInfo, Structure, infer
from secateur.axes.terms import Axis, Widths
from secateur.axes.trace import Trace
from secateur.errors import InputError

NOTHING = Structure((), {}, {}, frozenset(), Trace())  # a ratio needs no counts
ROUNDING = 1e-9
Order = Callable[[Sequence[AxisInfo], Sequence[list[int]], Mapping[str, np.ndarray]], list[Step]]

sizes = st.integers(2, 130)
shares = st.floats(0.01, 0.99)
aligns = st.sampled_from([1, 2, 4, 8, 16])


def axis(size: int, kind: str = "channel") -> AxisInfo:
    return AxisInfo(f"{kind}{size}", kind, Axis(size), size, (), normalised=False, frozen=None)


def uniform(structure: Structure, axes: list[AxisInfo], goal: Goal, symbols: dict, align: int) -> Widths:
    """The uniform allocation of a goal, as `prune` composes it."""
    ladders = [ladder(info, align, floor=0.0) for info in axes]
    if isinstance(goal, Ratio):
        return nearest(axes, ladders, goal.share)
    scores = {info.name: np.ones(info.size) for info in axes}
    return reach(axes, ladders, uniform_order(axes, ladders, scores), goal, measure_of(goal, structure, axes, symbols))


def width_of(info: AxisInfo, goal: Goal, align: int) -> int:
    return uniform(NOTHING, [info], goal, {}, align)[info.axis]


@given(sizes, shares, aligns)
def test_a_ratio_never_removes_half_a_step_too_much(size: int, share: float, align: int) -> None:
    removed = size - width_of(axis(size), Ratio(share), align)
    assert removed <= size * share + min(align, size) / 2 + ROUNDING


@given(sizes, shares, aligns)
def test_a_ratio_falls_short_by_half_a_step_at_most_until_one_step_is_left(size: int, share: float, align: int) -> None:
    step = min(align, size)
    width = width_of(axis(size), Ratio(share), align)
    assert width == step or size - width >= size * share - step / 2 - ROUNDING


@given(sizes, shares, aligns)
def test_a_cut_axis_is_a_positive_multiple_of_the_alignment(size: int, share: float, align: int) -> None:
    width = width_of(axis(size), Ratio(share), align)
    assert width == size or (width > 0 and width % align == 0)


@given(sizes, shares, aligns, st.sampled_from(["head", "kv_group", "q_per_group", "qk_width", "v_width"]))
def test_kinds_without_a_vector_width_are_not_aligned(size: int, share: float, align: int, kind: str) -> None:
    assert kind not in ALIGNED_KINDS
    assert width_of(axis(size, kind), Ratio(share), align) == width_of(axis(size, kind), Ratio(share), 1)


@pytest.mark.parametrize(
    ("size", "share", "align", "width"),
    [(8, 0.5, 1, 4), (64, 0.05, 8, 64), (64, 0.06, 8, 64), (64, 0.07, 8, 56), (10, 0.25, 1, 8), (8, 0.99, 8, 8)],
)
def test_a_ratio_gives_the_nearest_aligned_width_and_the_wider_of_two(
    size: int, share: float, align: int, width: int
) -> None:
    assert width_of(axis(size), Ratio(share), align) == width


@functools.cache
def structure_of(name: str) -> Structure:
    return infer(programs.graph_module(models.exported(name)))


def path(axes: list[AxisInfo], align: int) -> list[Widths]:
    """Every allocation on the way from dense to one step of each axis, smallest share of an axis first."""
    steps = []
    for index, info in enumerate(axes):
        step = min(align, info.size) if info.kind in ALIGNED_KINDS else 1
        widths = [w for w in range(info.size - 1, 0, -1) if w % step == 0]
        steps += [((info.size - w) / info.size, index, w) for w in widths]
    allocations = [{info.axis: info.size for info in axes}]
    for _, index, width in sorted(steps):
        allocations.append({**allocations[-1], axes[index].axis: width})
    return allocations


@given(st.sampled_from(["residual", "branches"]), shares, st.sampled_from([1, 2, 4]), st.booleans())
@settings(max_examples=25)
def test_a_goal_for_the_whole_program_is_met_within_one_unit_of_the_smallest_axis_and_no_worse_than_uniformly(
    name: str, share: float, align: int, by_parameters: bool
) -> None:
    program = models.exported(name)
    structure, symbols = structure_of(name), programs.per_example_symbols(program)
    axes = list(structure.prunable)

    def removed(widths: Widths) -> float:
        if by_parameters:
            return 1 - structure.count_parameters(widths) / structure.count_parameters()
        return 1 - structure.count_macs(symbols, widths) / structure.count_macs(symbols)

    shares_of_path = [removed(widths) for widths in path(axes, align)]
    goal = Parameters(share) if by_parameters else Macs(share)
    if share > shares_of_path[-1]:
        with pytest.raises(InputError, match=r"more than these .* axes can give"):
            uniform(structure, axes, goal, symbols, align)
        return
    widths = uniform(structure, axes, goal, symbols, align)
    missed = abs(removed(widths) - share)
    assert missed <= min(abs(s - share) for s in shares_of_path) + ROUNDING
    if removed(widths) < share:  # no step of any axis would still fit
        for info in axes:
            narrower = [w for w in ladder(info, align, 0.0) if w < widths[info.axis]]
            assert not narrower or removed(widths | {info.axis: narrower[0]}) > share - ROUNDING


def test_a_goal_beyond_reach_names_the_share_that_can_be_reached() -> None:
    structure = structure_of("residual")
    axes = list(structure.prunable)
    lowest = {info.axis: 4 for info in axes}
    possible = 1 - structure.count_parameters(lowest) / structure.count_parameters()
    with pytest.raises(InputError, match=r"^goal: ") as error:
        uniform(structure, axes, Parameters(0.95), {}, align=4)
    for part in ("Parameters(share=0.95)", f"at most {possible:.3f}", f"{len(axes)} axes", "got 0.95"):
        assert part in str(error.value)


@given(sizes, aligns, st.floats(0.0, 0.99))
def test_the_floor_of_an_axis_stays_whatever_is_asked(size: int, align: int, floor: float) -> None:
    widths = ladder(axis(size), align, floor)
    assert widths[0] == size
    assert all(width >= size * floor - ROUNDING for width in widths)
    assert all(width % min(align, size) == 0 for width in widths[1:])
    deeper = [w for w in range(min(align, size), size, min(align, size)) if w >= size * floor]
    assert sorted(widths[1:]) == deeper  # and nothing above the floor is left out


scored = st.lists(st.lists(st.floats(0.0, 10.0), min_size=2, max_size=20), min_size=1, max_size=4)


def allocated(
    order: Order, values: list[list[float]], share: float, kinds: list[str] | None = None
) -> list[tuple[AxisInfo, np.ndarray, int]]:
    """Each axis with its scores and the width that a ratio over all units leaves it; at least one unit stays."""
    kinds = kinds or ["channel"] * len(values)
    axes = [
        AxisInfo(f"{i}:{kind}", kind, Axis(len(v)), len(v), (), normalised=False, frozen=None)
        for i, (v, kind) in enumerate(zip(values, kinds, strict=True))
    ]
    scores = {info.name: np.array(v) for info, v in zip(axes, values, strict=True)}
    ladders = [ladder(info, 1, 0.0) for info in axes]
    goal = Ratio(share)
    widths = reach(axes, ladders, order(axes, ladders, scores), goal, measure_of(goal, NOTHING, axes, {}))
    return [(info, scores[info.name], widths[info.axis]) for info in axes]


@given(scored, st.floats(0.01, 0.5))
def test_global_allocation_removes_the_least_important_units_anywhere_and_exactly_as_many_as_asked(
    values: list[list[float]], share: float
) -> None:
    seen = allocated(global_order, values, share)
    total = sum(info.size for info, _, _ in seen)
    removed = sum(info.size - width for info, _, width in seen)
    assert abs(removed - share * total) <= 0.5 + ROUNDING  # ties and zeros included
    gone, stays = [], []
    for info, scores, width in seen:
        ranked = np.sort(scores / max(scores.mean(), np.finfo(float).tiny))
        gone += ranked[: info.size - width].tolist()
        if width > 1:  # the last unit stays whatever it scores
            stays += ranked[info.size - width :].tolist()
    assert not gone or not stays or max(gone) <= min(stays) + ROUNDING


@given(scored, scored, st.floats(0.05, 0.5))
def test_grouped_allocation_takes_the_same_share_of_every_kind(
    channels: list[list[float]], heads: list[list[float]], share: float
) -> None:
    seen = allocated(grouped_order, channels + heads, share, ["channel"] * len(channels) + ["head"] * len(heads))
    for kind in ("channel", "head"):
        of_kind = [(info.size, width) for info, _, width in seen if info.kind == kind]
        total = sum(size for size, _ in of_kind)
        # a unit by the order of shares, half a unit because the goal counts whole units of all kinds together
        assert abs(sum(size - width for size, width in of_kind) - share * total) <= 1.5 + ROUNDING


@given(st.floats(0.1, 0.6), st.sampled_from([8, 16, 64]), st.integers(0, 9))
def test_no_heads_are_worn_away_for_the_remainder_that_aligned_widths_leave(
    share: float, align: int, seed: int
) -> None:
    """A head counts one unit, a step of a width many: a remainder of some units once cost as many heads."""
    rng, layers, heads, neurons = np.random.default_rng(seed), 6, 12, 1536
    axes = [
        replace(axis(size, kind), name=f"{layer}:{kind}")
        for layer in range(layers)
        for size, kind in ((heads, "head"), (neurons, "width"))
    ]
    ladders = [ladder(info, align, 0.0) for info in axes]
    steps = grouped_order(axes, ladders, {info.name: rng.random(info.size) for info in axes})
    goal = Ratio(share)
    widths = reach(axes, ladders, steps, goal, measure_of(goal, NOTHING, axes, {}))
    gone = sum(info.size - widths[info.axis] for info in axes if info.kind == "head")
    assert abs(gone - share * layers * heads) <= 1 + align * layers * heads / (layers * neurons) + ROUNDING


def test_of_a_step_over_many_widths_a_speedup_takes_no_more_than_it_needs() -> None:
    """A knapsack steps from corner to corner of a table of times; where the table is wrong, aiming needs what lies between."""
    axes = [replace(axis(64), name=name) for name in "ab"]
    ladders = [ladder(info, 4, floor=0.0) for info in axes]
    steps = [Step(1.0, 0, 32), Step(2.0, 1, 16)]
    for times, expected in ((1.1, [52, 64]), (4 / 3, [32, 64]), (1.5, [32, 52]), (2.5, [32, 16])):
        goal = Speedup(times, lambda widths: sum(widths.get(name, 64) for name in "ab"))
        count = measure_of(goal, NOTHING, axes, {})
        widths = reach(axes, ladders, steps, goal, count)
        assert [widths[info.axis] for info in axes] == expected


def test_uniform_allocation_takes_the_least_important_of_equal_shares_first() -> None:
    axes = [axis(4), axis(4, "width")]
    ladders = [ladder(info, 1, floor=0.0) for info in axes]
    for cheap in (0, 1):
        scores = {info.name: np.array([0.1 if i == cheap else 1.0, 1.0, 1.0, 1.0]) for i, info in enumerate(axes)}
        steps = uniform_order(axes, ladders, scores)
        assert [step.which for step in steps[:2]] == [cheap, 1 - cheap]
        assert [step.key for step in steps] == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_sensitivity_takes_what_costs_least_per_parameter_saved() -> None:
    """Two axes with the same curve: the one that carries more parameters goes first."""
    structure = structure_of("residual")
    stem, inner = structure.prunable
    curve = {0.0: 1.0, 0.5: 2.0, 1.0: 3.0}
    curves = {stem.name: curve, inner.name: curve}
    steps = sensitivity_order([stem, inner], [[8, 4], [6, 3]], curves, structure.count_parameters)
    saved = [structure.count_parameters() - structure.count_parameters({i.axis: i.size // 2}) for i in (stem, inner)]
    assert saved[0] > saved[1]
    assert [step.which for step in steps] == [0, 1]
    dear = {0.0: 1.0, 0.5: 10.0, 1.0: 19.0}
    curves = {stem.name: dear, inner.name: curve}
    steps = sensitivity_order([stem, inner], [[8, 4], [6, 3]], curves, structure.count_parameters)
    assert [step.which for step in steps] == [1, 0]


def test_no_axis_is_cut_further_than_its_curve_was_measured() -> None:
    axes = [axis(8), axis(8, "width")]
    ladders = [ladder(info, 1, floor=0.0) for info in axes]
    curves = {axes[0].name: {0.0: 0.0, 0.25: 0.1, 0.5: 0.1}, axes[1].name: {0.0: 0.0, 0.75: 9.0}}
    steps = sensitivity_order(axes, ladders, curves, lambda widths: 16 - sum(8 - w for w in widths.values()))
    assert [min(step.width for step in steps if step.which == which) for which in (0, 1)] == [4, 2]


def test_scores_below_zero_compare_between_axes_too() -> None:
    """Movement is negative where weights shrink: the axis that shrinks most goes first."""
    seen = allocated(global_order, [[-1.0, -1.0, -1.0, -9.0], [2.0, 2.0, 2.0, 2.0]], 3 / 8)
    assert [width for _, _, width in seen] == [1, 4]
    seen = allocated(global_order, [[-2.0, -1.0, -1.0, 3.0], [-1.5, -1.5, 1.0, 2.0]], 2 / 8)
    assert [width for _, _, width in seen] == [3, 3]
