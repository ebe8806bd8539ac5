"""The zoo: every unit that an architecture has is found, any kind of it can be cut, and what is left is still right.

One architecture of each family runs always, though not with every check; all of them in `make test-slow`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import zoo
from torch import fx
from torch.export import ExportedProgram

from secateur import Ratio, branches, drop_branches, onnx_export, prune, surgery
from secateur import program as programs
from secateur.axes.infer import KINDS, infer
from secateur.pruning import Report

MASKED, ONNX = 1e-5, 1e-4  # relative to the largest output
QUICK = ("resnet-basic", "vit", "bert", "gpt2", "bart", "whisper-encoder", "squeeze-excitation")  # one of each family
QUICKEST = ("squeeze-excitation",)  # for the checks that take longer

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def cases(quick: Sequence[str], parts: Callable[[zoo.Architecture], Sequence[str]] | None = None) -> list[Any]:
    """A test case per architecture, or per part of one; all but the quick ones are slow."""
    return [
        pytest.param(
            name,
            *part,
            # of the processes that share the slow ones, one exports each architecture
            marks=[pytest.mark.xdist_group(name), *([] if name in quick else [pytest.mark.slow])],
        )
        for name, entry in zoo.ARCHITECTURES.items()
        for part in ([()] if parts is None else [(part,) for part in parts(entry)])
    ]


def sizes(name: str) -> list[tuple[torch.Tensor, ...]]:
    """Inputs of two batch sizes, of two lengths where the length is dynamic."""
    entry = zoo.ARCHITECTURES[name]
    return [entry.inputs(batch, length) for batch, length in zip((1, 3), entry.lengths, strict=True)]


def relative(seen: torch.Tensor, expected: torch.Tensor) -> float:
    assert seen.shape == expected.shape
    return float((seen - expected).abs().max() / expected.abs().max())


def check_against_masked(name: str, pruned: ExportedProgram, report: Report) -> None:
    """At sizes that the cut itself did not look at. What a norm runs over is not the same cut and masked."""
    module = programs.graph_module(zoo.exported(name))
    structure = infer(module)
    kept = {info.axis: np.array(report.kept[info.name]) for info in structure.axes if info.name in report.kept}
    cut = pruned.module(check_guards=False)
    for inputs in sizes(name):
        with programs.evaluating(module), torch.no_grad():
            masked, seen = surgery.run_masked(module, structure, kept, inputs, {}), cut(*inputs)
        assert seen.isfinite().all()
        difference = relative(seen, masked)
        assert report.masked_error is None or difference < MASKED


def check_shares(report: Report) -> None:
    assert all(0.3 <= 1 - axis.after / axis.before <= 0.5 for axis in report.axes)
    assert report.parameters_after < report.parameters_before


def check_gradients(name: str, pruned: ExportedProgram) -> None:
    module = programs.graph_module(pruned)
    programs.set_training(module, True)
    module(*sizes(name)[1]).square().mean().backward()
    used = {str(node.target) for node in module.graph.find_nodes(op="get_attr") if node.users}
    without = [
        n
        for n, p in module.named_parameters()
        if n in used and p.requires_grad and not (p.grad is not None and p.grad.isfinite().all())
    ]
    assert without == []


def check_onnx(name: str, pruned: ExportedProgram, path: Path) -> None:
    onnx_export.export(pruned, path)
    session = onnxruntime.InferenceSession(path)
    names = [given.name for given in session.get_inputs()]
    module = pruned.module(check_guards=False)
    for inputs in sizes(name):
        with torch.no_grad():
            expected = module(*inputs)
        seen = session.run(None, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0]
        assert relative(torch.from_numpy(seen), expected) < ONNX


@functools.cache
def cut_together(name: str) -> tuple[ExportedProgram, Report]:
    return prune(zoo.exported(name), goal=Ratio(0.4), kinds=KINDS)


@pytest.mark.parametrize("name", cases(QUICK))
def test_every_axis_is_found(name: str) -> None:
    found: dict[str, list[int]] = {}
    for info in infer(programs.graph_module(zoo.exported(name))).prunable:
        found.setdefault(info.kind, []).append(info.size)
    axes = zoo.ARCHITECTURES[name].axes
    assert {kind: sorted(of) for kind, of in found.items()} == {kind: sorted(of) for kind, of in axes.items()}


@pytest.mark.parametrize(("name", "kind"), cases(QUICKEST, lambda entry: list(entry.axes)))
def test_one_kind_alone_can_be_cut(name: str, kind: str) -> None:
    pruned, report = prune(zoo.exported(name), goal=Ratio(0.4), kinds=[kind])
    assert sorted(axis.before for axis in report.axes) == sorted(zoo.ARCHITECTURES[name].axes[kind])
    check_shares(report)
    check_against_masked(name, pruned, report)


@pytest.mark.parametrize("name", cases(QUICK))
def test_all_kinds_can_be_cut_together(name: str) -> None:
    pruned, report = cut_together(name)
    assert len(report.axes) == sum(map(len, zoo.ARCHITECTURES[name].axes.values()))
    check_shares(report)
    check_against_masked(name, pruned, report)
    check_gradients(name, pruned)


@pytest.mark.parametrize("name", cases(QUICKEST))
def test_what_is_left_gives_the_same_in_onnx_runtime(name: str, tmp_path: Path) -> None:
    if name not in zoo.NOT_ONNX:
        check_onnx(name, cut_together(name)[0], tmp_path / "pruned.onnx")
        return
    with pytest.raises(Exception, match=zoo.NOT_ONNX[name]):
        onnx_export.export(zoo.exported(name), tmp_path / "dense.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.NOT_EXPORTED)
def test_what_torch_does_not_export_is_listed_with_its_reason(name: str) -> None:
    make, reason = zoo.NOT_EXPORTED[name]
    tokens = torch.randint(3, 60, (2, 16))
    with pytest.raises(Exception, match=reason):
        torch.export.export(
            make().eval(), (tokens,), dynamic_shapes=({0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO},)
        )


class Skipping(fx.Interpreter):
    """Runs a graph in which the value of every branch's exit is that of its entry."""

    def __init__(self, module: fx.GraphModule, skipped: Sequence[branches.Branch]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.entries = {branch.exit: branch.entry for branch in skipped}

    def run_node(self, n: fx.Node) -> Any:
        return self.env[self.entries[n]] if n in self.entries else super().run_node(n)


def test_architectures_without_branches_have_none_found() -> None:
    for name in ("vgg", "unet"):
        module = programs.graph_module(zoo.exported(name))
        assert branches.find(module, infer(module)) == ()


@pytest.mark.parametrize(("name", "kind"), cases(QUICKEST, lambda entry: list(entry.branches)))
def test_half_of_the_branches_of_a_kind_can_be_dropped(name: str, kind: str) -> None:
    program = zoo.exported(name)
    module = programs.graph_module(program)
    found = branches.find(module, infer(module))
    assert {branch.kind for branch in found} == set(zoo.ARCHITECTURES[name].branches)
    count = zoo.ARCHITECTURES[name].branches[kind]
    if kind == "layer" and count == 1:
        pytest.skip("the only layer stays")
    shallow, report = drop_branches(program, share=max(0.5, 0.6 / count), kind=kind, criterion="random")
    assert len(report.scores) == count
    assert len(report.dropped) == max(1, round(count / 2))
    dropped = [branch for branch in found if branch.kind == kind and branch.name in report.dropped]
    cut = shallow.module(check_guards=False)
    for inputs in sizes(name):
        with programs.evaluating(module), torch.no_grad():
            skipped = Skipping(module, dropped).run(*inputs, enable_io_processing=True)
            assert relative(cut(*inputs), skipped) < MASKED
