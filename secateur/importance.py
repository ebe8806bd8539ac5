"""Scores of units: how much the model is expected to lose when a unit is removed. Higher is kept."""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
import torch
from torch import fx

from secateur.axes.infer import AxisInfo, Structure
from secateur.axes.terms import unit_index

Criterion = Callable[[fx.GraphModule, Structure, AxisInfo], np.ndarray]


def l2(module: fx.GraphModule, structure: Structure, info: AxisInfo) -> np.ndarray:
    """Euclidean norm of everything that goes with a unit, over all coupled parameters: sqrt(sum of squares).

    The group norm of Li et al., "Pruning Filters for Efficient ConvNets" (ICLR 2017), taken over the whole dependency
    group as in Fang et al., "DepGraph" (CVPR 2023). Vectors (biases, norm scales) are left out where a matrix carries
    the axis too, because their magnitude is of another kind.

    Returns:
        One score per unit, shape [size].
    """
    names = [name for name, _ in info.members if name in structure.parameters]
    matrices = [name for name in names if len(structure.tensors[name]) > 1]
    squares = np.zeros(info.size)
    for name, position in info.members:
        if name not in (matrices or names):
            continue
        tensor = operator.attrgetter(name)(module).detach().to(torch.float64).square()
        per_position = tensor.movedim(position, 0).flatten(1).sum(1) if tensor.dim() > 1 else tensor
        units = unit_index(structure.tensors[name][position], info.axis)
        carried = units >= 0
        np.add.at(squares, units[carried], per_position.cpu().numpy()[carried])
    return np.sqrt(squares)


CRITERIA: dict[str, Criterion] = {"l2": l2}
