"""Mixtures of experts: a whole expert can go where the graph counts rows by expert, and the rest take over its rows."""

import functools

import pytest
import torch
import transformers
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from secateur import InputError, Ratio, prune
from secateur import program as programs
from secateur.axes.infer import AxisInfo, infer

EXPERTS, PER_TOKEN, WORDS, LENGTH, FFN = 6, 2, 64, 9, 32


class Mixture(nn.Module):
    """Tokens [N, T] to logits, one layer; optionally the numbers of the chosen experts as well."""

    def __init__(self) -> None:
        super().__init__()
        self.model = transformers.MixtralForCausalLM(
            transformers.MixtralConfig(
                hidden_size=24,
                intermediate_size=FFN,
                num_attention_heads=4,
                num_key_value_heads=2,
                num_hidden_layers=1,
                vocab_size=WORDS,
                num_local_experts=EXPERTS,
                num_experts_per_tok=PER_TOKEN,
            )
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


@functools.cache
def mixture() -> tuple[Mixture, ExportedProgram]:
    torch.manual_seed(0)
    made = Mixture().eval()
    dynamic = ({0: Dim.AUTO, 1: Dim.AUTO},)
    return made, torch.export.export(made, (torch.zeros(2, LENGTH, dtype=torch.long),), dynamic_shapes=dynamic)


def axes(program: ExportedProgram) -> dict[str, AxisInfo]:
    return {info.kind: info for info in infer(programs.graph_module(program, shared=True)).prunable}


def test_experts_are_an_axis_of_the_router_and_of_every_expert_weight() -> None:
    experts = axes(mixture()[1])["expert"]
    assert (experts.size, experts.minimum) == (EXPERTS, PER_TOKEN)
    assert {name.rpartition("mlp.")[2] for name, _ in experts.members} == {
        "gate.weight",
        "experts.gate_up_proj",
        "experts.down_proj",
    }


def test_the_inner_width_of_all_experts_is_one_axis() -> None:
    assert axes(mixture()[1])["width"].size == FFN


def test_without_an_expert_the_others_get_what_they_would_get_if_it_were_never_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, program = mixture()
    pruned, report = prune(program, goal=Ratio(0.5), kinds=["expert"])
    gone = sorted(set(range(EXPERTS)) - set(report.axes[0].kept))
    router = made.model.model.layers[0].mlp.gate.weight
    plain = functional.linear

    def never_choosing(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        y = plain(x, weight, bias)
        return y.index_fill(-1, torch.tensor(gone), -torch.inf) if weight is router else y

    tokens = torch.randint(0, WORDS, (3, LENGTH + 4))
    monkeypatch.setattr(functional, "linear", never_choosing)
    with torch.no_grad():
        expected = made(tokens)
        seen = pruned.module(check_guards=False)(tokens)
    assert len(gone) == EXPERTS // 2
    assert torch.allclose(expected, seen, atol=1e-6)


def test_as_many_experts_stay_as_every_token_needs() -> None:
    with pytest.raises(InputError, match=r"expected a share of at most 0\.667"):
        prune(mixture()[1], goal=Ratio(0.8), kinds=["expert"], allocation="global")


class Numbered(nn.Module):
    """Classes compete, and the winner's number goes out: counted anew it would name another class."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.router = nn.Linear(4, 5), nn.Linear(5, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.router(self.hidden(x)).softmax(-1).topk(2).indices


def test_what_is_numbered_for_others_stays_whole() -> None:
    program = torch.export.export(Numbered().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: Dim.AUTO},))
    frozen = {info.size: info.frozen for info in infer(programs.graph_module(program)).axes}
    assert frozen[6] == "is numbered, and output reads the numbers"
    assert frozen[5] is None
