"""Models of well-known shapes with random weights, as exported programs and ONNX files that are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn
from torch.export import Dim, ExportedProgram

from secateur import onnx_export

TOKENS, VOCABULARY = 128, 30_000
IMAGE = (3, 224, 224)
CLASSES: dict[str, Any] = {"num_labels": 1000}


class Logits(nn.Module):
    """A model of the transformers library, with logits alone as output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.model(inputs).logits


def resnet50() -> nn.Module:
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**CLASSES))


def mobilenet_v2() -> nn.Module:
    return transformers.MobileNetV2ForImageClassification(transformers.MobileNetV2Config(**CLASSES))


def bert_base() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig())


def vit_small() -> nn.Module:
    config = transformers.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, **CLASSES)
    return transformers.ViTForImageClassification(config)


def llama_100m() -> nn.Module:
    """About 110 million parameters; 12 query heads share 4 groups of keys and values."""
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        num_key_value_heads=4,
        intermediate_size=2048,
        max_position_embeddings=1024,
        use_cache=False,
    )
    return transformers.LlamaForCausalLM(config)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-50": resnet50,
    "MobileNetV2": mobilenet_v2,
    "BERT-base": bert_base,
    "ViT-S": vit_small,
    "Llama-100M": llama_100m,
}
LANGUAGE = ("BERT-base", "Llama-100M")
LONGER = ("Llama-100M",)  # models whose length stays dynamic: they are asked token by token


def dense_program(name: str, cache: Path, seed: int) -> ExportedProgram:
    """A model with random weights; those that would be all zeros or all ones differ too, as in a trained one."""
    path = cache / f"{name}.pt2"
    if not path.exists():
        torch.manual_seed(seed)
        model = Logits(MODELS[name]()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.02 if parameter.dim() == 1 else 0.0)
        inputs = torch.from_numpy(np.concatenate([example(name, seed)] * 2))
        sizes = {0: Dim.AUTO, 1: Dim.AUTO} if name in LONGER else {0: Dim.AUTO}
        torch.export.save(torch.export.export(model, (inputs,), dynamic_shapes=(sizes,)), path)
    return torch.export.load(path)


def example(name: str, seed: int) -> np.ndarray:
    """One input of a model."""
    rng = np.random.default_rng(seed)
    if name in LANGUAGE:
        return rng.integers(0, VOCABULARY, (1, TOKENS))
    return rng.standard_normal((1, *IMAGE), dtype=np.float32)


def onnx_of(program: ExportedProgram, path: Path) -> Path:
    """The program's ONNX file, written unless it is there."""
    if not path.exists():
        beside = path.with_suffix(".new")
        onnx_export.export(program, beside)
        beside.rename(path)
    return path
