"""The form in which graphs are read computes what the program does, writes to a part of a tensor included."""

import models
import pytest
import torch
from test_infer import found, structure_of
from torch import nn

from secateur import Ratio, prune, pruning
from secateur import program as programs
from secateur.axes.infer import KINDS, Structure
from secateur.axes.normalise import normalise

LENGTH, LEFT, RIGHT = 5, 8, 4


class Writing(nn.Module):
    """Two layers' features side by side, by one way of writing them there."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.left, self.right, self.head = nn.Linear(4, LEFT), nn.Linear(4, RIGHT), nn.Linear(LEFT + RIGHT, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(getattr(self, self.way)(self.left(x), self.right(x)))

    def copied(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        both = left.new_empty(*left.shape[:-1], LEFT + RIGHT)
        both[..., :LEFT].copy_(left)
        both[..., LEFT:] = right
        return both

    def added(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        both = torch.zeros(left.shape[0], LENGTH, LEFT + RIGHT)
        both[..., :LEFT] += left
        both[..., LEFT:].add_(right)
        return both

    def masked(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        mask = torch.zeros(1, LENGTH, 1)
        mask[:, 1:3] = 1.0
        return torch.cat([left, right], -1) * mask

    def seen_before(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        both = torch.cat([left, right], -1)
        first = both[:, :1]
        both.mul_(2.0)
        return both + first


WAYS = ["copied", "added", "masked", "seen_before"]


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_to_a_part_of_a_tensor_is_still_written(way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, LENGTH, 4)
    program = models.export(Writing(way), x)
    module = programs.graph_module(program)
    normalise(module)
    torch.testing.assert_close(module(x), program.module()(x))


@pytest.mark.parametrize("way", WAYS)
def test_what_is_written_has_the_axes_of_where_it_is_written_to(way: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, LENGTH, 4)
    sizes = {"left:width": ("width", LEFT), "right:width": ("width", RIGHT)}
    assert found(structure_of(Writing(way), x)) == sizes
    program = models.export(Writing(way), x)
    report = prune(program, goal=Ratio(0.5), kinds=KINDS, criterion="random")[1]
    assert report.masked_error is not None


def test_a_graph_that_computes_something_else_than_its_program_is_never_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    infer = pruning.infer

    def wrong(module: torch.fx.GraphModule) -> Structure:
        for node in module.graph.find_nodes(op="call_function", target=torch.ops.aten.relu.default):
            node.target = torch.ops.aten.neg.default
        module.recompile()
        return infer(module)

    monkeypatch.setattr(pruning, "infer", wrong)
    with pytest.raises(RuntimeError, match="differs from the program"):
        prune(models.exported("perceptron"), goal=Ratio(0.5))
