"""What the plain loop and the peer share: the eager model, its data, and the step on a batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.recovery.rows import OPTIONS, Task
from benchmarks.recovery.turns import Turns

Batch = list[torch.Tensor]  # inputs, then labels


def model(task: Task) -> nn.Module:
    """The network that the program was exported from. An exported program drops nothing inside its attention, which is
    one operator to it; nor does this."""
    if task.network == "minilm":
        from benchmarks.trained import minilm  # transformers, which images need not pay for

        network = minilm.Classifier(minilm.package())
        for layer in network.model.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        return network
    from benchmarks.trained import cifar_resnet

    return cifar_resnet.CifarResNet(20)


def trained(task: Task, folder: Path) -> nn.Module:
    """The same with the weights that every contender starts from."""
    network = model(task)
    network.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    return network.train()


class Batches:
    """One epoch in random order, each batch copied out of arrays in memory by one operation, which is faster than a
    DataLoader's one example at a time."""

    def __init__(self, task: Task, folder: Path, turns: Turns) -> None:
        paths = sorted(folder.glob("train_*.npy"))
        self.columns = [torch.from_numpy(np.load(path)) for path in paths]
        self.size, self.augment = task.batch, bool(task.augment)
        self.batch = turns.watched(self._batch)

    def __len__(self) -> int:
        return len(self.columns[-1]) // self.size

    def __iter__(self) -> Iterator[Batch]:
        for chosen in torch.randperm(len(self.columns[-1])).split(self.size):
            yield self.batch(chosen)

    def _batch(self, chosen: torch.Tensor) -> Batch:
        batch = [column[chosen] for column in self.columns]
        if self.augment:
            batch[0] = shifted_and_mirrored(batch[0])
        return batch


def shifted_and_mirrored(images: torch.Tensor) -> torch.Tensor:
    """Crop by up to four pixels and flip, image by image as a data set's transform does."""
    height, width = images.shape[2:]
    seen = []
    for image in functional.pad(images, (4, 4, 4, 4)):
        down, right, mirrored = torch.randint(9, (1,)), torch.randint(9, (1,)), torch.rand(1) < 0.5
        crop = image[:, down : down + height, right : right + width]
        seen.append(crop.flip(2) if mirrored else crop)
    return torch.stack(seen)


def loss(network: nn.Module, batch: Batch) -> torch.Tensor:
    """Of the labels alone."""
    *inputs, labels = batch
    return functional.cross_entropy(network(*inputs), labels)


def optimizer(task: Task, network: nn.Module) -> torch.optim.Optimizer:
    """As a tutorial makes one: torch's defaults choose how it computes."""
    make: Any = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[task.optimizer]
    return make(network.parameters(), **OPTIONS[task.optimizer])
