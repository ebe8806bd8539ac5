"""Rules of operators that move, split, join and broadcast dimensions without computing across them."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from torch import fx

from secateur.axes.terms import (
    ONE,
    Axis,
    Size,
    Term,
    concat,
    freeze,
    fresh,
    leaves,
    product,
    quotient,
    regroup,
    size_of,
    split_concat,
    split_product,
    unify,
)
from secateur.axes.trace import (
    Dims,
    Trace,
    freeze_inputs,
    frozen_dims,
    is_tensor,
    node_shape,
    rule,
    shape_of,
)

SPATIAL = "is a spatial or sequence dimension"
MADE = "is a position that the graph computes with"
ACROSS = "is reshaped across its units"

ELEMENTWISE = [
    "__and__",
    "__or__",
    "__xor__",
    "abs",
    "acos",
    "acosh",
    "add",
    "addcdiv",
    "addcmul",
    "alias",
    "angle",
    "asin",
    "asinh",
    "atan",
    "atan2",
    "atanh",
    "bernoulli",
    "bitwise_and",
    "bitwise_not",
    "bitwise_or",
    "bitwise_xor",
    "ceil",
    "celu",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clone",
    "complex",
    "conj",
    "contiguous",
    "copy",
    "copysign",
    "cos",
    "cosh",
    "deg2rad",
    "detach",
    "detach_",
    "div",
    "dropout",
    "elu",
    "eq",
    "erf",
    "erfc",
    "erfinv",
    "exp",
    "exp2",
    "expm1",
    "feature_dropout",
    "fill",
    "floor",
    "floor_divide",
    "fmod",
    "frac",
    "ge",
    "gelu",
    "gt",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "hardtanh",
    "heaviside",
    "hypot",
    "imag",
    "isinf",
    "isnan",
    "le",
    "leaky_relu",
    "lerp",
    "lift_fresh_copy",
    "log",
    "log10",
    "log1p",
    "log2",
    "log_sigmoid",
    "logaddexp",
    "logaddexp2",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "logit",
    "lt",
    "masked_fill",
    "maximum",
    "minimum",
    "mish",
    "mul",
    "ne",
    "neg",
    "nan_to_num",
    "nextafter",
    "ones_like",
    "polar",
    "pow",
    "rad2deg",
    "real",
    "reciprocal",
    "relu",
    "relu6",
    "remainder",
    "resolve_conj",
    "round",
    "rrelu",
    "rsqrt",
    "rsub",
    "selu",
    "sgn",
    "sigmoid",
    "sign",
    "silu",
    "sin",
    "sinc",
    "sinh",
    "softplus",
    "softshrink",
    "sqrt",
    "square",
    "sub",
    "tan",
    "tanh",
    "threshold",
    "to",
    "_to_copy",
    "to_dtype",
    "trunc",
    "type_as",
    "where",
    "xlogy",
    "zeros_like",
    "full_like",
    "empty_like",
    "rand_like",
    "randn_like",
]


def broadcast(layouts: Sequence[Dims], rank: int) -> Dims:
    """Unify right-aligned layouts as broadcasting does; size-one dimensions give way."""
    dims: list[Term] = []
    for back in range(rank, 0, -1):
        terms = [d[-back] for d in layouts if len(d) >= back and size_of(d[-back]) != 1]
        for term in terms[1:]:
            unify(terms[0], term)
        dims.append(terms[0] if terms else ONE)
    return tuple(dims)


@rule(*ELEMENTWISE)
def elementwise(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    return broadcast([trace.dims(n) for n in node.all_input_nodes if is_tensor(n)], len(node_shape(node)))


@rule("getitem")
def getitem(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    return trace.layouts[node.args[0]][node.args[1]]  # type: ignore[index]


SIZES_OF = {"view": "size", "_unsafe_view": "size", "reshape": "shape", "unflatten": "sizes"}


@rule("view", "reshape", "_unsafe_view", "unflatten", "flatten", "view_as", "reshape_as", "squeeze", "unsqueeze")
def reshape(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = regroup(trace.dims(a.self), node_shape(node)) or _regroup_apart(trace.dims(a.self), node_shape(node))
    name = SIZES_OF.get(node.target._overloadpacket.__name__)  # type: ignore[union-attr]
    if name:
        given = getattr(a, name)
        first = a.dim % len(trace.dims(a.self)) if name == "sizes" else 0
        _rewrite_sizes(trace, node, name, given, dims[first : first + len(given)])
    return tuple(dims)


def _regroup_apart(dims: Dims, sizes: Sequence[Size]) -> list[Term]:
    """A reshape that cuts through units somewhere: between borders that it keeps, dimensions are regrouped or frozen."""
    out: list[Term] = []
    for before, after in _kept_borders([size_of(term) for term in dims], sizes):
        part = regroup(dims[before], sizes[after])
        if part is None:
            for term in dims[before]:
                freeze(term, ACROSS)
            part = list(frozen_dims(sizes[after], ACROSS))
        out += part
    return out


def _kept_borders(before: Sequence[Size], after: Sequence[Size]) -> Iterator[tuple[slice, slice]]:
    """The smallest runs of dimensions before and after a reshape that hold the same number of elements each."""
    outer, inner = (list(itertools.accumulate(sizes, operator.mul, initial=1)) for sizes in (before, after))
    start, first = 0, 0
    for end in range(1, len(outer)):
        # what is left at the end belongs to the last run, dimensions of size one too
        found = [j for j in range(first, len(inner)) if inner[j] == outer[end]] if end < len(before) else [len(after)]
        if found:
            yield slice(start, end), slice(first, found[0])
            start, first = end, found[0]


def _rewrite_sizes(trace: Trace, node: fx.Node, name: str, given: Sequence[Any], terms: Sequence[Term]) -> None:
    """Let the sizes of a reshape follow its layouts, those that the graph computes too."""
    for index, (size, term) in enumerate(zip(given, terms, strict=True)):
        if not (isinstance(size, int) and size == -1):
            trace.rewrite(node, name, term, index)


@rule("_assert_async", "sym_constrain_range_for_size", "sym_constrain_range")
def assertion(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    """Checks relate nothing; exporting again makes new ones."""
    return ()


@rule("permute")
def permute(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = trace.dims(a.self)
    return tuple(dims[d] for d in a.dims)


@rule("transpose", "swapaxes", "t", "numpy_T", "mT", "adjoint")
def transpose(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = list(trace.dims(a.self))
    if len(dims) < 2:
        return tuple(dims)
    i, j = a.__dict__.get("dim0", a.__dict__.get("axis0", -2)), a.__dict__.get("dim1", a.__dict__.get("axis1", -1))
    dims[i], dims[j] = dims[j], dims[i]
    return tuple(dims)


@rule("movedim")
def movedim(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = trace.dims(a.self)
    listed = [([x] if isinstance(x, int) else list(x)) for x in (a.source, a.destination)]
    source, destination = ([d % len(dims) for d in x] for x in listed)
    rest = iter(d for i, d in enumerate(dims) if i not in source)
    moved = dict(zip(destination, source, strict=True))
    return tuple(dims[moved[i]] if i in moved else next(rest) for i in range(len(dims)))


@rule("expand", "expand_as", "broadcast_to")
def expand(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    sizes, dims = node_shape(node), trace.dims(a.self)
    given = (ONE,) * (len(sizes) - len(dims)) + tuple(dims)
    out = tuple(
        term if size_of(term) == size else fresh(size)  # copies can be as many as what they meet
        for term, size in zip(given, sizes, strict=True)
    )
    if "size" in a.__dict__:
        for index, size in enumerate(a.size):
            if not isinstance(size, int) or size != -1:
                trace.rewrite(node, "size", out[index], index)
    return out


@rule("repeat")
def repeat(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    sizes, dims = node_shape(node), trace.dims(a.self)
    given = (ONE,) * (len(sizes) - len(dims)) + tuple(dims)
    out: list[Term] = []
    for position, (term, times) in enumerate(zip(given, a.repeats, strict=True)):
        dynamic = not isinstance(times, int)
        copies = fresh(quotient(sizes[position], size_of(term)) or 1, SPATIAL if dynamic else None)
        if not dynamic:
            trace.rewrite(node, "repeats", copies, position)
        out.append(product([copies, term]))
    return tuple(out)


@rule("repeat_interleave")
def repeat_interleave(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = list(trace.dims(a.self))
    if not isinstance(a.__dict__.get("repeats"), int) or a.dim is None:
        return freeze_inputs(trace, node, MADE)
    copies = fresh(a.repeats)
    trace.rewrite(node, "repeats", copies)
    dims[a.dim] = product([dims[a.dim], copies])
    return tuple(dims)


@rule("cat", "concat", "concatenate")
def cat(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    layouts = [trace.dims(n) for n in a.tensors if node_shape(n) != [0]]
    axis = a.dim % len(layouts[0])
    dims = list(layouts[0])
    for other in layouts[1:]:
        for index, term in enumerate(other):
            if index != axis:
                unify(dims[index], term)
    dims[axis] = concat([d[axis] for d in layouts])
    if not isinstance(size_of(dims[axis]), int):
        freeze(dims[axis], SPATIAL)
        dims[axis] = Axis(node_shape(node)[axis], SPATIAL)
    return tuple(dims)


@rule("stack")
def stack(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = list(broadcast([trace.dims(n) for n in a.tensors], len(node_shape(node)) - 1))
    axis = a.dim % (len(dims) + 1)
    return (*dims[:axis], fresh(len(a.tensors), "counts stacked tensors"), *dims[axis:])


@rule("split_with_sizes", "unsafe_split_with_sizes")
def split_with_sizes(trace: Trace, node: fx.Node, a: SimpleNamespace) -> list[Dims]:
    dims = list(trace.dims(a.self))
    axis = a.dim % len(dims)
    rest, parts = dims[axis], []
    for size in a.split_sizes[:-1]:
        pair = split_concat(rest, size)
        if pair is None:
            return _torn(trace, node, a, "is split across its units")
        parts.append(pair[0])
        rest = pair[1]
    parts.append(rest)
    for index, part in enumerate(parts):
        trace.rewrite(node, "split_sizes", part, index)
    return [(*dims[:axis], part, *dims[axis + 1 :]) for part in parts]


@rule("split", "chunk", "unsafe_split", "unsafe_chunk")
def split_dynamic(trace: Trace, node: fx.Node, a: SimpleNamespace) -> list[Dims]:
    """What is left of these once every split of a static dimension is spelt out."""
    return _torn(trace, node, a, SPATIAL)


def _torn(trace: Trace, node: fx.Node, a: SimpleNamespace, reason: str) -> list[Dims]:
    """Parts of a dimension that is never cut, beside dimensions that pass."""
    dims = trace.dims(a.self)
    axis = a.dim % len(dims)
    freeze(dims[axis], reason)
    sizes = [shape_of(part)[axis] for part in node.meta["val"]]
    return [(*dims[:axis], fresh(size, reason), *dims[axis + 1 :]) for size in sizes]


@rule("glu")
def glu(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims | Any:
    """The first half times the sigmoid of the second."""
    dims = list(trace.dims(a.self))
    pair = split_concat(dims[a.dim], node_shape(node)[a.dim])
    if pair is None:
        return freeze_inputs(trace, node, "is split across its units")
    unify(*pair)
    dims[a.dim] = pair[0]
    return tuple(dims)


@rule("unbind")
def unbind(trace: Trace, node: fx.Node, a: SimpleNamespace) -> list[Dims]:
    dims = list(trace.dims(a.self))
    freeze(dims[a.dim], "is taken apart one by one")
    count = len(node.meta["val"])
    del dims[a.dim]
    return [tuple(dims)] * count


@rule("select")
def select(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = list(trace.dims(a.self))
    freeze(dims[a.dim], "one position of it is selected")
    del dims[a.dim]
    return tuple(dims)


@rule("slice")
def slice_(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = list(trace.dims(a.self))
    axis = a.dim % len(dims)
    total, length = size_of(dims[axis]), node_shape(node)[axis]
    if total == length and a.step == 1:
        return tuple(dims)
    whole = dims[axis]
    if length == 0 and a.start == total:  # what lies behind the last unit
        trace.rewrite(node, "start", whole)
        dims[axis] = concat([])
        return tuple(dims)
    dims[axis] = _sliced(trace, node, a, whole) or fresh(length, next((x.frozen for x in leaves(whole)), None) or MADE)
    return tuple(dims)


def _sliced(trace: Trace, node: fx.Node, a: SimpleNamespace, term: Term) -> Term | None:
    """The part of a static dimension that a slice takes; None, and frozen, where that is not a whole number of units."""
    total = size_of(term)
    start, end = a.start or 0, a.end
    if isinstance(a.step, int) and a.step > 1:
        every = _every(term, start, end, a.step)
        if every is not None:
            return every
    if not all(isinstance(x, int) for x in (total, start)) or not isinstance(end, int | None) or a.step != 1:
        freeze(term, "is sliced with a step or by a computed position")
        return None
    start, end = slice(start, end).indices(int(total))[:2]
    if all(axis.frozen for axis in leaves(term)):
        return None
    rest = term
    before: Term | None = None
    if start > 0:
        pair = split_concat(rest, start)
        if pair is None:
            freeze(term, "is sliced across its units")
            return None
        before, rest = pair
        trace.rewrite(node, "start", before)
    if end < total:
        pair = split_concat(rest, end - start)
        if pair is None:
            freeze(term, "is sliced across its units")
            return None
        rest = pair[0]
        trace.rewrite(node, "end", concat([before, rest]) if before is not None else rest)
    return rest


def _every(term: Term, start: Any, end: Any, step: int) -> Term | None:
    """The units that lie `step` positions apart: the outer factor where the inner one is as wide as the step."""
    total = size_of(term)
    whole = isinstance(end, int | None) and (end is None or end >= total)
    if not isinstance(total, int) or not isinstance(start, int) or not 0 <= start < step or not whole or total % step:
        return None
    pair = split_product(term, total // step)
    if pair is None:
        return None
    freeze(pair[1], "is sliced with a step")
    return pair[0]


@rule("constant_pad_nd", "pad")
def pad(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    """Padding with a constant concatenates new units that live in no parameter until they meet one (option A)."""
    dims, sizes = list(trace.dims(a.self)), node_shape(node)
    for pair in range(len(a.pad) // 2):
        axis, (low, high) = len(dims) - 1 - pair, a.pad[2 * pair : 2 * pair + 2]
        term = dims[axis]
        if (low, high) == (0, 0):
            continue
        static = all(isinstance(x, int) and x >= 0 for x in (low, high, size_of(term)))
        if not static or a.__dict__.get("mode", "constant") != "constant" or all(x.frozen for x in leaves(term)):
            freeze(term, SPATIAL)
            dims[axis] = fresh(sizes[axis], SPATIAL)
            continue
        parts = [term]
        for index, width in ((2 * pair, low), (2 * pair + 1, high)):
            if width:
                border = fresh(width)
                parts.insert(0 if index % 2 == 0 else len(parts), border)
                trace.rewrite(node, "pad", border, index)
        dims[axis] = concat(parts)
    return tuple(dims)


@rule("sym_size")
def sym_size(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    freeze(trace.dims(a.self)[a.dim], MADE)
    return ()


@rule("view_as_complex")
def as_complex(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    *dims, pair = trace.dims(a.self)
    freeze(pair, "is the two parts of a complex number")
    return tuple(dims)


@rule("view_as_real")
def as_real(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    return (*trace.dims(a.self), fresh(2, "is the two parts of a complex number"))


@rule("tril", "triu")
def triangle(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    """Which rows and columns stay depends on their order."""
    dims = trace.dims(a.self)
    for term in dims[-2:]:
        freeze(term, "is one side of a triangle")
    return dims


@rule("unfold")
def unfold(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    """Windows over one dimension; what lies in them is a new one, the last."""
    dims, sizes = list(trace.dims(a.self)), node_shape(node)
    axis = a.dimension % max(len(dims), 1)
    freeze(dims[axis], SPATIAL)
    dims[axis] = fresh(sizes[axis], SPATIAL)
    return (*dims, fresh(sizes[-1], SPATIAL))


@rule("roll", "flip")
def roll(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    for d in a.dims or range(len(trace.dims(a.self))):
        freeze(trace.dims(a.self)[d], "is shifted or reversed")
    return trace.dims(a.self)


@rule("arange", "linspace", "eye", "scalar_tensor")
def numbers(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    return frozen_dims(node_shape(node), MADE)


@rule("full", "zeros", "ones", "new_zeros", "new_ones", "new_full", "empty", "new_empty")
def constant(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    """A tensor of one value can have any size."""
    dims = tuple(fresh(size) for size in node_shape(node))
    for position, term in enumerate(dims):
        trace.rewrite(node, "size", term, position)
    return dims


@rule("pixel_shuffle")
def pixel_shuffle(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims, sizes = trace.dims(a.self), node_shape(node)
    channel = fresh(sizes[-3])
    unify(dims[-3], product([channel, fresh(a.upscale_factor**2, SPATIAL)]))
    return (*dims[:-3], channel, *frozen_dims(sizes[-2:], SPATIAL))


@rule("pixel_unshuffle")
def pixel_unshuffle(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims, sizes = trace.dims(a.self), node_shape(node)
    out = product([dims[-3], fresh(a.downscale_factor**2, SPATIAL)])
    return (*dims[:-3], out, *frozen_dims(sizes[-2:], SPATIAL))


@rule("im2col")
def im2col(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    """Windows of an image as columns: channel by channel the positions of the kernel."""
    *batch, channel, height, width = trace.dims(a.self)
    for term in (height, width):
        freeze(term, SPATIAL)
    window, columns = fresh(math.prod(a.kernel_size), SPATIAL), fresh(node_shape(node)[-1], SPATIAL)
    return (*batch, product([channel, window]), columns)


@rule("col2im")
def col2im(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    """Columns laid over each other as the windows of an image."""
    *batch, stacked, columns = trace.dims(a.self)
    sizes = node_shape(node)
    channel = fresh(sizes[-3])
    unify(stacked, product([channel, fresh(math.prod(a.kernel_size), SPATIAL)]))
    freeze(columns, SPATIAL)
    return (*batch, channel, *frozen_dims(sizes[-2:], SPATIAL))


@rule("channel_shuffle")
def channel_shuffle(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = list(trace.dims(a.self))
    grouped = regroup([dims[1]], [a.groups, int(size_of(dims[1])) // a.groups])
    if grouped is None:
        return freeze_inputs(trace, node, "is shuffled across its units")
    trace.rewrite(node, "groups", grouped[0])
    dims[1] = product(grouped[::-1])
    return tuple(dims)
