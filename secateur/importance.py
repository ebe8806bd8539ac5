"""Scores of units: how much the model is expected to lose when a unit is removed. Higher is kept.

A criterion is a pure function of the weights and of what calibration saw. One that an axis gives no ground for says so.
"""

from __future__ import annotations

import operator
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx

from secateur.axes.infer import AxisInfo, Structure
from secateur.axes.terms import unit_index
from secateur.calibration import (
    ACTIVATIONS,
    GRADIENTS,
    MOVEMENT,
    Moments,
    Statistics,
    carries,
    consumers,
    holds_outputs_first,
    units_sum,
)
from secateur.errors import InputError


@dataclass(frozen=True)
class Evidence:
    """What a criterion may look at."""

    module: fx.GraphModule
    structure: Structure
    statistics: Statistics
    seed: int = 0

    def weight(self, name: str) -> torch.Tensor:
        """A parameter, detached, in double precision."""
        return operator.attrgetter(name)(self.module).detach().double()


@dataclass(frozen=True)
class Criterion:
    """A scoring function [size] and the statistics that it needs from calibration (none: weights suffice)."""

    score: Callable[[Evidence, AxisInfo], np.ndarray]
    needs: frozenset[str] = frozenset()


def random(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """Uniform noise from the seed and the axis: the control that every criterion must beat."""
    return np.random.default_rng([evidence.seed, zlib.crc32(info.name.encode())]).random(info.size)


def l1(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """sum |w| over the group (Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017)."""
    return _summed(evidence, info, _matrices(evidence, info), torch.abs)


def l2(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """sum w^2 over all coupled parameters, the squared group norm of Fang et al., "DepGraph" (CVPR 2023).

    Squared, because what several units cost together is then the sum of what they cost, by which axes are compared.
    Of the vectors only scales of batch norms count where a matrix carries the axis too: behind a contraction they alone
    say how strongly the unit speaks. Biases say nothing of that.
    """
    return _summed(evidence, info, group_of(evidence, info), torch.square)


def geometric_median(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """sum over v of |f_u - f_v|: units near the geometric median are replaceable (He et al., "FPGM", CVPR 2019).

    f_u is everything in the weights whose output the axis is; where there are none (an embedding), in all matrices.
    """
    members = [(n, p) for n, p in info.members if n in _matrices(evidence, info)]
    outputs = {(weight, 0 if holds_outputs_first(node) else 1) for node, weight in consumers(evidence.module)}
    producing = [member for member in members if member in outputs] or members
    vectors = torch.cat([_unit_rows(evidence, info, name, position) for name, position in producing], 1)
    return torch.cdist(vectors, vectors).sum(1).cpu().numpy()


def norm_scale(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """mean |gamma| of the batch norms on the axis (Liu et al., "Network Slimming", ICCV 2017)."""
    on_axis = {name: evidence.weight(name).abs() for name in batch_norm_scales(evidence, info)}
    if not on_axis:
        raise InputError(
            f"criterion norm_scale: {info.name} has no batch norm with a scale; choose another criterion or kind"
        )
    ones = {name: torch.ones_like(scale) for name, scale in on_axis.items()}
    return units_sum(evidence.structure, info, on_axis) / units_sum(evidence.structure, info, ones)


def lamp(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """s_u = |w_u|^2 / sum over v with |w_v| >= |w_u| of |w_v|^2 (Lee et al., "LAMP", ICLR 2021), by group norms."""
    return lamp_of(l2(evidence, info))


def lamp_of(squares: np.ndarray) -> np.ndarray:
    """LAMP scores of squared magnitudes: each over the sum of itself and everything not smaller."""
    order = np.argsort(squares, kind="stable")
    tail = np.cumsum(squares[order][::-1])[::-1]
    scores = np.empty_like(squares)
    scores[order] = squares[order] / np.maximum(tail, np.finfo(float).tiny)
    return scores


def gradient(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """sum |dL/dw| of the mean gradient over the group (as in Blalock et al., MLSys 2020)."""
    absolute = {name: g.abs() for name, g in evidence.statistics.gradients.items()}
    return units_sum(evidence.structure, info, absolute)


def snip(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """sum |g w| of the mean gradient over the group's matrices (Lee et al., "SNIP", ICLR 2019).

    The first order of each weight by itself: unlike in `taylor`, weights of a unit cannot make up for each other.
    """
    gradients = evidence.statistics.gradients
    products = {name: (gradients[name] * evidence.weight(name)).abs() for name in _matrices(evidence, info)}
    return units_sum(evidence.structure, info, products)


def taylor(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """(mean over samples of sum g w)^2, first-order Taylor (Molchanov et al., "Importance Estimation", CVPR 2019).

    The sum runs over all parameters of the group, norms included.
    """
    return evidence.statistics.contributions[info.name].mean(0) ** 2


def fisher(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """mean over samples of (sum g w)^2, the empirical Fisher diagonal (Theis et al. 2018; Liu et al., ICML 2021)."""
    return (evidence.statistics.contributions[info.name] ** 2).mean(0)


def activation(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """mean |x| of what the unit sends on (Molchanov et al. 2017)."""
    return _over_inputs(evidence, info, lambda m: m.absolute / m.count)


def apoz(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """1 - average percentage of zeros of what the unit sends on (Hu et al., "Network Trimming", 2016)."""
    return _over_inputs(evidence, info, lambda m: 1 - m.zeros / m.count)


def wanda(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """sum over consuming weights of |w_ij| |x_j|_2 (Sun et al., "Wanda", ICLR 2024), summed over the unit's inputs."""

    def weighted(m: Moments) -> torch.Tensor:
        weight = evidence.weight(m.weight).abs()
        if not holds_outputs_first(m.node):
            return weight.flatten(1).sum(1) * m.squares.sqrt()
        groups = len(m.squares) // weight.shape[1]  # of a convolution: each reads its own part of the inputs
        return (
            weight.reshape(groups, -1, weight.shape[1], weight[0, 0].numel()).sum((1, 3)).flatten() * m.squares.sqrt()
        )

    return _over_inputs(evidence, info, weighted, divide=False)


def movement(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """-sum over training steps of g w: weights that move away from zero stay (Sanh et al., NeurIPS 2020)."""
    return units_sum(evidence.structure, info, evidence.statistics.movement)


def variance(evidence: Evidence, info: AxisInfo) -> np.ndarray:
    """trace(W_u Cov(x_u) W_u^T): the part of the consuming layers' output variance that comes through the unit alone.

    For heads this is what the output projection receives from each (cf. Nova et al., "Gradient-free", ICML 2023).
    """
    total = np.zeros(info.size)
    feeding = _feeding(evidence, info)
    grams = [moments.gram[0] for moments, _ in feeding if moments.gram is not None]
    if not grams or len(grams) < len(feeding):
        raise InputError(
            f"criterion variance: expected that {info.name} feeds linear layers alone, whose inputs' covariance is kept; "
            "choose another criterion or kind"
        )
    if few := [moments for moments, _ in feeding if moments.count < 2]:
        raise InputError(
            f"criterion variance: expected at least 2 calibration positions (examples x length) at {few[0].weight}, got "
            f"{few[0].count}; give more data"
        )
    for (moments, units), gram in zip(feeding, grams, strict=True):
        mean = moments.total / moments.count
        covariance = gram / moments.count - torch.outer(mean, mean)
        weight = evidence.weight(moments.weight)
        weight = weight if holds_outputs_first(moments.node) else weight.T
        for unit in range(info.size):
            inputs = torch.from_numpy(np.flatnonzero(units == unit))
            part = weight[:, inputs]
            total[unit] += float(((part @ covariance[inputs][:, inputs]) * part).sum())
    return total


CRITERIA: dict[str, Criterion] = {
    "random": Criterion(random),
    "l1": Criterion(l1),
    "l2": Criterion(l2),
    "fpgm": Criterion(geometric_median),
    "norm_scale": Criterion(norm_scale),
    "lamp": Criterion(lamp),
    "gradient": Criterion(gradient, frozenset({GRADIENTS})),
    "snip": Criterion(snip, frozenset({GRADIENTS})),
    "taylor": Criterion(taylor, frozenset({GRADIENTS})),
    "fisher": Criterion(fisher, frozenset({GRADIENTS})),
    "activation": Criterion(activation, frozenset({ACTIVATIONS})),
    "apoz": Criterion(apoz, frozenset({ACTIVATIONS})),
    "wanda": Criterion(wanda, frozenset({ACTIVATIONS})),
    "movement": Criterion(movement, frozenset({MOVEMENT})),
    "variance": Criterion(variance, frozenset({ACTIVATIONS})),
}


def group_of(evidence: Evidence, info: AxisInfo) -> list[str]:
    """The parameters that the group norm of `l2` runs over: the axis's matrices and the scales of its batch norms."""
    return list(dict.fromkeys([*_matrices(evidence, info), *batch_norm_scales(evidence, info)]))


def batch_norm_scales(evidence: Evidence, info: AxisInfo) -> list[str]:
    """The scales of the batch norms on the axis."""
    scales = {
        str(node.args[1].target)
        for node in evidence.module.graph.nodes
        if node.target is torch.ops.aten.batch_norm.default and isinstance(node.args[1], fx.Node)
    }
    return list(dict.fromkeys(name for name, _ in info.members if name in scales))


def _matrices(evidence: Evidence, info: AxisInfo) -> list[str]:
    """The axis's parameters of two or more dimensions; all of them when there is none."""
    names = list(dict.fromkeys(name for name, _ in info.members if name in evidence.structure.parameters))
    return [name for name in names if len(evidence.structure.tensors[name]) > 1] or names


def _summed(
    evidence: Evidence, info: AxisInfo, names: Sequence[str], of: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """A function of some weights summed by unit, one tensor in memory at a time."""
    parts = ({name: of(evidence.weight(name))} for name in names)
    return np.sum([units_sum(evidence.structure, info, part) for part in parts], axis=0)


def _unit_rows(evidence: Evidence, info: AxisInfo, name: str, position: int) -> torch.Tensor:
    """What one tensor holds of each unit, as rows [size, everything else]."""
    weight = evidence.weight(name).movedim(position, 0)
    units = unit_index(evidence.structure.tensors[name][position], info.axis)
    order = torch.from_numpy(np.argsort(units[units >= 0], kind="stable"))
    return weight[torch.from_numpy(np.flatnonzero(units >= 0))][order].reshape(info.size, -1)


def _feeding(evidence: Evidence, info: AxisInfo) -> list[tuple[Moments, np.ndarray]]:
    """The contractions that the axis feeds, with the unit of each input feature."""
    found = ((m, carries(evidence.structure, info, m)) for m in evidence.statistics.moments if m.count)
    return [(moments, units) for moments, units in found if units is not None]


def _over_inputs(
    evidence: Evidence, info: AxisInfo, of: Callable[[Moments], torch.Tensor], divide: bool = True
) -> np.ndarray:
    """A value per input feature, gathered by unit over all contractions that the axis feeds; means when `divide`."""
    total, count = np.zeros(info.size), np.zeros(info.size)
    for moments, units in _feeding(evidence, info):
        carried = units >= 0
        np.add.at(total, units[carried], of(moments).cpu().numpy()[carried])
        np.add.at(count, units[carried], 1)
    if not count.any():
        raise InputError(
            f"criterion: {info.name} feeds no linear layer or convolution whose input could be watched; "
            "choose another criterion or kind"
        )
    return total / count if divide else total
