"""A cut program computes what the dense one computes with the same units zeroed, whatever is cut from whatever graph."""

import copy
import gc
import weakref

import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn import functional

from secateur import program as programs
from secateur import surgery
from secateur.axes.infer import Structure, infer
from secateur.axes.terms import Kept, leaves
from secateur.axes.trace import RULES

TOLERANCE = 1e-9  # in double precision, so that only a wrong cut can differ
SIDE = 8  # of the images that random networks see
IMAGE_STEPS = ("conv", "norm", "relu", "sigmoid", "residual", "depthwise", "grouped", "join", "gate", "pool", "shuffle")
VECTOR_STEPS = ("linear", "norm", "gelu", "residual", "join", "gate", "scale", "regroup", "heads", "softmax", "groups")
UNEXPLAINED = {  # steps without a rule
    "cummax": lambda x: x.cummax(-1).values,
    "kthvalue": lambda x: x.kthvalue(1, -1, keepdim=True).values,
    "renorm": lambda x: x.renorm(2, 0, 1.0),
    "cdist": lambda x: torch.cdist(x, x),
}


def some_units(structure: Structure, seed: int) -> Kept:
    """At least one unit of each axis that no normalisation runs over; an axis may also stay whole."""
    rng = np.random.default_rng(seed)
    axes = [info for info in structure.prunable if not info.normalised]
    counts = [int(rng.integers(1, info.size + 1)) for info in axes]
    return {info.axis: np.sort(rng.permutation(info.size)[:count]) for info, count in zip(axes, counts, strict=True)}


def difference(program: ExportedProgram, inputs: torch.Tensor, seed: int) -> float:
    """Cut against masked, the same random units gone, in double precision: relative to the largest output."""
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    module = programs.graph_module(program).double()
    structure = infer(module)
    kept = some_units(structure, seed)
    with programs.evaluating(module):
        masked = surgery.run_masked(module, structure, kept, [inputs], {})
        surgery.cut(module, structure, kept)
        cut = module(inputs)
    return float((masked - cut).abs().max() / masked.abs().max())


@given(st.sampled_from(sorted(models.MODELS)), st.integers(0, 2**16))
@settings(max_examples=20)
def test_cut_equals_masked_for_any_kept_units(name: str, seed: int) -> None:
    assert difference(models.exported(name), torch.from_numpy(models.MODELS[name][1](3)), seed) < TOLERANCE


class RandomImages(nn.Module):
    """A chain of drawn steps over images, flattened or averaged into a classifier."""

    def __init__(self, steps: list[str], widths: list[int], flatten: bool) -> None:
        super().__init__()
        self.steps, self.flatten = steps, flatten
        self.layers = nn.ModuleList()
        channels, side = 3, SIDE
        for step, width in zip(steps, widths, strict=True):
            layer, channels = self._layer(step, channels, width)
            self.layers.append(layer)
            side = side // 2 if step == "pool" and side > 1 else side
        self.head = nn.Linear(channels * (side * side if flatten else 1), 3)

    @staticmethod
    def _layer(step: str, channels: int, width: int) -> tuple[nn.Module, int]:
        if step == "conv":
            return nn.Conv2d(channels, width, 3, padding=1), width
        if step in ("residual", "join", "depthwise"):
            groups = channels if step == "depthwise" else 1
            return nn.Conv2d(channels, channels, 3, padding=1, groups=groups), channels * (1 + (step == "join"))
        if step == "grouped":
            groups = 2 if channels % 2 == 0 else 1
            return nn.Conv2d(channels, 2 * width, 1, groups=groups), 2 * width
        if step == "gate":
            return nn.Conv2d(channels, 2 * width, 1), width
        return nn.BatchNorm2d(channels) if step == "norm" else nn.Identity(), channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step, layer in zip(self.steps, self.layers, strict=True):
            x = self._step(step, layer, x)
        return self.head(x.flatten(1) if self.flatten else x.mean((2, 3)))

    @staticmethod
    def _step(step: str, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = layer(x)
        match step:
            case "relu" | "sigmoid":
                return getattr(torch, step)(y)
            case "residual":
                return x + y
            case "join":
                return torch.cat([y, x], 1)
            case "gate":
                value, gate = y.chunk(2, 1)
                return value * torch.sigmoid(gate)
            case "pool":
                return functional.max_pool2d(y, 2) if y.shape[-1] > 1 else y
            case "shuffle":
                return y.unflatten(1, (2 - y.shape[1] % 2, -1)).transpose(1, 2).flatten(1, 2)
            case _:
                return y


class RandomVectors(nn.Module):
    """A chain of drawn steps over sequences of vectors [N, 5, 4], read at the first position."""

    def __init__(self, steps: list[str], widths: list[int]) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleList()
        features = models.FEATURES
        for step, width in zip(steps, widths, strict=True):
            layer, features = self._layer(step, features, width)
            self.layers.append(layer)
        self.head = nn.Linear(features, 3)

    @staticmethod
    def _layer(step: str, features: int, width: int) -> tuple[nn.Module, int]:
        if step == "linear":
            return nn.Linear(features, width), width
        if step in ("residual", "join"):
            return nn.Linear(features, features), features * (1 + (step == "join"))
        if step == "gate":
            return nn.Linear(features, 2 * width), width
        if step in ("heads", "softmax"):
            return nn.Linear(features, 3 * 2 * width), 2 * width
        if step == "groups":
            return nn.Linear(features, (4 + 2 + 2) * width), 4 * width
        if step == "scale":
            return nn.ParameterList([torch.rand(features)]), features
        return nn.LayerNorm(features) if step == "norm" else nn.Identity(), features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)[:, 0])

    def body(self, x: torch.Tensor) -> torch.Tensor:
        for step, layer in zip(self.steps, self.layers, strict=True):
            x = self._step(step, layer, x)
        return x

    @staticmethod
    def _step(step: str, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if step == "scale":
            assert isinstance(layer, nn.ParameterList)
            return x * layer[0]
        y = layer(x)
        match step:
            case "gelu":
                return functional.gelu(y)
            case "residual":
                return x + y
            case "join":
                return torch.cat([x, y], -1)
            case "gate":
                value, gate = y.chunk(2, -1)
                return value * functional.silu(gate)
            case "regroup":
                return y.unflatten(-1, (2 - y.shape[-1] % 2, -1)).permute(0, 1, 3, 2).reshape(y.shape)
            case "heads" | "softmax":
                q, k, v = y.view(y.shape[0], models.LENGTH, 3, 2, -1).permute(2, 0, 3, 1, 4)
                attend = functional.scaled_dot_product_attention if step == "heads" else written_out_attention
                return attend(q, k, v).transpose(1, 2).flatten(2)
            case "groups":
                return grouped_query_attention(y)
            case _:
                return y


def written_out_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) * 0.7, -1) @ v


def grouped_query_attention(y: torch.Tensor) -> torch.Tensor:
    """Two groups of two queries; keys and values are repeated by expand and reshape, as `repeat_kv` is written."""
    batch, length, width = y.shape[0], models.LENGTH, y.shape[-1] // 8
    q, k, v = (
        part.unflatten(-1, (-1, width)).transpose(1, 2) for part in y.split([4 * width, 2 * width, 2 * width], -1)
    )
    k, v = (x[:, :, None].expand(batch, 2, 2, length, width).reshape(batch, 4, length, width) for x in (k, v))
    return written_out_attention(q, k, v).transpose(1, 2).reshape(batch, length, -1)


class Interrupted(nn.Module):
    """Random steps, one that no rule explains, and random steps on what comes out of it."""

    def __init__(self, before: list[tuple[str, int]], name: str, after: list[tuple[str, int]]) -> None:
        super().__init__()
        self.name = name
        self.before = RandomVectors([s for s, _ in before], [w for _, w in before])
        features = self.unexplained(torch.zeros(1, models.LENGTH, self.before.head.in_features)).shape[-1]
        self.bridge = nn.Linear(features, models.FEATURES)
        self.after = RandomVectors([s for s, _ in after], [w for _, w in after])

    def unexplained(self, x: torch.Tensor) -> torch.Tensor:
        return UNEXPLAINED[self.name](x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.bridge(self.unexplained(self.before.body(x))))


def check(made: nn.Module, inputs: torch.Tensor, seed: int) -> None:
    assert difference(models.export(models.with_lived_in_norms(made), inputs), inputs, seed) < TOLERANCE


def steps_of(kinds: tuple[str, ...]) -> st.SearchStrategy[list[tuple[str, int]]]:
    """A chain that begins with a layer that has something to cut."""
    step = st.tuples(st.sampled_from(kinds), st.integers(2, 6))
    return st.lists(step, min_size=1, max_size=5).map(lambda rest: [(kinds[0], 6), *rest])


@given(steps_of(IMAGE_STEPS), st.booleans(), st.integers(0, 2**16))
@settings(max_examples=15)
def test_cut_equals_masked_for_random_image_networks(steps: list[tuple[str, int]], flatten: bool, seed: int) -> None:
    torch.manual_seed(seed)
    made = RandomImages([s for s, _ in steps], [w for _, w in steps], flatten)
    check(made, torch.randn(2, 3, SIDE, SIDE), seed)


@given(steps_of(VECTOR_STEPS), st.integers(0, 2**16))
@settings(max_examples=20)
def test_cut_equals_masked_for_random_sequence_networks(steps: list[tuple[str, int]], seed: int) -> None:
    torch.manual_seed(seed)
    made = RandomVectors([s for s, _ in steps], [w for _, w in steps])
    check(made, torch.randn(2, models.LENGTH, models.FEATURES), seed)


@given(steps_of(VECTOR_STEPS), st.sampled_from(sorted(UNEXPLAINED)), steps_of(VECTOR_STEPS), st.integers(0, 2**16))
@settings(max_examples=12)
def test_an_operator_without_a_rule_only_ever_freezes(
    before: list[tuple[str, int]], name: str, after: list[tuple[str, int]], seed: int
) -> None:
    torch.manual_seed(seed)
    inputs = torch.randn(2, models.LENGTH, models.FEATURES)
    program = models.export(models.with_lived_in_norms(Interrupted(before, name, after)), inputs)
    assert difference(program, inputs, seed) < TOLERANCE
    module = programs.graph_module(program)
    structure = infer(module)
    unexplained = [node for node in module.graph.nodes if _operator(node) not in ("", *RULES)]
    assert unexplained
    touched = [
        term for node in unexplained for source in node.all_input_nodes for term in structure.trace.layouts[source]
    ]
    assert all(axis.frozen for term in touched for axis in leaves(term))


def _operator(node: fx.Node) -> str:
    return getattr(getattr(node.target, "_overloadpacket", None), "__name__", "").removesuffix("_")


def cut_half(name: str, kinds: set[str]) -> tuple[fx.GraphModule, Structure]:
    """The first half of the units of every axis of the given kinds, rounded up."""
    module = programs.graph_module(models.exported(name))
    structure = infer(module)
    kept = {i.axis: np.arange((i.size + 1) // 2) for i in structure.prunable if i.kind in kinds}
    assert kept
    surgery.cut(module, structure, kept)
    return module, structure


def test_a_cut_keeps_the_rows_and_columns_of_the_kept_units() -> None:
    dense = models.module("perceptron").state_dict()
    module = programs.graph_module(models.exported("perceptron"))
    structure = infer(module)
    keep = np.array([1, 4])
    surgery.cut(module, structure, {structure.prunable[0].axis: keep})
    seen = module.state_dict()
    assert torch.equal(seen["first.weight"], dense["first.weight"][keep])
    assert torch.equal(seen["first.bias"], dense["first.bias"][keep])
    assert torch.equal(seen["second.weight"], dense["second.weight"][:, keep])
    assert torch.equal(seen["second.bias"], dense["second.bias"])


def test_a_masked_run_zeroes_exactly_the_units_that_a_cut_removes_and_leaves_the_module_alone() -> None:
    made = copy.deepcopy(models.module("perceptron"))
    module = programs.graph_module(models.exported("perceptron"))
    structure = infer(module)
    keep, gone = np.array([1, 4]), [0, 2, 3, 5]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    inputs = torch.from_numpy(models.vectors(3))
    seen = surgery.run_masked(module, structure, {structure.prunable[0].axis: keep}, [inputs], {})
    with torch.no_grad():
        made.first.weight[gone], made.first.bias[gone], made.second.weight[:, gone] = 0, 0, 0
        assert torch.equal(seen, made(inputs))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("residual", {"channel"}),
        ("branches", {"channel"}),
        ("encoder", {"kv_group"}),
        ("encoder", {"q_per_group"}),
        ("encoder", {"qk_width", "v_width"}),
        ("encoder", {"embedding", "width"}),
        ("tied", {"embedding"}),
    ],
)
def test_a_cut_graph_exports_again_and_takes_any_batch(name: str, kinds: set[str]) -> None:
    module, _ = cut_half(name, kinds)
    again = programs.reexport(module, models.exported(name)).module(check_guards=False)
    for batch in (1, 5):
        inputs = torch.from_numpy(models.MODELS[name][1](batch))
        with programs.evaluating(module), torch.no_grad():
            assert torch.allclose(again(inputs), module(inputs), atol=1e-6)


def test_attention_keeps_the_scale_of_the_dense_width() -> None:
    module, _ = cut_half("encoder", {"qk_width"})
    (attention,) = [n for n in module.graph.nodes if "scaled_dot_product" in str(n.target)]
    assert attention.kwargs["scale"] == pytest.approx(models.HEAD_DIM**-0.5)


def test_tied_weights_stay_one_parameter_through_a_cut() -> None:
    module, _ = cut_half("tied", {"embedding"})
    assert module.get_parameter("embed.weight") is module.get_parameter("head.weight")
    assert module.get_parameter("embed.weight").shape == (models.VOCABULARY, models.EMBEDDING // 2)


def test_cut_parameters_are_contiguous_and_train_as_before() -> None:
    program = models.exported("residual")
    module = programs.graph_module(program)
    module.get_parameter("inner.weight").requires_grad_(False)
    structure = infer(module)
    surgery.cut(module, structure, some_units(structure, seed=3))
    assert all(p.is_contiguous() for p in module.parameters())
    assert [n for n, p in module.named_parameters() if not p.requires_grad] == ["inner.weight"]
    module(torch.from_numpy(models.images(2))).sum().backward()
    assert all(p.grad is not None for n, p in module.named_parameters() if n != "inner.weight")


def test_keeping_every_unit_changes_nothing() -> None:
    module = programs.graph_module(models.exported("branches"))
    structure = infer(module)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    surgery.cut(module, structure, {info.axis: np.arange(info.size) for info in structure.prunable})
    assert all(torch.equal(before[name], t) for name, t in module.state_dict().items())


def test_a_dense_weight_is_released_as_soon_as_its_successor_is_there() -> None:
    """Without waiting for the collector of cycles: the peak would be both models together."""
    program = models.export(models.Perceptron(), torch.zeros(2, models.FEATURES))
    weights = [weakref.ref(weight) for weight in program.parameters() if weight.dim() > 1]
    gc.collect()
    gc.disable()
    try:
        module = programs.graph_module(program, shared=True)
        del program
        structure = infer(module)
        surgery.cut(module, structure, {info.axis: np.arange((info.size + 1) // 2) for info in structure.prunable})
        assert [weight() for weight in weights] == [None] * len(weights)
    finally:
        gc.enable()
