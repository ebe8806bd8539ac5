"""Operators that move dimensions: which units pass, what stays, and that a cut past them is right (`prune` proves it)."""

from collections.abc import Callable

import models
import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur import InputError, Ratio, prune
from secateur import program as programs
from secateur.axes.infer import KINDS, infer

Step = Callable[[torch.Tensor], torch.Tensor]
WIDTH, LENGTH, SIDE = 24, 5, 6


def check(made: nn.Module, x: torch.Tensor, free: list[int], reason: str | None = None) -> None:
    """The sizes of what can be cut, a reason for something that cannot, and a cut of all of it."""
    torch.manual_seed(0)
    program = models.export(made, x)
    s = infer(programs.graph_module(program))
    assert sorted(info.size for info in s.prunable) == free
    assert reason is None or reason in {info.frozen for info in s.axes}
    if free:
        report = prune(program, goal=Ratio(0.5), kinds=KINDS, criterion="random")[1]
        assert len(report.axes) == len(free)
    else:
        with pytest.raises(InputError):
            prune(program, goal=Ratio(0.5), kinds=KINDS)


def features(step: Step, left: int, free: list[int], reason: str | None = None) -> None:
    check(models.Computing(nn.Linear(4, WIDTH), step, nn.Linear(left, 3)), torch.randn(2, LENGTH, 4), free, reason)


def images(step: Step, left: int, free: list[int], reason: str | None = None) -> None:
    made = models.Computing(nn.Conv2d(3, WIDTH, 1), step, nn.Conv2d(left, 3, 1))
    check(made, torch.randn(2, 3, SIDE, SIDE), free, reason)


def turned(x: torch.Tensor) -> torch.Tensor:
    """Rotary positions with neighbours paired, as by Su et al. (2021)."""
    return x.cos() * x + torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)


def test_every_second_feature_is_a_factor_of_the_features() -> None:
    features(lambda x: x[..., 1::2], WIDTH // 2, [WIDTH // 2], "is sliced with a step")


def test_neighbours_that_are_turned_go_in_pairs() -> None:
    features(turned, WIDTH, [WIDTH // 2])


def test_rotations_may_be_written_as_products_of_complex_numbers() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        turns = torch.complex(x[..., ::2].cos(), x[..., 1::2].sin())
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(2)

    features(step, WIDTH, [WIDTH // 2])


def test_nothing_behind_the_last_feature_says_nothing_about_the_features() -> None:
    features(lambda x: torch.cat([x[..., :WIDTH].neg(), x[..., WIDTH:]], -1), WIDTH, [WIDTH])


@pytest.mark.parametrize("taken", [slice(None, None, 5), slice(0, 20, 2), slice(2, None, 2)])
def test_steps_that_do_not_divide_a_dimension_or_miss_a_part_of_it_freeze_it(taken: slice) -> None:
    left = len(range(*taken.indices(WIDTH)))
    features(lambda x: x[..., taken], left, [], "is sliced with a step or by a computed position")


def test_a_reshape_across_units_freezes_no_dimension_beside_them() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (2, 3, 4)).reshape(-1, LENGTH, 2, 4, 3).flatten(2)

    features(step, WIDTH, [2], "is reshaped across its units")


def test_the_shift_of_relative_positions_leaves_the_heads_free() -> None:
    """Dai et al., "Transformer-XL" (ACL 2019), appendix B: a padded table read with another row length."""

    def step(x: torch.Tensor) -> torch.Tensor:
        heads = x.unflatten(-1, (4, -1)).transpose(1, 2)
        padded = functional.pad(heads, (1, 0))
        shifted = padded.view(-1, 4, padded.shape[-1], LENGTH)[:, :, 1:].reshape(heads.shape)
        return shifted.transpose(1, 2).flatten(2)

    features(step, WIDTH, [4], "is reshaped across its units")


def test_a_split_across_units_freezes_no_dimension_beside_them() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        parts = x.unflatten(-1, (2, 3, 4)).transpose(2, 3).flatten(3).unflatten(3, (2, 4)).transpose(3, 4).flatten(3)
        return torch.cat(parts.split([5, 3], -1), -1).flatten(2)

    features(step, WIDTH, [3], "is split across its units")


def test_a_bag_of_embeddings_has_their_width() -> None:
    made = models.Computing(nn.EmbeddingBag(10, WIDTH, mode="mean"), torch.relu, nn.Linear(WIDTH, 3))
    check(made, torch.randint(10, (2, LENGTH)), [WIDTH], "is looked up by index")


def test_windows_of_an_image_and_their_sum_keep_its_channels() -> None:
    images(lambda x: functional.unfold(x, 3).unflatten(-1, (4, 4)), 9 * WIDTH, [WIDTH])
    images(lambda x: functional.fold(functional.unfold(x, 3), (SIDE, SIDE), 3), WIDTH, [WIDTH])


def test_sliding_windows_over_positions_keep_the_features() -> None:
    features(lambda x: x.unfold(1, 2, 1).mean(-1), WIDTH, [WIDTH])


def test_what_is_sampled_at_computed_positions_keeps_its_channels() -> None:
    grid = torch.rand(1, 4, 4, 2)
    images(
        lambda x: functional.grid_sample(x, grid.expand(x.shape[0], -1, -1, -1), align_corners=False), WIDTH, [WIDTH]
    )


def test_a_triangle_keeps_the_dimensions_before_its_sides() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (6, 2, 2)).tril().flatten(2)

    features(step, WIDTH, [6], "is one side of a triangle")


ROWS = torch.tensor([0, 2, 2, 1, 0])


@pytest.mark.parametrize(
    "step",
    [
        lambda x: torch.zeros(x.shape[0], 3, WIDTH).index_add(1, ROWS, x),
        lambda x: torch.zeros(x.shape[0], 3, WIDTH).scatter_add(1, ROWS[None, :, None].expand(x.shape), x),
        lambda x: x.index_copy(1, ROWS[:2], x[:, 3:]),
    ],
    ids=["index_add", "scatter_add", "index_copy"],
)
def test_rows_that_are_written_by_index_keep_their_features(step: Step) -> None:
    features(step, WIDTH, [WIDTH])


def test_rows_that_are_replaced_keep_their_features() -> None:
    def first(x: torch.Tensor) -> torch.Tensor:
        return x.index_put((torch.tensor([0, 1]),), x[:2].relu())

    def hidden(x: torch.Tensor) -> torch.Tensor:
        return x.index_put((torch.arange(LENGTH)[None].expand(x.shape[0], -1) > 2,), torch.tensor(0.0))

    features(first, WIDTH, [WIDTH])
    features(hidden, WIDTH, [WIDTH])


def test_features_that_are_written_by_index_are_not_cut() -> None:
    features(lambda x: x.index_copy(2, torch.tensor([3]), x[..., :1]), WIDTH, [], "is written by index")
