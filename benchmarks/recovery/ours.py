"""`recover` as a user calls it, on the exported program: no distillation, no average, no masks."""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from benchmarks.recovery.rows import OPTIONS, Task
from benchmarks.recovery.turns import Turns
from secateur import augmentation, training
from secateur.data import Dataset, Split
from secateur.recovery import recover


class _Over(Exception):  # noqa: N818  (it is no error)
    """The epoch is done and judged; what follows is not training."""


def train(task: Task, folder: Path, turns: Turns) -> int:
    """One epoch, and its validation; gives the bytes of the program that is handed in, for student and teacher."""
    program = torch.export.load(folder / "program.pt2")
    train, validation = _split(folder, "train"), _split(folder, "validation")
    options = OPTIONS[task.optimizer]
    settings = training.Settings(
        epochs=1,
        batch=task.batch,
        precision=task.precision,
        optimizer=task.optimizer,
        learning_rate=options["lr"],
        weight_decay=options["weight_decay"],
        distillation=0.0,
        augment=task.augment,
        reestimate_norms=False,
    )

    def told(epoch: training.Epoch) -> None:
        if epoch.epoch:
            raise _Over

    with (
        contextlib.suppress(_Over),
        patch.object(training.Run, "_examples", turns.watched(training.Run._examples)),
        patch.object(training.Run, "_placed", turns.watched(training.Run._placed)),
        patch.object(augmentation, "augment", turns.watched(augmentation.augment)),
    ):
        data = Dataset(train, validation, validation)
        recover(program, program, data, settings, on_epoch=told, on_step=lambda *_: turns())
    return sum(tensor.nbytes for tensor in program.state_dict.values())


def _split(folder: Path, name: str) -> Split:
    *inputs, labels = (np.load(path) for path in sorted(folder.glob(f"{name}_*.npy")))
    return Split(inputs[0], labels, tuple(inputs[1:]))
