"""Units that count although their weights are zero: they can be cut, but no masked model is the same."""

from collections.abc import Callable

import models
import pytest
import torch
from test_infer import structure_of
from torch import nn
from torch.nn import functional

from secateur import Ratio, prune

Feature = Callable[[torch.Tensor], torch.Tensor]


class LinearAttention(nn.Module):
    """Keys and values are summed before the queries come (Katharopoulos et al., ICML 2020)."""

    def __init__(self, feature: Feature) -> None:
        super().__init__()
        self.feature, self.query, self.key, self.value = feature, nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k = self.feature(self.query(x)), self.feature(self.key(x))
        return self.out(torch.einsum("bqd,bdv->bqv", q, k.transpose(1, 2) @ self.value(x)))


@pytest.mark.parametrize(
    ("feature", "counts"),
    [
        (lambda x: functional.elu(x) + 1, True),
        (lambda x: x.exp() * 0.5, True),
        (lambda x: torch.cat([x.cos(), x.sin()], -1), True),
        (torch.relu, False),
        (lambda x: x * x.sigmoid(), False),
        (lambda x: 2 * x + x, False),
    ],
    ids=["elu", "exp", "fourier", "relu", "swish", "sum"],
)
def test_features_that_are_not_zero_at_zero_count_where_they_are_summed(feature: Feature, counts: bool) -> None:
    made = LinearAttention(feature)
    marked = {info.size: info.normalised for info in structure_of(made, torch.zeros(2, 7, 4)).prunable}
    assert marked == {6: counts, 5: False}
    report = prune(models.export(made, torch.randn(2, 7, 4)), goal=Ratio(0.5), kinds=["qk_width", "v_width"])[1]
    assert (report.masked_error is None) == counts
