"""The trained CIFAR ResNets (He et al. 2016, option A shortcuts) and their data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

WEIGHTS = {20: "resnet20-12fca82f.th", 56: "resnet56-4bfd9763.th"}
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIDE = 50  # images along a side of a mosaic
Images = tuple[np.ndarray, np.ndarray]  # uint8 [N, 32, 32, 3], labels [N]


class Block(nn.Module):
    """Two convolutions; where the block widens, the shortcut is every other pixel, zeros beside its channels."""

    def __init__(self, before: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.beside = stride, (channels - before) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.beside, self.beside))
        return torch.relu(x + y)


class CifarResNet(nn.Module):
    """Images [N, 3, 32, 32] to logits [N, 10]; depth 6n + 2."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        count = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(count, 16, 16, 1)
        self.layer2 = _stage(count, 16, 32, 2)
        self.layer3 = _stage(count, 32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(count: int, before: int, channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(before, channels, stride), *(Block(channels, channels, 1) for _ in range(count - 1)))


def trained(folder: Path, depth: int) -> CifarResNet:
    """The network with its published weights."""
    stored = torch.load(folder / WEIGHTS[depth], map_location="cpu", weights_only=True)["state_dict"]
    model = CifarResNet(depth)
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in stored.items()})
    return model.eval()


def exported(model: nn.Module) -> ExportedProgram:
    """The program, with any batch."""
    return torch.export.export(model, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=({0: Dim.AUTO},))


def images(folder: Path, split: str) -> Images:
    """The images of a split in official order, out of their mosaics."""
    tiles = [
        np.asarray(Image.open(path).convert("RGB")).reshape(SIDE, 32, SIDE, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
        for path in sorted(folder.glob(f"{split}_*.webp"))
    ]
    labels = np.load(folder / "labels.npz")[f"y_{split}"]
    return np.concatenate(tiles), labels.astype(np.int64)


def drawn(split: Images, count: int, seed: int) -> Images:
    """Some images, drawn by a seed."""
    chosen = np.random.default_rng(seed).permutation(len(split[1]))[:count]
    return split[0][chosen], split[1][chosen]


def batches(split: Images, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Normalised images and labels."""
    mean, deviation = (np.array(x, dtype=np.float32) for x in (MEAN, DEVIATION))
    for start in range(0, len(split[1]), size):
        scaled = split[0][start : start + size].astype(np.float32) / 255
        pixels = ((scaled - mean) / deviation).transpose(0, 3, 1, 2)
        yield torch.from_numpy(np.ascontiguousarray(pixels)), torch.from_numpy(split[1][start : start + size])
