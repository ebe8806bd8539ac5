"""Penalties on whole units: what training adds to its gradients so that the units a later cut removes are small by then.

A group is what `importance.l2` sums over for a unit: the matrices that carry it and the scales of its batch norms, each
element as often as its dimensions carry the unit. Axes share parameters, and what several axes ask of one adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from secateur.axes.infer import AxisInfo, Structure
from secateur.axes.terms import unit_index
from secateur.calibration import Statistics
from secateur.errors import InputError
from secateur.importance import Evidence, batch_norm_scales, group_of

Penalty = Callable[[int], None]  # given the step, from 0: adds the penalty's gradient to what the parameters have


@dataclass(frozen=True)
class PenaltySettings:
    """Which penalty, and how strong."""

    method: str = "group_lasso"
    strength: float = 1e-4  # lambda of group_lasso and slimming, delta of growing
    alpha: float = (
        4.0  # of group_lasso: the weakest unit of an axis is shrunk 2^alpha times as strongly as the strongest
    )
    every: int = 10  # of growing: steps until it grows by `strength` again
    ceiling: float = 1.0  # of growing: what it grows to


@dataclass(frozen=True)
class Targets:
    """What a penalty may look at; `kept` are the units that the later cut leaves, by axis name, where they are known."""

    module: fx.GraphModule
    structure: Structure
    axes: Sequence[AxisInfo]
    kept: Mapping[str, Sequence[int]] | None = None


def penalty_of(targets: Targets, settings: PenaltySettings) -> Penalty:
    """The penalty on the parameters of `targets.module`, its index tensors made once.

    Parameters that are not trained (`requires_grad` false) count in norms and are left alone.

    Raises:
        InputError: an unknown method, a number that cannot be, an axis without what the method shrinks, or, for
            growing, no units that a cut would remove.
    """
    check_penalty(settings)
    return METHODS[settings.method](targets, settings)


def check_penalty(settings: PenaltySettings) -> None:
    """Raise InputError for a setting that cannot be."""
    if settings.method not in METHODS:
        raise InputError(f"method: expected one of {', '.join(METHODS)}, got {settings.method!r}")
    for setting, value in (("strength", settings.strength), ("alpha", settings.alpha), ("ceiling", settings.ceiling)):
        if not 0 < value < float("inf"):
            raise InputError(f"{setting}: expected a finite number above 0, got {value}")
    if settings.every < 1:
        raise InputError(f"every: expected at least 1 step, got {settings.every}")


def group_lasso(targets: Targets, settings: PenaltySettings) -> Penalty:
    """lambda sum_k gamma_k I_k over the units k of every axis (Fang et al., "DepGraph", CVPR 2023, eq. 4 and 5).

    I_k is the squared group norm and gamma_k = 2^(alpha (I_max - I_k) / (I_max - I_min)), the largest and smallest of
    the unit's axis: the weakest units are shrunk most. gamma is computed anew in every step and is a constant to the
    gradient, 2 lambda gamma_k w. Where all units of an axis are equal, gamma is 1.
    """
    groups = _groups(targets, group_of)

    def penalise(step: int) -> None:
        gamma = _shrinkage(groups.squared_norms(), groups.axis, settings.alpha)
        groups.decay(2 * settings.strength * gamma)

    return penalise


def growing(targets: Targets, settings: PenaltySettings) -> Penalty:
    """lambda_t / 2 sum_k I_k over the units k that the cut will remove, lambda_t = min(delta floor(t / every), ceiling).

    GReg-1 of Wang et al., "Neural Pruning via Growing Regularization" (ICLR 2021), with the whole group I_k, the
    squared group norm, in place of a filter. What is doomed is fixed at the start; no other unit is penalised, but for
    the weights between it and a doomed one. The gradient is lambda_t w.
    """
    groups = _groups(targets, group_of)
    removed = torch.cat([torch.from_numpy(_removed(targets, info)) for info in targets.axes]).to(groups.axis.device)
    if not removed.any():
        raise InputError(
            "kept: method growing needs the units that the cut will leave, and some that it removes; give `report.kept` "
            "of the cut that is to come"
        )
    doomed = removed.double()

    def penalise(step: int) -> None:
        groups.decay(min(settings.strength * (step // settings.every), settings.ceiling) * doomed)

    return penalise


def slimming(targets: Targets, settings: PenaltySettings) -> Penalty:
    """lambda sum |s| over the scales s of the batch norms on the axes (Liu et al., "Network Slimming", ICCV 2017).

    A scale that is on two axes counts once. The gradient is lambda sign(s), nothing where s is zero.

    Raises:
        InputError: an axis has no batch norm with a scale.
    """
    evidence = Evidence(targets.module, targets.structure, Statistics())
    bare = next((info.name for info in targets.axes if not batch_norm_scales(evidence, info)), None)
    if bare:
        raise InputError(
            f"method slimming: {bare} has no batch norm with a scale; choose another method, or exclude the axis"
        )
    groups = _groups(targets, batch_norm_scales)
    on_axes = [(member, member.spread(torch.ones_like(groups.axis)) > 0) for member in groups.members]

    @torch.no_grad()
    def penalise(step: int) -> None:
        for member, carried in on_axes:
            member.add(settings.strength * member.parameter.sign() * carried)

    return penalise


METHODS: dict[str, Callable[[Targets, PenaltySettings], Penalty]] = {
    "group_lasso": group_lasso,
    "growing": growing,
    "slimming": slimming,
}


def _removed(targets: Targets, info: AxisInfo) -> np.ndarray:
    """Which units of an axis go [size]: none where the cut leaves the axis alone."""
    kept = (targets.kept or {}).get(info.name, range(info.size))
    return ~np.isin(np.arange(info.size), list(kept))


def _shrinkage(norms: torch.Tensor, axis: torch.Tensor, alpha: float) -> torch.Tensor:
    """gamma of each unit from the squared norms of all units and the axis that each is of."""
    ends = norms.new_zeros(int(axis.max()) + 1)
    largest = ends.scatter_reduce(0, axis, norms, "amax", include_self=False)[axis]
    smallest = ends.scatter_reduce(0, axis, norms, "amin", include_self=False)[axis]
    spread = (largest - smallest).clamp_min(torch.finfo(norms.dtype).tiny)
    return torch.exp2(alpha * (largest - norms) / spread)


@dataclass(frozen=True)
class _Member:
    """A parameter and, for each dimension of it that carries an axis, the number of the unit at every position.

    Units are numbered through over all axes; a position that is of none has the number after the last.
    """

    parameter: nn.Parameter
    units: tuple[tuple[int, torch.Tensor], ...]

    def spread(self, per_unit: torch.Tensor) -> torch.Tensor:
        """Values of units [units] at every element that carries them, added up: a shape that broadcasts to the parameter's."""
        padded = torch.cat([per_unit, per_unit.new_zeros(1)]).to(self.parameter.dtype)
        shapes = [[-1 if d == dim else 1 for d in range(self.parameter.dim())] for dim, _ in self.units]
        first, *rest = [padded[units].reshape(shape) for (_, units), shape in zip(self.units, shapes, strict=True)]
        return sum(rest, first)

    def add(self, gradient: torch.Tensor) -> None:
        """Add to the gradient, which lies in memory as the parameter does: a fused optimiser takes that for granted."""
        if self.parameter.requires_grad:
            if self.parameter.grad is None:
                self.parameter.grad = torch.zeros_like(self.parameter)
            self.parameter.grad.add_(gradient)


@dataclass(frozen=True)
class _Groups:
    """The groups of all units: the axis number of each unit [units], and the parameters that carry them."""

    axis: torch.Tensor
    members: tuple[_Member, ...]

    @torch.no_grad()
    def squared_norms(self) -> torch.Tensor:
        """I_k of every unit [units]."""
        total = torch.zeros(len(self.axis) + 1, dtype=torch.double, device=self.axis.device)
        for member in self.members:
            squares = member.parameter.square()
            for dim, units in member.units:
                others = [d for d in range(squares.dim()) if d != dim]
                total.index_add_(0, units, (squares.sum(others) if others else squares).double())
        return total[:-1]

    @torch.no_grad()
    def decay(self, strengths: torch.Tensor) -> None:
        """Add strength x weight to the gradients, the strengths [units] of all units that an element is of."""
        for member in self.members:
            member.add(member.parameter * member.spread(strengths))


def _groups(targets: Targets, of: Callable[[Evidence, AxisInfo], list[str]]) -> _Groups:
    """The groups that `of` names the parameters of."""
    evidence = Evidence(targets.module, targets.structure, Statistics())
    count = sum(info.size for info in targets.axes)
    units: dict[str, list[tuple[int, torch.Tensor]]] = {}
    offset = 0
    for info in targets.axes:
        names = set(of(evidence, info))
        for name, dim in info.members:
            if name in names:
                of_axis = unit_index(targets.structure.tensors[name][dim], info.axis)
                numbers = torch.from_numpy(np.where(of_axis >= 0, of_axis + offset, count))
                units.setdefault(name, []).append((dim, numbers.to(targets.module.get_parameter(name).device)))
        offset += info.size
    members = tuple(_Member(targets.module.get_parameter(name), tuple(places)) for name, places in units.items())
    axis = np.repeat(np.arange(len(targets.axes)), [info.size for info in targets.axes])
    return _Groups(torch.from_numpy(axis).to(members[0].parameter.device), members)
