"""Removes units from every tensor that carries them and rewrites the sizes that the graph holds as constants."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from secateur.axes.compute import implied_scale
from secateur.axes.infer import Structure
from secateur.axes.terms import Kept, Product, Term, Widths, kept_positions, leaves, resolve, size_of
from secateur.axes.trace import Dims, Rewrite

Edit = Callable[[torch.Tensor, int, np.ndarray], torch.Tensor]


def cut(module: fx.GraphModule, structure: Structure, kept: Kept) -> None:
    """Keep only the `kept` units of each axis, in place; tied tensors stay tied, parameters become new objects."""
    for name, dims in structure.tensors.items():
        tensor = operator.attrgetter(name)(module)
        changed = _edited(tensor.detach(), dims, kept, _select)
        if changed.shape == tensor.shape:
            continue
        if isinstance(tensor, nn.Parameter):
            changed = nn.Parameter(changed, requires_grad=tensor.requires_grad)
        for alias in (name, *structure.aliases.get(name, ())):
            owner, _, attribute = alias.rpartition(".")
            setattr(module.get_submodule(owner), attribute, changed)
    widths = {axis: len(units) for axis, units in kept.items()}
    for rewrite in structure.trace.rewrites:
        if any(axis in kept for axis in leaves(rewrite.term)):
            _rewrite(rewrite, widths)
    module.recompile()


def run_masked(
    module: fx.GraphModule,
    structure: Structure,
    kept: Kept,
    inputs: Sequence[Any],
    bridged: Mapping[fx.Node, fx.Node],
) -> Any:
    """What the graph gives for flat `inputs` when every slice of the units that a cut would remove is zero, and the nodes in
    `bridged`, the exits of branches that it would drop, give what their entries do.

    The module stays as it is: each tensor is masked when the graph reads it and released after its last use, so that
    this costs the memory of one tensor and not of a second model.
    """
    owners = {alias: name for name, aliases in structure.aliases.items() for alias in aliases}

    class Masked(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            return self.env[bridged[n]] if n in bridged else super().run_node(n)

        def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
            dims = structure.tensors.get(owners.get(target, target), ())
            value = super().get_attr(target, args, kwargs)
            return _edited(value, dims, kept, _zero_others) if dims else value

    masked = Masked(module)
    for released in masked.user_to_last_uses.values():
        released[:] = [node for node in released if node not in bridged.values()]
    return masked.run(*inputs, enable_io_processing=True)


def _select(tensor: torch.Tensor, dim: int, keep: np.ndarray) -> torch.Tensor:
    return tensor.index_select(dim, torch.from_numpy(keep).to(tensor.device))


def _zero_others(tensor: torch.Tensor, dim: int, keep: np.ndarray) -> torch.Tensor:
    gone = np.setdiff1d(np.arange(tensor.shape[dim]), keep)
    return tensor.index_fill(dim, torch.from_numpy(gone).to(tensor.device), 0)


def _edited(tensor: torch.Tensor, dims: Dims, kept: Kept, edit: Edit) -> torch.Tensor:
    """The tensor after an edit of each dimension that carries a cut axis."""
    for dim, term in enumerate(dims):
        if any(axis in kept for axis in leaves(term)):
            tensor = edit(tensor, dim, kept_positions(term, kept))
    return tensor.contiguous()


def _rewrite(rewrite: Rewrite, widths: Widths) -> None:
    """Put a new size where the graph holds the old one."""
    node = rewrite.node
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index(rewrite.argument)
    given = node.args[position] if position < len(node.args) else node.kwargs.get(rewrite.argument)
    old: Any = given if rewrite.position is None else given[rewrite.position]  # type: ignore[index]
    value: Any
    if rewrite.argument == "scale":
        value = implied_scale(int(size_of(rewrite.term)))
    elif isinstance(old, fx.Node):
        value = _recomputed(node, old, rewrite.term, widths)
    else:
        value = size_of(rewrite.term, widths) + rewrite.offset
    if rewrite.position is not None:
        value = [value if i == rewrite.position else x for i, x in enumerate(given)]  # type: ignore[arg-type]
    if position < len(node.args):
        node.args = (*node.args[:position], value, *node.args[position + 1 :])
    else:
        node.kwargs = {**node.kwargs, rewrite.argument: value}


def _recomputed(node: fx.Node, size: fx.Node, term: Term, widths: Widths) -> fx.Node:
    """A size that the graph computes, such as batch x heads, with its static part exchanged."""
    resolved = resolve(term)
    factors = resolved.factors if isinstance(resolved, Product) else (resolved,)
    static = tuple(factor for factor in factors if isinstance(size_of(factor), int))
    with node.graph.inserting_before(node):
        rest = node.graph.call_function(operator.floordiv, (size, size_of(Product(static))))
        return node.graph.call_function(operator.mul, (rest, size_of(Product(static), widths)))
