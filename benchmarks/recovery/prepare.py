"""What the contenders train and what with, as files: the arrays, the weights and the exported program."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.context import Context, Skipped
from benchmarks.recovery.rows import LENGTH, Task
from benchmarks.trained import cifar_resnet, minilm

VALIDATION = 256  # examples that recovery judges an epoch by; the others do not


def prepare(task: Task, steps: int, context: Context, folder: Path) -> None:
    """Write the files into a folder.

    Raises:
        Skipped: data or a package is missing, or there are too few examples for the steps.
    """
    count = VALIDATION + steps * task.batch
    network: nn.Module
    if task.network == "minilm":
        columns, network = _sentences(context, count), minilm.Classifier(minilm.package()).eval()
        program = minilm.exported(network, tuple(torch.from_numpy(column[:2]) for column in columns))
    else:
        columns, network = _images(context, count), cifar_resnet.trained(context.folder("cifar_resnet"), 20)
        program = cifar_resnet.exported(network)
    if len(columns[-1]) < count:
        most = (len(columns[-1]) - VALIDATION) // task.batch
        raise Skipped(
            f"{steps} steps of {task.batch} are more than an epoch of this data, {most}: ask for fewer rounds"
        )
    for number, column in enumerate(columns):
        np.save(folder / f"validation_{number}.npy", column[:VALIDATION])
        np.save(folder / f"train_{number}.npy", column[VALIDATION:])
    torch.save(network.state_dict(), folder / "weights.pt")
    torch.export.save(program, folder / "program.pt2")


def _images(context: Context, count: int) -> tuple[np.ndarray, ...]:
    drawn = cifar_resnet.drawn(cifar_resnet.images(context.folder("cifar10"), "train"), count, context.seed)
    parts = list(cifar_resnet.batches(drawn, 1000))
    return tuple(torch.cat(column).numpy() for column in zip(*parts, strict=True))


def _sentences(context: Context, count: int) -> tuple[np.ndarray, ...]:
    train, _, _ = minilm.texts(context.folder("sst2"), context.seed)
    made = minilm.split(train[:count], LENGTH)
    return *made.columns, made.labels
