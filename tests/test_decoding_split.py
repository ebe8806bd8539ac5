"""A language model without a cache becomes two programs with one that answer alike, or is refused with what stands in the way."""

from collections.abc import Callable

import pytest
import torch
import zoo
import zoo_networks as networks
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from secateur import InputError, KvCache, Ratio, prune
from secateur import program as programs
from secateur.axes.infer import infer
from secateur.decoding.split import CHECKED, cache_of, split

WORDS, HIDDEN, HEADS, GROUPS, WIDTH, POSITIONS = 40, 24, 4, 2, 6, 32
FLOAT = 4  # bytes
ARCHITECTURES = {
    # what is cached of a position, over both layers: keys and values
    "bloom": 2 * 2 * HEADS * 12,
    "falcon": 2 * 2 * 12,  # one key and one value for all heads
    "falcon-grouped": 2 * (HEADS + GROUPS) * 12,  # its keys are turned after they are repeated
    "gemma": 2 * 2 * GROUPS * 12,
    "gpt-neox": 2 * 2 * HEADS * 12,
    "gpt2": 2 * 2 * HEADS * 12,
    "gptj": 2 * 2 * HEADS * 12,
    "llama": 2 * 2 * GROUPS * 12,
    "mistral": 2 * 2 * GROUPS * 12,
    "modern-decoder": 2 * 2 * GROUPS * 12,
    "opt": 2 * 2 * HEADS * 12,
    "phi": 2 * 2 * HEADS * 12,
    "qwen2": 2 * 2 * GROUPS * 12,
    "qwen3": 2 * 2 * GROUPS * 12,
}
QUICK = ("llama",)
WRITTEN_OUT = ("bloom", "gptj")  # attention that no operator names: an allocation does not count it
REPEATED = ("falcon-grouped",)  # before its keys are turned: it counts what attention reads

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

Mask = Callable[["Written", torch.Tensor], torch.Tensor]  # scores [B, H, L, L] -> the same, masked


def triangle(module: "Written", scores: torch.Tensor) -> torch.Tensor:
    length = scores.shape[-1]
    return scores + torch.triu(torch.full((length, length), float("-inf")), 1)


def stored(module: "Written", scores: torch.Tensor) -> torch.Tensor:
    length = scores.shape[-1]
    return scores.masked_fill(module.seen[:, :, :length, :length] == 0, float("-inf"))


def compared(module: "Written", scores: torch.Tensor) -> torch.Tensor:
    places = torch.arange(scores.shape[-1])
    return torch.where(places[None, :] <= places[:, None], scores, torch.finfo(scores.dtype).min)


def windowed(module: "Written", scores: torch.Tensor) -> torch.Tensor:
    behind = torch.arange(scores.shape[-1])[:, None] - torch.arange(scores.shape[-1])[None, :]
    return scores.masked_fill((behind < 0) | (behind > 2), float("-inf"))


class Written(nn.Module):
    """One layer whose attention is written out, behind a table of positions; `mix` comes before it."""

    def __init__(self, mask: Mask, mix: Callable[[torch.Tensor], torch.Tensor] = lambda x: x) -> None:
        super().__init__()
        self.mask, self.mix = mask, mix
        self.embed, self.place = nn.Embedding(WORDS, HIDDEN), nn.Embedding(POSITIONS, HIDDEN)
        self.q, self.kv = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, 2 * HIDDEN)
        self.head = nn.Linear(HIDDEN, WORDS)
        self.register_buffer("seen", torch.ones(POSITIONS, POSITIONS).tril()[None, None])
        self.register_buffer("places", torch.arange(POSITIONS)[None])

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        batch, length = ids.shape
        x = self.mix(self.embed(ids) + self.place(self.places[:, :length]))
        q, k, v = (p.view(batch, length, HEADS, -1).transpose(1, 2) for p in (self.q(x), *self.kv(x).split(HIDDEN, -1)))
        weights = self.mask(self, q @ k.transpose(-1, -2) * WIDTH**-0.5).softmax(-1)
        return self.head(x + (weights @ v).transpose(1, 2).reshape(batch, length, HIDDEN))


def export(made: nn.Module, length: object = Dim.AUTO) -> ExportedProgram:
    ids = torch.zeros(2, 9, dtype=torch.int64)
    return torch.export.export(zoo.lived_in(made).eval(), (ids,), dynamic_shapes=({0: Dim.AUTO, 1: length},))


def refusal(made: nn.Module | ExportedProgram) -> str:
    with pytest.raises(InputError) as error:
        split(made if isinstance(made, ExportedProgram) else export(made))
    return str(error.value)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in sorted(ARCHITECTURES)]
)
def test_an_architecture_answers_alike_and_caches_what_its_configuration_says(name: str) -> None:
    decoder = split(zoo.exported(name))  # proves itself equal to the whole program
    assert decoder.error < 1e-5
    assert decoder.bytes_per_token == ARCHITECTURES[name] * FLOAT
    counted = infer(programs.graph_module(zoo.exported(name), shared=True)).count_cache()
    if name in WRITTEN_OUT:
        assert counted == 0
    elif name not in REPEATED:
        assert counted == decoder.bytes_per_token


def test_half_of_the_cache_is_a_goal() -> None:
    pruned, report = prune(zoo.exported("llama"), goal=KvCache(0.5))
    assert {axis.kind for axis in report.axes} == {"kv_group"}
    kept = infer(programs.graph_module(pruned, shared=True)).count_cache()
    assert kept == split(pruned).bytes_per_token == ARCHITECTURES["llama"] * FLOAT / 2


def test_a_goal_of_the_cache_without_axes_that_carry_it_is_refused() -> None:
    with pytest.raises(
        InputError, match=r"^goal: KvCache.*none of the 2 axes that may be cut carries them; allow kinds"
    ):
        prune(zoo.exported("llama"), goal=KvCache(0.5), kinds=["width"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("llama", "kv_group"), ("gpt2", "head"), ("qwen3", "kv_group")])
def test_half_of_the_heads_or_groups_is_half_of_the_cache(name: str, kind: str) -> None:
    pruned, _ = prune(zoo.exported(name), goal=Ratio(0.5), kinds=[kind])
    assert split(pruned).bytes_per_token == ARCHITECTURES[name] * FLOAT / 2


def test_rotary_groups_in_one_matrix_are_cached_before_they_are_repeated_and_cut_with_it() -> None:
    made = networks.ModernDecoder(WORDS, HIDDEN, 1, heads=HEADS, groups=GROUPS, width=WIDTH, inner=16, rotary=4)
    pruned, _ = prune(export(made), goal=Ratio(0.5), kinds=["kv_group"])
    assert split(pruned).bytes_per_token == 2 * (GROUPS // 2) * WIDTH * FLOAT


@pytest.mark.parametrize("mask", [triangle, stored, compared, windowed])
def test_masks_that_are_written_out_are_understood_and_no_square_one_is_made_for_a_step(mask: Mask) -> None:
    decoder = split(export(Written(mask)))
    assert decoder.error < 1e-5
    assert [sizes for sizes, _ in cache_of(decoder.step)] == [[None, HEADS, None, WIDTH]] * 2
    values = [node.meta.get("val") for node in decoder.step.graph.nodes]
    shapes = [value.shape for value in values if isinstance(value, torch.Tensor) and value.dim() > 1]
    assert max(sum(isinstance(size, torch.SymInt) for size in shape[-2:]) for shape in shapes) == 1


def test_more_than_one_batch_and_more_than_one_prompt_are_proven() -> None:
    assert {batch for batch, _, _ in CHECKED} == {1, 2}
    assert all(len(set(starts)) > 1 for _, _, starts in CHECKED)


def test_a_model_that_sees_what_follows_is_refused() -> None:
    assert "has it a causal mask?" in refusal(Written(lambda module, scores: scores))


def test_what_computes_across_positions_is_refused_by_its_name() -> None:
    taken = refusal(Written(stored, lambda x: x - x.mean(1, keepdim=True)))
    assert "aten.mean.dim" in taken
    assert "computes across positions" in taken
    summed = refusal(Written(stored, lambda x: x.cumsum(1)))
    assert "aten.cumsum" in summed
    turned = refusal(Written(stored, lambda x: functional.pad(x, (0, 0, 1, 0))[:, :-1]))
    assert "add its rule to secateur/decoding/rules.py" in turned


def test_units_that_are_laid_out_as_positions_are_refused() -> None:
    assert "reshapes across positions" in refusal(
        Written(stored, lambda x: x.view(-1, 2, x.shape[1], 12).flatten(2).view(x.shape))
    )


def test_other_inputs_and_fixed_lengths_are_refused() -> None:
    assert "as the only input" in refusal(zoo.exported("cached-decoder"))
    assert "both dynamic" in refusal(export(Written(compared), None))


def test_a_model_without_attention_is_refused() -> None:
    assert "with attention, found none" in refusal(nn.Sequential(nn.Embedding(WORDS, HIDDEN), nn.Linear(HIDDEN, WORDS)))


def test_outputs_that_are_no_logits_of_each_position_are_refused() -> None:
    class Classifier(Written):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids)[:, -1]

    assert "expected logits [batch, length, words]" in refusal(Classifier(compared))
