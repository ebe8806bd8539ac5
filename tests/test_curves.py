"""Sensitivity curves are the losses of cuts made one by one, survive an interruption, and steer the allocation."""

import functools
import json
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur import InputError, Parameters, Ratio, prune, sensitivity
from secateur import program as programs
from secateur.calibration import Batch
from secateur.curves import lost, mean_loss
from secateur.objectives import OBJECTIVES

WIDTH = 8
SHARES = (0.25, 0.5, 0.75)
Curve = dict[float, float]


class TwoHidden(nn.Module):
    """Vectors [N, 4] to logits through two hidden layers."""

    def __init__(self, first: int = WIDTH, second: int = WIDTH) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(models.FEATURES, first), nn.Linear(first, second)
        self.head = nn.Linear(second, models.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))))


@pytest.fixture(scope="module")
def made() -> nn.Module:
    """Half of the first layer's units do nothing; every unit of the second one is needed, each for a class."""
    with torch.random.fork_rng():
        torch.manual_seed(6)
        module = TwoHidden()
    with torch.no_grad():
        module.first.weight[WIDTH // 2 :] = 0
        module.first.bias[WIDTH // 2 :] = 0
        module.second.weight[:, WIDTH // 2 :] = 0
        module.second.bias.fill_(0.5)
        module.head.weight.mul_(50)  # sure of its answers: whatever changes them costs
    return module


@pytest.fixture(scope="module")
def program(made: nn.Module) -> torch.export.ExportedProgram:
    return models.export(made, torch.zeros(2, models.FEATURES))


@pytest.fixture(scope="module")
def data(made: nn.Module) -> list[Batch]:
    """Two batches of unlike sizes, labelled by the network itself."""
    x = torch.from_numpy(models.vectors(50))
    y = made(x).argmax(1)
    return [(x[:40], y[:40]), (x[40:], y[40:])]


@pytest.fixture(scope="module")
def curves(program: torch.export.ExportedProgram, data: list[Batch]) -> dict[str, Curve]:
    return dict(sensitivity(program, calibration=data, shares=SHARES, cost=functional.cross_entropy))


def loss_of(module: nn.Module, data: list[Batch]) -> float:
    with torch.no_grad():
        return float(functional.cross_entropy(module(torch.cat([x for x, _ in data])), torch.cat([y for _, y in data])))


def cut_by_hand(made: nn.Module, layer: str, count: int) -> nn.Module:
    """The eager network with the `count` units of one hidden layer that have the largest L2 norm, in their order."""
    into, out = (made.first, made.second) if layer == "first" else (made.second, made.head)
    norms = into.weight.square().sum(1) + out.weight.square().sum(0)
    kept = norms.argsort(descending=True, stable=True)[:count].sort().values
    small = TwoHidden(*((count, WIDTH) if layer == "first" else (WIDTH, count)))
    small.load_state_dict(
        {
            **made.state_dict(),
            f"{layer}.weight": into.weight[kept],
            f"{layer}.bias": into.bias[kept],
            ("second" if layer == "first" else "head") + ".weight": out.weight[:, kept],
        }
    )
    return small


@pytest.mark.parametrize("layer", ["first", "second"])
def test_each_share_has_the_loss_of_the_network_cut_by_hand(
    layer: str, made: nn.Module, data: list[Batch], curves: dict[str, Curve]
) -> None:
    curve = curves[f"{layer}:width"]
    assert list(curve) == [0.0, 0.25, 0.5, 0.75]
    assert curve[0.0] == pytest.approx(loss_of(made, data), rel=1e-4, abs=1e-6)
    for share in (0.25, 0.5, 0.75):
        small = cut_by_hand(made, layer, round(WIDTH * (1 - share)))
        assert curve[share] == pytest.approx(loss_of(small, data), rel=1e-4, abs=1e-6)


def test_the_loss_is_the_mean_over_examples_and_not_over_batches(
    made: nn.Module, program: torch.export.ExportedProgram, data: list[Batch]
) -> None:
    module = programs.graph_module(program)
    assert mean_loss(module, data, functional.cross_entropy) == pytest.approx(loss_of(made, data), rel=1e-4, abs=1e-6)


def test_the_program_that_was_given_stays_as_it_was(program: torch.export.ExportedProgram, data: list[Batch]) -> None:
    before = programs.digest(program)
    sensitivity(program, calibration=data, shares=(0.5,))
    assert programs.digest(program) == before


def test_an_interrupted_measurement_goes_on_where_it_stopped(
    program: torch.export.ExportedProgram, data: list[Batch], curves: dict[str, Curve], tmp_path: Path
) -> None:
    path = tmp_path / "curves.json"
    measure = functools.partial(
        sensitivity, program, calibration=data, shares=SHARES, cost=functional.cross_entropy, path=path
    )

    def stop(name: str, curve: Curve) -> None:
        raise ConnectionError("the machine is gone")

    with pytest.raises(ConnectionError):
        measure(on_axis=stop)
    told: list[str] = []
    resumed = measure(on_axis=lambda name, _: told.append(name))
    assert told == ["second:width"]
    assert resumed == curves
    assert list(tmp_path.iterdir()) == [path]
    again = measure(on_axis=stop)  # nothing is left to measure
    assert again == curves


def test_a_narrower_choice_of_axes_takes_what_the_file_has(
    program: torch.export.ExportedProgram, data: list[Batch], curves: dict[str, Curve], tmp_path: Path
) -> None:
    path = tmp_path / "curves.json"
    measure = functools.partial(
        sensitivity, program, calibration=data, shares=SHARES, cost=functional.cross_entropy, path=path
    )
    measure(include=["first:*"])
    assert list(json.loads(path.read_text())["curves"]) == ["first:width"]
    assert measure(exclude=["second:*"]) == {"first:width": curves["first:width"]}


@pytest.mark.parametrize("other", ["program", "data", "shares", "criterion", "seed"])
def test_a_file_of_something_else_is_refused(
    other: str, made: nn.Module, program: torch.export.ExportedProgram, data: list[Batch], tmp_path: Path
) -> None:
    path = tmp_path / "curves.json"
    given = {"shares": (0.5,), "criterion": "l2", "seed": 0}
    sensitivity(program, calibration=data, path=path, include=["first:*"], **given)
    if other == "program":
        module = programs.graph_module(program)
        with torch.no_grad():
            module.get_parameter("head.bias").add_(1e-3)
        program = programs.reexport(module, program)
    if other == "data":
        data = [(x + 1e-3, y) for x, y in data]
    changed = {"shares": (0.25,), "criterion": "l1", "seed": 1}
    given |= {name: value for name, value in changed.items() if name == other}
    with pytest.raises(InputError, match=r"^path: .* holds curves of another program, other calibration data or other"):
        sensitivity(program, calibration=data, path=path, include=["first:*"], **given)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"key": 1, "curves": [1]}', '{"curves": {"a": [[0, "x"]]}}'])
def test_a_file_that_holds_no_curves_is_refused(
    content: str, program: torch.export.ExportedProgram, data: list[Batch], tmp_path: Path
) -> None:
    path = tmp_path / "curves.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"^path: expected curves that secateur.sensitivity wrote in"):
        sensitivity(program, calibration=data, shares=SHARES, cost=functional.cross_entropy, path=path)


@pytest.mark.parametrize("share", [0.0, 1.0, -1.0, float("nan")])
def test_a_share_outside_of_zero_to_one_is_refused(
    share: float, program: torch.export.ExportedProgram, data: list[Batch]
) -> None:
    with pytest.raises(InputError, match=r"^shares: expected shares between 0 and 1"):
        sensitivity(program, calibration=data, shares=(0.5, share))


def test_measuring_without_data_is_refused(program: torch.export.ExportedProgram) -> None:
    with pytest.raises(InputError, match=r"^calibration: expected at least one batch"):
        sensitivity(program, calibration=[])


def test_the_allocation_spares_the_sensitive_axis(
    program: torch.export.ExportedProgram, data: list[Batch], curves: dict[str, Curve]
) -> None:
    """Half of the first layer is free to take: it goes first, and only then the second layer."""
    assert curves["first:width"][0.5] == pytest.approx(curves["first:width"][0.0], rel=1e-4, abs=1e-6)
    assert curves["second:width"][0.25] > curves["second:width"][0.0]
    _, report = prune(program, goal=Ratio(0.25), allocation="sensitivity", curves=curves)
    assert [(cut.name, cut.after) for cut in report.axes] == [("first:width", WIDTH // 2)]
    swapped = {"first:width": curves["second:width"], "second:width": curves["first:width"]}
    _, report = prune(program, goal=Ratio(0.25), allocation="sensitivity", curves=swapped)
    assert [(cut.name, cut.after) for cut in report.axes] == [("second:width", WIDTH // 2)]


def test_a_goal_in_parameters_is_reached_by_the_curves(
    program: torch.export.ExportedProgram, curves: dict[str, Curve]
) -> None:
    _, report = prune(program, goal=Parameters(0.3), allocation="sensitivity", curves=curves)
    step = (models.FEATURES + 1 + WIDTH) / report.parameters_before
    assert report.sparsity == pytest.approx(0.3, abs=step)
    assert [cut.name for cut in report.axes] == ["first:width"]


def test_an_axis_without_a_curve_is_refused(program: torch.export.ExportedProgram, curves: dict[str, Curve]) -> None:
    with pytest.raises(InputError, match=r"^curves: expected one for every chosen axis, second:width has none"):
        prune(program, goal=Ratio(0.5), allocation="sensitivity", curves={"first:width": curves["first:width"]})
    with pytest.raises(InputError, match=r"^allocation sensitivity: needs curves; measure them with secateur.sens"):
        prune(program, goal=Ratio(0.5), allocation="sensitivity")


def test_an_unknown_criterion_is_refused(program: torch.export.ExportedProgram, data: list[Batch]) -> None:
    with pytest.raises(InputError, match=r"^criterion: expected one of random, .*, got 'l3'$"):
        sensitivity(program, calibration=data, criterion="l3")


def test_without_a_cost_the_curve_is_how_far_the_answers_move(
    made: nn.Module, program: torch.export.ExportedProgram, data: list[Batch]
) -> None:
    """No label has a say in it."""
    wrong = [(x, (y + 1) % models.CLASSES) for x, y in data]
    seen = sensitivity(program, calibration=data, shares=SHARES)
    assert seen == sensitivity(program, calibration=wrong, shares=SHARES)
    x = torch.cat([x for x, _ in data])
    for layer in ("first", "second"):
        assert seen[f"{layer}:width"][0.0] == pytest.approx(0, abs=1e-6)
        with torch.no_grad():
            dense, cut = made(x).softmax(1), cut_by_hand(made, layer, WIDTH // 2)(x).softmax(1)
        apart = (dense * (dense.clamp_min(1e-30) / cut.clamp_min(1e-30)).log()).sum(1).mean()
        assert seen[f"{layer}:width"][0.5] == pytest.approx(float(apart), rel=1e-3, abs=1e-5)


def test_single_numbers_do_not_diverge() -> None:
    network = nn.Sequential(nn.Linear(models.FEATURES, 8), nn.ReLU(), nn.Linear(8, 1))
    program = models.export(network, torch.zeros(2, models.FEATURES))
    batch = (torch.from_numpy(models.vectors(4)), torch.zeros(4))
    with pytest.raises(InputError, match=r"^cost: expected answers of two or more logits"):
        sensitivity(program, calibration=[batch])
    assert sensitivity(
        program, calibration=[batch], cost=lambda output, target: (output[:, 0] - target).square().mean()
    )


def test_what_a_cut_costs_of_the_metric_has_an_interval_and_nothing_lost_is_nought() -> None:
    targets = np.arange(40) % 2
    right, worse = (targets, targets), (np.where(np.arange(40) < 10, 1 - targets, targets), targets)
    objective = OBJECTIVES["classification"]
    same = lost(0.5, right, right, objective, 0.95, 0)
    assert str(same).startswith("0.0000 (-0.0")
    cost = lost(0.5, right, worse, objective, 0.95, 0)
    assert cost.drop == pytest.approx(0.25)
    assert cost.low < cost.drop < cost.high
