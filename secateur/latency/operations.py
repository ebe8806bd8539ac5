"""The operations of a program: what a runtime times as one, and the widths that its time depends on.

An operation is a contraction (convolution, matrix product, attention) with everything up to the next one: bias, norm,
activation, residual sum, pooling. A runtime fuses along such a chain, so a chain is timed and not its members.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from secateur.axes.infer import Structure
from secateur.axes.terms import Axis, Concat, Term, Widths, leaves, resolve
from secateur.axes.trace import Trace

_aten = torch.ops.aten
_PADDING = (_aten.pad.default, _aten.constant_pad_nd.default)
LARGEST_GRID = 2  # groups of axes that vary independently of each other


@dataclass(frozen=True)
class Operation:
    """A chain of nodes, and the axes that its time depends on, in at most two groups.

    The axes of a concatenation are one group: the time depends on how much of it is left, not on which part.
    """

    name: str
    chain: tuple[fx.Node, ...]
    groups: tuple[tuple[Axis, ...], ...]

    def coordinates(self, widths: Widths) -> tuple[float, ...]:
        """How much is left of each group, from 0 to 1."""
        return tuple(
            sum(widths.get(axis, axis.size) for axis in group) / sum(axis.size for axis in group)
            for group in self.groups
        )

    def names_of(self, nodes: Collection[fx.Node], structure: Structure, axes: Collection[Axis]) -> list[str]:
        """The operators among some nodes of the chain whose time may depend on the axes, each with its module."""
        contractions = {contraction.node for contraction in structure.trace.contractions}
        return [
            _name([node])
            for node in nodes
            if isinstance(node.target, torch._ops.OpOverload)  # a part of a tuple is no operator of its own
            if node in contractions or any(a in axes for t in _terms(structure.trace, node) for a in leaves(t))
        ]


def operations(structure: Structure, axes: Collection[Axis]) -> list[Operation]:
    """The operations in the order of the graph; of their groups only the given axes are part."""
    trace = structure.trace
    return [_operation(trace, chain, axes) for chain in _chains(trace)]


def left_of(operation: Operation, structure: Structure, axes: Collection[Axis], gone: Collection[fx.Node]) -> Operation:
    """What is left of an operation when some nodes go: of the end of a branch the norm that the next one begins with."""
    return _operation(structure.trace, [node for node in operation.chain if node not in gone], axes, operation.name)


def _operation(trace: Trace, chain: Sequence[fx.Node], axes: Collection[Axis], name: str = "") -> Operation:
    groups = _groups([term for node in chain for term in _terms(trace, node)], set(axes))
    return Operation(name or _name(chain), tuple(chain), groups)


def _chains(trace: Trace) -> list[list[fx.Node]]:
    """A contraction starts a chain; whatever else is computed belongs to the latest chain that it reads."""
    contractions = {contraction.node for contraction in trace.contractions}
    number: dict[fx.Node, int] = {}
    count = 0
    for node in trace.layouts:
        if node.op != "call_function" or node not in trace.computed:
            continue
        if node in contractions:
            count += 1
            number[node] = count
        else:
            number[node] = max((number.get(source, 0) for source in node.all_input_nodes), default=0)
    for node in number:  # the runtime fuses padding with what reads it
        users = list(node.users)
        if node.target in _PADDING and len(users) == 1 and users[0] in contractions:
            number[node] = number[users[0]]
    chains: list[list[fx.Node]] = [[] for _ in range(count + 1)]
    for node in trace.layouts:
        if node in number:
            chains[number[node]].append(node)
    return [chain for chain in chains if chain]


def _name(chain: Sequence[fx.Node]) -> str:
    """The operator that the chain starts with and the module that it is part of."""
    kind: Any = getattr(chain[0].target, "_overloadpacket", chain[0].target)
    paths = [path for path, _ in (chain[0].meta.get("nn_module_stack") or {}).values()]
    return f"{paths[-1] if paths else chain[0].name}:{kind.__name__}"


def _terms(trace: Trace, node: fx.Node) -> Iterator[Term]:
    for each in (node, *node.all_input_nodes):
        layouts = trace.layouts.get(each, ())
        for dims in layouts if isinstance(layouts, list) else [layouts]:
            yield from dims


def _groups(terms: Sequence[Term], axes: set[Axis]) -> tuple[tuple[Axis, ...], ...]:
    groups: list[list[Axis]] = []
    for term in terms:
        for together in _together(term):
            _merge(groups, [axis for axis in together if axis in axes])
    largest_first = sorted(groups, key=lambda group: -sum(axis.size for axis in group))
    split = LARGEST_GRID - 1
    rest = [axis for group in largest_first[split:] for axis in group]  # what is beyond is narrowed together
    return tuple(map(tuple, [*largest_first[:split], *([rest] if rest else [])]))


def _together(term: Term) -> Iterator[list[Axis]]:
    """The axes of a term whose sizes add up, one list per factor."""
    term = resolve(term)
    if isinstance(term, Axis):
        yield [term]
    elif isinstance(term, Concat):
        yield [axis for part in term.parts for inner in _together(part) for axis in inner]
    else:
        for factor in term.factors:
            yield from _together(factor)


def _merge(groups: list[list[Axis]], axes: list[Axis]) -> None:
    """Make the axes part of one group, joined with every group that one of them is in already."""
    if not axes:
        return
    touched = [group for group in groups if any(axis in group for axis in axes)]
    joined = list(dict.fromkeys([axis for group in touched for axis in group] + axes))
    groups[:] = [group for group in groups if group not in touched] + [joined]
