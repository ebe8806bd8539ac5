"""`recover` as a user calls it, on the exported program: no distillation, no average, no masks."""

from __future__ import annotations

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


def train(task: Task, folder: Path, turns: Turns) -> None:
    """One epoch, and its validation."""
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
        patch.object(training.Run, "_examples", turns.watched(training.Run._examples)),
        patch.object(training.Run, "_placed", turns.watched(training.Run._placed)),
        patch.object(augmentation, "augment", turns.watched(augmentation.augment)),
    ):
        try:
            recover(
                program,
                program,
                Dataset(train, validation, validation),
                settings,
                on_epoch=told,
                on_step=lambda *_: turns(),
            )
        except _Over:
            return


def _split(folder: Path, name: str) -> Split:
    *inputs, labels = (np.load(path) for path in sorted(folder.glob(f"{name}_*.npy")))
    return Split(inputs[0], labels, tuple(inputs[1:]))
