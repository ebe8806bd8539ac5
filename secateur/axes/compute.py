"""Rules of operators that compute across dimensions: contractions, normalisations, reductions, attention."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import fx

from secateur.axes.shape import SPATIAL, broadcast
from secateur.axes.terms import ONE, Term, concat, freeze, fresh, product, size_of, unify
from secateur.axes.trace import Dims, Trace, freeze_inputs, is_tensor, node_shape, rule, shape_of

KERNEL = "is a kernel size"


@rule("linear")
def linear(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims, (out, into) = trace.dims(a.input), trace.dims(a.weight)
    unify(dims[-1], into)
    if is_tensor(a.bias):
        unify(trace.dims(a.bias)[0], out)
    trace.role("width", out, into)
    trace.contract(node, (*dims[:-1], out, into))
    return (*dims[:-1], out)


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    if a.__dict__.get("transposed"):
        return transposed_convolution(trace, node, a)
    dims, (out, per_group, *kernel) = trace.dims(a.input), trace.dims(a.weight)
    if len(dims) != len(kernel) + 2:
        return freeze_inputs(trace, node, "meets a convolution without a batch")
    _grouped(trace, node, a, dims[1], per_group, out, fresh(_ratio(out, a.groups)))
    return _convolved(trace, node, a, out, per_group, kernel, swept=None)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def transposed_convolution(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims, (into, per_group, *kernel) = trace.dims(a.input), trace.dims(a.weight)
    if len(dims) != len(kernel) + 2:
        return freeze_inputs(trace, node, "meets a convolution without a batch")
    unify(dims[1], into)
    out, in_each = fresh(node_shape(node)[1]), fresh(_ratio(into, a.groups))
    _grouped(trace, node, a, into, in_each, out, per_group)
    # every input position is spread over the kernel: the sum runs over the input's positions, not the output's
    return _convolved(trace, node, a, out, in_each, kernel, swept=dims[2:])


def _ratio(term: Term, groups: int) -> int:
    return int(size_of(term)) // groups


def _grouped(
    trace: Trace, node: fx.Node, a: SimpleNamespace, into: Term, in_each: Term, out: Term, out_each: Term
) -> None:
    """Input and output channels of a grouped convolution share their groups: into = g x in_each, out = g x out_each."""
    group = fresh(a.groups)
    unify(into, product([group, in_each]))
    unify(out, product([group, out_each]))
    if a.groups > 1:
        trace.rewrite(node, "groups", group)
    trace.role("channel", into, out)


def _convolved(
    trace: Trace, node: fx.Node, a: SimpleNamespace, out: Term, inner: Term, kernel: list[Term], swept: Dims | None
) -> Dims:
    for term in kernel:
        freeze(term, KERNEL)
    if is_tensor(a.bias):
        unify(trace.dims(a.bias)[0], out)
    batch, _, *before = trace.dims(a.input)
    sizes = node_shape(node)[2:]
    spatial: list[Term] = []
    for place, (term, size, width) in enumerate(zip(before, sizes, kernel, strict=True)):
        if size_of(width) == 1 and size == size_of(term) and _steps(a, place):
            spatial.append(term)  # features can lie there too, as when patches and channels change places
        else:
            freeze(term, SPATIAL)
            spatial.append(fresh(size, SPATIAL))
    trace.contract(node, (batch, out, inner, *kernel, *(spatial if swept is None else swept)))
    return (batch, out, *spatial)


def _steps(a: SimpleNamespace, place: int) -> bool:
    """Whether a kernel of width one visits every position of a spatial dimension, in order and nothing else."""
    steps = _at(a.stride, place) if a.stride else 1  # no stride is that of the kernel
    return (
        steps == 1 and _at(a.padding, place) in (0, "same", "valid") and not _at(getattr(a, "output_padding", 0), place)
    )


def _at(value: Any, place: int) -> Any:
    """An argument for one spatial dimension, given once for all of them or for each."""
    if not isinstance(value, list | tuple):
        return value
    return value[place if len(value) > 1 else 0]


@rule("batch_norm", "instance_norm")
def batch_norm(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = trace.dims(a.input)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if is_tensor(getattr(a, name)):
            unify(dims[1], trace.dims(getattr(a, name))[0])
    if not is_tensor(a.running_mean):  # then the statistics are those of the input
        trace.normalised.extend(dims[2:])
    return dims


@rule("layer_norm", "rms_norm")
def layer_norm(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = trace.dims(a.input)
    inner = dims[len(dims) - len(a.normalized_shape) :]
    for name in ("weight", "bias"):
        if is_tensor(a.__dict__.get(name)):
            for term, other in zip(inner, trace.dims(getattr(a, name)), strict=True):
                unify(term, other)
    for position, term in enumerate(inner):
        trace.rewrite(node, "normalized_shape", term, position)
    trace.normalised.extend(inner)
    trace.role("embedding", *inner)
    return dims


@rule("group_norm")
def group_norm(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = trace.dims(a.input)
    group, inner = fresh(a.num_groups), fresh(_ratio(dims[1], a.num_groups))
    unify(dims[1], product([group, inner]))
    for name in ("weight", "bias"):
        if is_tensor(getattr(a, name)):
            unify(dims[1], trace.dims(getattr(a, name))[0])
    trace.rewrite(node, "num_groups", group)
    trace.normalised.extend([inner, *dims[2:]])
    return dims


@rule("prelu")
def prelu(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims, (slope,) = trace.dims(a.self), trace.dims(a.weight)
    if size_of(slope) != 1:
        unify(dims[1], slope)
    return dims


@rule("mean", "sum", "var", "std", "linalg_vector_norm", "norm")
def reduction(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = trace.dims(node.args[0])  # type: ignore[arg-type]
    over = _reduced(dims, a)
    trace.normalised.extend(dims[d] for d in over)
    return _left(dims, over, a)


@rule("amax", "amin", "aminmax", "argmax", "argmin", "any", "all", "logsumexp", "max", "median", "min", "mode", "prod")
def extremum(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Any:
    """Unlike a sum it tells a unit that is zero from one that is gone. Several results have the same layout."""
    dims = trace.dims(a.self)
    if "other" in a.__dict__:  # the larger of two
        return broadcast([dims, trace.dims(a.other)], len(node_shape(node)))
    over = _reduced(dims, a)
    for d in over:
        freeze(dims[d], "is what an extremum is taken over")
    left = _left(dims, over, a)
    return left if isinstance(node.meta["val"], torch.Tensor) else [left] * len(node.meta["val"])


def _reduced(dims: Dims, a: SimpleNamespace) -> set[int]:
    given = a.__dict__.get("dim")
    listed = range(len(dims)) if given is None or given == [] else [given] if isinstance(given, int) else given
    return {d % len(dims) for d in listed}


def _left(dims: Dims, over: set[int], a: SimpleNamespace) -> Dims:
    if a.__dict__.get("keepdim"):
        return tuple(ONE if i in over else d for i, d in enumerate(dims))
    return tuple(d for i, d in enumerate(dims) if i not in over)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumprod", "cumsum", "logcumsumexp")
def along(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = trace.dims(a.self)
    trace.compete(node, dims[a.dim])
    return dims


@rule(*(f"fft_{direction}fft{rank}" for direction in ("", "i", "r", "ir") for rank in ("", "2", "n")))
def fourier(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = list(trace.dims(a.self))
    for d in _reduced(trace.dims(a.self), a):
        freeze(dims[d], "is transformed as a whole")
        dims[d] = fresh(node_shape(node)[d], "is transformed as a whole")
    return tuple(dims)


POOLING = {
    name + f"{rank}d": rank
    for name in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "reflection_pad", "replication_pad")
    for rank in (1, 2, 3)
} | {
    f"upsample_{kind}{rank}d": rank
    for kind, rank in (
        ("nearest", 1),
        ("nearest", 2),
        ("nearest", 3),
        ("linear", 1),
        ("bilinear", 2),
        ("bicubic", 2),
        ("trilinear", 3),
    )
}


@rule(*POOLING)
def pooling(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Any:
    """Pooling and resizing act on each channel alone; the spatial sizes that come out are new."""
    dims = trace.dims(node.args[0])  # type: ignore[arg-type]
    value = node.meta["val"]
    lead = len(dims) - POOLING[node.target._overloadpacket.__name__]  # type: ignore[union-attr]
    outputs = [value] if not isinstance(value, list | tuple) else list(value)
    spatial: list[Term] = []
    for place, (term, size) in enumerate(zip(dims[lead:], shape_of(outputs[0])[lead:], strict=True)):
        alone = "kernel_size" in a.__dict__ and _at(a.kernel_size, place) == 1 and _steps(a, place)
        if not alone:
            freeze(term, SPATIAL)
        spatial.append(term if alone else fresh(size, SPATIAL))
    out = [(*dims[:lead], *spatial) for _ in outputs]
    return out if isinstance(value, list | tuple) else out[0]


@rule("matmul", "mm", "bmm", "dot", "mv", "vdot")
def matmul(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    left, right = (trace.dims(n) for n in node.args[:2])  # type: ignore[arg-type]
    x = left if len(left) > 1 else (ONE, *left)
    y = right if len(right) > 1 else (*right, ONE)
    batch = broadcast([x[:-2], y[:-2]], max(len(x), len(y)) - 2)
    unify(x[-1], y[-2])
    _multiplied(trace, node, node.args[:2], batch, (x[-2], x[-1], y[-1]))
    rows = (x[-2],) if len(left) > 1 else ()
    columns = (y[-1],) if len(right) > 1 else ()
    return (*batch, *rows, *columns)


def _multiplied(
    trace: Trace, node: fx.Node, factors: Sequence[Any], batch: Sequence[Term], sizes: tuple[Term, Term, Term]
) -> None:
    """Note what a matrix product [rows, inner] x [inner, columns] uses its dimensions as, and its cost."""
    rows, inner, columns = sizes
    attends = all(factor in trace.computed for factor in factors)  # scores or values, not a projection
    trace.role("head" if attends else "width", *batch)
    trace.role("qk_width" if attends else "width", inner)
    trace.role("v_width" if attends else "width", rows, columns)
    trace.contract(node, (*batch, *sizes))
    if trace.lingering.issuperset(factors):
        trace.normalised.append(inner)


@rule("addmm", "baddbmm")
def addmm(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    x, y = (trace.dims(n) for n in node.args[1:3])  # type: ignore[arg-type]
    batch = broadcast([x[:-2], y[:-2]], len(x) - 2)
    unify(x[-1], y[-2])
    _multiplied(trace, node, node.args[1:3], batch, (x[-2], x[-1], y[-1]))
    return broadcast([(*x[:-1], y[-1]), trace.dims(a.self)], len(x))


@rule("scaled_dot_product_attention")
def attention(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    q, k, v = (trace.dims(n) for n in (a.query, a.key, a.value))
    unify(q[-1], k[-1])
    unify(k[-2], v[-2])
    for term in (q[-2], k[-2]):
        freeze(term, SPATIAL)
    heads = k[-3] if len(q) > 3 else ONE
    if len(q) > 3:
        unify(k[-3], v[-3])
        repeats = fresh(max(int(size_of(q[-3])) // int(size_of(k[-3])), 1))  # grouped queries, or one key for all
        unify(q[-3], product([k[-3], repeats]))
        heads = q[-3]
        trace.role("head", heads)
    batch = broadcast([q[:-3], k[:-3], v[:-3]], max(len(q) - 3, 0))
    if is_tensor(a.attn_mask):
        broadcast([(*batch, heads, q[-2], k[-2]), trace.dims(a.attn_mask)], len(q))
    trace.role("qk_width", q[-1])
    trace.role("v_width", v[-1])
    for inner in (q[-1], v[-1]):
        trace.contract(node, (*batch, heads, q[-2], k[-2], inner))
    if a.scale is None:
        trace.rewrite(node, "scale", q[-1])
    return (*q[:-1], v[-1])


def implied_scale(width: int) -> float:
    """The scale that `scaled_dot_product_attention` takes when none is given, for the dense query width."""
    return 1 / math.sqrt(width)


@rule("einsum")
def einsum(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    inputs, output = _letters(a.equation.replace(" ", ""), [len(trace.dims(tensor)) for tensor in a.tensors])
    bound: dict[str, Term] = {}
    for letters, tensor in zip(inputs, a.tensors, strict=True):
        for letter, term in zip(letters, trace.dims(tensor), strict=True):
            if size_of(bound.setdefault(letter, term)) == 1:
                bound[letter] = term
            elif size_of(term) != 1:
                unify(bound[letter], term)
    if len(a.tensors) == 1:
        trace.normalised.extend(term for letter, term in bound.items() if letter not in output)
    else:
        attends = all(tensor in trace.computed for tensor in a.tensors)  # scores or values, not a projection
        lingers = trace.lingering.issuperset(a.tensors)
        for letter, term in bound.items():
            summed, shared = letter not in output, all(letter in letters for letters in inputs)
            trace.normalised.extend([term] if summed and lingers else [])
            trace.role(("qk_width" if summed else "head" if shared else "v_width") if attends else "width", term)
        trace.contract(node, tuple(bound.values()))
    return tuple(bound[letter] for letter in output)


def _letters(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """One letter for each dimension of every input and of the result of an einsum, those that it leaves out too."""
    given, arrow, output = equation.partition("->")
    inputs = given.split(",")
    unused = [letter for letter in string.ascii_letters if letter not in equation]
    counts = [rank - len(letters.replace("...", "")) for letters, rank in zip(inputs, ranks, strict=True)]
    ellipsis = unused[: max(counts)]  # the dimensions of shorter ones are the last of these
    if not arrow:
        output = "..." + "".join(sorted(x for x in set(given) - {",", "."} if given.count(x) == 1))
    spelt = [x.replace("...", "".join(ellipsis[len(ellipsis) - n :])) for x, n in zip(inputs, counts, strict=True)]
    return spelt, output.replace("...", "".join(ellipsis))


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Any:
    """weight = g v / |v|, the norm over all dimensions but one (Salimans and Kingma 2016)."""
    dims, scale = trace.dims(a.v), trace.dims(a.g)
    kept = a.dim % len(dims)
    broadcast([dims, scale], len(dims))
    trace.normalised.extend(term for position, term in enumerate(dims) if position != kept)
    return dims if isinstance(node.meta["val"], torch.Tensor) else [dims, scale]


GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*GATES)
def recurrent(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Any:
    """Every layer and direction: gates x hidden = W_ih x + W_hh h. One tensor of initial states ties all hidden widths."""
    name = node.target._overloadpacket.__name__  # type: ignore[union-attr]
    directions = 1 + bool(a.__dict__.get("bidirectional"))
    per_direction = 2 + 2 * bool(a.__dict__.get("has_biases"))
    if not hasattr(a, "params") or not hasattr(a, "batch_first"):
        return freeze_inputs(trace, node, "meets a recurrent layer over packed sequences")
    if len(a.params) != a.num_layers * directions * per_direction:
        return freeze_inputs(trace, node, "meets a recurrent layer with a projection")
    states = a.hx if isinstance(a.hx, list | tuple) else [a.hx]
    *lead, features = trace.dims(a.input)
    hidden = trace.dims(states[0])[-1]
    for state in states[1:]:
        unify(hidden, trace.dims(state)[-1])
    gates = fresh(GATES[name], "counts the gates of a recurrent layer")
    for position in range(0, len(a.params), per_direction):
        into, recur, *biases = (trace.dims(p) for p in a.params[position : position + per_direction])
        unify(into[1], features)
        unify(recur[1], hidden)
        for term in (into[0], recur[0], *(bias[0] for bias in biases)):
            unify(term, product([gates, hidden]))
        trace.contract(node, (*lead, gates, hidden, features))
        trace.contract(node, (*lead, gates, hidden, hidden))
        if (position // per_direction + 1) % directions == 0:  # the last direction of a layer
            features = concat([hidden] * directions)
    trace.role("width", hidden)
    return [(*lead, features), *(trace.dims(state) for state in states)]
