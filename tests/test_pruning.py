"""The cut as a user calls it: the goal is met, the report is true, and what cannot be done is refused in a sentence."""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from secateur import (
    InputError,
    KvCache,
    Macs,
    Parameters,
    Ratio,
    Report,
    Speedup,
    prune,
    replay,
)
from secateur import program as programs
from secateur.allocate import Goal
from secateur.axes.infer import infer
from secateur.pruning import MASKED_TOLERANCE, Choice, check_prunable, choose, reachable

ALL_KINDS = ("head", "kv_group", "q_per_group", "qk_width", "v_width", "embedding", "channel", "width")


def parameters(program: ExportedProgram) -> int:
    return sum(p.numel() for p in programs.graph_module(program).parameters())


@pytest.fixture(scope="module")
def halved() -> tuple[ExportedProgram, Report]:
    return prune(models.exported("residual"), goal=Ratio(0.5))


def test_a_ratio_halves_every_axis(halved: tuple[ExportedProgram, Report]) -> None:
    widths = {(cut.before, cut.after) for cut in halved[1].axes}
    assert widths == {(models.CHANNELS, models.CHANNELS // 2), (models.HIDDEN, models.HIDDEN // 2)}


def test_the_report_counts_what_the_programs_hold(halved: tuple[ExportedProgram, Report]) -> None:
    pruned, report = halved
    dense = models.exported("residual")
    assert (report.parameters_before, report.parameters_after) == (parameters(dense), parameters(pruned))
    assert report.sparsity == 1 - parameters(pruned) / parameters(dense)
    for program, macs in ((dense, report.macs_before), (pruned, report.macs_after)):
        again = infer(programs.graph_module(program))
        assert again.count_macs(programs.per_example_symbols(program)) == macs


def test_the_report_gives_the_reason_of_every_frozen_axis(halved: tuple[ExportedProgram, Report]) -> None:
    spatial = "is a spatial or sequence dimension"  # the flattened classifier's weight holds positions too
    assert {reason for _, reason in halved[1].frozen} == {"is a graph input", "is a graph output", spatial}


def test_the_report_prints_every_axis_and_the_totals(halved: tuple[ExportedProgram, Report]) -> None:
    report = halved[1]
    printed = str(report)
    for axis in report.axes:
        (line,) = [line for line in printed.splitlines() if axis.name in line and "frozen" not in line]
        assert str(axis.before) in line
        assert str(axis.after) in line
    assert f"{report.parameters_before:,} -> {report.parameters_after:,} ({report.sparsity:.1%} removed)" in printed
    assert f"MACs {report.macs_before:,} -> {report.macs_after:,}" in printed


def test_the_cut_equals_the_masked_program(halved: tuple[ExportedProgram, Report]) -> None:
    assert halved[1].masked_error is not None
    assert halved[1].masked_error <= MASKED_TOLERANCE


def test_no_masked_error_is_claimed_where_a_normalisation_runs_over_a_cut_axis() -> None:
    _, report = prune(models.exported("encoder"), goal=Ratio(0.5), kinds=["embedding"])
    assert report.masked_error is None


def test_the_pruned_program_takes_any_batch(halved: tuple[ExportedProgram, Report]) -> None:
    module = halved[0].module(check_guards=False)
    for batch in (1, 7):
        assert module(torch.from_numpy(models.images(batch))).shape == (batch, models.CLASSES)


def test_the_input_program_is_not_modified() -> None:
    program = models.exported("branches")
    before = programs.digest(program)
    prune(program, goal=Ratio(0.5))
    assert programs.digest(program) == before


def test_a_pruned_program_can_be_saved_loaded_and_pruned_again(
    halved: tuple[ExportedProgram, Report], tmp_path: Path
) -> None:
    programs.save(halved[0], tmp_path / "cut.pt2")
    again, report = prune(programs.load(tmp_path / "cut.pt2"), goal=Ratio(0.5))
    assert report.parameters_before == halved[1].parameters_after
    assert parameters(again) == report.parameters_after < report.parameters_before


def test_the_strongest_units_stay_in_their_order() -> None:
    made = models.Perceptron()
    strength = torch.tensor([5.0, 1.0, 6.0, 2.0, 4.0, 3.0])
    with torch.no_grad():
        made.first.weight.copy_(strength[:, None].expand(-1, models.FEATURES))
        made.second.weight.zero_()
    pruned, report = prune(models.export(made, torch.zeros(2, models.FEATURES)), goal=Ratio(0.5))
    assert pruned.state_dict["first.weight"][:, 0].tolist() == [5.0, 6.0, 4.0]
    assert (report.axes[0].lowest_score, report.axes[0].highest_score) == (4.0, 144.0)


def test_of_equal_units_the_earlier_stay() -> None:
    made = models.Perceptron()
    with torch.no_grad():
        made.first.weight.fill_(1.0)
        made.second.weight.fill_(1.0)
        made.first.bias.copy_(torch.arange(models.HIDDEN))
    pruned, _ = prune(models.export(made, torch.zeros(2, models.FEATURES)), goal=Ratio(0.5))
    assert pruned.state_dict["first.bias"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("goal", [Parameters(0.4), Macs(0.4)])
def test_a_goal_for_the_whole_program_is_reached_within_one_step(goal: Goal) -> None:
    _, report = prune(models.exported("residual"), goal=goal)
    removed = report.sparsity if isinstance(goal, Parameters) else 1 - report.macs_after / report.macs_before
    assert removed == pytest.approx(goal.share, abs=1 / models.HIDDEN)


@pytest.mark.parametrize("kinds", [("kv_group",), ("q_per_group",), ("qk_width", "v_width"), ALL_KINDS])
def test_only_the_asked_kinds_are_cut_from_attention(kinds: tuple[str, ...]) -> None:
    pruned, report = prune(models.exported("encoder"), goal=Ratio(0.5), kinds=kinds)
    assert {cut.kind for cut in report.axes} == set(kinds) - {"head", "channel"}
    assert pruned.module(check_guards=False)(torch.from_numpy(models.tokens(4))).shape == (4, models.CLASSES)


def test_the_same_call_gives_the_same_program(halved: tuple[ExportedProgram, Report]) -> None:
    again, report = prune(models.exported("residual"), goal=Ratio(0.5))
    assert programs.digest(again) == programs.digest(halved[0])
    assert report == halved[1]


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_a_share_outside_of_zero_to_one_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=rf"^goal: expected a share between 0 and 1 .*share={share}"):
        prune(models.exported("perceptron"), goal=Ratio(share))


def test_an_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InputError, match=r"^kinds: expected some of expert, head, .*width, attention, .*layer, got neuron, stage$"
    ):
        prune(models.exported("perceptron"), goal=Ratio(0.5), kinds=["width", "neuron", "stage"])


def test_an_unknown_criterion_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"^criterion: expected one of random, l1, l2, .*, got 'l3'$"):
        prune(models.exported("perceptron"), goal=Ratio(0.5), criterion="l3")


def test_an_alignment_below_one_is_refused() -> None:
    with pytest.raises(InputError, match=r"^align: expected a multiple of at least 1, got 0$"):
        prune(models.exported("perceptron"), goal=Ratio(0.5), align=0)


def test_a_program_without_the_asked_kinds_is_refused_with_what_it_has_and_why_not_more() -> None:
    with pytest.raises(InputError) as error:
        prune(models.exported("perceptron"), goal=Ratio(0.5), kinds=["head", "channel"])
    for part in ("kinds: expected at least one axis of head, channel", "the program has width", "is a graph input"):
        assert part in str(error.value)


def test_a_goal_that_would_remove_nothing_is_refused() -> None:
    with pytest.raises(InputError, match=r"^goal: Ratio\(share=0.01\) would remove nothing from 1 axes at align 1"):
        prune(models.exported("perceptron"), goal=Ratio(0.01))


def test_a_goal_beyond_reach_is_refused() -> None:
    with pytest.raises(InputError, match=r"^goal: Parameters\(share=0.99\) asks for more"):
        prune(models.exported("perceptron"), goal=Parameters(0.99))


def test_prunable_choices_are_checked_before_any_goal_is_known() -> None:
    check_prunable(models.exported("perceptron"), Choice(kinds=("width",), criterion="l2"))
    with pytest.raises(InputError, match=r"^kinds: expected at least one axis of head"):
        check_prunable(models.exported("perceptron"), Choice(kinds=("head",), criterion="l2"))
    with pytest.raises(InputError, match=r"^criterion:"):
        check_prunable(models.exported("perceptron"), Choice(kinds=("width",), criterion="l3"))


def test_outputs_that_are_not_numbers_are_never_called_equal() -> None:
    made = models.Perceptron()
    with torch.no_grad():
        made.second.bias[0] = float("nan")
    with pytest.raises(RuntimeError, match="differs from the masked dense one"):
        prune(models.export(made, torch.zeros(2, models.FEATURES)), goal=Ratio(0.5))


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm2d(6), nn.BatchNorm2d(6, track_running_stats=False)], ids=["instance", "batch"]
)
def test_a_norm_without_running_statistics_goes_on_using_those_of_its_input(norm: nn.Module) -> None:
    made = nn.Sequential(nn.Conv2d(3, 6, 1), norm, nn.ReLU(), nn.Conv2d(6, 3, 1))
    pruned, report = prune(models.export(made, torch.from_numpy(models.images(2))), goal=Ratio(0.5))
    assert report.axes[0].after == 3
    assert pruned.module(check_guards=False)(torch.from_numpy(models.images(5))).shape == (5, *models.IMAGE)


class FixedBatch(nn.Module):
    """Four sequences of any length: the batch is part of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)).view(4, -1, 6).mean(1))


def test_a_program_whose_batch_is_fixed_beside_a_dynamic_length_can_be_cut() -> None:
    inputs = torch.zeros(4, 5, 4)
    program = torch.export.export(FixedBatch(), (inputs,), dynamic_shapes=({1: Dim.AUTO},))
    pruned, report = prune(program, goal=Ratio(0.5))
    assert report.axes[0].after == 3
    assert pruned.module(check_guards=False)(torch.zeros(4, 9, 4)).shape == (4, 3)


def test_a_program_of_fixed_shape_can_be_cut() -> None:
    inputs = torch.from_numpy(models.vectors(3))
    program = torch.export.export(models.module("perceptron"), (inputs,))
    pruned, report = prune(program, goal=Ratio(0.5))
    assert report.masked_error is not None
    assert np.isfinite(pruned.module(check_guards=False)(inputs).detach().numpy()).all()


def test_globs_choose_axes_by_module_path_and_kind() -> None:
    def cut(**globs: list[str]) -> list[str]:
        return [axis.name for axis in prune(models.exported("residual"), goal=Ratio(0.5), **globs)[1].axes]

    assert cut(include=["inner:*"]) == ["inner:channel"]
    assert cut(exclude=["inner*"]) == ["stem:channel"]
    assert cut(include=["*:channel"], exclude=["st?m:*"]) == ["inner:channel"]


@pytest.mark.parametrize("globs", [{"include": ["stem:*", "nothing:*"]}, {"exclude": ["nothing:*"]}], ids=str)
def test_a_glob_that_matches_no_axis_is_refused(globs: dict[str, list[str]]) -> None:
    with pytest.raises(
        InputError, match=r"^include/exclude: 'nothing:\*' matches none of \d axes, such as stem:channel$"
    ):
        prune(models.exported("residual"), goal=Ratio(0.5), **globs)


def test_globs_that_exclude_every_axis_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"^kinds: expected at least one axis of .* and is not excluded; the program has"
    ):
        prune(models.exported("residual"), goal=Ratio(0.5), exclude=["*"])


def test_asking_by_name_for_what_cannot_be_cut_is_refused_with_the_reason() -> None:
    with pytest.raises(
        InputError, match=r"^include: 'second:\*' matches only what cannot be cut: second:width is a graph"
    ):
        prune(models.exported("perceptron"), goal=Ratio(0.5), include=["second:*", "first:*"])


def test_a_ratio_that_the_floor_forbids_is_refused_with_the_share_that_is_left() -> None:
    with pytest.raises(InputError, match=r"^goal: Ratio\(share=0.7\) is out of reach at floor 0.5: .* at most 0.500"):
        prune(models.exported("residual"), goal=Ratio(0.7), floor=0.5)
    _, report = prune(models.exported("residual"), goal=Ratio(0.5), floor=0.5)
    assert {(cut.before, cut.after) for cut in report.axes} == {(8, 4), (6, 3)}


@pytest.mark.parametrize("goal", [Parameters(0.05), Macs(0.05), Ratio(0.05)])
def test_a_small_goal_is_not_rounded_up_to_a_large_cut(goal: Goal) -> None:
    """The trap of rounding that over-prunes: one step of 8 would take half of the only axis."""
    program = models.export(models.Perceptron(hidden=16), torch.zeros(2, models.FEATURES))
    with pytest.raises(InputError, match=r"would remove nothing from 1 axes at align 8; ask for more or lower it"):
        prune(program, goal=goal, align=8)


@pytest.mark.parametrize("allocation", ["uniform", "global", "grouped"])
def test_of_units_that_all_score_the_same_exactly_the_asked_share_goes(allocation: str) -> None:
    """The trap of global thresholds with ties: a threshold would take nothing or everything."""
    made = models.Residual()
    for parameter in made.parameters():
        nn.init.constant_(parameter, 0.5)
    program = models.export(made, torch.from_numpy(models.images(2)))
    _, report = prune(program, goal=Ratio(0.5), allocation=allocation)
    assert sum(cut.before - cut.after for cut in report.axes) == (models.CHANNELS + models.HIDDEN) // 2


@pytest.mark.parametrize("criterion", ["taylor", "fisher", "gradient"])
def test_a_fixed_batch_is_refused_where_single_examples_are_needed(criterion: str) -> None:
    x, y = torch.from_numpy(models.vectors(3)), torch.zeros(3, dtype=torch.long)
    program = torch.export.export(models.module("perceptron"), (x,))
    with pytest.raises(InputError, match=r"^calibration: expected a program that takes one example at a time"):
        prune(program, goal=Ratio(0.5), criterion=criterion, calibration=[(x, y)])
    _, report = prune(program, goal=Ratio(0.5), criterion="wanda", calibration=[(x, y)])
    assert report.axes[0].after == 3


def test_a_replayed_cut_is_the_cut(halved: tuple[ExportedProgram, Report]) -> None:
    """The trap of a history that does not replay."""
    again, report = replay(models.exported("residual"), halved[1].kept)
    assert programs.digest(again) == programs.digest(halved[0])
    assert report.kept == halved[1].kept


def test_a_history_replays_from_its_text(halved: tuple[ExportedProgram, Report]) -> None:
    second, report = prune(halved[0], goal=Ratio(0.5), criterion="random", seed=3)
    history = json.loads(json.dumps([halved[1].kept, report.kept]))
    program = models.exported("residual")
    for kept in history:
        program, _ = replay(program, kept)
    assert programs.digest(program) == programs.digest(second)


def test_replay_with_early_weights_rewinds_the_survivors(halved: tuple[ExportedProgram, Report]) -> None:
    """Lottery-ticket rewinding: the units are those that the trained weights chose, the values the early ones."""
    torch.manual_seed(11)
    early = models.Residual()
    ticket, _ = replay(models.export(early, torch.from_numpy(models.images(2))), halved[1].kept)
    kept = {name: torch.tensor(units) for name, units in halved[1].kept.items()}
    stem, inner = kept["stem:channel"], kept["inner:channel"]
    assert torch.equal(ticket.state_dict["inner.weight"], early.inner.weight[inner][:, stem])
    assert torch.equal(ticket.state_dict["outer.weight"], early.outer.weight[stem][:, inner])
    assert torch.equal(ticket.state_dict["stem.weight"], early.stem.weight[stem])


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"other:channel": (0, 1)}, r"^kept: expected axes of this program, got 'other:channel'; it is not the model"),
        ({"stem:channel": (0, 8)}, r"^kept: expected ascending units below 8 for stem:channel"),
        ({"stem:channel": (1, 0)}, r"^kept: expected ascending units"),
        ({"stem:channel": (1, 1)}, r"^kept: expected ascending units"),
        ({"stem:channel": (-1, 1)}, r"^kept: expected ascending units"),
        ({"stem:channel": ()}, r"^kept: expected ascending units"),
    ],
)
def test_a_history_of_another_program_is_refused(kept: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replay(models.exported("residual"), kept)


class Hiding(nn.Module):
    """Hides other features each time, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x * (torch.rand(x.shape) > 0.5)).relu())


def test_a_program_that_draws_random_numbers_is_held_against_the_same_draws() -> None:
    program = models.export(Hiding(), torch.randn(2, 4))
    state = torch.random.get_rng_state()
    report = prune(program, goal=Ratio(0.5), criterion="l2")[1]
    assert report.masked_error is not None
    assert torch.equal(torch.random.get_rng_state(), state)


WHOLE: dict[str, Any] = {"kinds": ("head", "width", "attention", "mlp"), "allocation": "knapsack"}


def latency(widths: Mapping[str, int]) -> float:
    """Seconds of `models.layers()` with these units left: each branch takes a fixed time beside that of its units."""
    seconds = 1.0
    for i in range(3):
        for branch, axis, size in (
            (f"layers.{i}:attention", f"layers.{i}.query:head", 4),
            (f"layers.{i}:mlp", f"layers.{i}.up:width", 8),
        ):
            seconds += widths.get(branch, 1) * (1.0 + widths.get(axis, size) / size)
    return seconds


@pytest.fixture(scope="module")
def shallow() -> tuple[ExportedProgram, Report]:
    """Twice as fast, which no widths give alone."""
    program = models.layers()[1]
    with pytest.raises(InputError, match=r"^goal: Speedup.* asks for more than these 6 axes can give"):
        prune(program, goal=Speedup(2.0, latency), kinds=["head", "width"], allocation="knapsack")
    return prune(program, goal=Speedup(2.0, latency), **WHOLE)


def test_a_speedup_that_widths_cannot_give_is_reached_by_dropping_branches(
    shallow: tuple[ExportedProgram, Report],
) -> None:
    left = {cut.name: cut.after for cut in shallow[1].axes}
    assert any(width == 0 for width in left.values())
    assert latency(left) <= latency({}) / 2
    gone = [name for name, width in left.items() if width == 0]
    inside = {"attention": "query:head", "mlp": "up:width"}
    lost = {f"{name.partition(':')[0]}.{inside[name.rpartition(':')[2]]}" for name in gone}
    assert lost.isdisjoint(left)


def test_the_shallow_program_computes_what_the_network_does_without_these_branches_and_units(
    shallow: tuple[ExportedProgram, Report],
) -> None:
    pruned, report = shallow
    made, program = models.layers()
    eager = copy.deepcopy(made)
    with torch.no_grad():
        for name, kept in report.kept.items():
            path, _, kind = name.partition(":")
            part = eager.get_submodule(path)
            if kind in ("attention", "mlp"):  # what ends a branch adds nothing
                for tensor in (part.out if kind == "attention" else part.down).parameters():
                    tensor.zero_()
            elif kind == "width":
                gone = np.setdiff1d(np.arange(models.CHANNELS), kept)
                part.weight[gone], part.bias[gone] = 0, 0
            else:
                values = eager.get_submodule(path.replace("query", "value"))
                gone = np.delete(np.arange(models.EMBEDDING).reshape(models.HEADS, -1), kept, 0).ravel()
                values.weight[gone], values.bias[gone] = 0, 0
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 7, models.EMBEDDING)).astype(np.float32))[
        :, : models.LENGTH
    ]
    assert torch.allclose(pruned.module(check_guards=False)(x), eager(x), atol=1e-5)
    assert report.masked_error is not None
    assert report.masked_error <= MASKED_TOLERANCE
    assert not torch.allclose(eager(x), made(x), atol=1e-3)
    assert report.parameters_after == parameters(pruned) == sum(t.numel() for t in pruned.state_dict.values())
    assert report.parameters_before == parameters(program)


def test_a_cut_with_dropped_branches_replays_from_its_text(shallow: tuple[ExportedProgram, Report]) -> None:
    again, report = replay(models.layers()[1], json.loads(json.dumps(shallow[1].kept)))
    assert programs.digest(again) == programs.digest(shallow[0])
    assert report.kept == shallow[1].kept
    gone = next(name for name, units in shallow[1].kept.items() if not units)
    with pytest.raises(InputError, match=rf"^kept: expected branches of this program, got '{gone}'"):
        replay(shallow[0], {gone: ()})


def test_as_far_as_it_goes_one_branch_of_each_kind_is_left_at_its_narrowest() -> None:
    most = reachable(models.layers()[1], Choice(**WHOLE), Speedup(2.0, latency))
    assert most == pytest.approx(1 - (1 + 1 + 1 / 4 + 1 + 1 / 8) / latency({}))


@pytest.mark.parametrize("goal", [Parameters, Macs, Ratio, KvCache])
def test_branches_bring_every_goal_further(goal: type[Goal]) -> None:
    program, widths = models.layers()[1], Choice(kinds=("head", "width"))
    assert reachable(program, widths, goal(0.5)) + 0.05 < reachable(program, Choice(**WHOLE), goal(0.5)) < 1


def test_branches_are_chosen_by_globs_and_stay_where_an_axis_inside_is_excluded() -> None:
    module = programs.graph_module(models.layers()[1], shared=True)
    structure = infer(module)

    def chosen(**globs: tuple[str, ...]) -> set[str]:
        return {each.info.name for each in choose(module, structure, Choice(**WHOLE, **globs))[1]}

    everything = chosen()
    assert everything == {f"layers.{i}:{kind}" for i in range(3) for kind in ("attention", "mlp")}
    assert chosen(exclude=("*:mlp", "layers.0.query:qk_width")) == {"layers.1:attention", "layers.2:attention"}
    assert chosen(include=("layers.1*",)) == {"layers.1:attention", "layers.1:mlp"}


@pytest.mark.parametrize(
    ("program", "choice", "message"),
    [
        ("layers", {"kinds": ["width", "mlp"]}, r"^allocation: expected knapsack, which alone weighs branches \(mlp\)"),
        (
            "layers",
            {"kinds": ["mlp", "layer"], "allocation": "knapsack"},
            r"^kinds: expected branches that lie beside each other, layers.0:layer holds layers.0:mlp; ask for layer or for mlp",
        ),
        (
            "layers",
            {"kinds": ["width", "block"], "allocation": "knapsack"},
            r"^kinds: expected branches of block, found attention, layer, mlp",
        ),
        (
            "perceptron",
            {"kinds": ["width", "mlp"], "allocation": "knapsack"},
            r"^kinds: expected branches of mlp, found none of any kind",
        ),
    ],
)
def test_branches_that_cannot_be_weighed_are_refused(program: str, choice: dict[str, Any], message: str) -> None:
    made = models.layers()[1] if program == "layers" else models.exported(program)
    with pytest.raises(InputError, match=message):
        prune(made, goal=Macs(0.5), **choice)
