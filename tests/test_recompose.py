"""Programs that went through `run_decompositions` are cut like those that did not."""

import collections

import models
import pytest
import torch
import zoo
from torch import nn
from torch.export import ExportedProgram

from secateur import Ratio, Unstructured, prune, sparsify
from secateur import program as programs
from secateur.axes.infer import infer

WHOLE = ["bert", "convnext", "densenet", "llama", "mobilenetv2", "resnet-basic", "t5-encoder", "unet-group-norm", "vit"]


class Parts(nn.Module):
    """Every operator that is put together again, and a linear layer over inputs that lie transposed, which becomes a `bmm`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.up, self.groups = nn.ConvTranspose2d(8, 12, 2, 2), nn.GroupNorm(3, 12)
        self.sequence, self.norms = nn.Linear(12, 16), nn.LayerNorm(16)
        self.free = nn.Linear(16, 10, bias=False)
        self.last = nn.Linear(10, models.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.norm(self.conv(x)).relu(), 2)
        x = self.groups(self.up(x)).flatten(2).transpose(1, 2)
        x = self.norms(self.sequence(x)).relu()
        return self.last(self.free(x).relu().amax(1))


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = [(X, torch.arange(4) % models.CLASSES)]


def both() -> tuple[ExportedProgram, ExportedProgram]:
    torch.manual_seed(0)
    program = models.export(Parts(), X)
    return program, program.run_decompositions()


def axes(program: ExportedProgram) -> collections.Counter[tuple[str, int]]:
    return collections.Counter((info.kind, info.size) for info in infer(programs.graph_module(program)).prunable)


def test_the_graph_has_the_operators_that_modules_have_and_computes_the_same() -> None:
    _, taken_apart = both()
    module = programs.graph_module(taken_apart)
    before = module(X)
    infer(module)
    names = {node.target._overloadpacket.__name__ for node in module.graph.nodes if hasattr(node.target, "_schema")}
    assert names >= {"conv2d", "batch_norm", "max_pool2d", "conv_transpose2d", "group_norm", "linear", "layer_norm"}
    assert not names & {"convolution", "addmm", "mm", "bmm", "native_layer_norm", "native_group_norm"}
    assert torch.allclose(module(X), before, atol=1e-6)


@pytest.mark.parametrize("criterion", ["l2", "wanda", "apoz", "fisher"])
def test_units_are_cut_as_from_the_whole_program(criterion: str) -> None:
    cuts = [prune(program, goal=Ratio(0.5), criterion=criterion, calibration=BATCHES, align=2) for program in both()]
    (cut, report), (other, others) = cuts
    assert sorted(map(sorted, report.kept.values())) == sorted(map(sorted, others.kept.values()))
    assert torch.allclose(programs.graph_module(cut)(X), programs.graph_module(other)(X), atol=1e-5)


def test_single_weights_are_zeroed_as_in_the_whole_program() -> None:
    masks = [sparsify(p, pattern=Unstructured(0.5), criterion="wanda", calibration=BATCHES)[1] for p in both()]
    assert masks[0].keys() == masks[1].keys()
    assert all(torch.equal(masks[0][name], masks[1][name]) for name in masks[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_an_architecture_keeps_its_axes(name: str) -> None:
    program = zoo.exported(name)
    taken_apart = program.run_decompositions()
    assert axes(taken_apart) == axes(program)
    prune(taken_apart, goal=Ratio(0.5))  # proves itself equal to the masked program
