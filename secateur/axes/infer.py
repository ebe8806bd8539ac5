"""Walks an exported graph once and tells which axes it has, which of them can be cut, and what they are."""

from __future__ import annotations

import functools
import math
import operator
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import sympy
import torch
from torch import fx

from secateur.axes import compute, indexing, routing, shape  # noqa: F401  (importing them registers their rules)
from secateur.axes.normalise import normalise
from secateur.axes.terms import Axis, Size, Term, Widths, freeze, fresh, leaves, resolve, size_of
from secateur.axes.trace import (
    RULES,
    Dims,
    Trace,
    arguments,
    freeze_inputs,
    frozen_dims,
    shape_of,
)
from secateur.axes.zeros import lingers
from secateur.program import identity

KINDS = (
    "expert",
    "head",
    "kv_group",
    "q_per_group",
    "qk_width",
    "v_width",
    "embedding",
    "channel",
    "width",
)  # by precedence


_ATTENTION = torch.ops.aten.scaled_dot_product_attention.default
_aten = torch.ops.aten
_COPIES = {  # what lays a tensor out anew, or repeats it
    *(
        _aten.view.default,
        _aten.reshape.default,
        _aten._unsafe_view.default,
        _aten.unflatten.int,
        _aten.flatten.using_ints,
    ),
    *(_aten.transpose.int, _aten.permute.default, _aten.unsqueeze.default, _aten.squeeze.dim, _aten.expand.default),
    *(_aten.repeat.default, _aten.repeat_interleave.self_int, _aten.clone.default, _aten.contiguous.default),
}
_LOOKUPS = (torch.ops.aten.index.Tensor, torch.ops.aten.index_select.default)


@dataclass(frozen=True)
class AxisInfo:
    """An axis that at least one parameter carries: `members` are (parameter or buffer, dimension)."""

    name: str
    kind: str
    axis: Axis
    size: int
    members: tuple[tuple[str, int], ...]
    normalised: bool  # a normalisation runs over it, so that cutting is not the same as masking
    frozen: str | None
    minimum: int = 1  # units that must stay


@dataclass(frozen=True)
class Structure:
    """Everything known about what a graph is made of. Sizes follow `widths`, the units left per axis."""

    axes: tuple[AxisInfo, ...]
    tensors: dict[str, Dims]  # one name per distinct tensor; layouts are resolved
    aliases: dict[str, tuple[str, ...]]  # further names of the same tensor (tied weights)
    parameters: frozenset[str]
    trace: Trace

    @property
    def prunable(self) -> tuple[AxisInfo, ...]:
        """The axes that a cut may take units from."""
        return tuple(info for info in self.axes if info.frozen is None)

    def count_parameters(self, widths: Widths | None = None) -> int:
        """Distinct parameter elements."""
        return sum(int(_volume(self.tensors[name], widths)) for name in self.parameters)

    def count_macs(self, symbols: dict[sympy.Symbol, int], widths: Widths | None = None) -> int:
        """Multiply-accumulates of contractions, with dynamic sizes replaced by `symbols`."""
        values = tuple(symbols.items())
        return sum(
            math.prod(_number(size_of(term, widths), values) for term in contraction.terms)
            for contraction in self.trace.contractions
        )

    def count_cache(self, widths: Widths | None = None) -> int:
        """Bytes of keys and values that a decoder keeps for each position of an example: where a graph repeats them for the queries
        that share them, as they are before."""
        total = 0
        for node in self.trace.layouts:
            if node.target is _ATTENTION:
                total += sum(
                    self._kept_bytes(tensor, widths) for tensor in node.args[1:3] if isinstance(tensor, fx.Node)
                )
        return total

    def _kept_bytes(self, tensor: fx.Node, widths: Widths | None) -> int:
        """Of keys or values [..., length, width]."""
        dims = self.trace.dims(tensor)
        positions = size_of(dims[-2]) * (size_of(dims[0]) if len(dims) > 2 else 1)
        volumes, at = [_volume(dims, widths)], tensor
        while at.target in _COPIES and isinstance(source := at.args[0], fx.Node):
            at = source
            volumes.append(_volume(self.trace.dims(at), widths))
        # what has no number a position is shared by examples, or comes with a size that is not known: no cache
        known = [each for each in (sympy.sympify(volume) / positions for volume in volumes) if each.is_number]
        return tensor.meta["val"].dtype.itemsize * int(min(known, default=0))

    def carried_by(self, axis: Axis, symbols: dict[sympy.Symbol, int]) -> tuple[int, int]:
        """The parameters and the multiply-accumulates that go when every unit of an axis goes."""
        gone = {axis: 0}
        tensors = [self.tensors[name] for name in self.parameters]
        parameters = sum(int(_volume(d, None) - _volume(d, gone)) for d in tensors if _mentions(d, axis))
        macs: Size = 0
        for contraction in self.trace.contractions:
            if _mentions(contraction.terms, axis):
                macs = macs + _volume(contraction.terms, None) - _volume(contraction.terms, gone)
        return parameters, int(macs.subs(symbols)) if isinstance(macs, sympy.Expr) else int(macs)


def _number(size: Size, values: tuple[tuple[sympy.Symbol, int], ...]) -> int:
    return _evaluated(size, values) if isinstance(size, sympy.Expr) else int(size)


@functools.lru_cache(maxsize=4096)  # an allocation counts thousands of times, with the same few dynamic sizes
def _evaluated(size: sympy.Expr, values: tuple[tuple[sympy.Symbol, int], ...]) -> int:
    return int(size.subs(dict(values)))


def _mentions(terms: Iterable[Term], axis: Axis) -> bool:
    return any(leaf is axis for term in terms for leaf in leaves(term))


def _volume(terms: Iterable[Term], widths: Widths | None) -> Size:
    volume: Size = 1
    for term in terms:
        volume = volume * size_of(term, widths)
    return volume


def infer(module: fx.GraphModule) -> Structure:
    """Find the axes of the graph module of an exported program; the graph is normalised in place first."""
    normalise(module)
    trace = Trace()
    owners = {identity(tensor): name for name, tensor in reversed(_named_tensors(module))}
    tensors: dict[str, Dims] = {}
    for node in module.graph.nodes:
        if _is_computed(trace, node):
            trace.computed.add(node)
        if lingers(node, trace.lingering):
            trace.lingering.add(node)
        if node.op == "placeholder":
            trace.layouts[node] = _input(node)
        elif node.op == "get_attr":
            trace.layouts[node] = _parameter(module, node, owners, tensors)
        elif node.op == "output":
            freeze_inputs(trace, node, "is a graph output")
            routing.carry_positions(trace, node)
        else:
            trace.layouts[node] = _apply_rule(trace, node)
            routing.carry_positions(trace, node)
    minimum = _settle_contests(trace)
    aliases = _aliases(module, owners)
    parameters = frozenset(name for name, _ in module.named_parameters(remove_duplicate=False) if name in tensors)
    resolved = {name: tuple(map(resolve, dims)) for name, dims in tensors.items()}
    return Structure(_describe(resolved, parameters, trace, minimum), resolved, aliases, parameters, trace)


def _settle_contests(trace: Trace) -> dict[Axis, int]:
    """Freeze what competes, but for experts; how many units of those must stay."""
    experts = {axis for role in trace.roles if role.name == "expert" for axis in leaves(role.term)}
    minimum: dict[Axis, int] = {}
    for contest in trace.contests:
        for axis in leaves(contest.term):
            if axis in experts:
                minimum[axis] = max(contest.minimum, minimum.get(axis, 1))
            else:
                freeze(axis, contest.reason)
    trace.normalised.extend(minimum)
    return minimum


def _is_computed(trace: Trace, node: fx.Node) -> bool:
    """Whether a node's values come from an input. Matrices chosen by index, one expert's for every row, are weights."""
    sources = node.all_input_nodes
    if node.target in _LOOKUPS and len(node.meta["val"].shape) > 2:
        sources = sources[:1]
    return node.op == "placeholder" or any(source in trace.computed for source in sources)


def _input(node: fx.Node) -> Dims:
    value = node.meta.get("val")
    return frozen_dims(shape_of(value), "is a graph input") if isinstance(value, torch.Tensor) else ()


def _parameter(
    module: fx.GraphModule, node: fx.Node, owners: dict[tuple[object, ...], str], tensors: dict[str, Dims]
) -> Dims:
    name = str(node.target)
    tensor = operator.attrgetter(name)(module)
    if not isinstance(tensor, torch.Tensor):
        return ()
    owner = owners.setdefault(identity(tensor), name)
    if owner not in tensors:
        reason = None if tensor.is_floating_point() else f"{owner} holds {tensor.dtype}".replace("torch.", "")
        tensors[owner] = tuple(fresh(size, reason) for size in tensor.shape)
    return tensors[owner]


def _named_tensors(module: fx.GraphModule) -> list[tuple[str, torch.Tensor]]:
    """Parameters and buffers under every name they have."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def _aliases(module: fx.GraphModule, owners: dict[tuple[object, ...], str]) -> dict[str, tuple[str, ...]]:
    """The other names of each tensor that the graph uses, those that the graph itself never mentions included."""
    aliases: dict[str, tuple[str, ...]] = {}
    for name, tensor in _named_tensors(module):
        owner = owners.get(identity(tensor), name)
        if owner != name:
            aliases[owner] = (*aliases.get(owner, ()), name)
    return aliases


def _apply_rule(trace: Trace, node: fx.Node) -> object:
    if node.target is operator.getitem:
        return trace.layouts[node.args[0]][node.args[1]]  # type: ignore[index]
    if not isinstance(node.target, torch._ops.OpOverload):
        return freeze_inputs(trace, node, f"meets {node.target}, which no rule explains")
    name = node.target._overloadpacket.__name__
    if node.target.namespace != "aten":  # another library's operator of the same name may do something else
        name = f"{node.target.namespace}::{name}"
    apply = RULES.get(name) or RULES.get(name.removesuffix("_"))
    if apply is None:
        return freeze_inputs(trace, node, f"meets {name}, which no rule explains")
    return apply(trace, node, arguments(node))


def _describe(
    tensors: dict[str, Dims], parameters: frozenset[str], trace: Trace, minimum: dict[Axis, int]
) -> tuple[AxisInfo, ...]:
    members: dict[Axis, list[tuple[str, int]]] = {}
    for name, dims in tensors.items():
        for position, term in enumerate(dims):
            for axis in dict.fromkeys(leaves(term)):
                members.setdefault(axis, []).append((name, position))
    kinds = _kinds(trace)
    normalised = {axis for term in trace.normalised for axis in leaves(term)}
    infos: list[AxisInfo] = []
    seen: Counter[str] = Counter()
    for axis, where in members.items():
        if not any(name in parameters for name, _ in where) or axis.frozen == compute.KERNEL:
            continue
        kind = kinds(axis, normalised)
        label = f"{_owner(where, parameters)}:{kind}"
        seen[label] += 1
        label += f".{seen[label]}" if seen[label] > 1 else ""
        infos.append(
            AxisInfo(
                label, kind, axis, int(axis.size), tuple(where), axis in normalised, axis.frozen, minimum.get(axis, 1)
            )
        )
    return tuple(infos)


def _owner(where: list[tuple[str, int]], parameters: frozenset[str]) -> str:
    """The module path that names an axis: the first weight that produces it (dimension 0), else the first it is in."""
    named = [(name, position) for name, position in where if name in parameters]
    name = next((name for name, position in named if position == 0), named[0][0])
    return name.rpartition(".")[0] or name


def _kinds(trace: Trace) -> Callable[[Axis, set[Axis]], str]:
    roles: dict[Axis, set[str]] = {}
    for role in trace.roles:
        free = [axis for axis in dict.fromkeys(leaves(role.term)) if axis.frozen is None]
        grouped = role.name == "head" and len(free) > 1
        for position, axis in enumerate(free):
            name = ("q_per_group" if position else "kv_group") if grouped else role.name
            roles.setdefault(axis, set()).add(name)

    def kind(axis: Axis, normalised: set[Axis]) -> str:
        found = roles.get(axis, set())
        if axis in normalised and not found & {
            "expert",
            "channel",
            "head",
            "kv_group",
            "q_per_group",
            "qk_width",
            "v_width",
        }:
            return "embedding"
        return next((name for name in KINDS if name in found), "width")

    return kind
