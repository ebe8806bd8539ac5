"""Which parts of a graph are residual branches or layers, and that dropping them leaves the rest as it was."""

import models
import pytest
import torch
from torch import nn

from secateur import branches, drop_branches
from secateur import program as programs
from secateur.axes.infer import infer
from secateur.branches import Branch

WIDTH = 6


class Stacked(nn.Module):
    """Residual perceptrons one after the other."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(models.FEATURES, WIDTH), nn.Linear(WIDTH, models.CLASSES)
        self.inner = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for layer in self.inner:
            x = x + torch.tanh(layer(x))
        return self.head(x)


class Parallel(nn.Module):
    """Two perceptrons side by side, summed before they meet the stream; dropout of nothing in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(models.FEATURES, WIDTH), nn.Linear(WIDTH, models.CLASSES)
        self.left, self.right = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.head(x + nn.functional.dropout(self.left(x) + self.right(x), 0.0))


class Watched(nn.Module):
    """A branch whose inside something else reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(models.FEATURES, WIDTH), nn.Linear(2 * WIDTH, models.CLASSES)
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        inside = torch.tanh(self.inner(x))
        return self.head(torch.cat([x + self.outer(inside), inside], 1))


class Routed(nn.Module):
    """Perceptrons weighed by a softmax over the input: a mixture of experts, no attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(models.FEATURES, WIDTH), nn.Linear(WIDTH, models.CLASSES)
        self.router, self.experts = nn.Linear(WIDTH, 2), nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        weights = torch.softmax(self.router(x), -1)
        return self.head(x + weights[:, :1] * self.experts[0](x) + weights[:, 1:] * self.experts[1](x))


def found(made: nn.Module) -> tuple[Branch, ...]:
    module = programs.graph_module(models.export(made, torch.zeros(2, models.FEATURES)))
    return branches.find(module, infer(module))


def test_branches_of_one_kind_at_one_path_have_names_of_their_own() -> None:
    names = [branch.name for branch in found(Parallel())]
    assert len(names) == len(set(names)) == 2


def test_a_branch_that_something_else_looks_into_is_none() -> None:
    assert found(Watched()) == ()


def test_a_softmax_that_routes_makes_no_attention() -> None:
    assert {branch.kind for branch in found(Routed())} == {"mlp"}


@pytest.mark.parametrize(("made", "share", "gone"), [(Stacked(3), 0.6, 2), (Stacked(3), 0.9, 3), (Parallel(), 0.9, 2)])
def test_adjacent_branches_are_dropped_with_all_their_parameters(made: nn.Module, share: float, gone: int) -> None:
    program = models.export(made, torch.zeros(2, models.FEATURES))
    shallow, report = drop_branches(program, share=share, kind="mlp", criterion="last")
    assert len(report.dropped) == gone
    assert report.parameters_before - report.parameters_after == gone * (WIDTH + 1) * WIDTH
    if gone == len(report.scores):
        x = torch.randn(3, models.FEATURES)
        assert torch.allclose(shallow.module(check_guards=False)(x), made.head(made.first(x)))


def test_a_branch_that_also_leaves_through_memory_is_none() -> None:
    class Writing(nn.Module):
        """Two residual branches; what the first one has inside is also written into a tensor that is read at the end."""

        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
            self.wide, self.narrow = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            kept = torch.zeros_like(x)
            inner = torch.relu(self.up(x))
            kept[..., :4].copy_(inner[..., :4])
            x = x + self.down(inner)
            return x + self.narrow(torch.relu(self.wide(x))) + kept

    module = programs.graph_module(models.export(Writing().eval(), torch.zeros(2, 8)))
    (found,) = branches.find(module, infer(module))
    assert set(found.tensors) == {"wide.weight", "wide.bias", "narrow.weight", "narrow.bias"}


class WritesItsStream(nn.Module):
    """Residual sums that are written where the stream lies."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(models.FEATURES, WIDTH), nn.Linear(WIDTH, models.CLASSES)
        self.ups = nn.ModuleList(nn.Linear(WIDTH, 2 * WIDTH) for _ in range(2))
        self.downs = nn.ModuleList(nn.Linear(2 * WIDTH, WIDTH) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for up, down in zip(self.ups, self.downs, strict=True):
            x += down(torch.relu(up(x)))
        return self.head(x)


def test_a_sum_that_is_written_into_the_stream_is_dropped_too() -> None:
    made = WritesItsStream()
    shallow, report = drop_branches(
        models.export(made, torch.zeros(2, models.FEATURES)), share=0.9, kind="mlp", criterion="last"
    )
    x = torch.randn(3, models.FEATURES)
    assert len(report.dropped) == 2
    assert torch.allclose(shallow.module(check_guards=False)(x), made.head(made.first(x)))


def test_a_branch_is_weighed_by_the_axes_that_live_in_it_alone() -> None:
    module = programs.graph_module(models.layers()[1])
    structure = infer(module)
    inside = {
        each.info.name: {info.kind for info in each.inside}
        for each in branches.droppable(module, structure, branches.KINDS[:2])
    }
    assert inside["layers.0:attention"] == {"head", "qk_width", "v_width"}
    assert inside["layers.2:mlp"] == {"width"}
    stacked = programs.graph_module(models.export(Stacked(2), torch.zeros(2, models.FEATURES)))
    assert branches.droppable(stacked, infer(stacked), ["mlp"]) == []


def test_what_is_left_without_branches_counts_less_by_what_they_hold() -> None:
    module = programs.graph_module(models.layers()[1])
    structure = infer(module)
    dropped = branches.droppable(module, structure, ["mlp"])[:2]
    left = branches.without(structure, branches.gone(module, [each.branch for each in dropped]))
    assert structure.count_parameters() - left.count_parameters() == sum(each.branch.parameters for each in dropped)
    assert branches.without(structure, frozenset()).count_parameters() == structure.count_parameters()
