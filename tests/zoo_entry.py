"""What an entry of the zoo says about itself, the inputs that entries draw, and how a model becomes one with plain inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.export import Dim

IMAGE = 32  # side
WORDS, LENGTH, SHORT = 64, 12, 9  # vocabulary, words of a text and of another

Inputs = Callable[[int, int], tuple[torch.Tensor, ...]]  # batch, length -> what the network takes
Axes = Mapping[str, list[int]]  # kind -> the size of every axis of that kind
Branches = Mapping[str, int]  # kind -> how many there are
Make = Callable[[], nn.Module]

FREE = {0: Dim.AUTO, 1: Dim.AUTO}  # batch and length
BATCH = Dim("batch")  # of inputs that must agree in it
PAIR = ({0: BATCH, 1: Dim.AUTO}, {0: BATCH, 1: Dim.AUTO})


@dataclass(frozen=True)
class Architecture:
    """How to make it, what it takes, and what it is made of by its own configuration.

    `axes` are all axes that can be cut, `branches` all identity residual branches and repeated layers. Where the length is
    dynamic, `lengths` are the one it is exported with and another.
    """

    family: str
    make: Make
    inputs: Inputs
    axes: Axes
    branches: Branches = field(default_factory=dict)
    dynamic: tuple[dict[int, Any], ...] = ({0: Dim.AUTO},)
    lengths: tuple[int, int] = (0, 0)


class OneInput(nn.Module):
    """A model with one named input and its main output."""

    def __init__(self, model: nn.Module, name: str, **extra: Any) -> None:
        super().__init__()
        self.model, self.name, self.extra = model, name, extra

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _main_output(self.model(**{self.name: x}, **self.extra))


class TwoInputs(nn.Module):
    """A model with two named inputs and its main output."""

    def __init__(self, model: nn.Module, first: str, second: str, **extra: Any) -> None:
        super().__init__()
        self.model, self.names, self.extra = model, (first, second), extra

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return _main_output(self.model(**dict(zip(self.names, (x, y), strict=True)), **self.extra))


def _main_output(seen: Any) -> torch.Tensor:
    return seen.logits if hasattr(seen, "logits") else seen.last_hidden_state


def vision(family: str, make: Make, axes: Axes, branches: Branches, side: int = IMAGE) -> Architecture:
    """A model of images from the hub."""
    return Architecture(family, lambda: OneInput(make(), "pixel_values"), images(side), axes, branches)


def text(family: str, make: Make, axes: Axes, branches: Branches) -> Architecture:
    """A model of texts from the hub, without a cache of keys and values."""
    extra = {"use_cache": False} if family == "decoder" else {}
    made = lambda: OneInput(make(), "input_ids", **extra)  # noqa: E731
    return Architecture(family, made, words(), axes, branches, (FREE,), (LENGTH, SHORT))


def two_texts(family: str, make: Make, axes: Axes, branches: Branches) -> Architecture:
    """A model from the hub that reads one text and continues another."""
    made = lambda: TwoInputs(make(), "input_ids", "decoder_input_ids", use_cache=False)  # noqa: E731
    return Architecture(family, made, words(2), axes, branches, PAIR, (LENGTH, SHORT))


def images(side: int = IMAGE) -> Inputs:
    """Images [N, 3, side, side]."""
    return features(3, side, side)


def words(count: int = 1) -> Inputs:
    """Token numbers [N, length], none of them special, for so many inputs."""

    def draw(batch: int, length: int) -> tuple[torch.Tensor, ...]:
        random = _random(batch)
        return tuple(torch.randint(3, WORDS - 4, (batch, length), generator=random) for _ in range(count))

    return draw


def padded_words(batch: int, length: int) -> tuple[torch.Tensor, ...]:
    """Token numbers and a mask that hides the end of every other text."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[::2, length - 3 :] = 0
    return (*words()(batch, length), mask)


def features(*shape: int) -> Inputs:
    """Vectors [N, *shape, length], or [N, *shape] where the length is 0."""
    return lambda batch, n: (torch.randn(batch, *shape, *([n] if n else []), generator=_random(batch)),)


def _random(batch: int) -> torch.Generator:
    return torch.Generator().manual_seed(batch)
