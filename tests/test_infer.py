"""Which axes a graph has, what they are, which tensors carry them, and what counting them gives."""

from collections.abc import Callable

import models
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from secateur import program as programs
from secateur import surgery
from secateur.axes.infer import KINDS, AxisInfo, Structure, infer
from secateur.axes.normalise import spell_out_splits
from secateur.pruning import strongest


def structure_of(made: nn.Module, *inputs: torch.Tensor) -> Structure:
    return infer(programs.graph_module(models.export(made, *inputs)))


def structure(name: str) -> Structure:
    return infer(programs.graph_module(models.exported(name)))


def found(structure: Structure) -> dict[str, tuple[str, int]]:
    """Prunable axes by name, with kind and size."""
    return {info.name: (info.kind, info.size) for info in structure.prunable}


def carrying(structure: Structure, name: str) -> set[tuple[str, int]]:
    return set(next(info for info in structure.axes if info.name == name).members)


def axis_of(structure: Structure, tensor: str, dimension: int) -> AxisInfo:
    return next(info for info in structure.axes if (tensor, dimension) in info.members)


def test_a_hidden_layer_is_one_axis_of_both_weights_and_its_bias() -> None:
    s = structure("perceptron")
    assert found(s) == {"first:width": ("width", models.HIDDEN)}
    assert carrying(s, "first:width") == {("first.weight", 0), ("first.bias", 0), ("second.weight", 1)}


def test_inputs_and_outputs_are_frozen_with_their_reason() -> None:
    s = structure("perceptron")
    assert axis_of(s, "first.weight", 1).frozen == "is a graph input"
    assert axis_of(s, "second.weight", 0).frozen == "is a graph output"


def test_a_residual_sum_joins_the_channels_of_both_its_terms_and_of_their_norms() -> None:
    s = structure("residual")
    assert sorted(found(s).values()) == [("channel", models.HIDDEN), ("channel", models.CHANNELS)]
    assert carrying(s, axis_of(s, "stem.weight", 0).name) == {
        ("stem.weight", 0),
        *((f"norm.{part}", 0) for part in ("weight", "bias", "running_mean", "running_var")),
        ("inner.weight", 1),
        ("outer.weight", 0),
        ("outer.bias", 0),
        ("head.weight", 1),
    }


def test_a_depthwise_convolution_has_the_channels_of_its_input() -> None:
    s = structure("branches")
    assert axis_of(s, "depthwise.weight", 0) is axis_of(s, "stem.weight", 0)


def test_a_grouped_convolution_splits_its_channels_into_groups_and_members() -> None:
    made = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1, groups=4), nn.Conv2d(12, 3, 1))
    s = structure_of(made, torch.zeros(2, 3, 4, 4))
    assert sorted(size for _, size in found(s).values()) == [2, 3, 4]
    assert axis_of(s, "2.weight", 1).size == 4  # the groups come first in a product


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.mix = nn.Linear(4, 5), nn.Linear(4, 6), nn.Linear(11, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix(torch.cat([self.left(x), self.right(x)], 1))


def test_a_concatenation_carries_the_axes_of_its_parts() -> None:
    s = structure_of(Joined(), torch.zeros(2, 4))
    assert found(s) == {"left:width": ("width", 5), "right:width": ("width", 6)}
    for part in ("left", "right"):
        assert carrying(s, f"{part}:width") == {(f"{part}.weight", 0), (f"{part}.bias", 0), ("mix.weight", 1)}


def test_the_halves_of_a_gate_are_one_axis() -> None:
    s = structure("branches")
    halves = axis_of(s, "mix.weight", 0)
    assert (halves.size, halves.frozen) == (models.HIDDEN, None)
    assert ("head.weight", 1) in halves.members


def test_grouped_query_attention_has_groups_queries_per_group_and_head_widths() -> None:
    kinds = dict(found(structure("encoder")).values())
    assert kinds == {
        "kv_group": models.GROUPS,
        "q_per_group": models.HEADS // models.GROUPS,
        "qk_width": models.HEAD_DIM,
        "v_width": models.HEAD_DIM,
        "embedding": models.EMBEDDING,
        "width": models.CHANNELS,
    }


def test_an_axis_under_a_layer_norm_is_marked_as_normalised() -> None:
    marked = {info.kind: info.normalised for info in structure("encoder").prunable}
    assert [kind for kind, normalised in marked.items() if normalised] == ["embedding"]


def test_a_vocabulary_is_frozen_because_it_is_looked_up() -> None:
    assert axis_of(structure("encoder"), "embed.weight", 0).frozen == "is looked up by index"


class Sorted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(self.first(x).sort(-1).values)))


def test_an_operator_without_a_rule_freezes_only_what_it_touches_and_is_named() -> None:
    s = structure_of(Sorted(), torch.zeros(2, 4))
    assert axis_of(s, "first.weight", 0).frozen == "meets sort, which no rule explains"
    assert axis_of(s, "second.weight", 0).frozen is None


def test_a_softmax_freezes_the_dimension_it_runs_over() -> None:
    made = nn.Sequential(nn.Linear(4, 6), nn.Softmax(1), nn.Linear(6, 3))
    assert "softmax" in str(axis_of(structure_of(made, torch.zeros(2, 4)), "0.weight", 0).frozen)


class Computing(nn.Module):
    """A hidden layer of 6, a step on it, and as many features as the step leaves into a classifier."""

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor], left: int) -> None:
        super().__init__()
        self.step, self.first, self.second = step, nn.Linear(4, 6), nn.Linear(left, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.step(self.first(x)))


@pytest.mark.parametrize("positions", [[3, 4], [-3, -2], [-2, -1], [0, 1]])
def test_a_list_of_positions_that_follow_each_other_is_a_slice(positions: list[int]) -> None:
    s = structure_of(Computing(lambda x: x[:, positions], 2), torch.zeros(2, 4))
    taken = axis_of(s, "second.weight", 1)
    assert (taken.size, taken.frozen) == (2, None)
    assert ("first.weight", 0) in taken.members


@pytest.mark.parametrize("positions", [[1, 3], [3, 2], [-1, 0]])
def test_a_list_of_any_other_positions_is_looked_up(positions: list[int]) -> None:
    s = structure_of(Computing(lambda x: x[:, positions], 2), torch.zeros(2, 4))
    assert axis_of(s, "first.weight", 0).frozen == "is looked up by index"


def test_the_halves_of_a_gated_linear_unit_are_one_axis() -> None:
    s = structure_of(Computing(lambda x: functional.glu(x, -1), 3), torch.zeros(2, 4))
    assert found(s) == {"first:width": ("width", 3)}


def test_gathering_freezes_what_is_looked_up_and_ties_the_rest_to_the_index() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        index = torch.zeros(x.shape[0], 2, 1, dtype=torch.int64)
        return x.unflatten(1, (2, 3)).gather(2, index.expand(-1, 2, 5)).flatten(1)

    s = structure_of(Computing(step, 10), torch.zeros(2, 4))
    assert sorted(size for _, size in found(s).values()) == [2, 5]
    assert {info.frozen for info in s.axes if info.size == 3} >= {"is looked up by index"}


def test_what_is_broadcast_to_more_copies_has_an_axis_of_copies() -> None:
    s = structure_of(Computing(lambda x: x[:, None].broadcast_to(x.shape[0], 5, 6).flatten(1), 30), torch.zeros(2, 4))
    assert {info.size for info in s.prunable} == {5, 6}


class OneKeyForAllHeads(nn.Module):
    """Multi-query attention (Shazeer 2019), one key and value of width 3 broadcast over 4 heads."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (
            nn.Linear(4, 12),
            nn.Linear(4, 3),
            nn.Linear(4, 3),
            nn.Linear(12, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.query(x).unflatten(-1, (4, 3)).transpose(1, 2)
        k, v = self.key(x)[:, None], self.value(x)[:, None]
        y = functional.scaled_dot_product_attention(q, k.expand(-1, 4, -1, -1), v.expand(-1, 4, -1, -1))
        return self.out(y.transpose(1, 2).flatten(2))


def test_one_key_for_all_heads_leaves_the_heads_free() -> None:
    s = structure_of(OneKeyForAllHeads(), torch.zeros(2, 5, 4))
    assert sorted(found(s).values()) == [("head", 4), ("qk_width", 3), ("v_width", 3)]


class Resized(nn.Module):
    """A table of positions [1, 6, 4, 4] stretched over the channels of an image, as BEiT and ViT do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 3, 1)
        self.table = nn.Parameter(torch.randn(1, 6, 4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x) + functional.interpolate(self.table, size=(8, 8), mode="bilinear"))


def test_what_is_resized_stays_as_long_as_it_is() -> None:
    s = structure_of(Resized(), torch.zeros(2, 3, 8, 8))
    assert found(s) == {"stem:channel": ("channel", 6)}
    assert axis_of(s, "table", 2).frozen == "is a spatial or sequence dimension"


def test_features_that_a_convolution_sweeps_over_are_not_cut() -> None:
    def step(x: torch.Tensor) -> torch.Tensor:
        return functional.conv1d(x[:, None], torch.ones(1, 1, 3), padding=1)[:, 0]

    frozen = axis_of(structure_of(Computing(step, 6), torch.zeros(2, 4)), "first.weight", 0).frozen
    assert frozen == "is a spatial or sequence dimension"


class SharedZeros(nn.Module):
    """Two layers that add the same zeros, which says nothing about their widths."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        zeros = torch.zeros(x.shape[0], 6)
        return self.head(torch.cat([self.left(x) + zeros, self.right(x) + zeros], 1))


def test_a_tensor_of_one_value_ties_nothing() -> None:
    s = structure_of(SharedZeros(), torch.zeros(2, 4))
    assert found(s) == {"left:width": ("width", 6), "right:width": ("width", 6)}


class Shifted(nn.Module):
    """A hidden layer plus a buffer of integers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("steps", torch.arange(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) + self.steps)


def test_a_buffer_of_integers_freezes_what_it_meets() -> None:
    frozen = axis_of(structure_of(Shifted(), torch.zeros(2, 4)), "first.weight", 0).frozen
    assert frozen == "steps holds int64"


@pytest.mark.parametrize("name", models.MODELS)
def test_every_axis_has_a_name_of_its_own_and_a_known_kind(name: str) -> None:
    axes = structure(name).axes
    assert len({info.name for info in axes}) == len(axes)
    assert {info.kind for info in axes} <= set(KINDS)


@pytest.mark.parametrize("name", models.MODELS)
def test_parameters_are_counted_once_each(name: str) -> None:
    assert structure(name).count_parameters() == sum(p.numel() for p in models.module(name).parameters())


def test_tied_weights_are_one_tensor_with_two_names() -> None:
    s = structure("tied")
    assert s.aliases == {"embed.weight": ("head.weight",)}
    assert "head.weight" not in s.tensors


@pytest.mark.parametrize("name", models.MODELS)
def test_the_counts_after_a_cut_are_foretold(name: str) -> None:
    program = models.exported(name)
    module = programs.graph_module(program)
    s = infer(module)
    kept = {info.axis: strongest(torch.rand(info.size).numpy(), (info.size + 1) // 2) for info in s.prunable}
    foretold = s.count_parameters({axis: len(units) for axis, units in kept.items()})
    surgery.cut(module, s, kept)
    assert foretold == sum(p.numel() for p in module.parameters()) < s.count_parameters()


def counted(made: nn.Module, *inputs: torch.Tensor) -> tuple[int, int]:
    """Multiply-accumulates of one example: ours, and half of torch's own count of floating point operations."""
    program = models.export(made, *inputs)
    ours = infer(programs.graph_module(program)).count_macs(programs.per_example_symbols(program))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        made(*(x[:1] for x in inputs))
    return ours, counter.get_total_flops() // 2


@pytest.mark.parametrize("name", ["perceptron", "residual", "branches", "tied"])
def test_multiply_accumulates_agree_with_torchs_counter(name: str) -> None:
    ours, torchs = counted(models.module(name), torch.from_numpy(models.MODELS[name][1](2)))
    assert ours == torchs > 0


@pytest.mark.parametrize(
    "layer",
    [nn.ConvTranspose2d(4, 6, 2, stride=2), nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2)],
    ids=["stride", "groups"],
)
def test_multiply_accumulates_of_a_transposed_convolution_agree_with_torchs_counter(layer: nn.Module) -> None:
    ours, torchs = counted(nn.Sequential(layer, nn.Conv2d(6, 2, 1)), torch.zeros(2, 4, 5, 5))
    assert ours == torchs > 0


def test_multiply_accumulates_of_an_attention_layer_are_those_counted_by_hand() -> None:
    length, width, inner = models.LENGTH, models.EMBEDDING, models.HEAD_DIM
    projections = length * width * inner * (2 * models.HEADS + 2 * models.GROUPS)
    scores_and_sums = 2 * models.HEADS * length * length * inner
    feed_forward = 2 * length * width * models.CHANNELS
    program = models.exported("encoder")
    counted = structure("encoder").count_macs(programs.per_example_symbols(program))
    assert counted == projections + scores_and_sums + feed_forward + width * models.CLASSES


def test_a_chunk_becomes_a_split_with_a_size_for_every_part() -> None:
    module = programs.graph_module(models.exported("branches"))
    x = torch.from_numpy(models.images(2))
    before = module(x)
    spell_out_splits(module)
    sizes = [n.args[1] for n in module.graph.nodes if n.target is torch.ops.aten.split_with_sizes.default]
    assert sizes == [[models.HIDDEN, models.HIDDEN]]
    assert torch.equal(module(x), before)
