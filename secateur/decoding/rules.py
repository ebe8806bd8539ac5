"""How an operator's result at the last position alone follows from its inputs: one rule for each operator.

A rule is written once and read twice: first to learn what it takes of each input, then to write it into a new graph. Each
takes of every input only what is wanted of it: `last` are the dimensions of a result that run over positions and of which
the last one is enough; the others are whole.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import sympy
import torch
from torch import fx

from secateur.axes.shape import ELEMENTWISE
from secateur.axes.terms import Size
from secateur.axes.trace import arguments, is_tensor, node_shape, shape_of

_aten = torch.ops.aten
Last = frozenset[int]
WHOLE: Last = frozenset()


class Unexplained(Exception):  # noqa: N818 (an answer, that the caller may have another way for)
    """No rule says how the last position follows; the message is a predicate of the operator."""


@dataclass(frozen=True)
class Hand:
    """What a rule works with."""

    length: sympy.Symbol  # the size of dimensions that run over all positions
    take: Callable[[fx.Node, Last], Any]  # what is made of an input
    hold: Callable[[fx.Node], Any]  # the same of keys and values, whole: the positions so far come from the cache
    size: Callable[[Size, bool], Any]  # a size where positions are all, or where they are the last one alone
    call: Callable[..., Any]  # writes an operator

    def runs(self, node: fx.Node) -> Last:
        """The dimensions of a tensor that run over positions."""
        return frozenset(i for i, size in enumerate(shape_of_first(node)) if has(size, self.length))

    def aligned(self, node: fx.Node, rank: int, last: Last) -> Last:
        """What is wanted of an input that is broadcast to so many dimensions."""
        behind = rank - len(shape_of_first(node))
        return frozenset(i - behind for i in last) & self.runs(node)

    def sizes(self, node: fx.Node, last: Last) -> list[Any]:
        """The sizes of the result."""
        return [self.size(size, i in last) for i, size in enumerate(node_shape(node))]

    def numbers(self, argument: Any) -> Any:
        """An argument that is a number or several, as they are where positions are all."""
        return fx.node.map_arg(argument, lambda n: self.size(number(n), False))

    def given(self, argument: Any, tensor: Callable[[fx.Node], Any]) -> Any:
        """An argument or several, their tensors as told, their sizes where positions are all."""
        return fx.node.map_arg(argument, lambda n: tensor(n) if has_tensor(n) else self.size(number(n), False))


Rule = Callable[[Hand, fx.Node, SimpleNamespace, Last], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of ATen by name, without overload."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def rule_of(node: fx.Node) -> Rule | None:
    """The rule of a node's operator; one that works in place has that of the other, and may have only what is not read later."""
    if node.target is operator.getitem:
        return RULES["getitem"]
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return None
    name = node.target._overloadpacket.__name__
    return RULES.get(name) or RULES.get(name.removesuffix("_"))


def bound(node: fx.Node) -> SimpleNamespace:
    """The arguments by their names."""
    return SimpleNamespace() if node.target is operator.getitem else arguments(node)


def has(size: Size, length: sympy.Symbol) -> bool:
    """Whether a size counts positions."""
    return isinstance(size, sympy.Expr) and length in size.free_symbols


def number(node: Any) -> Size:
    """The size that a node of the graph computes."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else node
    if isinstance(value, int):
        return value
    if not isinstance(value, torch.SymInt):
        raise Unexplained(f"takes the number {node}, which is no size")
    return value.node.expr


def shape_of_first(node: fx.Node) -> list[Size]:
    """The sizes of a tensor, or of the first of several results."""
    value = node.meta["val"]
    return shape_of(value[0] if isinstance(value, list | tuple) else value)


def has_tensor(node: fx.Node) -> bool:
    return is_tensor(node) or isinstance(node.meta.get("val"), list | tuple)


def _not_along(last: Last, *dims: int) -> None:
    """Refuse an operator that computes across positions."""
    if last & set(dims):
        raise Unexplained("computes across positions")


def pure(target: Any) -> Any:
    """The operator that gives what another writes in place."""
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.is_mutable:
        return target
    packet = getattr(_aten, target._overloadpacket.__name__.removesuffix("_"), None)
    if packet is None or target._overloadname not in packet.overloads():
        raise Unexplained("writes in place")
    return getattr(packet, target._overloadname)


_ALIKE = ("zeros_like", "ones_like", "full_like", "empty_like")
_DRAWS = ("bernoulli", "rand_like", "randn_like", "rrelu")


@rule(*(name for name in ELEMENTWISE if name not in (*_ALIKE, *_DRAWS)))
def elementwise(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    rank = len(node_shape(node))
    args, kwargs = hand.given(
        (node.args, dict(node.kwargs)), lambda source: hand.take(source, hand.aligned(source, rank, last))
    )
    return hand.call(pure(node.target), *args, **kwargs)


_FILLS = {"zeros": False, "ones": True, "zeros_like": False, "ones_like": True, "new_zeros": False, "new_ones": True}


@rule("full", "full_like", "new_full", *_FILLS)
def filled(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    """One value everywhere, whatever the tensor whose shape or type was asked for."""
    value = _FILLS.get(node.target._overloadpacket.__name__, a.__dict__.get("fill_value"))  # type: ignore[union-attr]
    if isinstance(value, fx.Node):
        raise Unexplained("fills with a computed value")
    made = node.meta["val"]
    return hand.call(_aten.full.default, hand.sizes(node, last), value, dtype=made.dtype, device=made.device)


@rule("view", "reshape", "_unsafe_view", "unflatten", "flatten", "view_as", "reshape_as", "squeeze", "unsqueeze")
def reshaped(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    before, after = node_shape(a.self), node_shape(node)
    runs, places = sorted(hand.runs(a.self)), sorted(hand.runs(node))
    inner = [_volume(before[i + 1 :]) for i in runs]
    if len(runs) != len(places) or any(
        sympy.expand(one - _volume(after[i + 1 :])) != 0 for one, i in zip(inner, places, strict=True)
    ):
        raise Unexplained("reshapes across positions")
    wanted = frozenset(i for i, place in zip(runs, places, strict=True) if place in last)
    return hand.call(_aten.reshape.default, hand.take(a.self, wanted), hand.sizes(node, last))


def _volume(sizes: Iterable[Size]) -> Any:
    return math.prod(sizes, start=sympy.Integer(1))


@rule("expand", "expand_as", "broadcast_to")
def expanded(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    source = hand.take(a.self, hand.aligned(a.self, len(node_shape(node)), last))
    return hand.call(_aten.expand.default, source, hand.sizes(node, last))


@rule("permute", "transpose", "swapaxes", "t", "numpy_T", "mT", "adjoint", "movedim")
def permuted(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    order = _order(node, a)
    return hand.call(_aten.permute.default, hand.take(a.self, frozenset(order[i] for i in last)), order)


def _order(node: fx.Node, a: SimpleNamespace) -> list[int]:
    """Which dimension of the input each of the result is: what the operator does to a tensor whose sizes number them."""
    rank = len(node_shape(a.self))
    numbered = torch.empty([1 + i for i in range(rank)], device="meta")
    args, kwargs = fx.node.map_arg((node.args[1:], dict(node.kwargs)), number)
    return [size - 1 for size in node.target(numbered, *args, **kwargs).shape]  # type: ignore[operator]


@rule("slice")
def sliced(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    axis = a.dim % len(node_shape(node))
    start = number(a.start or 0)
    if a.step == 1 and start == 0 and node_shape(node)[axis] == node_shape(a.self)[axis]:
        return hand.take(a.self, last)
    if axis not in last:
        source = hand.take(a.self, last)
        return hand.call(_aten.slice.Tensor, source, axis, *hand.numbers((a.start, a.end)), a.step)
    if a.step != 1 or not isinstance(start, int) or start < 0 or node_shape(node)[axis] != hand.length:
        raise Unexplained("takes some of the positions")
    begin = hand.size(hand.length + start - 1, False)
    end = hand.size(hand.length + start, False)
    return hand.call(_aten.slice.Tensor, hand.take(a.self, last - {axis}), axis, begin, end)


@rule("select")
def selected(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    axis = a.dim % len(node_shape(a.self))
    source = hand.take(a.self, frozenset(i + (i >= axis) for i in last))
    return hand.call(_aten.select.int, source, axis, hand.numbers(a.index))


@rule("split_with_sizes", "unsafe_split_with_sizes")
def parted(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    axis = a.dim % len(node_shape(a.self))
    _not_along(last | hand.runs(a.self), axis)
    return hand.call(_aten.split_with_sizes.default, hand.take(a.self, last), a.split_sizes, axis)


@rule("getitem")
def part(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    source, index = node.args
    return hand.call(operator.getitem, hand.take(source, last), index)  # type: ignore[arg-type]


@rule("cat", "concat", "concatenate")
def joined(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    axis = a.dim % len(node_shape(node))
    _not_along(last, axis)
    tensors = [one for one in a.tensors if node_shape(one) != [0]]
    return hand.call(_aten.cat.default, [hand.take(one, last & hand.runs(one)) for one in tensors], axis)


@rule("stack")
def stacked(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    axis = a.dim % len(node_shape(node))
    wanted = frozenset(i - (i > axis) for i in last)
    return hand.call(_aten.stack.default, [hand.take(one, wanted) for one in a.tensors], axis)


@rule("repeat")
def repeated(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    rank = len(node_shape(node))
    runs = frozenset(i + rank - len(node_shape(a.self)) for i in hand.runs(a.self))
    times = [number(one) for one in a.repeats]
    if any(times[i] != 1 for i in runs):
        raise Unexplained("repeats positions")
    wanted = [hand.size(one, i in last) for i, one in enumerate(times)]
    return hand.call(_aten.repeat.default, hand.take(a.self, hand.aligned(a.self, rank, last)), wanted)


@rule("repeat_interleave")
def interleaved(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    if not isinstance(a.__dict__.get("repeats"), int) or a.dim is None:
        raise Unexplained("repeats a computed number of times")
    axis = a.dim % len(node_shape(node))
    _not_along(last, axis)
    return hand.call(_aten.repeat_interleave.self_int, hand.take(a.self, last), a.repeats, axis)


@rule("linear")
def linear(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    return _of_the_first(hand, node, a.input, last)


@rule("layer_norm", "rms_norm")
def normed(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    rank = len(node_shape(node))
    _not_along(last, *range(rank - len(a.normalized_shape), rank))
    return _of_the_first(hand, node, a.input, last)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum", "cumprod", "logcumsumexp", "topk", "sort")
def along(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    _not_along(last, a.dim % len(node_shape(a.self)))
    return _of_the_first(hand, node, a.self, last)


def _of_the_first(hand: Hand, node: fx.Node, source: fx.Node, last: Last) -> Any:
    """An operator of one tensor position by position; its other tensors are weights."""
    args, kwargs = hand.given(
        (node.args, dict(node.kwargs)), lambda other: hand.take(other, last if other is source else WHOLE)
    )
    return hand.call(node.target, *args, **kwargs)


@rule("embedding")
def embedded(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    _not_along(last, len(node_shape(node)) - 1)
    return hand.call(_aten.embedding.default, hand.take(a.weight, WHOLE), hand.take(a.indices, last))


@rule("gather")
def gathered(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    axis = a.dim % len(node_shape(node))
    return hand.call(_aten.gather.default, hand.take(a.self, last - {axis}), axis, hand.take(a.index, last))


@rule("index")
def indexed(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    """Tensors of places in the first dimensions; what they name comes first, then the dimensions without places."""
    if any(places is None for places in a.indices):
        raise Unexplained("has places in some dimensions behind others")
    named = max(len(node_shape(places)) for places in a.indices)
    front = frozenset(i for i in last if i < named)
    places = [hand.take(one, hand.aligned(one, named, front)) for one in a.indices]
    rest = frozenset(i - named + len(a.indices) for i in last - front)
    return hand.call(_aten.index.Tensor, hand.take(a.self, rest), places)


@rule("index_select")
def looked_up(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    axis = a.dim % len(node_shape(node))
    places = hand.take(a.index, frozenset({0} if axis in last else ()))
    return hand.call(_aten.index_select.default, hand.take(a.self, last - {axis}), axis, places)


@rule("mean", "sum", "var", "std", "amax", "amin", "any", "all", "argmax", "argmin", "max", "min", "logsumexp")
def reduced(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    rank = len(node_shape(a.self))
    if "other" in a.__dict__:  # the larger of two
        return elementwise(hand, node, a, last)
    given = a.__dict__.get("dim")
    listed = [given] if isinstance(given, int) else list(given or range(rank))
    over = {i % max(rank, 1) for i in listed}
    _not_along(hand.runs(a.self), *over)
    left = list(range(rank)) if a.__dict__.get("keepdim") else [i for i in range(rank) if i not in over]
    return _of_the_first(hand, node, a.self, frozenset(left[i] for i in last))


@rule("triu", "tril")
def triangle(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    """The last row of a triangle: the columns from, or up to, that many behind its own."""
    rows, columns = len(node_shape(node)) - 2, node_shape(node)[-1]
    if rows not in last or rows + 1 in last:
        raise Unexplained("is a triangle of which no single row is wanted")
    made = node.meta["val"]
    place = hand.call(_aten.arange.default, hand.size(columns, False), device=made.device)
    border = hand.size(node_shape(node)[rows] - 1 + a.diagonal, False)
    compare = _aten.ge.Scalar if node.target._overloadpacket.__name__ == "triu" else _aten.le.Scalar  # type: ignore[union-attr]
    nothing = hand.call(_aten.full.default, [], 0, dtype=made.dtype, device=made.device)
    return hand.call(_aten.where.self, hand.call(compare, place, border), hand.take(a.self, last), nothing)


@rule("matmul", "bmm", "mm")
def multiplied(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    return hand.call(node.target, *_operands(hand, node, node.args[:2], last))


@rule("addmm", "baddbmm")
def multiplied_and_added(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    operands = _operands(hand, node, node.args[1:3], last)
    first = hand.take(a.self, hand.aligned(a.self, len(node_shape(node)), last))
    return hand.call(node.target, first, *operands, beta=a.beta, alpha=a.alpha)


def _operands(hand: Hand, node: fx.Node, operands: Sequence[Any], last: Last) -> tuple[Any, Any]:
    """Queries or weights of positions on the left; keys, values or a stored matrix on the right."""
    left, right = operands
    rank = len(node_shape(node))
    if min(len(node_shape(left)), len(node_shape(right))) < 2:
        raise Unexplained("multiplies by a vector")
    of_left = hand.aligned(left, rank, last - {rank - 1})
    of_right = hand.aligned(right, rank, last - {rank - 2})
    whole = hand.runs(right) - of_right
    return hand.take(left, of_left), hand.hold(right) if whole and not of_right else hand.take(right, of_right)


@rule("scaled_dot_product_attention")
def attention(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    """The last query sees every key that a causal mask lets it see: all of them."""
    rank = len(node_shape(node))
    if a.is_causal and node_shape(a.query)[-2] != node_shape(a.key)[-2]:
        raise Unexplained("has a causal mask over queries and keys of different lengths")
    if rank - 2 in last and rank == 4 and not a.dropout_p:
        return _single_query(hand, node, a, last)
    mask = None if a.attn_mask is None else hand.take(a.attn_mask, hand.aligned(a.attn_mask, rank, last - {rank - 1}))
    given = (hand.take(a.query, last), hand.hold(a.key), hand.hold(a.value), mask, a.dropout_p)
    causal = a.is_causal and rank - 2 not in last
    return hand.call(node.target, *given, causal, scale=a.scale, enable_gqa=a.enable_gqa)


def _single_query(hand: Hand, node: fx.Node, a: SimpleNamespace, last: Last) -> Any:
    """The queries of a group are rows beside each other, so that its keys and values are read once and never repeated.

    Written out, softmax(q k^T s + mask) v: a runtime then multiplies by the keys as they lie in the cache.
    """
    batch, heads, _, width = node_shape(a.query)
    key, value = _before_repeating(a.key), _before_repeating(a.value)
    groups = node_shape(key)[1]
    if groups != node_shape(value)[1]:
        key, value = a.key, a.value
        groups = node_shape(key)[1]
    rows = [hand.size(batch, False), groups, heads // groups]
    length = hand.size(node_shape(a.key)[-2], False)

    def laid(source: fx.Node) -> Any:
        held, sizes = hand.hold(source), [hand.size(batch, False), groups, length, node_shape(source)[-1]]
        return held if len(node_shape(source)) == 4 else hand.call(_aten.reshape.default, held, sizes)

    scale = width**-0.5 if a.scale is None else a.scale
    query = hand.call(_aten.mul.Tensor, hand.take(a.query, last), scale)
    query = hand.call(_aten.reshape.default, query, [*rows, width])
    scores = hand.call(_aten.matmul.default, query, hand.call(_aten.transpose.int, laid(key), -2, -1))
    if a.attn_mask is not None:
        scores = _masked(hand, node, a.attn_mask, scores, rows[1:], last)
    weights = hand.call(_aten.softmax.int, scores, -1)
    return hand.call(
        _aten.reshape.default, hand.call(_aten.matmul.default, weights, laid(value)), hand.sizes(node, last)
    )


def _masked(hand: Hand, node: fx.Node, mask: fx.Node, scores: Any, rows: list[Any], last: Last) -> Any:
    """Scores of one row for each query of each group, behind a mask of heads and one query."""
    wanted = hand.aligned(mask, 4, last)
    seen, sizes = hand.take(mask, wanted), hand.sizes(mask, wanted)
    if len(sizes) > 2 and sizes[-3] != 1:  # a mask of each head
        seen = hand.call(_aten.reshape.default, seen, [*sizes[:-3], *rows, sizes[-1]])
    made = mask.meta["val"]
    if made.dtype != torch.bool:
        return hand.call(_aten.add.Tensor, scores, seen)
    nothing = hand.call(_aten.full.default, [], float("-inf"), dtype=node.meta["val"].dtype, device=made.device)
    return hand.call(_aten.where.self, seen, scores, nothing)


def _before_repeating(node: fx.Node) -> fx.Node:
    """Keys or values [B, groups, 1, L, D] that a graph repeats as [B, groups, times, L, D] and then takes for heads."""
    source: Any = node
    while (before := copied_from(source)) is not None and node_shape(before) == node_shape(source):
        source = before
    expanded_ = copied_from(source)
    if expanded_ is None or rule_of(expanded_) is not expanded or len(node_shape(expanded_)) != 5:
        return node
    once: Any = expanded_.args[0]
    batch, groups, times, *rest = node_shape(expanded_)
    heads: Any = node_shape(node)[1]
    fits = node_shape(once) == [batch, groups, 1, *rest] and heads == groups * times
    return once if fits and node_shape(node) == [batch, heads, *rest] else node


# what only lays a tensor out anew, or copies its units: behind it lie the same numbers
COPIES = {
    name for name, function in RULES.items() if function in (reshaped, expanded, permuted, sliced, interleaved)
} | {"contiguous", "clone", "detach", "alias", "to"}


def copied_from(node: fx.Node) -> fx.Node | None:
    """The tensor of which an operator only makes copies."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._overloadpacket.__name__ not in COPIES:
        return None
    source: Any = node.args[0]
    return source if source.meta["val"].dtype == node.meta["val"].dtype else None


def elements(sizes: Sequence[Size]) -> int:
    """Of one position of one example: the product of the sizes that are known."""
    return math.prod(size for size in sizes if isinstance(size, int))
