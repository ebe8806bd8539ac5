"""Programs that cannot be pruned as they are: every operation refuses them in a sentence, and modifies none."""

import functools
from collections.abc import Callable

import models
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn import functional

from secateur import InputError, Ratio, Unstructured, drop_branches, prune, sensitivity, sparsify
from secateur import program as programs
from secateur.pruning import Choice, check_prunable

X, Y = torch.from_numpy(models.images(4)), torch.arange(4) % models.CLASSES
OPERATIONS: dict[str, Callable[[ExportedProgram], object]] = {
    "prune": lambda program: prune(program, goal=Ratio(0.5)),
    "check_prunable": lambda program: check_prunable(program, Choice(kinds=("channel", "width"))),
    "sparsify": lambda program: sparsify(program, pattern=Unstructured(0.5)),
    "drop_branches": lambda program: drop_branches(program, share=0.6, kind="block", criterion="last"),
    "sensitivity": lambda program: sensitivity(program, calibration=[(X, Y)], shares=(0.5,)),
}
EVERY_OPERATION = pytest.mark.parametrize("operation", OPERATIONS)


@EVERY_OPERATION
def test_a_program_is_not_modified_by_any_operation(operation: str) -> None:
    program = models.exported("residual")
    before = programs.digest(program)
    OPERATIONS[operation](program)
    assert programs.digest(program) == before


class AlwaysDrops(nn.Module):
    """Its dropout does not ask whether the network is in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, models.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(functional.dropout(self.stem(x).mean((2, 3)), 0.5))


@functools.cache
def in_training(decomposed: bool) -> list[ExportedProgram]:
    given = [torch.export.export(made, (X,)) for made in (models.Residual().train(), AlwaysDrops())]
    return [program.run_decompositions() for program in given] if decomposed else given


@EVERY_OPERATION
@pytest.mark.parametrize("decomposed", [False, True])
def test_an_export_in_training_mode_is_refused(operation: str, decomposed: bool) -> None:
    for program in in_training(decomposed):
        with pytest.raises(
            InputError, match=r"^program: expected an export in evaluation mode, found aten.*; call model."
        ):
            OPERATIONS[operation](program)


class Branching(nn.Module):
    """Which layer an image goes through depends on what it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, models.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean((2, 3))
        return self.head(torch.cond(x.sum() > 0, lambda x: self.first(x), lambda x: self.second(x), (x,)))


@functools.cache
def branching() -> ExportedProgram:
    return torch.export.export(Branching().eval(), (X,))


@EVERY_OPERATION
def test_control_flow_is_refused_by_its_name(operation: str) -> None:
    with pytest.raises(
        InputError, match=r"^program: expected a graph without control flow, found cond; export a model"
    ):
        OPERATIONS[operation](branching())


@torch.library.custom_op("secateur_tests::doubled", mutates_args=())
def doubled(x: torch.Tensor) -> torch.Tensor:
    """An operator that no rule knows."""
    return x * 2


@doubled.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Unknown(nn.Module):
    """Two hidden layers, the first of them read by an operator that no rule knows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, models.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(doubled(self.first(x)))))


def test_a_custom_operator_freezes_what_it_touches_and_nothing_else() -> None:
    program = models.export(Unknown(), torch.zeros(2, models.FEATURES))
    _, report = prune(program, goal=Ratio(0.5))
    assert [cut.name for cut in report.axes] == ["second:width"]
    assert "doubled" in dict(report.frozen)["first:width"]


def test_where_a_custom_operator_leaves_nothing_to_cut_the_error_names_it() -> None:
    program = models.export(Unknown(), torch.zeros(2, models.FEATURES))
    with pytest.raises(InputError, match=r"^kinds: expected .*; frozen: first:width meets .*doubled, which no rule"):
        prune(program, goal=Ratio(0.5), exclude=["second:*"])


class Quantised(nn.Module):
    """A layer of 8-bit integers and a scale for each output, and one in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("integers", torch.randint(-127, 127, (6, 4), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(6, 1))
        self.second, self.head = nn.Linear(6, 6), nn.Linear(6, models.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.linear(x, self.integers.float() * self.scales)
        return self.head(torch.relu(self.second(torch.relu(x))))


class Spectral(nn.Module):
    """A layer of complex numbers between real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, models.CLASSES)
        self.filters = nn.Parameter(torch.randn(6, 6, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (self.first(x).to(torch.complex64) @ self.filters).abs()
        return self.head(torch.relu(self.second(x)))


@pytest.mark.parametrize(
    ("made", "reason"), [(Quantised, "integers holds int8"), (Spectral, "filters holds complex64")]
)
@pytest.mark.parametrize("criterion", ["l2", "fisher", "movement", "wanda"])
def test_weights_that_are_no_real_numbers_are_left_alone_with_the_reason(
    made: type[nn.Module], reason: str, criterion: str
) -> None:
    program = models.export(made(), torch.zeros(2, models.FEATURES))
    data = [(torch.from_numpy(models.vectors(4)), torch.zeros(4, dtype=torch.long))]
    _, report = prune(program, goal=Ratio(0.5), criterion=criterion, calibration=data)
    assert [cut.name for cut in report.axes] == ["second:width"]
    assert reason in {why for _, why in report.frozen}


def test_a_program_without_parameters_is_refused() -> None:
    program = models.export(nn.ReLU(), torch.zeros(2, models.FEATURES))
    with pytest.raises(InputError, match=r"the program has none; frozen: none"):
        prune(program, goal=Ratio(0.5))
