"""Zeros inside weights: exactly as many as asked, where they were asked for, and never in the program that was given."""

import models
import pytest
import torch

from secateur import NM, Blocks, InputError, Unstructured, drop_branches, sparsify
from secateur import program as programs
from secateur.sparsity import keep_of, obs_sparsify


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


def test_the_update_of_obs_makes_up_for_a_part_of_what_its_mask_removes() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 32, generator=generator, dtype=torch.float64)
    mixing = torch.randn(32, 32, generator=generator, dtype=torch.float64)
    x = torch.randn(500, 32, generator=generator, dtype=torch.float64) @ mixing  # correlated inputs
    updated, keep = obs_sparsify(weight, x.T @ x / len(x), Unstructured(0.5))
    masked_alone = weight * keep
    dense = x @ weight.T
    assert int((~keep).sum()) == weight.numel() // 2
    assert (x @ updated.T - dense).norm() < (x @ masked_alone.T - dense).norm()


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


def test_a_program_without_layers_is_told_so() -> None:
    with pytest.raises(InputError, match="branches of kind layer"):
        drop_branches(models.exported("perceptron"), share=0.5, criterion="last")
