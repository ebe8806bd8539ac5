"""Operators that no rule knows are read, and cut, as what torch itself makes of them."""

import models
import pytest
import torch
from test_infer import found, structure_of
from test_shape import WIDTH, Step, features
from torch import nn

from secateur import Ratio, prune
from secateur import program as programs
from secateur.axes.decompose import decompose_unknown


@pytest.mark.parametrize(
    "step",
    [
        lambda x: torch.multiply(x, 2.0),
        lambda x: x.narrow(1, 1, 3),
        lambda x: x.tile(1, 2, 1),
        lambda x: torch.hstack([x, x]),
        lambda x: torch.diff(x, dim=1),
        lambda x: torch.true_divide(x, x.square() + 1),
    ],
    ids=["multiply", "narrow", "tile", "hstack", "diff", "true_divide"],
)
def test_an_operator_that_torch_writes_by_others_has_their_rules(step: Step) -> None:
    features(step, WIDTH, [WIDTH])


class Cells(nn.Module):
    """A recurrent layer written as a loop over its cell."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = x.new_zeros(x.shape[0], 6)
        states = (state, state) if isinstance(self.cell, nn.LSTMCell) else state
        for position in range(x.shape[1]):
            states = self.cell(x[:, position], states)
        return self.head(states[0] if isinstance(states, tuple) else states)


@pytest.mark.parametrize("cell", [nn.LSTMCell(4, 6), nn.GRUCell(4, 6), nn.RNNCell(4, 6)], ids=["lstm", "gru", "rnn"])
def test_the_state_of_a_recurrent_cell_is_cut_and_what_is_left_trains(cell: nn.Module) -> None:
    x = torch.randn(2, 3, 4)
    assert [size for _, size in found(structure_of(Cells(cell), x)).values()] == [6]
    pruned, _ = prune(models.export(Cells(cell), x), goal=Ratio(0.5))
    module = programs.graph_module(pruned)
    module(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in module.parameters())


def test_a_graph_computes_the_same_after_it() -> None:
    x = torch.randn(2, 3, 4)
    module = programs.graph_module(models.export(Cells(nn.LSTMCell(4, 6)), x))
    before = module(x)
    decompose_unknown(module)
    module.recompile()
    assert not module.graph.find_nodes(op="call_function", target=torch.ops.aten.lstm_cell.default)
    torch.testing.assert_close(module(x), before)
