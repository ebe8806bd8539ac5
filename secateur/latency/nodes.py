"""The ONNX nodes that each ATen operator becomes at given widths: one dispatch table, for timing alone.

Sizes follow the layouts, so that a chain of operators can be written down at widths that no program was cut to. What is
written is what the exporter writes, which the runtime then fuses as it does in the whole model; values are of no interest, so
a slice starts at zero, wherever it started before. An operator without a rule is not timed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnx
import sympy
import torch
from torch import fx

from secateur.axes.infer import Structure
from secateur.axes.terms import Widths, size_of
from secateur.axes.trace import Dims, arguments, is_tensor

TYPES = {
    torch.float32: "float32",
    torch.float16: "float16",
    torch.float64: "float64",
    torch.int64: "int64",
    torch.int32: "int32",
    torch.bool: "bool",
}


class Node(NamedTuple):
    """One ONNX node."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...]


class Value(NamedTuple):
    """A tensor that comes from outside: what the chain is given, or a weight."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass
class Sketch:
    """An ONNX graph without weights: equal sketches take equal time."""

    nodes: list[Node] = field(default_factory=list)
    inputs: list[Value] = field(default_factory=list)
    weights: list[Value] = field(default_factory=list)
    constants: dict[str, tuple[str, tuple[float, ...]]] = field(default_factory=dict)  # type, values
    outputs: list[str] = field(default_factory=list)


class Writer:
    """Writes nodes of a traced graph into a sketch, at given widths."""

    def __init__(self, structure: Structure, symbols: dict[sympy.Symbol, int], widths: Widths) -> None:
        self.sketch = Sketch()
        self.untimed: list[fx.Node] = []
        self._trace, self._symbols, self._widths = structure.trace, symbols, widths
        self._names: dict[fx.Node, Any] = {}
        self._count = 0

    def write(self, chain: Sequence[fx.Node]) -> Sketch:
        """The chain as a graph; its outputs are what other nodes read."""
        for node in chain:
            names = self._written(node)
            if names is None:
                self.untimed.append(node)
            else:
                self._names[node] = names
        inside = set(chain)
        given = {value.name for value in (*self.sketch.inputs, *self.sketch.weights)}
        read = [n for n in chain if isinstance(self._names.get(n), str) and any(u not in inside for u in n.users)]
        self.sketch.outputs = [name for name in dict.fromkeys(self._names[n] for n in read) if name not in given]
        return self.sketch

    def _written(self, node: fx.Node) -> Any:
        if node.target.__name__ == "getitem":  # type: ignore[union-attr]
            names = self._names.get(node.args[0])  # type: ignore[arg-type]
            return names[node.args[1]] if isinstance(names, list) else None  # type: ignore[index]
        rule = rule_of(node)
        return rule(self, node, arguments(node)) if rule else None

    def shape(self, node: fx.Node) -> list[int]:
        """The sizes of the tensor that a node makes."""
        return self.sizes(self._trace.dims(node))

    def sizes(self, dims: Dims) -> list[int]:
        """The sizes of dimensions."""
        sizes = (size_of(term, self._widths) for term in dims)
        return [int(s.subs(self._symbols)) if isinstance(s, sympy.Expr) else int(s) for s in sizes]

    def parts(self, node: fx.Node, dim: int) -> list[int]:
        """The sizes along one dimension of the tensors that a node makes."""
        return [self.sizes(dims)[dim] for dims in self._trace.layouts[node]]

    def name(self, node: fx.Node) -> str:
        """The value that a node makes; one from outside becomes a weight where it depends on weights alone, else an input."""
        if not isinstance(self._names.get(node), str):
            dtype, shape = TYPES[node.meta["val"].dtype], self.shape(node)
            if node in self._trace.computed:
                self.sketch.inputs.append(Value(self._fresh("x"), dtype, tuple(shape)))
                self._names[node] = self.sketch.inputs[-1].name
            else:
                self._names[node] = self.weight(dtype, shape)
        return self._names[node]

    def weight(self, dtype: str, shape: Sequence[int]) -> str:
        """A tensor that the runtime knows when it loads the file."""
        value = Value(self._fresh("w"), dtype, tuple(shape))
        self.sketch.weights.append(value)
        return value.name

    def operand(self, argument: Any, like: fx.Node) -> str:
        """A tensor, or a number of another tensor's type."""
        if isinstance(argument, fx.Node):
            return self.name(argument)
        return self.constant([float(argument)], TYPES[like.meta["val"].dtype], scalar=True)

    def constant(self, values: Iterable[float], dtype: str = "int64", *, scalar: bool = False) -> str:
        """A small tensor of known values."""
        name = self._fresh("s" if scalar else "c")
        self.sketch.constants[name] = (dtype, tuple(values))
        return name

    def emit(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; the name of what it makes, or the names when it makes several tensors."""
        made = tuple(self._fresh("v") for _ in range(outputs))
        self.sketch.nodes.append(Node(op, inputs, made, tuple(sorted(attributes.items()))))
        return made[0] if outputs == 1 else list(made)

    def _fresh(self, prefix: str) -> str:
        self._count += 1
        return f"{prefix}{self._count}"


Rule = Callable[[Writer, fx.Node, SimpleNamespace], Any]  # None where this use of the operator is not timed
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for ATen operators by name without overload; `add` also covers the in-place `add_`."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def rule_of(node: fx.Node) -> Rule | None:
    """The rule of a node of which every tensor has a type that ONNX knows."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return None
    values = [n.meta.get("val") for n in (node, *node.all_input_nodes)]
    if any(isinstance(value, torch.Tensor) and value.dtype not in TYPES for value in values):
        return None
    name = node.target._overloadpacket.__name__
    return RULES.get(name) or RULES.get(name.removesuffix("_"))


@rule("conv1d", "conv2d", "conv3d")
def convolution(w: Writer, node: fx.Node, a: SimpleNamespace) -> Any:
    rank = len(w.shape(node)) - 2
    inputs = [w.name(n) for n in (a.input, a.weight, a.bias) if n is not None]
    attributes: dict[str, Any] = {"group": w.shape(a.input)[1] // w.shape(a.weight)[1]}
    if isinstance(a.padding, str):
        attributes["auto_pad"] = {"same": "SAME_UPPER", "valid": "VALID"}[a.padding]
    else:
        attributes["pads"] = _each(a.padding, rank) * 2
    return w.emit("Conv", *inputs, strides=_each(a.stride, rank), dilations=_each(a.dilation, rank), **attributes)


def _each(value: Any, rank: int) -> tuple[int, ...]:
    """One number per spatial dimension, where a single one may stand for all."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values if len(values) == rank else values * rank


@rule("linear")
def linear(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    if len(w.shape(node)) == 2:
        return w.emit("Gemm", *(w.name(n) for n in (a.input, a.weight, a.bias) if n is not None), transB=1)
    turned = w.weight(TYPES[a.weight.meta["val"].dtype], w.shape(a.weight)[::-1])  # as the exporter does
    made = w.emit("MatMul", w.name(a.input), turned)
    return made if a.bias is None else w.emit("Add", made, w.name(a.bias))


@rule("addmm")
def addmm(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit("Gemm", w.name(a.mat1), w.name(a.mat2), w.name(a.self))


@rule("matmul", "mm", "bmm")
def matmul(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit("MatMul", *(w.name(n) for n in node.args[:2]))  # type: ignore[arg-type]


@rule("scaled_dot_product_attention")
def attention(w: Writer, node: fx.Node, a: SimpleNamespace) -> Any:
    """As the exporter spells it out: both factors scaled, the mask added, rows without any key made zero."""
    query, key = w.shape(a.query), w.shape(a.key)
    if a.query.meta["val"].dtype != torch.float32:
        return None
    scale = w.constant([math.sqrt(a.scale or 1 / math.sqrt(query[-1]))], "float32", scalar=True)
    flat = w.emit("Reshape", _repeated(w, a.key, query), w.constant([-1, *key[-2:]]))
    turned = w.emit("Transpose", flat, perm=(0, 2, 1))
    turned = w.emit("Reshape", turned, w.constant([*query[:-2], key[-1], key[-2]]))
    scores = w.emit("MatMul", w.emit("Mul", w.name(a.query), scale), w.emit("Mul", turned, scale))
    if a.is_causal:
        scores = w.emit("Add", scores, w.weight("float32", [query[-2], key[-2]]))
    if a.attn_mask is not None:
        scores = w.emit("Add", scores, _added(w, a.attn_mask))
    weights = w.emit("Softmax", scores, axis=-1)
    zero = w.constant([0.0], "float32", scalar=True)
    weights = w.emit("Where", w.emit("IsNaN", weights), zero, weights)
    return w.emit("MatMul", weights, _repeated(w, a.value, query))


def _repeated(w: Writer, states: fx.Node, query: list[int]) -> str:
    """Keys or values once per query head, where several of those share them."""
    *batch, heads, length, width = w.shape(states)
    if len(query) < 4 or heads == query[-3]:
        return w.name(states)
    grouped = w.emit("Reshape", w.name(states), w.constant([*batch, heads, 1, length, width]))
    spread = w.emit("Expand", grouped, w.constant([*batch, heads, query[-3] // heads, length, width]))
    return w.emit("Reshape", spread, w.constant([*query[:-2], length, width]))


def _added(w: Writer, mask: fx.Node) -> str:
    if mask.meta["val"].dtype != torch.bool:
        return w.name(mask)
    kept, gone = (w.constant([x], "float32", scalar=True) for x in (0.0, -math.inf))
    return w.emit("Where", w.name(mask), kept, gone)


@rule("batch_norm")
def batch_norm(w: Writer, node: fx.Node, a: SimpleNamespace) -> Any:
    given = (a.input, a.weight, a.bias, a.running_mean, a.running_var)
    return w.emit("BatchNormalization", *map(w.name, given), epsilon=a.eps) if all(map(is_tensor, given)) else None


@rule("instance_norm")
def instance_norm(w: Writer, node: fx.Node, a: SimpleNamespace) -> Any:
    given = (a.input, a.weight, a.bias)
    own = is_tensor(a.weight) and is_tensor(a.bias) and a.use_input_stats
    return w.emit("InstanceNormalization", *map(w.name, given), epsilon=a.eps) if own else None


@rule("layer_norm")
def layer_norm(w: Writer, node: fx.Node, a: SimpleNamespace) -> Any:
    if not is_tensor(a.weight):
        return None
    inputs = [w.name(n) for n in (a.input, a.weight, a.bias) if n is not None]
    return w.emit("LayerNormalization", *inputs, axis=-len(a.normalized_shape), epsilon=a.eps)


@rule("softmax", "_softmax")
def softmax(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit("Softmax", w.name(a.self), axis=a.dim)


UNARY = {
    "abs": "Abs",
    "cos": "Cos",
    "erf": "Erf",
    "exp": "Exp",
    "hardsigmoid": "HardSigmoid",
    "hardswish": "HardSwish",
    "log": "Log",
    "neg": "Neg",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "sin": "Sin",
    "softplus": "Softplus",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
BINARY = {"add": "Add", "div": "Div", "mul": "Mul", "sub": "Sub", "pow": "Pow"}


@rule(*UNARY)
def unary(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit(UNARY[_name(node)], w.name(a.self))


@rule(*BINARY)
def binary(w: Writer, node: fx.Node, a: SimpleNamespace) -> Any:
    left, right = node.args[:2]
    like = left if isinstance(left, fx.Node) else right
    if {n.meta["val"].dtype for n in (node, *node.all_input_nodes) if is_tensor(n)} != {torch.float32}:
        return None  # a mixture of types is a cast, and integers are positions
    return w.emit(BINARY[_name(node)], w.operand(left, like), w.operand(right, like))  # type: ignore[arg-type]


@rule("gelu")
def gelu(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit("Gelu", w.name(a.self), approximate=a.approximate)


@rule("silu")
def silu(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit("Mul", w.name(a.self), w.emit("Sigmoid", w.name(a.self)))


@rule("rsqrt")
def rsqrt(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit("Reciprocal", w.emit("Sqrt", w.name(a.self)))


@rule("leaky_relu")
def leaky_relu(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit("LeakyRelu", w.name(a.self), alpha=float(a.negative_slope))


@rule("hardtanh", "relu6", "clamp")
def clip(w: Writer, node: fx.Node, a: SimpleNamespace) -> Any:
    bounds = [
        a.__dict__.get(bound, a.__dict__.get(other, six))
        for bound, other, six in (("min_val", "min", 0), ("max_val", "max", 6))
    ]
    return w.emit("Clip", w.name(a.self), *("" if bound is None else w.operand(bound, a.self) for bound in bounds))


@rule("max_pool2d", "max_pool1d")
def max_pool(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    rank = len(w.shape(node)) - 2
    kernel, padding, dilation = (_each(x, rank) for x in (a.kernel_size, a.padding, a.dilation))
    strides = _each(a.stride, rank) if a.stride else kernel
    attributes: dict[str, Any] = {
        "strides": strides,
        "pads": padding * 2,
        "dilations": dilation,
        "ceil_mode": int(a.ceil_mode),
    }
    return w.emit("MaxPool", w.name(a.self), kernel_shape=kernel, **attributes)


@rule("avg_pool2d", "avg_pool1d")
def avg_pool(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    rank = len(w.shape(node)) - 2
    kernel, padding = (_each(x, rank) for x in (a.kernel_size, a.padding))
    strides = _each(a.stride, rank) if a.stride else kernel
    attributes: dict[str, Any] = {"strides": strides, "pads": padding * 2, "ceil_mode": int(a.ceil_mode)}
    return w.emit("AveragePool", w.name(a.self), kernel_shape=kernel, **attributes)


@rule("adaptive_avg_pool2d", "adaptive_avg_pool1d")
def adaptive_pool(w: Writer, node: fx.Node, a: SimpleNamespace) -> Any:
    before, after = w.shape(a.self)[2:], w.shape(node)[2:]
    if set(after) == {1}:
        return w.emit("GlobalAveragePool", w.name(a.self))
    if any(x % y for x, y in zip(before, after, strict=True)):
        return None
    kernel = tuple(x // y for x, y in zip(before, after, strict=True))
    return w.emit("AveragePool", w.name(a.self), kernel_shape=kernel, strides=kernel)


@rule("mean", "sum")
def reduction(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    over = a.__dict__.get("dim")
    listed = range(len(w.shape(a.self))) if over is None else [over] if isinstance(over, int) else over
    op = {"mean": "ReduceMean", "sum": "ReduceSum"}[_name(node)]
    return w.emit(op, w.name(a.self), w.constant(listed), keepdims=int(bool(a.__dict__.get("keepdim"))))


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze")
def reshape(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit("Reshape", w.name(node.args[0]), w.constant(w.shape(node)))  # type: ignore[arg-type]


@rule("permute")
def permute(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    rank = len(w.shape(node))
    return w.emit("Transpose", w.name(a.self), perm=tuple(d % rank for d in a.dims))


@rule("transpose")
def transpose(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    order = list(range(len(w.shape(node))))
    order[a.dim0], order[a.dim1] = order[a.dim1], order[a.dim0]
    return w.emit("Transpose", w.name(a.self), perm=tuple(order))


@rule("expand", "broadcast_to")
def expand(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit("Expand", w.name(a.self), w.constant(w.shape(node)))


@rule("cat")
def cat(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit("Concat", *map(w.name, a.tensors), axis=a.dim)


@rule("split_with_sizes")
def split(w: Writer, node: fx.Node, a: SimpleNamespace) -> Any:
    sizes = w.parts(node, a.dim)
    return (
        w.emit("Split", w.name(a.self), w.constant(sizes), outputs=len(sizes), axis=a.dim) if len(sizes) > 1 else None
    )


@rule("slice", "select")
def slices(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    size = w.shape(node)[a.dim] if _name(node) == "slice" else 1
    part = w.emit("Slice", w.name(a.self), *(w.constant([x]) for x in (0, size, a.dim)))
    return part if _name(node) == "slice" else w.emit("Reshape", part, w.constant(w.shape(node)))


@rule("roll")
def roll(w: Writer, node: fx.Node, a: SimpleNamespace) -> Any:
    if not a.dims:
        return None
    rolled = w.name(a.self)
    for shift, dim in zip(a.shifts, a.dims, strict=True):
        size = w.shape(node)[dim]
        if shift % size:
            parts = w.emit("Split", rolled, w.constant([size - shift % size, shift % size]), outputs=2, axis=dim)
            rolled = w.emit("Concat", *reversed(parts), axis=dim)
    return rolled


@rule("pad", "constant_pad_nd")
def pad(w: Writer, node: fx.Node, a: SimpleNamespace) -> Any:
    if a.__dict__.get("mode", "constant") != "constant":
        return None
    before, after = w.shape(a.self), w.shape(node)
    low = [0] * (len(after) - len(a.pad) // 2) + list(a.pad[-2::-2])
    high = [y - x - z for x, y, z in zip(before, after, low, strict=True)]
    return w.emit("Pad", w.name(a.self), w.constant([*low, *high]))


@rule("embedding")
def embedding(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    return w.emit("Gather", w.name(a.weight), w.name(a.indices), axis=0)


@rule("to", "_to_copy", "type_as")
def cast(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    before, after = (TYPES[n.meta["val"].dtype] for n in (a.self, node))
    if before == after:
        return w.name(a.self)
    return w.emit("Cast", w.name(a.self), to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(after)))


@rule("dropout", "contiguous", "clone", "detach", "alias", "lift_fresh_copy")
def nothing(w: Writer, node: fx.Node, a: SimpleNamespace) -> str:
    """Costs no time in the runtime."""
    return w.name(node.args[0])  # type: ignore[arg-type]


def _name(node: fx.Node) -> str:
    return node.target._overloadpacket.__name__.removesuffix("_")  # type: ignore[union-attr]
