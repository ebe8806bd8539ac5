"""The gradients of penalties are those that autograd gives for the formulas of their papers, written out group by group."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import models
import pytest
import torch
from torch import fx

from secateur import InputError
from secateur import program as programs
from secateur.axes.infer import infer
from secateur.penalties import PenaltySettings, Targets, _Member, check_penalty, penalty_of
from secateur.pruning import Choice, choose_axes

Weights = Mapping[str, torch.Tensor]
STRENGTH, ALPHA = 0.01, 3.0
LASSO = PenaltySettings("group_lasso", STRENGTH, alpha=ALPHA)
GROWING = PenaltySettings("growing", STRENGTH, every=10, ceiling=0.05)
SLIMMING = PenaltySettings("slimming", STRENGTH)
H, C = models.HIDDEN, models.CHANNELS


def squares(*parts: torch.Tensor) -> torch.Tensor:
    """The squared norm of each unit over parts whose first dimension it is [size]."""
    return sum((part.flatten(1).square().sum(1) for part in parts), torch.tensor(0.0))


def residual(w: Weights) -> dict[str, torch.Tensor]:
    """The squared group norms of `models.Residual`."""
    pooled = w["head.weight"].reshape(models.CLASSES, C, 4)
    stream = (w["stem.weight"], w["norm.weight"][:, None], w["inner.weight"].movedim(1, 0), w["outer.weight"])
    return {
        "stem:channel": squares(*stream, pooled.movedim(1, 0)),
        "inner:channel": squares(w["inner.weight"], w["inner_norm.weight"][:, None], w["outer.weight"].movedim(1, 0)),
    }


def encoder(w: Weights) -> dict[str, torch.Tensor]:
    """The squared group norms of `models.Encoder`: queries [group, query in it, width, embedding] and what goes with them."""
    groups, each, width = models.GROUPS, models.HEADS // models.GROUPS, models.HEAD_DIM
    query = w["query.weight"].reshape(groups, each, width, -1)
    out = w["out.weight"].reshape(-1, groups, each, width)
    key, value = (w[f"{part}.weight"].reshape(groups, -1) for part in ("key", "value"))
    return {
        "query:kv_group": squares(query, key, value, out.movedim(1, 0)),
        "query:q_per_group": squares(query.movedim(1, 0), out.movedim(2, 0)),
        "up:width": squares(w["up.weight"], w["down.weight"].T),
    }


def branches(w: Weights) -> dict[str, torch.Tensor]:
    """The squared group norms of two axes of `models.Branches` that lie on a part of `mix.weight`, once in each half."""
    of_grouped = w["mix.weight"][:, C:].reshape(-1, 2, H)
    halves = w["mix.weight"].reshape(2, H, -1)
    return {
        "grouped:channel": squares(w["grouped.weight"].reshape(2, H, -1).movedim(1, 0), of_grouped.movedim(2, 0)),
        "mix:channel": squares(halves.movedim(1, 0), w["head.weight"].T),
    }


CASES: dict[str, Callable[[Weights], dict[str, torch.Tensor]]] = {
    "residual": residual,
    "encoder": encoder,
    "branches": branches,
}


def targets(
    name: str, kept: Mapping[str, Sequence[int]] | None = None, include: tuple[str, ...] | None = None
) -> Targets:
    """One of the networks to train, with the axes that its formula is written for unless others are named."""
    module = programs.graph_module(models.exported(name))
    structure = infer(module)
    axes = include or tuple(CASES[name](parameters(module)))
    return Targets(module, structure, choose_axes(structure, Choice(include=axes)), kept)


def parameters(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """The parameters as leaves of their own."""
    return {name: p.detach().clone().requires_grad_(True) for name, p in module.named_parameters()}


def gradients_of(formula: Callable[[Weights], torch.Tensor], module: fx.GraphModule) -> dict[str, torch.Tensor]:
    """What autograd says; zero for a parameter that the formula does not mention."""
    leaves = parameters(module)
    formula(leaves).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in leaves.items()}


def added_by(made: Targets, settings: PenaltySettings, step: int = 0) -> dict[str, torch.Tensor]:
    """What the penalty adds to gradients of one everywhere."""
    for parameter in made.module.parameters():
        parameter.grad = torch.ones_like(parameter)
    penalty_of(made, settings)(step)
    return {name: p.grad - 1 for name, p in made.module.named_parameters() if p.grad is not None}


def assert_equal(seen: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(seen) == set(expected)
    for name, gradient in expected.items():
        assert torch.allclose(seen[name], gradient, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("name", CASES)
def test_group_lasso_adds_the_gradient_of_its_formula(name: str) -> None:
    def formula(w: Weights) -> torch.Tensor:
        total = torch.tensor(0.0)
        for norms in CASES[name](w).values():
            fixed = norms.detach()
            gamma = 2 ** (ALPHA * (fixed.max() - fixed) / (fixed.max() - fixed.min()))
            total = total + STRENGTH * (gamma * norms).sum()
        return total

    made = targets(name)
    assert_equal(added_by(made, LASSO), gradients_of(formula, made.module))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("step", "strength"), [(0, 0.0), (9, 0.0), (10, 0.01), (39, 0.03), (50, 0.05), (1000, 0.05)])
def test_growing_adds_the_gradient_of_its_formula_at_every_step(name: str, step: int, strength: float) -> None:
    """The first axis loses its first unit and the last axis its second."""
    sizes = {info.name: info.size for info in targets(name).axes}
    first, *_, last = sizes
    kept = {first: range(1, sizes[first]), last: [0, *range(2, sizes[last])]}
    made = targets(name, kept)

    def formula(w: Weights) -> torch.Tensor:
        norms = CASES[name](w)
        return strength / 2 * (norms[first][0] + norms[last][1])

    assert_equal(added_by(made, GROWING, step), gradients_of(formula, made.module))


def test_slimming_adds_the_gradient_of_its_formula() -> None:
    made = targets("residual")
    with torch.no_grad():
        made.module.get_parameter("norm.weight")[:3] *= -1

    def formula(w: Weights) -> torch.Tensor:
        return STRENGTH * (w["norm.weight"].abs().sum() + w["inner_norm.weight"].abs().sum())

    assert_equal(added_by(made, SLIMMING), gradients_of(formula, made.module))


def test_slimming_leaves_norms_of_other_axes_alone() -> None:
    added = added_by(targets("residual", include=("inner:channel",)), SLIMMING)
    assert {name for name, gradient in added.items() if gradient.any()} == {"inner_norm.weight"}


def test_every_step_looks_at_the_weights_as_they_are_then() -> None:
    made = targets("residual")
    penalty = penalty_of(made, LASSO)
    with torch.no_grad():
        made.module.get_parameter("stem.weight")[0] *= 5
    expected = added_by(made, LASSO)
    made.module.zero_grad()
    penalty(1)
    assert torch.allclose(gradient(made, "head.weight"), expected["head.weight"], atol=1e-6)


def gradient(made: Targets, name: str) -> torch.Tensor:
    found = made.module.get_parameter(name).grad
    assert found is not None
    return found


def test_units_that_are_all_equal_are_shrunk_as_the_strongest() -> None:
    made = targets("residual", include=("inner:channel",))
    with torch.no_grad():
        for parameter in made.module.parameters():
            parameter.fill_(1.0)
    added = added_by(made, LASSO)
    assert torch.allclose(added["inner_norm.weight"], torch.full((H,), 2 * STRENGTH))


def test_parameters_that_are_not_trained_are_left_alone_but_count() -> None:
    made = targets("residual", include=("inner:channel",))
    expected = added_by(made, LASSO)["outer.weight"]
    frozen = made.module.get_parameter("inner.weight").requires_grad_(False)
    frozen.grad = None
    penalty_of(made, LASSO)(0)
    assert frozen.grad is None
    assert torch.allclose(added_by(made, LASSO)["outer.weight"], expected)


def test_a_parameter_that_the_loss_does_not_reach_gets_the_penalty_alone() -> None:
    made = targets("residual")
    expected = added_by(made, LASSO)
    made.module.zero_grad()
    penalty_of(made, LASSO)(0)
    assert torch.allclose(gradient(made, "outer.weight"), expected["outer.weight"], atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lasso"}, "^method: expected one of group_lasso, growing, slimming, got 'lasso'"),
        ({"strength": 0.0}, "^strength: expected a finite number above 0, got 0.0"),
        ({"strength": -1e-4}, "^strength: expected a finite number above 0"),
        ({"strength": float("nan")}, "^strength: expected a finite number above 0, got nan"),
        ({"alpha": 0.0}, "^alpha: expected"),
        ({"ceiling": float("inf")}, "^ceiling: expected"),
        ({"every": 0}, "^every: expected at least 1 step, got 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_penalty(dataclasses.replace(LASSO, **changes))


def test_slimming_of_an_axis_without_a_batch_norm_is_refused() -> None:
    with pytest.raises(InputError, match=r"^method slimming: query:kv_group has no batch norm with a scale; choose"):
        penalty_of(targets("encoder"), SLIMMING)


@pytest.mark.parametrize("kept", [None, {}, {"inner:channel": range(H)}])
def test_growing_without_a_unit_to_remove_is_refused(kept: dict[str, range] | None) -> None:
    with pytest.raises(InputError, match=r"^kept: method growing needs the units that the cut will leave"):
        penalty_of(targets("residual", kept), GROWING)


def test_the_gradient_of_a_weight_that_had_none_lies_in_memory_as_the_weight() -> None:
    weight = torch.nn.Parameter(torch.zeros(3, 4).t())
    for _ in range(2):
        _Member(weight, ()).add(torch.ones(4, 3))
    assert weight.grad is not None
    assert weight.grad.stride() == weight.stride()
    assert weight.grad.eq(2).all()
