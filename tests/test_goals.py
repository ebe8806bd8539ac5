"""Goals: each is a ratio of the dense model to what is left, whatever it counts or measures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import nn

from secateur import KvCache, Macs, Parameters, Ratio, Speedup, prune, replay
from secateur import program as programs
from secateur.axes.infer import infer
from secateur.errors import InputError
from secateur.latency import timing
from secateur.latency.table import measure
from secateur.pruning import DEFAULT_KINDS, Choice
from secateur.runtime import Target
from tasks import goals, tracking
from tasks.recipe import Goal
from tasks.references import Cycle, Figures, File

NOWHERE = File("runs:/0/none", "")
DENSE = Figures(
    onnx=NOWHERE,
    params=1000,
    macs=8000,
    size_bytes=4_000_000,
    gzip_bytes=3_000_000,
    weight_bytes=4_000,
    accuracy=0.9,
    latency_p50_ms=10.0,
    latency_p90_ms=11.0,
    latency_p99_ms=20.0,
    throughput=100.0,
    peak_memory_bytes=50_000_000,
    kv_cache_bytes=512,
    requests_per_s=40.0,
)
HALF = Figures(
    **{
        **vars(DENSE),
        "params": 500,
        "macs": 4000,
        "size_bytes": 2_000_000,
        "latency_p99_ms": 10.0,
        "peak_memory_bytes": 25_000_000,
        "kv_cache_bytes": 256,
        "requests_per_s": 80.0,
    }
)
CYCLE = Cycle(1, "", NOWHERE, HALF, 0.5, 0.0, 2.0, 1.9, 2.1)
TWICE: list[dict[str, Any]] = [
    {"sparsity": 0.5},
    {"macs": 0.5},
    {"kv_cache": 0.5},
    {"speedup": 2.0},
    {"p99_ms": 10.0},
    {"qps": {"rate": 80.0, "p99_ms": 50.0}},
    {"size_mb": 2.0},
    {"memory_mb": 25.0},
]


def named(goal: dict[str, Any]) -> str:
    return next(iter(goal))


@pytest.mark.parametrize("goal", TWICE, ids=named)
def test_half_of_the_dense_model_is_a_ratio_of_two_and_a_cycle_that_halves_it_has_reached_it(goal: dict) -> None:
    wish = Goal.model_validate(goal)
    assert goals.wanted(wish, DENSE) == pytest.approx(2.0)
    assert goals.reached(wish, DENSE, CYCLE) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "goal",
    [{"p99_ms": 20.0}, {"qps": {"rate": 40.0, "p99_ms": 50.0}}, {"size_mb": 5.0}, {"memory_mb": 50.0}],
    ids=named,
)
def test_what_the_dense_model_does_already_is_a_ratio_of_at_most_one(goal: dict) -> None:
    assert goals.wanted(Goal.model_validate(goal), DENSE) <= 1


def test_sparsity_counts_zeros_as_what_left() -> None:
    sparse = replace(CYCLE, figures=replace(DENSE, zeros=750))
    assert goals.reached(Goal(sparsity=0.5), DENSE, sparse) == pytest.approx(4.0)
    assert goals.reached(Goal(macs=0.5), DENSE, sparse) == pytest.approx(1.0)


def test_every_goal_of_a_recipe_is_tested_here() -> None:
    assert {named(goal) for goal in TWICE} == set(Goal.model_fields)


@pytest.mark.parametrize("goal", TWICE, ids=named)
def test_without_a_latency_table_time_is_asked_for_in_multiply_accumulates_and_size_in_parameters(goal: dict) -> None:
    program = models.exported("encoder")
    ask = goals.asking(Goal.model_validate(goal), None, program)
    counted = {"macs": Macs, "kv_cache": KvCache, **dict.fromkeys(goals.TIMES, Macs)}.get(named(goal), Parameters)
    assert ask(4.0) == counted(0.75)
    assert goals.most(ask, program, Choice()) > 1


class SharedKeys(nn.Module):
    """Attention to a table that all examples share: nothing of it is kept for an example."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.query = nn.Parameter(torch.randn(1, 4, 6, 8)), nn.Linear(8, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        queries = self.query(x).view(x.shape[0], -1, 4, 8).transpose(1, 2)
        keys = self.table.expand(x.shape[0], 4, 6, 8)
        return nn.functional.scaled_dot_product_attention(queries, keys, keys)


def test_keys_that_all_examples_share_are_counted_without_a_fault() -> None:
    program = models.export(SharedKeys(), torch.randn(2, 5, 8))
    assert infer(programs.graph_module(program, shared=True)).count_cache() >= 0


def test_a_cache_without_attention_is_no_goal() -> None:
    with pytest.raises(InputError, match=r"^goal\.kv_cache: expected a model with attention"):
        goals.wanted(Goal(kv_cache=0.5), replace(DENSE, kv_cache_bytes=None))


@pytest.mark.usefixtures("services")
def test_a_table_of_the_dense_model_tells_the_times_of_what_is_cut_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        timing, "seconds", lambda sketch, target: 1e-6 * sum(value.shape[-1] for value in sketch.inputs)
    )
    program = models.exported("residual")
    table = measure(program, Target(), dense=1.0, kinds=DEFAULT_KINDS, align=1)
    run_id = tracking.find_or_create_run(tracking.experiment_of("goals"), "a table", "a table", {})
    path = tmp_path / "latency_table.json"
    path.write_text(json.dumps(table.to_json()))
    file = tracking.put(run_id, path, "plan")
    pruned, _ = prune(program, goal=Ratio(0.5), kinds=DEFAULT_KINDS)
    left = {info.name: info.size for info in infer(programs.graph_module(pruned, shared=True)).prunable}
    assert set(table.sizes) <= set(left), "a cut leaves the names of axes as they are"
    ask = goals.asking(Goal(speedup=2.0), file, pruned)
    goal = ask(1.5)
    assert isinstance(goal, Speedup)
    assert goal.times == 1.5
    assert goal.latency({}) == pytest.approx(table.predict({name: left.get(name, 1) for name in table.sizes}))
    assert goal.latency({}) < table.predict({})


@pytest.mark.usefixtures("services")
def test_a_table_of_the_dense_model_knows_which_branches_a_cycle_before_has_dropped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(timing, "seconds", lambda sketch, target: 1e-6 * len(sketch.nodes))
    program, kinds = models.layers()[1], ("width", "attention", "mlp")
    table = measure(program, Target(), dense=1.0, kinds=kinds, align=1)
    run_id = tracking.find_or_create_run(tracking.experiment_of("goals"), "of branches", "of branches", {})
    path = tmp_path / "latency_table.json"
    path.write_text(json.dumps(table.to_json()))
    file = tracking.put(run_id, path, "plan")
    shallow, _ = replay(program, {"layers.1:attention": (), "layers.2:mlp": (), "layers.0.up:width": (2, 3)})
    goal = goals.asking(Goal(speedup=2.0), file, shallow)(1.5)
    assert isinstance(goal, Speedup)
    left = {"layers.1:attention": 0, "layers.2:mlp": 0, "layers.0.up:width": 2}
    assert goal.latency({}) == pytest.approx(table.predict(left))
    assert goal.latency({}) < table.predict({})
    assert goal.latency({"layers.0:mlp": 0}) == pytest.approx(table.predict(left | {"layers.0:mlp": 0}))
    choice = Choice(kinds=kinds, allocation="knapsack")
    assert goals.most(goals.asking(Goal(speedup=2.0), file, shallow), shallow, choice) > 1.2


def test_a_figure_that_is_not_there_is_no_figure_of_nought() -> None:
    with pytest.raises(AssertionError, match="measures what the goal counts"):
        goals.wanted(Goal(p99_ms=5.0), replace(DENSE, latency_p99_ms=None))
