"""Gradient checkpointing: a program that keeps few activations for the backward pass and computes the others again.

Chen et al., "Training Deep Nets with Sublinear Memory Cost" (2016), on the exported graph: it is cut where little passes
from one stretch to the next, and of each stretch only what goes in is kept.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils.checkpoint import checkpoint

from secateur import distributed

STAND_IN = 64  # for a dynamic size, when stretches are weighed against each other
_MOMENTUM = 6  # the argument's position in all of them
_NORMS = {torch.ops.aten.batch_norm.default, torch.ops.aten.instance_norm.default, distributed.batch_norm}


@dataclass(frozen=True)
class _Stretch:
    """Consecutive operators as two functions of what goes in; `again` leaves running statistics as they are."""

    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]
    first: fx.GraphModule
    again: fx.GraphModule
    repeatable: bool  # not where an input or a stored tensor is changed in place


def recomputing(module: fx.GraphModule) -> Callable[..., Any]:
    """The same function of the same tensors, with the same gradients, for training; the graph is read once, now.

    Dropout draws in the second computation what it drew in the first, and running statistics are updated once.
    """
    operators = [node for node in module.graph.nodes if node.op not in ("placeholder", "output", "get_attr")]
    bounds = [0, *_bounds(operators), len(operators)]
    stretches = [_stretch(module, operators[start:end]) for start, end in itertools.pairwise(bounds)]
    placeholders = module.graph.find_nodes(op="placeholder")
    (output,) = module.graph.find_nodes(op="output")

    def run(*inputs: Any) -> Any:
        values = dict(zip(placeholders, module.graph.process_inputs(*inputs), strict=True))
        for stretch in stretches:
            given = [values[node] for node in stretch.inputs]
            # the last one's activations are needed first: nothing is gained by computing them twice
            once = stretch is stretches[-1] or not stretch.repeatable
            made = stretch.first(*given) if once else _twice(stretch, given)
            values.update(zip(stretch.outputs, made, strict=True))
        outputs = fx.node.map_arg(
            output.args[0], lambda node: values[node] if node in values else _stored(module, node)
        )
        return module.graph.process_outputs(outputs)

    return run


def _twice(stretch: _Stretch, given: Sequence[Any]) -> Any:
    functions = itertools.chain([stretch.first], itertools.repeat(stretch.again))
    return checkpoint(lambda *inputs: next(functions)(*inputs), *given, use_reentrant=False)


def _stretch(module: fx.GraphModule, operators: Sequence[fx.Node]) -> _Stretch:
    inside = set(operators)
    read = dict.fromkeys(source for node in operators for source in node.all_input_nodes if source not in inside)
    inputs = tuple(node for node in read if node.op != "get_attr")
    outputs = tuple(node for node in operators if any(user not in inside for user in node.users))
    stored = [node for node in read if node.op == "get_attr"]
    first, again = (_function(module, inputs, [*stored, *operators], outputs) for _ in range(2))
    for node in again.graph.nodes:
        if node.target in _NORMS:
            node.update_arg(_MOMENTUM, 0.0)
    again.recompile()
    repeatable = all(changed is None or changed in inside for changed in map(_changed, operators))
    return _Stretch(inputs, outputs, first, again, repeatable)


def _function(
    module: fx.GraphModule, inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]
) -> fx.GraphModule:
    """The nodes alone as a module with the same tensors."""
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(module, graph)


def _stored(module: fx.GraphModule, node: fx.Node) -> Any:
    value: Any = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def _bounds(operators: Sequence[fx.Node]) -> list[int]:
    """Where to cut: the positions for which the least is kept, what crosses them and the largest stretch together."""
    position = {node: index for index, node in enumerate(operators)}
    weights = [_bytes(node) for node in operators]
    last = [max((position.get(user, len(operators)) for user in node.users), default=0) for node in operators]
    widths = _widths(weights, last)
    for at in _between_a_value_and_its_change(operators, position):
        widths[at] = math.inf
    best, least = list[int](), float(sum(weights))
    for count in range(2, 2 * math.isqrt(len(operators)) + 2):
        bounds = _narrowest(widths, weights, sum(weights) / count)
        stretches = (sum(weights[start:end]) for start, end in itertools.pairwise([0, *bounds, len(operators)]))
        total = sum(weights[i] for i in range(len(operators)) if _crosses(bounds, i, last[i])) + max(stretches)
        if total < least:
            best, least = bounds, total
    return best


def _widths(weights: Sequence[int], last: Sequence[int]) -> list[float]:
    """The bytes that cross a bound before each position: made before it and read at it or later."""
    changes = [0] * (len(weights) + 2)
    for index, weight in enumerate(weights):
        if last[index] > index:
            changes[index + 1] += weight
            changes[last[index] + 1] -= weight
    return [float(width) for width in itertools.accumulate(changes[: len(weights)])]


def _crosses(bounds: Sequence[int], made: int, read: int) -> bool:
    following = bisect.bisect_right(bounds, made)
    return following < len(bounds) and bounds[following] <= read


def _narrowest(widths: Sequence[float], weights: Sequence[int], most: float) -> list[int]:
    """Whenever about `most` bytes have been made since the last bound, a bound at the narrowest place since its half."""
    bounds, since, start = list[int](), 0.0, 1
    for at in range(1, len(widths)):
        since += weights[at - 1]
        if since < most / 2:
            start = at + 1
        elif since >= most:
            found = min(range(start, at + 1), key=lambda place: (widths[place], -place), default=at)
            if widths[found] < math.inf:
                bounds.append(found)
                since, start = float(sum(weights[found:at])), at + 1
    return bounds


def _between_a_value_and_its_change(operators: Sequence[fx.Node], position: dict[fx.Node, int]) -> Iterator[int]:
    """Where no stretch may begin: what goes in must still be there, unchanged, when it is computed again."""
    for at, node in enumerate(operators):
        if changed := _changed(node):
            yield from range(position.get(changed, -1) + 1, at + 1)


def _changed(node: fx.Node) -> fx.Node | None:
    """The node whose value, or a view of it, an operator changes in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return None
    root = node.args[0]
    while isinstance(root, fx.Node) and getattr(root.target, "is_view", False):
        root = root.args[0]
    return root if isinstance(root, fx.Node) else None


def _bytes(node: fx.Node) -> int:
    """What a result takes, each dynamic size taken for the same number; views and numbers take nothing."""
    if getattr(node.target, "is_view", False):
        return 0
    tensors = [v for v in torch.utils._pytree.tree_leaves(node.meta.get("val")) if isinstance(v, torch.Tensor)]
    return sum(
        t.element_size() * math.prod(size if isinstance(size, int) else STAND_IN for size in t.shape) for t in tensors
    )
