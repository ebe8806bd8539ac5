"""What is trained, and how: the same for every contender."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

CONTENDERS = ("ours", "plain", "lightning")
WARM_UP = 10  # steps of each contender before the first round
FRESH = 8  # processes of each contender, one after the other
BLOCK = 10  # steps between which the contenders take turns
LENGTH = 32  # tokens of every sentence, cut or padded, so that every batch is the same work
PRECISIONS = ("float32", "bfloat16")  # on a GPU; on a CPU the first alone
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
    "adamw": {"lr": 2e-5, "weight_decay": 0.01},
}


@dataclass(frozen=True)
class Task:
    """A network, how it is trained and where. Images lie in memory as torch lays them by default (NCHW)."""

    name: str
    network: str
    batch: int
    optimizer: str
    augment: tuple[str, ...] = ()
    device: str = "cpu"
    precision: str = "float32"

    def on(self, device: str, precision: str) -> Task:
        """The same elsewhere."""
        return dataclasses.replace(self, device=device, precision=precision)

    @property
    def where(self) -> str:
        """In words."""
        return f"{'GPU' if self.device == 'cuda' else 'CPU'}, {self.precision}"


TASKS = {
    task.name: task
    for task in (
        Task("resnet20", "resnet20", 128, "sgd"),
        Task("resnet20-augmented", "resnet20", 128, "sgd", ("crop", "flip")),
        Task("minilm", "minilm", 32, "adamw"),
    )
}
