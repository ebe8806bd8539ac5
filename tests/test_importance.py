"""Scores against numbers worked out by hand."""

import models
import numpy as np
import pytest
import torch
from torch import nn

from secateur import program as programs
from secateur.axes.infer import infer
from secateur.calibration import Statistics
from secateur.importance import CRITERIA, Evidence, l2


def scores(made: nn.Module, *inputs: torch.Tensor) -> dict[str, list[float]]:
    """The group norm of every unit of every prunable axis; the L2 score is its square."""
    module = programs.graph_module(models.export(made, *inputs))
    structure = infer(module)
    return {
        info.name: np.sqrt(l2(Evidence(module, structure, Statistics()), info)).tolist() for info in structure.prunable
    }


def filled(layer: nn.Linear | nn.Conv2d, weight: object, bias: float = 100.0) -> nn.Linear | nn.Conv2d:
    """A layer with the given weights, and a bias that would show if it were counted."""
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float32).reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.fill_(bias)
    return layer


def test_a_hidden_unit_scores_its_row_and_its_column_together() -> None:
    made = nn.Sequential(
        filled(nn.Linear(2, 3), [[3, 4], [0, 0], [1, 2]]),
        nn.ReLU(),
        filled(nn.Linear(3, 2), [[12, 0, 2], [0, 0, 4]]),
    )
    assert scores(made, torch.zeros(2, 2)) == {"0:width": [13.0, 0.0, 5.0]}


def test_a_channel_that_is_flattened_scores_all_its_columns() -> None:
    made = nn.Sequential(filled(nn.Conv2d(1, 2, 1), [3, 0]), nn.Flatten(), filled(nn.Linear(4, 1), [[0, 4, 6, 8]]))
    assert scores(made, torch.zeros(2, 1, 1, 2)) == {"0:channel": [5.0, 10.0]}


def test_a_channel_of_a_depthwise_convolution_scores_its_own_kernel() -> None:
    made = nn.Sequential(
        filled(nn.Conv2d(1, 2, 1), [1, 2]),
        filled(nn.Conv2d(2, 2, 1, groups=2), [2, 4]),
        filled(nn.Conv2d(2, 1, 1), [2, 4]),
    )
    assert list(scores(made, torch.zeros(2, 1, 1, 1)).values()) == [[3.0, 6.0]]


def test_scales_of_batch_norms_count_and_biases_do_not() -> None:
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, 84.0]))
    nn.init.constant_(norm.bias, 50.0)
    made = nn.Sequential(filled(nn.Conv2d(1, 2, 1), [3, 5]), norm, filled(nn.Conv2d(2, 1, 1), [4, 12]))
    assert list(scores(made, torch.zeros(2, 1, 1, 1)).values()) == [[5.0, 85.0]]


class Repeated(nn.Module):
    """One number spread over a vector of scales, and summed: its axis lives in vectors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.tensor(values)) for values in ([3.0, 0.0], [4.0, 2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.scale + self.shift).sum(-1)


def test_vectors_count_where_no_matrix_carries_the_axis() -> None:
    assert list(scores(Repeated(), torch.zeros(3, 1)).values()) == [[5.0, 2.0]]


def test_a_tied_matrix_is_counted_once() -> None:
    made = models.Tied()
    nn.init.constant_(made.embed.weight, 2.0)
    nn.init.constant_(made.middle.weight, 0.0)
    (seen,) = scores(made, torch.from_numpy(models.tokens(2))).values()
    assert seen == pytest.approx([2 * models.VOCABULARY**0.5] * models.EMBEDDING)


def test_an_axis_on_both_sides_of_a_matrix_scores_row_and_column() -> None:
    class Ring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.ring, self.down = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(x)
            return self.down(x + self.ring(x))

    made = Ring()
    filled(made.up, [[0, 0], [0, 0]])
    filled(made.ring, [[0, 3], [4, 0]])
    filled(made.down, [[0, 0]])
    assert scores(made, torch.zeros(2, 2)) == {"up:width": [5.0, 5.0]}


def test_half_precision_weights_do_not_overflow_when_squared() -> None:
    made = nn.Sequential(filled(nn.Linear(1, 2), [300, 400]), filled(nn.Linear(2, 1), [400, 300])).half()
    assert scores(made, torch.zeros(2, 1).half()) == {"0:width": [500.0, 500.0]}


WEIGHTS_ALONE = [name for name, criterion in CRITERIA.items() if not criterion.needs and name != "norm_scale"]


@pytest.mark.parametrize("criterion", WEIGHTS_ALONE)
@pytest.mark.parametrize("name", models.MODELS)
def test_every_unit_of_every_axis_has_a_finite_score(name: str, criterion: str) -> None:
    module = programs.graph_module(models.exported(name))
    structure = infer(module)
    for info in structure.prunable:
        seen = CRITERIA[criterion].score(Evidence(module, structure, Statistics()), info)
        assert seen.shape == (info.size,)
        assert np.isfinite(seen).all()
        assert (seen > 0).all()


def test_snip_adds_up_what_each_weight_of_a_unit_would_cost_alone() -> None:
    made = nn.Sequential(filled(nn.Linear(2, 2), [[1, -2], [3, 4]]), filled(nn.Linear(2, 1), [5, -6]))
    module = programs.graph_module(models.export(made, torch.zeros(2, 2)))
    structure = infer(module)
    gradients = {"0.weight": torch.tensor([[1.0, 1.0], [0.5, 0.0]]), "1.weight": torch.tensor([[-1.0, 0.5]])}
    gradients |= {name: torch.full_like(module.get_parameter(name), 9.0) for name in ("0.bias", "1.bias")}
    evidence = Evidence(module, structure, Statistics(gradients=gradients))
    (info,) = structure.prunable
    assert CRITERIA["snip"].score(evidence, info).tolist() == [3.0 + 5.0, 1.5 + 3.0]
