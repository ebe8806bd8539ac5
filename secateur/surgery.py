"""Removes units from every tensor that carries them and rewrites the sizes that the graph holds as constants."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from secateur.axes.compute import implied_scale
from secateur.axes.infer import Structure
from secateur.axes.terms import Kept, kept_positions, leaves, size_of
from secateur.axes.trace import Rewrite

Edit = Callable[[torch.Tensor, int, np.ndarray], torch.Tensor]


def cut(module: fx.GraphModule, structure: Structure, kept: Kept) -> None:
    """Keep only the `kept` units of each axis, in place; tied tensors stay tied, parameters become new objects."""
    _edit_tensors(module, structure, kept, lambda t, dim, keep: t.index_select(dim, torch.from_numpy(keep)))
    widths = {axis: len(units) for axis, units in kept.items()}
    for rewrite in structure.trace.rewrites:
        if any(axis in kept for axis in leaves(rewrite.term)):
            _rewrite(
                rewrite, int(size_of(rewrite.term)) if rewrite.argument == "scale" else size_of(rewrite.term, widths)
            )
    module.recompile()


def mask(module: fx.GraphModule, structure: Structure, kept: Kept) -> None:
    """Zero every slice of the units that a cut would remove, in place; shapes stay."""

    def zero_others(tensor: torch.Tensor, dim: int, keep: np.ndarray) -> torch.Tensor:
        gone = np.setdiff1d(np.arange(tensor.shape[dim]), keep)
        return tensor.index_fill(dim, torch.from_numpy(gone), 0)

    _edit_tensors(module, structure, kept, zero_others)


def _edit_tensors(module: fx.GraphModule, structure: Structure, kept: Kept, edit: Edit) -> None:
    for name, dims in structure.tensors.items():
        touched = [i for i, term in enumerate(dims) if any(axis in kept for axis in leaves(term))]
        if not touched:
            continue
        tensor = operator.attrgetter(name)(module)
        changed = tensor.detach()
        for dim in touched:
            changed = edit(changed, dim, kept_positions(dims[dim], kept))
        changed = changed.contiguous()
        if isinstance(tensor, nn.Parameter):
            changed = nn.Parameter(changed, requires_grad=tensor.requires_grad)
        for alias in (name, *structure.aliases.get(name, ())):
            owner, _, attribute = alias.rpartition(".")
            setattr(module.get_submodule(owner), attribute, changed)


def _rewrite(rewrite: Rewrite, size: Any) -> None:
    """Put a new size where the graph holds the old one; a size that the graph computes is left to the reshape (-1)."""
    node = rewrite.node
    value: Any = implied_scale(size) if rewrite.argument == "scale" else size if isinstance(size, int) else -1
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    position = names.index(rewrite.argument)
    given = node.args[position] if position < len(node.args) else node.kwargs.get(rewrite.argument)
    if rewrite.position is not None:
        value = [value if i == rewrite.position else old for i, old in enumerate(given)]  # type: ignore[arg-type]
    if position < len(node.args):
        node.args = (*node.args[:position], value, *node.args[position + 1 :])
    else:
        node.kwargs = {**node.kwargs, rewrite.argument: value}
