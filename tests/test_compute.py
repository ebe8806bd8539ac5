"""Operators that compute across dimensions: which units pass, what stays, and that a cut past them is right."""

import pytest
import torch
from test_infer import found, structure_of
from test_shape import LENGTH, WIDTH, Step, check, features, images
from torch import nn
from torch.nn import functional


@pytest.mark.parametrize(
    "step",
    [
        lambda x: x.max(1).values[:, None],
        lambda x: x.min(1, keepdim=True)[0],
        lambda x: x.median(1, keepdim=True).values,
        lambda x: torch.max(x, x.flip(1)),
        lambda x: x.logsumexp(1, keepdim=True),
        lambda x: x.prod(1, keepdim=True),
        lambda x: x * (x.argmax(1, keepdim=True) + 1),
    ],
    ids=["max", "min", "median", "larger", "logsumexp", "prod", "argmax"],
)
def test_an_extremum_over_positions_keeps_the_features(step: Step) -> None:
    features(step, WIDTH, [WIDTH])


@pytest.mark.parametrize("name", ["max", "min", "median", "logsumexp", "prod", "argmin"])
def test_features_that_an_extremum_is_taken_over_are_not_cut(name: str) -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        found = getattr(x, name)(-1, keepdim=True)
        return (found if isinstance(found, torch.Tensor) else found[0]).float()

    features(step, 1, [], "is what an extremum is taken over")


class Summed(nn.Module):
    """An einsum of features and a matrix between two layers."""

    def __init__(self, equation: str) -> None:
        super().__init__()
        self.first, self.weight, self.second = nn.Linear(4, WIDTH), nn.Parameter(torch.randn(WIDTH, 6)), nn.Linear(6, 3)
        self.equation = equation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.einsum(self.equation, self.first(x), self.weight))


@pytest.mark.parametrize("equation", ["...d,df->...f", "b...d,df->b...f", "bld,dm"])
def test_an_einsum_may_leave_out_its_result_or_dimensions(equation: str) -> None:
    check(Summed(equation), torch.randn(2, LENGTH, 4), [6, WIDTH])


def test_an_einsum_of_one_tensor_moves_its_dimensions_and_sums_the_others() -> None:
    features(lambda x: torch.einsum("...ab->...ba", x).transpose(1, 2), WIDTH, [WIDTH])
    features(lambda x: torch.einsum("bld->bd", x)[:, None], WIDTH, [WIDTH])


def test_an_einsum_between_what_is_computed_is_attention() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (nn.Parameter(torch.randn(8, 2, size)) for size in (3, 3, 5))
            self.out = nn.Parameter(torch.randn(2, 5, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (torch.einsum("btd,dhk->bthk", x, weight) for weight in (self.q, self.k, self.v))
            scores = torch.einsum("bqhk,bshk->bhqs", q, k).softmax(-1)
            return torch.einsum("bqhv,hvd->bqd", torch.einsum("bhqs,bshv->bqhv", scores, v), self.out)

    assert sorted(found(structure_of(Attention(), torch.zeros(2, LENGTH, 8))).values()) == [
        ("head", 2),
        ("qk_width", 3),
        ("v_width", 5),
    ]


def test_a_convolution_over_positions_alone_leaves_the_features_free() -> None:
    mixing, along = nn.Conv1d(LENGTH, LENGTH, 1), nn.Conv2d(1, 1, (3, 1), padding=(1, 0))
    features(mixing, WIDTH, [WIDTH])
    features(lambda x: along(x[:, None])[:, 0], WIDTH, [WIDTH])


def test_a_convolution_that_skips_or_adds_positions_is_one_over_them() -> None:
    for layer in (nn.Conv1d(LENGTH, 2, 1, stride=2), nn.Conv1d(LENGTH, 2, 1, padding=1), nn.Conv1d(LENGTH, 2, 3)):
        left = layer(torch.zeros(1, LENGTH, WIDTH)).shape[-1]
        features(layer, left, [], "is a spatial or sequence dimension")


def test_pooling_over_positions_alone_leaves_the_features_free() -> None:
    features(lambda x: functional.avg_pool2d(x, (2, 1), stride=(2, 1)), WIDTH, [WIDTH])
    features(lambda x: functional.avg_pool2d(x, (1, 2)), WIDTH // 2, [], "is a spatial or sequence dimension")


def test_a_spectral_norm_is_that_of_the_channels_that_are_left() -> None:
    norm = torch.nn.utils.parametrizations.spectral_norm(nn.Conv2d(WIDTH, WIDTH // 2, 3, padding=1))
    images(norm, WIDTH // 2, [WIDTH // 2, WIDTH])


def test_a_fourier_transform_freezes_what_it_runs_over_alone() -> None:
    features(lambda x: torch.fft.fft(x, dim=1).real, WIDTH, [WIDTH])
    features(lambda x: torch.fft.rfft(x, dim=2).abs(), WIDTH // 2 + 1, [], "is transformed as a whole")
