"""The explanation: each node with its work and its time, and a reason where the time did not follow the work."""

from dataclasses import replace
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from secateur import onnx_export
from secateur import program as programs
from secateur.axes.infer import infer
from secateur.errors import InputError
from secateur.explain.difference import difference, explain
from secateur.explain.profile import Node, Profile, profile
from secateur.explain.roofline import Peaks, peaks
from secateur.runtime import Target
from tasks.cli.app import app

TARGET = Target()
SIDE = 32  # so large that a call is not most of a node, also where one instruction takes sixteen floats
PEAKS = Peaks(macs=1e9, bytes=1e9)
SHAPES = (((1, 64), (64, 64)), ((1, 64),))
DENSE = Node("n", "MatMul", 1e-3, 1_000_000, 1000, *SHAPES)
NARROW = replace(DENSE, seconds=5e-4, macs=500_000, inputs=((1, 64), (64, 32)), outputs=((1, 32),))


class Tower(nn.Module):
    """Convolutions and a linear layer, wide enough that widths set their times."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(width, 10),
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Files by their width."""
    paths = {}
    for width in (64, 32, 33):
        paths[width] = tmp_path_factory.mktemp("towers") / f"{width}.onnx"
        onnx_export.export(models.export(Tower(width), torch.randn(2, 3, SIDE, SIDE)), paths[width])
    return paths


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [np.random.default_rng(0).normal(size=(1, 3, SIDE, SIDE)).astype(np.float32)]


def test_the_work_of_the_nodes_is_the_work_of_the_program(towers: dict[int, Path], images: list[np.ndarray]) -> None:
    seen = profile(towers[64], TARGET, images, 0.2)
    program = models.export(Tower(64), torch.randn(2, 3, SIDE, SIDE))
    counted = infer(programs.graph_module(program, shared=True)).count_macs(programs.per_example_symbols(program))
    assert seen.macs == counted
    assert seen.bytes > 4 * sum(parameter.numel() for parameter in Tower(64).parameters())
    assert all(node.seconds >= 0 for node in seen.nodes)
    assert seen.arena_bytes > 0


def test_a_width_that_fills_no_vectors_is_named_as_the_reason(
    towers: dict[int, Path], images: list[np.ndarray]
) -> None:
    seen = explain(towers[64], towers[33], TARGET, images, 0.5)
    assert seen.ratios["multiply-accumulates"] == pytest.approx((64 / 33) ** 2, rel=0.1)
    assert seen.ratios["measured"] < seen.ratios["multiply-accumulates"]
    assert any("multiple of" in sentence or "no whole vectors" in sentence for sentence in seen.sentences)


def test_the_command_prints_ratios_and_reasons(towers: dict[int, Path]) -> None:
    told = CliRunner().invoke(app, ["explain", str(towers[64]), str(towers[33]), "--budget", "1"])
    assert told.exit_code == 0, told.output
    assert "multiply-accumulates 3." in told.output
    assert "more than promised in" in told.output


def of(*nodes: Node) -> Profile:
    return Profile(nodes, 0)


def only_reason(dense: Node | None, pruned: Node) -> str:
    """Why a single node saved too little."""
    seen = difference(of(*[dense] if dense else []), of(pruned), PEAKS, vector=8)
    (sentence,) = seen.sentences
    return sentence.partition(": ")[2]


def test_a_node_that_kept_its_promise_needs_no_reason() -> None:
    seen = difference(of(DENSE), of(NARROW), PEAKS, vector=8)
    assert seen.sentences == []
    assert seen.ratios["measured"] == seen.ratios["multiply-accumulates"] == 2.0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seconds": 2e-5, "macs": 1000}, "the call is most of it"),
        (
            {"seconds": 9e-4, "inputs": ((1, 64), (64, 31)), "outputs": ((1, 31),)},
            "a width of 31 fills no whole vectors",
        ),
        ({"seconds": 9e-4, "bytes": 900_000}, "memory sets its time"),
        ({"seconds": 9e-4}, "use the processor worse"),
        ({"seconds": 9e-4, "inputs": SHAPES[0], "outputs": SHAPES[1]}, "the cut left it as it was"),
    ],
)
def test_each_reason_is_told_by_what_the_node_shows(change: dict, reason: str) -> None:
    assert reason in only_reason(DENSE, replace(NARROW, **change))


def test_what_is_new_is_said_to_be() -> None:
    assert only_reason(None, replace(NARROW, op="Transpose")) == "Transpose moves data and is new"


def test_nodes_that_the_runtime_renamed_are_paired_in_their_order() -> None:
    old, new = replace(DENSE, name="relu", blocked=True), replace(NARROW, name="node_Conv_3", seconds=2e-3)
    odd = replace(new, inputs=((1, 64), (64, 31)), outputs=((1, 31),))
    assert "laying channels out in vectors" in only_reason(old, odd)


def test_the_roofline_takes_the_slower_of_arithmetic_and_memory() -> None:
    assert PEAKS.seconds([DENSE]) == pytest.approx(1e-3)
    assert PEAKS.seconds([replace(DENSE, bytes=5_000_000)]) == pytest.approx(5e-3)


@pytest.mark.alone
def test_no_node_beats_the_peaks_of_its_machine(towers: dict[int, Path], images: list[np.ndarray]) -> None:
    measured = peaks(TARGET)
    seen = profile(towers[64], TARGET, images, 0.2)
    assert measured.macs > 1e8
    assert seen.macs / seen.seconds < 2 * measured.macs, "twice, for a busy machine measures its peaks too low"


def test_a_provider_without_such_a_profile_is_refused(towers: dict[int, Path], images: list[np.ndarray]) -> None:
    with pytest.raises(InputError, match=r"^target\.provider: expected CPUExecutionProvider"):
        profile(towers[64], Target(provider="CUDAExecutionProvider"), images)
