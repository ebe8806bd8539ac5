"""Architectures that nobody here wrote, tiny and with random weights: every free axis is cut in half and stays correct."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hub
from torch import nn

from secateur import Ratio, prune
from secateur.axes.infer import KINDS

pytestmark = pytest.mark.slow

IMAGE, PATCH, HIDDEN, LAYERS, HEADS, FFN, WORDS, LENGTH, CLASSES = 32, 8, 48, 2, 4, 96, 64, 12, 7
AUTO = torch.export.Dim.AUTO

Make = Callable[[], nn.Module]


class OneOutput(nn.Module):
    """A model with one named input and its main output."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name
        self.extra = {"use_cache": False} if hasattr(model, "generate") else {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen: Any = self.model(**{self.name: x}, **self.extra)
        return seen.logits if hasattr(seen, "logits") else seen.last_hidden_state


VIT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "max_position_embeddings": 64,
}
GROUPED = TEXT | {"num_key_value_heads": 2}
T5 = {"vocab_size": WORDS, "d_model": HIDDEN, "d_kv": 12, "d_ff": FFN, "num_layers": LAYERS, "num_heads": HEADS}

VISION: dict[str, Make] = {
    "resnet-basic": lambda: hub.ResNetForImageClassification(
        hub.ResNetConfig(
            embedding_size=16,
            hidden_sizes=[16, 32, 48, 64],
            depths=[2, 2, 1, 1],
            layer_type="basic",
            num_labels=CLASSES,
        )
    ),
    "resnet-bottleneck": lambda: hub.ResNetForImageClassification(
        hub.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64, 64, 64], depths=[2, 1, 1, 1], num_labels=CLASSES)
    ),
    "mobilenetv2": lambda: hub.MobileNetV2ForImageClassification(
        hub.MobileNetV2Config(depth_multiplier=0.35, num_labels=CLASSES, image_size=IMAGE)
    ),
    "efficientnet": lambda: hub.EfficientNetForImageClassification(
        hub.EfficientNetConfig(
            image_size=IMAGE, width_coefficient=0.25, depth_coefficient=0.3, num_labels=CLASSES, hidden_dim=320
        )
    ),
    "convnext": lambda: hub.ConvNextForImageClassification(
        hub.ConvNextConfig(hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 2, 1], num_labels=CLASSES)
    ),
    "regnet": lambda: hub.RegNetForImageClassification(
        hub.RegNetConfig(
            embedding_size=16, hidden_sizes=[32, 32, 64, 64], depths=[1, 1, 1, 1], groups_width=8, num_labels=CLASSES
        )
    ),
    "vit": lambda: hub.ViTForImageClassification(hub.ViTConfig(**VIT, num_labels=CLASSES)),
    "deit": lambda: hub.DeiTForImageClassification(hub.DeiTConfig(**VIT, num_labels=CLASSES)),
    "beit": lambda: hub.BeitForImageClassification(
        hub.BeitConfig(**VIT, num_labels=CLASSES, use_relative_position_bias=True)
    ),
    "dinov2": lambda: hub.Dinov2ForImageClassification(hub.Dinov2Config(**VIT, num_labels=CLASSES)),
    "swin": lambda: hub.SwinForImageClassification(
        hub.SwinConfig(
            image_size=IMAGE,
            patch_size=2,
            embed_dim=24,
            depths=[2, 2],
            num_heads=[2, 4],
            window_size=4,
            num_labels=CLASSES,
        )
    ),
    "clip-vision": lambda: hub.CLIPVisionModel(hub.CLIPVisionConfig(**VIT)),
}
LANGUAGE: dict[str, Make] = {
    "bert": lambda: hub.BertForSequenceClassification(hub.BertConfig(**TEXT)),
    "bert-written-out": lambda: hub.BertForSequenceClassification(hub.BertConfig(**TEXT, attn_implementation="eager")),
    "distilbert": lambda: hub.DistilBertForSequenceClassification(
        hub.DistilBertConfig(
            vocab_size=WORDS, dim=HIDDEN, n_layers=LAYERS, n_heads=HEADS, hidden_dim=FFN, max_position_embeddings=64
        )
    ),
    "roberta": lambda: hub.RobertaForSequenceClassification(hub.RobertaConfig(**TEXT)),
    "albert": lambda: hub.AlbertForSequenceClassification(hub.AlbertConfig(**TEXT, embedding_size=24)),
    "electra": lambda: hub.ElectraForSequenceClassification(hub.ElectraConfig(**TEXT, embedding_size=24)),
    "deberta": lambda: hub.DebertaForSequenceClassification(hub.DebertaConfig(**TEXT)),
    "deberta-v2": lambda: hub.DebertaV2ForSequenceClassification(hub.DebertaV2Config(**TEXT)),
    "mpnet": lambda: hub.MPNetForSequenceClassification(hub.MPNetConfig(**TEXT)),
    "clip-text": lambda: hub.CLIPTextModel(hub.CLIPTextConfig(**TEXT, eos_token_id=2)),
    "t5-encoder": lambda: hub.T5EncoderModel(hub.T5Config(**T5)),
    "t5-gated": lambda: hub.T5EncoderModel(hub.T5Config(**T5, feed_forward_proj="gated-gelu")),
    "gpt2": lambda: hub.GPT2LMHeadModel(
        hub.GPT2Config(vocab_size=WORDS, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=64)
    ),
    "gpt-neox": lambda: hub.GPTNeoXForCausalLM(hub.GPTNeoXConfig(**TEXT)),
    "bloom": lambda: hub.BloomForCausalLM(
        hub.BloomConfig(vocab_size=WORDS, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS)
    ),
    "llama": lambda: hub.LlamaForCausalLM(hub.LlamaConfig(**GROUPED)),
    "mistral": lambda: hub.MistralForCausalLM(hub.MistralConfig(**GROUPED)),
    "qwen2": lambda: hub.Qwen2ForCausalLM(hub.Qwen2Config(**GROUPED)),
    "qwen3": lambda: hub.Qwen3ForCausalLM(hub.Qwen3Config(**GROUPED, head_dim=12)),
    "gemma": lambda: hub.GemmaForCausalLM(hub.GemmaConfig(**GROUPED, head_dim=12)),
    "phi": lambda: hub.PhiForCausalLM(hub.PhiConfig(**TEXT)),
    "falcon": lambda: hub.FalconForCausalLM(
        hub.FalconConfig(vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    ),
    "mixtral": lambda: hub.MixtralForCausalLM(hub.MixtralConfig(**GROUPED, num_local_experts=4)),
}
# how many axes of a kind there are, where the architecture says it: one per layer, one for all where layers share
COUNTS = {
    "bert": {"head": 2, "qk_width": 2, "v_width": 2, "embedding": 1},
    "albert": {"head": 1, "qk_width": 1, "v_width": 1},
    "gpt2": {"head": 2, "embedding": 1},
    "llama": {"kv_group": 2, "q_per_group": 2, "v_width": 2, "width": 2, "embedding": 1},
    "qwen3": {"kv_group": 2, "q_per_group": 2, "v_width": 2, "width": 2, "embedding": 1},
    "vit": {"head": 2, "qk_width": 2, "v_width": 2, "width": 2, "embedding": 1},
    "swin": {"head": 4, "qk_width": 4, "v_width": 4, "width": 4},
}


def exported(name: str) -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    if name in VISION:
        model, x = OneOutput(VISION[name](), "pixel_values"), torch.randn(2, 3, IMAGE, IMAGE)
    else:
        model, x = OneOutput(LANGUAGE[name](), "input_ids"), torch.randint(3, WORDS - 4, (2, LENGTH))
    dynamic = {0: AUTO} if name in VISION else {0: AUTO, 1: AUTO}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(model.eval(), (x,), dynamic_shapes=(dynamic,))


@pytest.mark.parametrize("name", [*VISION, *LANGUAGE])
def test_half_of_everything_can_go(name: str) -> None:
    """`prune` itself exports again, runs two batch sizes and compares with the masked model; here is what it removed."""
    _, report = prune(exported(name), goal=Ratio(0.5), kinds=KINDS)
    kinds = [axis.kind for axis in report.axes]
    assert {kind: kinds.count(kind) for kind in COUNTS.get(name, {})} == COUNTS.get(name, {})
    assert all(axis.after == (axis.before + 1) // 2 for axis in report.axes)
    assert report.sparsity > 0.4


@pytest.mark.parametrize("name", ["resnet-basic", "bert", "gpt2", "llama", "swin"])
@pytest.mark.parametrize("kind", ["head", "kv_group", "v_width", "width", "channel"])
def test_one_kind_alone_equals_the_masked_model(name: str, kind: str) -> None:
    program = exported(name)
    kinds = {"resnet-basic": {"channel"}, "llama": {"kv_group", "v_width", "width"}}.get(
        name, {"head", "v_width", "width"}
    )
    if kind not in kinds:
        pytest.skip(f"{name} has no {kind}")
    _, report = prune(program, goal=Ratio(0.5), kinds=[kind])
    assert report.masked_error is not None
    assert report.masked_error < 1e-5
