"""Layouts: which units of which axes every dimension of every tensor is made of, and how two layouts are made equal.

A layout is a term over axes: an `Axis`, a row-major `Product` of terms (heads x head_dim in one dimension) or a `Concat`
of terms (queries, keys and values behind each other). `unify` makes two terms equal by binding axes to terms, as type
inference does; what cannot be made equal is frozen, with the reason, and a frozen axis is never cut.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sympy

Size = int | Any  # a sympy expression for dynamic dimensions (batch, sequence length)


@dataclass(eq=False)
class Axis:
    """A set of units that are kept or removed one by one; `bound` once unification has replaced it by a term."""

    size: Size
    frozen: str | None = None
    bound: Term | None = None


@dataclass(frozen=True)
class Product:
    """Row-major product: the first factor varies slowest. The empty product is a dimension of size one."""

    factors: tuple[Term, ...] = ()


@dataclass(frozen=True)
class Concat:
    """Terms laid behind each other."""

    parts: tuple[Term, ...]


Term = Axis | Product | Concat
ONE = Product()
Widths = dict[Axis, int]  # how many units of an axis are left
Kept = dict[Axis, np.ndarray]  # which units of an axis are left, ascending


def fresh(size: Size, frozen: str | None = None) -> Term:
    """A new axis, or `ONE` for a dimension of size one."""
    return ONE if size == 1 else Axis(size, frozen)


def product(factors: Sequence[Term]) -> Term:
    """The product of terms in normal form: no nested products, no ones, a single factor is itself."""
    flat: list[Term] = []
    for factor in map(resolve, factors):
        flat.extend(factor.factors if isinstance(factor, Product) else [factor])
    return flat[0] if len(flat) == 1 else Product(tuple(flat))


def concat(parts: Sequence[Term]) -> Term:
    """The concatenation of terms in normal form: no nested concatenations, a single part is itself."""
    flat: list[Term] = []
    for part in map(resolve, parts):
        flat.extend(part.parts if isinstance(part, Concat) else [part])
    return flat[0] if len(flat) == 1 else Concat(tuple(flat))


def resolve(term: Term) -> Term:
    """The term with every bound axis replaced by what it is bound to."""
    if isinstance(term, Axis):
        if term.bound is None:
            return term
        term.bound = resolve(term.bound)  # path compression
        return term.bound
    return product(term.factors) if isinstance(term, Product) else concat(term.parts)


def leaves(term: Term) -> Iterator[Axis]:
    """The unbound axes of a term, repeats included."""
    term = resolve(term)
    if isinstance(term, Axis):
        yield term
    else:
        for child in term.factors if isinstance(term, Product) else term.parts:
            yield from leaves(child)


def size_of(term: Term, widths: Widths | None = None) -> Size:
    """The size of a dimension, after the cut that `widths` describes when given."""
    term = resolve(term)
    if isinstance(term, Axis):
        return term.size if widths is None else widths.get(term, term.size)
    if isinstance(term, Product):
        return math.prod(size_of(f, widths) for f in term.factors)
    return sum(size_of(p, widths) for p in term.parts)


def kept_positions(term: Term, kept: Kept) -> np.ndarray:
    """The flat positions of a static dimension that stay when each axis keeps its `kept` units."""
    term = resolve(term)
    if isinstance(term, Axis):
        return kept[term] if term in kept else np.arange(int(term.size))
    if isinstance(term, Product):
        positions = np.zeros(1, dtype=np.int64)
        for factor in term.factors:
            inner = kept_positions(factor, kept)
            positions = (positions[:, None] * int(size_of(factor)) + inner[None, :]).reshape(-1)
        return positions
    offsets = np.cumsum([0, *(int(size_of(p)) for p in term.parts)])
    return np.concatenate([kept_positions(p, kept) + o for p, o in zip(term.parts, offsets, strict=False)])


def unit_index(term: Term, axis: Axis) -> np.ndarray:
    """For each flat position of a static dimension the unit of `axis` it belongs to, or -1."""
    term = resolve(term)
    if isinstance(term, Axis):
        return np.arange(int(term.size)) if term is axis else np.full(int(term.size), -1)
    if isinstance(term, Product):
        units = np.full(1, -1)
        for factor in term.factors:
            inner = unit_index(factor, axis)
            units = np.where(inner[None, :] >= 0, inner[None, :], units[:, None]).reshape(-1)
        return units
    return np.concatenate([unit_index(part, axis) for part in term.parts])


def freeze(term: Term, reason: str) -> None:
    """Forbid every cut of the axes in a term; the first reason given stays."""
    for axis in leaves(term):
        axis.frozen = axis.frozen or reason


def unify(a: Term, b: Term) -> None:
    """Make two dimensions of equal size have the same layout; freeze both where no common layout exists."""
    a, b = resolve(a), resolve(b)
    if a is b or a == b:
        return
    if size_of(a) != size_of(b):
        _give_up(a, b, f"meets a dimension of another size ({size_of(a)} and {size_of(b)})")
    elif isinstance(a, Axis):
        _bind(a, b)
    elif isinstance(b, Axis):
        _bind(b, a)
    elif isinstance(a, Concat) or isinstance(b, Concat):
        _unify_concats(a, b)
    else:
        _unify_products(a, b)


def _bind(axis: Axis, term: Term) -> None:
    if any(leaf is axis for leaf in leaves(term)):
        freeze(term, "would have to contain itself")
        return
    if axis.frozen:
        freeze(term, axis.frozen)
    axis.bound = term


def _give_up(a: Term, b: Term, reason: str) -> None:
    freeze(a, reason)
    freeze(b, reason)


def _unify_products(a: Product, b: Product) -> None:
    left, right = list(a.factors), list(b.factors)
    while left and right:
        x, y = size_of(left[0]), size_of(right[0])
        if x != y and not (_split_factor(right, x) if quotient(y, x) is not None else _split_factor(left, y)):
            return _give_up(a, b, "is grouped in two ways that do not fit")
        unify(left.pop(0), right.pop(0))
    return None


def _split_factor(factors: list[Term], outer: Size) -> bool:
    """Replace the first factor by two, the outer one of the given size."""
    pair = split_product(factors[0], outer)
    if pair is None:
        return False
    factors[:1] = pair
    return True


def _unify_concats(a: Term, b: Term) -> None:
    left: list[Term] = list(a.parts) if isinstance(a, Concat) else [a]
    right: list[Term] = list(b.parts) if isinstance(b, Concat) else [b]
    while left and right:
        x, y = size_of(left[0]), size_of(right[0])
        if x != y and not (_split_part(right, x) if _less(x, y) else _split_part(left, y)):
            return _give_up(a, b, "is concatenated in two ways that do not fit")
        unify(left.pop(0), right.pop(0))
    return None


def _split_part(parts: list[Term], position: Size) -> bool:
    pair = split_concat(parts[0], position)
    if pair is None:
        return False
    parts[:1] = pair
    return True


def _less(x: Size, y: Size) -> bool:
    return isinstance(x, int) and isinstance(y, int) and x < y


def quotient(a: Size, b: Size) -> Size | None:
    """a / b when it is exact, else None."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    ratio = sympy.sympify(a) / sympy.sympify(b)
    if sympy.fraction(ratio)[1] != 1:
        return None
    return int(ratio) if ratio.is_Integer else ratio


def split_product(term: Term, outer: Size) -> tuple[Term, Term] | None:
    """Refine a term into (outer, inner) factors, the outer of the given size; None where that cuts through a unit."""
    term = resolve(term)
    inner = quotient(size_of(term), outer)
    if inner is None:
        return None
    if isinstance(term, Axis):
        pair = fresh(outer, term.frozen), fresh(inner, term.frozen)
        if not term.frozen:
            term.bound = product(pair)
        return pair
    if isinstance(term, Product):
        grouped = regroup(term.factors, [outer, inner])
        return None if grouped is None else (grouped[0], grouped[1])
    return _stack(term, outer, inner)


def _stack(term: Concat, outer: Size, inner: Size) -> tuple[Term, Term] | None:
    """A concatenation of equal groups seen as index x group: the groups are made the same, the index is frozen."""
    if not isinstance(outer, int) or not isinstance(inner, int):
        return None
    rest: Term = term
    groups: list[Term] = []
    for _ in range(outer - 1):
        pair = split_concat(rest, inner)
        if pair is None:
            return None
        groups.append(pair[0])
        rest = pair[1]
    for group in groups:
        unify(group, rest)
    return fresh(outer, "counts the parts of a concatenation"), resolve(rest)


def split_concat(term: Term, position: Size) -> tuple[Term, Term] | None:
    """Refine a static term into what lies before and from `position`; None where that cuts through a unit."""
    term = resolve(term)
    total = size_of(term)
    if not isinstance(total, int) or not isinstance(position, int) or not 0 < position < total:
        return None
    if isinstance(term, Axis):
        pair = fresh(position, term.frozen), fresh(total - position, term.frozen)
        if not term.frozen:
            term.bound = concat(pair)
        return pair
    if isinstance(term, Concat):
        return _split_parts(term, position)
    inner = int(size_of(Product(term.factors[1:])))
    head = split_concat(term.factors[0], position // inner) if position % inner == 0 else None
    return head and (product([head[0], *term.factors[1:]]), product([head[1], *term.factors[1:]]))


def _split_parts(term: Concat, position: int) -> tuple[Term, Term] | None:
    before: list[Term] = []
    after = list(term.parts)
    while position:
        size = int(size_of(after[0]))
        if size > position and not _split_part(after, position):
            return None
        before.append(after.pop(0))
        position -= int(size_of(before[-1]))
    return concat(before), concat(after)


def regroup(factors: Sequence[Term], sizes: Sequence[Size]) -> list[Term] | None:
    """The dimensions of a row-major reshape of `factors` to `sizes`; None where a border cuts through a unit."""
    queue = _factors(product(factors))
    grouped: list[Term] = []
    for size in sizes:
        taken = _take(queue, size)
        if taken is None:
            return None
        grouped.append(product(taken))
    return None if queue else grouped


def _take(queue: list[Term], size: Size) -> list[Term] | None:
    """Remove factors of the given total size from the front of the queue, refining the last one where needed."""
    taken: list[Term] = []
    while size != 1:
        if not queue:
            return None
        rest = quotient(size, size_of(queue[0]))
        if rest is None:
            if quotient(size_of(queue[0]), size) is None or not _split_factor(queue, size):
                return None
            # a refined product puts its own factors in front; take them on the next rounds
            queue[:1] = _factors(queue[0])
            continue
        taken.append(queue.pop(0))
        size = rest
    return taken


def _factors(term: Term) -> list[Term]:
    term = resolve(term)
    return list(term.factors) if isinstance(term, Product) else [term]
