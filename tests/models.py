"""Tiny networks that the tests share, and their exported programs, each exported once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

CLASSES = 3
FEATURES = 4  # of an example vector
HIDDEN = 6
IMAGE = (3, 6, 6)  # channels, height, width
CHANNELS = 8
VOCABULARY, LENGTH, EMBEDDING = 11, 5, 12
HEADS, GROUPS, HEAD_DIM = 4, 2, 3  # query heads, key and value heads, width of a head


class Perceptron(nn.Module):
    """Vectors [N, 4] to logits [N, 3], through one hidden layer."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.first = nn.Linear(FEATURES, hidden)
        self.second = nn.Linear(hidden, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.relu(self.first(x)))


class Residual(nn.Module):
    """Images to logits: a stem, a residual block with batch norms and dropout, a flatten into a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(IMAGE[0], CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.inner = nn.Conv2d(CHANNELS, HIDDEN, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(HIDDEN)
        self.outer = nn.Conv2d(HIDDEN, CHANNELS, 3, padding=1)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(CHANNELS * 4, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + self.outer(torch.relu(self.inner_norm(self.inner(x))))
        return self.head(self.drop(functional.adaptive_avg_pool2d(x, 2).flatten(1)))


class Branches(nn.Module):
    """Images to logits through a depthwise and a grouped convolution, a concatenation and a gate made by chunking."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(IMAGE[0], CHANNELS, 1)
        self.depthwise = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.grouped = nn.Conv2d(CHANNELS, 2 * HIDDEN, 3, padding=1, groups=2)
        self.mix = nn.Conv2d(CHANNELS + 2 * HIDDEN, 2 * HIDDEN, 1)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.depthwise(self.stem(x)))
        x = self.mix(torch.cat([x, torch.sigmoid(self.grouped(x))], 1))
        value, gate = x.chunk(2, 1)
        return self.head((value * torch.sigmoid(gate)).mean((2, 3)))


class Encoder(nn.Module):
    """Tokens [N, 5] to logits: one transformer layer with grouped query attention and a feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, EMBEDDING)
        self.norm = nn.LayerNorm(EMBEDDING)
        self.query = nn.Linear(EMBEDDING, HEADS * HEAD_DIM)
        self.key = nn.Linear(EMBEDDING, GROUPS * HEAD_DIM)
        self.value = nn.Linear(EMBEDDING, GROUPS * HEAD_DIM)
        self.out = nn.Linear(HEADS * HEAD_DIM, EMBEDDING)
        self.up = nn.Linear(EMBEDDING, CHANNELS)
        self.down = nn.Linear(CHANNELS, EMBEDDING)
        self.head = nn.Linear(EMBEDDING, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        y = self.norm(x)
        q, k, v = (part(y).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2) for part in (self.query, self.key, self.value))
        attended = functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        x = x + self.down(functional.gelu(self.up(x)))
        return self.head(x[:, 0])


class Tied(nn.Module):
    """Tokens to logits over the vocabulary, by the matrix that embeds them (Press and Wolf 2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, EMBEDDING)
        self.middle = nn.Linear(EMBEDDING, EMBEDDING)
        self.head = nn.Linear(EMBEDDING, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.middle(self.embed(tokens))).mean(1))


class Layer(nn.Module):
    """Attention and an MLP on a stream [N, T, stream], each a residual branch with a norm before it."""

    def __init__(self, stream: int, hidden: int) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(stream), nn.LayerNorm(stream)
        self.query, self.key, self.value = (nn.Linear(stream, stream) for _ in range(3))
        self.out = nn.Linear(stream, stream)
        self.up, self.down = nn.Linear(stream, hidden), nn.Linear(hidden, stream)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        q, k, v = (part(y).unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in (self.query, self.key, self.value))
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.mlp_norm(x))))


class Layers(nn.Module):
    """Vectors [N, T, stream] to logits, through layers one after the other."""

    def __init__(self, count: int = 3, stream: int = EMBEDDING, hidden: int = CHANNELS) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(stream, hidden) for _ in range(count))
        self.head = nn.Linear(stream, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def images(count: int, seed: int = 0) -> np.ndarray:
    """Random images [count, 3, 6, 6]."""
    return np.random.default_rng(seed).normal(size=(count, *IMAGE)).astype(np.float32)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    """Random vectors [count, 4]."""
    return np.random.default_rng(seed).normal(size=(count, FEATURES)).astype(np.float32)


def tokens(count: int, seed: int = 0) -> np.ndarray:
    """Random tokens [count, 5]."""
    return np.random.default_rng(seed).integers(0, VOCABULARY, (count, LENGTH))


class Computing(nn.Module):
    """A step between two layers."""

    def __init__(self, first: nn.Module, step: Callable[[torch.Tensor], torch.Tensor], second: nn.Module) -> None:
        super().__init__()
        self.first, self.step, self.second = first, step, second

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.step(self.first(x)))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], np.ndarray]]] = {
    "perceptron": (Perceptron, vectors),
    "residual": (Residual, images),
    "branches": (Branches, images),
    "encoder": (Encoder, tokens),
    "tied": (Tied, tokens),
}


@functools.cache
def module(name: str) -> nn.Module:
    """One of the networks in evaluation mode, weights from a fixed seed, norms away from where they start."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = MODELS[name][0]()
        return with_lived_in_norms(made).eval()


def with_lived_in_norms(made: nn.Module) -> nn.Module:
    """Random scales, shifts and statistics, so that a norm that loses track of its channels shows."""
    for norm in made.modules():
        if isinstance(norm, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
        if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and norm.running_var is not None:
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return made


@functools.cache
def layers() -> tuple[Layers, ExportedProgram]:
    """Three layers, norms away from where they start, and their exported program. Tests share it: nothing may modify it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = with_lived_in_norms(Layers()).eval()
    return made, export(made, torch.zeros(2, LENGTH, EMBEDDING))  # type: ignore[return-value]


@functools.cache
def exported(name: str) -> ExportedProgram:
    """The exported program of a network, its batch dynamic. Tests share it: nothing may modify it."""
    return export(module(name), torch.from_numpy(MODELS[name][1](2)))


def export(made: nn.Module, *inputs: torch.Tensor) -> ExportedProgram:
    """Export in evaluation mode with the first dimension of every input dynamic."""
    return torch.export.export(made.eval(), inputs, dynamic_shapes=tuple({0: Dim.AUTO} for _ in inputs))


def linear_onnx(path: Path, weight: np.ndarray) -> Path:
    """Write an ONNX file that multiplies vectors [N, rows] by a weight [rows, columns]: no exporter, no waiting."""
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", columns])],
        [numpy_helper.from_array(weight.astype(np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def growing_onnx(path: Path) -> Path:
    """Write an ONNX file with a cache: numbers [N, 1] are put behind those so far [N, P]; gives the sums [N, 1] and all."""
    graph = helper.make_graph(
        [
            helper.make_node("Concat", ["past", "x"], ["present"], axis=1),
            helper.make_node("ReduceSum", ["present", "axes"], ["sum"]),
        ],
        "growing",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1]),
            helper.make_tensor_value_info("past", TensorProto.FLOAT, ["batch", "positions"]),
        ],
        [
            helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["batch", 1]),
            helper.make_tensor_value_info("present", TensorProto.FLOAT, ["batch", "longer"]),
        ],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path
