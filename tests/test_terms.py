"""Layouts against a model that lists every position of a dimension with the units it belongs to."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.axes.terms import (
    ONE,
    Axis,
    Concat,
    Kept,
    Product,
    Term,
    concat,
    freeze,
    fresh,
    kept_positions,
    leaves,
    product,
    quotient,
    regroup,
    resolve,
    size_of,
    split_concat,
    split_product,
    unify,
    unit_index,
)

TOTALS = (6, 8, 12)  # sizes of the dimensions that are drawn: small, with several divisors
Position = tuple[tuple[Axis, int], ...]


def positions(term: Term) -> list[Position]:
    """The model: for each flat position, in order, the (axis, unit) pairs it is made of."""
    term = resolve(term)
    if isinstance(term, Axis):
        return [((term, unit),) for unit in range(int(term.size))]
    if isinstance(term, Product):
        return [tuple(itertools.chain(*parts)) for parts in itertools.product(*map(positions, term.factors))]
    return [position for part in term.parts for position in positions(part)]


def surviving(term: Term, kept: Kept) -> list[int]:
    """The positions all of whose units are kept, by the model."""
    alive = {axis: set(units.tolist()) for axis, units in kept.items()}
    return [i for i, at in enumerate(positions(term)) if all(unit in alive.get(axis, {unit}) for axis, unit in at)]


def free_leaves(*terms: Term) -> list[Axis]:
    return list(dict.fromkeys(axis for term in terms for axis in leaves(term) if axis.frozen is None))


@st.composite
def terms_of(draw: st.DrawFn, size: int, pool: list[Axis], depth: int = 2) -> Term:
    """A random layout of a size, over axes of the pool and new ones."""
    divisors = [d for d in range(2, size) if size % d == 0]
    shapes = ["axis"] + ["product"] * (depth > 0 and bool(divisors)) + ["concat"] * (depth > 0 and size > 2)
    shape = draw(st.sampled_from(shapes))
    if shape == "product":
        outer = draw(st.sampled_from(divisors))
        return product([draw(terms_of(part, pool, depth - 1)) for part in (outer, size // outer)])
    if shape == "concat":
        border = draw(st.integers(1, size - 1))
        return concat([draw(terms_of(part, pool, depth - 1)) for part in (border, size - border)])
    known = [axis for axis in pool if size_of(axis) == size]
    if known and draw(st.booleans()):
        return draw(st.sampled_from(known))
    axis = fresh(size, draw(st.sampled_from([None, None, None, "is frozen"])))
    if isinstance(axis, Axis):
        pool.append(axis)
    return axis


def draw_kept(data: st.DataObject, axes: Sequence[Axis]) -> Kept:
    """Any choice of at least one unit of each axis."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    counts = {axis: rng.integers(1, int(axis.size) + 1) for axis in axes}
    return {axis: np.sort(rng.permutation(int(axis.size))[:count]) for axis, count in counts.items()}


@given(st.data(), st.sampled_from(TOTALS))
@settings(max_examples=150)
def test_kept_positions_are_those_whose_units_are_all_kept(data: st.DataObject, size: int) -> None:
    term = data.draw(terms_of(size, []))
    kept = draw_kept(data, free_leaves(term))
    assert kept_positions(term, kept).tolist() == surviving(term, kept)


@given(st.data(), st.sampled_from(TOTALS))
@settings(max_examples=100)
def test_the_size_after_a_cut_is_the_number_of_kept_positions(data: st.DataObject, size: int) -> None:
    term = data.draw(terms_of(size, []))
    kept = draw_kept(data, free_leaves(term))
    assert size_of(term, {axis: len(units) for axis, units in kept.items()}) == len(kept_positions(term, kept))


@given(st.data(), st.sampled_from(TOTALS))
@settings(max_examples=100)
def test_every_position_knows_its_unit_of_an_axis(data: st.DataObject, size: int) -> None:
    term = data.draw(terms_of(size, []))
    for axis in dict.fromkeys(leaves(term)):
        expected = [[unit for which, unit in at if which is axis] for at in positions(term)]
        for seen, units in zip(unit_index(term, axis), expected, strict=True):
            assert seen == -1 if not units else seen in units


@given(st.data(), st.sampled_from(TOTALS))
@settings(max_examples=250)
def test_unified_dimensions_keep_the_same_positions_whatever_is_cut(data: st.DataObject, size: int) -> None:
    pool: list[Axis] = []
    pairs = [[data.draw(terms_of(size, pool)) for _ in range(2)] for _ in range(data.draw(st.integers(1, 3)))]
    for a, b in pairs:
        unify(a, b)
    kept = draw_kept(data, free_leaves(*itertools.chain(*pairs)))
    for a, b in pairs:
        assert kept_positions(a, kept).tolist() == kept_positions(b, kept).tolist()


@given(st.data(), st.sampled_from(TOTALS))
@settings(max_examples=150)
def test_what_was_frozen_stays_frozen_through_unification(data: st.DataObject, size: int) -> None:
    pool: list[Axis] = []
    a, b = (data.draw(terms_of(size, pool)) for _ in range(2))
    frozen = [axis for axis in pool if axis.frozen]
    unify(a, b)
    assert all(leaf.frozen for axis in frozen for leaf in leaves(axis))


@given(st.data(), st.sampled_from(TOTALS))
@settings(max_examples=100)
def test_unifying_never_changes_a_size(data: st.DataObject, size: int) -> None:
    a, b = (data.draw(terms_of(size, [])) for _ in range(2))
    unify(a, b)
    assert size_of(a) == size_of(b) == size == len(positions(a)) == len(positions(b))


@given(st.data(), st.lists(st.sampled_from([2, 3, 4, 6]), min_size=1, max_size=3))
@settings(max_examples=200)
def test_regrouping_cuts_as_numpy_reshapes(data: st.DataObject, sizes: list[int]) -> None:
    factors = [fresh(size, data.draw(st.sampled_from([None, None, "is frozen"]))) for size in sizes]
    target = data.draw(_factorisations(math.prod(sizes)))
    dims = regroup(factors, target)
    if dims is None:
        assert not _fit(sizes, target)
        return
    assert _fit(sizes, target)
    assert [size_of(d) for d in dims] == target
    kept = draw_kept(data, free_leaves(*factors))
    before = np.ix_(*[kept_positions(f, kept) for f in factors])
    after = np.ix_(*[kept_positions(d, kept) for d in dims])
    whole = np.arange(math.prod(sizes))
    assert whole.reshape(sizes)[before].ravel().tolist() == whole.reshape(target)[after].ravel().tolist()


@st.composite
def _factorisations(draw: st.DrawFn, total: int) -> list[int]:
    sizes = []
    while total > 1:
        sizes.append(draw(st.sampled_from([d for d in range(total, 0, -1) if total % d == 0])))
        total //= sizes[-1]
    return sizes


def _fit(before: Sequence[int], after: Sequence[int]) -> bool:
    """Whether two factorisations have a common refinement: all borders divide each other in a chain."""
    borders = sorted({int(border) for sizes in (before, after) for border in np.cumprod(sizes)})
    return all(larger % smaller == 0 for smaller, larger in itertools.pairwise(borders))


@given(st.data(), st.sampled_from(TOTALS))
@settings(max_examples=100)
def test_a_dimension_split_in_two_parts_is_their_concatenation(data: st.DataObject, size: int) -> None:
    term = data.draw(terms_of(size, []))
    pair = split_concat(term, data.draw(st.integers(1, size - 1)))
    if pair is not None:
        kept = draw_kept(data, free_leaves(term, *pair))
        assert kept_positions(term, kept).tolist() == kept_positions(concat(pair), kept).tolist()


@given(st.data(), st.sampled_from(TOTALS))
@settings(max_examples=100)
def test_a_dimension_split_in_two_factors_is_their_product(data: st.DataObject, size: int) -> None:
    term = data.draw(terms_of(size, []))
    pair = split_product(term, data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])))
    if pair is not None:
        kept = draw_kept(data, free_leaves(term, *pair))
        assert kept_positions(term, kept).tolist() == kept_positions(product(pair), kept).tolist()


def test_heads_times_head_dim_is_found_by_splitting_an_axis() -> None:
    width = Axis(12)
    heads, inner = regroup([width], [4, 3]) or (ONE, ONE)
    kept = {heads: np.array([0, 2])} if isinstance(heads, Axis) else {}
    assert kept_positions(width, kept).tolist() == [0, 1, 2, 6, 7, 8]
    assert resolve(width) == Product((heads, inner))


def test_a_border_inside_a_unit_gives_no_grouping() -> None:
    assert regroup([Axis(4), Axis(3)], [6, 2]) is None
    assert regroup([Axis(4), Axis(3)], [4]) is None
    assert split_product(Axis(6), 4) is None


def test_equal_parts_of_a_concatenation_can_be_stacked_and_their_count_is_frozen() -> None:
    parts = [Axis(4), Axis(4), Axis(4)]
    outer, inner = split_product(concat(parts), 3) or (ONE, ONE)
    assert [leaf.frozen for leaf in leaves(outer)] == ["counts the parts of a concatenation"]
    assert all(resolve(part) is resolve(inner) for part in parts)


def test_dimensions_of_different_sizes_freeze_each_other_and_name_both_sizes() -> None:
    a, b = Axis(4), Axis(6)
    unify(a, b)
    assert a.frozen == b.frozen == "meets a dimension of another size (4 and 6)"


def test_groupings_that_do_not_fit_freeze_both_sides() -> None:
    a, b = Product((Axis(2), Axis(3))), Product((Axis(3), Axis(2)))
    unify(a, b)
    assert {axis.frozen for axis in (*leaves(a), *leaves(b))} == {"is grouped in two ways that do not fit"}


def test_binding_to_a_frozen_axis_carries_its_reason() -> None:
    free, frozen = Axis(4), Axis(4, "is a graph output")
    unify(free, frozen)
    assert [leaf.frozen for leaf in leaves(free)] == ["is a graph output"]


def test_the_first_reason_to_freeze_stays() -> None:
    axis = Axis(4)
    freeze(axis, "first")
    freeze(axis, "second")
    assert axis.frozen == "first"


def test_groupings_that_fit_freeze_nothing() -> None:
    a, b = Product((Axis(2), Axis(6))), Product((Axis(4), Axis(3)))
    unify(a, b)
    assert [axis.size for axis in leaves(a)] == [axis.size for axis in leaves(b)] == [2, 2, 3]
    assert all(axis.frozen is None for axis in leaves(a))


def test_an_axis_that_would_contain_itself_is_frozen() -> None:
    batch = sympy.Symbol("s0", positive=True, integer=True)
    axis = Axis(batch)
    unify(axis, Product((axis, Axis(1))))
    assert axis.frozen == "would have to contain itself"


def test_terms_are_flat_and_without_ones() -> None:
    a, b, c = Axis(2), Axis(3), Axis(4)
    assert product([a, ONE, product([b, c])]) == Product((a, b, c))
    assert concat([a, concat([b, c])]) == Concat((a, b, c))
    assert product([a]) is a
    assert concat([a]) is a
    assert fresh(1) is ONE
    assert size_of(ONE) == 1


@pytest.mark.parametrize(("a", "b", "expected"), [(12, 4, 3), (12, 5, None), (4, 12, None), (4, 0, None)])
def test_a_quotient_is_exact_or_none(a: int, b: int, expected: int | None) -> None:
    assert quotient(a, b) == expected


def test_a_dynamic_size_divides_by_what_it_is_a_multiple_of() -> None:
    batch = sympy.Symbol("s0", positive=True, integer=True)
    assert quotient(6 * batch, 2) == 3 * batch
    assert quotient(6 * batch, batch) == 6
    assert quotient(6 * batch, 4) is None
    assert quotient(6, batch) is None


def test_a_dynamic_batch_folds_into_a_dimension_and_out_again() -> None:
    batch = sympy.Symbol("s0", positive=True, integer=True)
    rows, width = Axis(batch, "is a graph input"), Axis(6)
    folded = regroup([rows, width], [6 * batch])
    assert folded == [Product((rows, width))]
    assert regroup(folded, [batch, 2, 3]) is not None
    assert [size_of(leaf) for leaf in leaves(width)] == [2, 3]
