"""Zeros inside weights: exactly as many as asked, where they were asked for, and never in the program that was given."""

import models
import numpy as np
import pytest
import torch

from secateur import NM, Blocks, InputError, Unstructured, sparsify, sparsity
from secateur import program as programs
from secateur.sparsity import DAMPING, keep_of, obs_sparsify


def test_the_share_is_exact_and_ties_do_not_add_to_it() -> None:
    keep = keep_of(torch.ones(8, 8), Unstructured(0.25))
    assert int((~keep).sum()) == 16


def test_two_of_every_four_inputs_stay() -> None:
    keep = keep_of(torch.rand(6, 16, generator=torch.Generator().manual_seed(0)), NM(2, 4))
    assert (keep.reshape(6, 4, 4).sum(2) == 2).all()


def test_blocks_go_as_a_whole() -> None:
    keep = keep_of(torch.rand(8, 4, generator=torch.Generator().manual_seed(0)), Blocks(0.5, (4, 1)))
    counts = keep.reshape(2, 4, 4).sum(1)
    assert set(counts.flatten().tolist()) == {0, 4}
    assert int(keep.sum()) == 16


def layer(rows: int, columns: int, seed: int, *, correlated: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """A random weight and the second moments of its random inputs."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(500, columns, generator=generator, dtype=torch.float64)
    if correlated:
        x = x @ torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return weight, x.T @ x / len(x)


def lost(weight: torch.Tensor, other: torch.Tensor, hessian: torch.Tensor) -> float:
    """|W X - W' X|^2 over the number of inputs."""
    return float(((weight - other) @ hessian * (weight - other)).sum())


# (8, 32) goes in the true order, (2048, 64) from left to right
@pytest.mark.parametrize(("rows", "columns", "seeds"), [(8, 32, 20), (2048, 64, 3)])
@pytest.mark.parametrize("pattern", [Unstructured(0.5), Unstructured(0.2), NM(2, 4)], ids=str)
@pytest.mark.parametrize("correlated", [True, False], ids=["correlated", "independent"])
def test_obs_loses_less_of_the_output_than_magnitude_and_wanda(
    rows: int, columns: int, seeds: int, pattern: Unstructured | NM, correlated: bool
) -> None:
    for seed in range(seeds):
        weight, hessian = layer(rows, columns, seed, correlated=correlated)
        updated, keep = obs_sparsify(weight, hessian, pattern)
        by_magnitude = keep_of(weight.abs(), pattern)
        by_wanda = keep_of(weight.abs() * hessian.diagonal().sqrt(), pattern, by_row=True)
        assert int((~keep).sum()) == int((~by_magnitude).sum())
        assert (updated[~keep] == 0).all()
        seen = lost(weight, updated, hessian)
        assert seen < lost(weight, weight * by_magnitude, hessian)
        assert seen < lost(weight, weight * by_wanda, hessian)
        assert seen < lost(weight, weight * keep, hessian)  # the update makes up for a part of what the mask removes


def greedy_brain_surgeon(row: np.ndarray, hessian: np.ndarray, zeros: int) -> np.ndarray:
    """The textbook: try each weight, keep the removal that costs least after the best answer of the others."""
    kept = list(range(len(row)))
    for _ in range(zeros):
        answers = {}
        for p in kept:
            left = [j for j in kept if j != p]
            answer = np.zeros_like(row)
            answer[left] = np.linalg.solve(hessian[np.ix_(left, left)], (hessian @ row)[left])
            answers[p] = answer
        p = min(kept, key=lambda p: (row - answers[p]) @ hessian @ (row - answers[p]))
        kept.remove(p)
        row_now = answers[p]
    return row_now


def test_obs_in_true_order_is_the_textbook_brain_surgeon() -> None:
    weight, hessian = layer(1, 10, 0, correlated=True)
    updated, _ = obs_sparsify(weight, hessian, Unstructured(0.6))
    damped = hessian + DAMPING * hessian.diagonal().mean() * torch.eye(10)
    expected = greedy_brain_surgeon(weight[0].numpy(), damped.numpy(), 6)
    assert updated[0].numpy() == pytest.approx(expected, abs=1e-9)


def test_obs_from_left_to_right_removes_each_column_at_its_own_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer to a mask: each zero, in the order of the columns, made up for by the columns to its right alone."""
    monkeypatch.setattr(sparsity, "EXACT_UP_TO", 0)
    weight, hessian = layer(3, 8, 0, correlated=True)
    updated, keep = obs_sparsify(weight, hessian, Unstructured(0.5))
    damped = (hessian + DAMPING * hessian.diagonal().mean() * torch.eye(8)).numpy()
    expected = weight.numpy().copy()
    for row in range(3):
        for j in range(8):
            if not keep[row, j]:
                inverse = np.linalg.inv(damped[j:, j:])
                expected[row, j:] -= expected[row, j] / inverse[0, 0] * inverse[0]
    assert updated.numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("exact_up_to", [0, sparsity.EXACT_UP_TO], ids=["left_to_right", "true_order"])
@pytest.mark.parametrize("share", [0.2, 0.37, 0.5])
def test_obs_leaves_exactly_the_share_even_where_inputs_never_fire(
    share: float, exact_up_to: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsity, "EXACT_UP_TO", exact_up_to)
    weight, hessian = layer(5, 14, 0, correlated=True)
    hessian[:12] = hessian[:, :12] = 0
    for h in (hessian, torch.zeros_like(hessian)):
        updated, _ = obs_sparsify(weight, h, Unstructured(share))
        assert int((updated == 0).sum()) == round(share * weight.numel())


def test_the_program_that_was_given_stays_as_it_was() -> None:
    program = models.exported("perceptron")
    before = programs.digest(program)
    sparse, masks, report = sparsify(program, pattern=Unstructured(0.5))
    assert programs.digest(program) == before
    assert report.sparsity == pytest.approx(0.5, abs=0.02)
    for name, mask in masks.items():
        assert (sparse.state_dict[name][~mask] == 0).all()


def test_a_criterion_without_its_data_is_refused() -> None:
    with pytest.raises(InputError, match="criterion wanda: needs calibration batches"):
        sparsify(models.exported("perceptron"), pattern=Unstructured(0.5), criterion="wanda")
