"""Lightning's Trainer on the eager model; what it prints, logs and stores is turned off."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from lightning import pytorch as lightning
from torch import nn

from benchmarks.recovery import eager
from benchmarks.recovery.rows import Task
from benchmarks.recovery.turns import Turns

PRECISIONS: dict[str, Any] = {"float32": "32-true", "bfloat16": "bf16-mixed"}


class Training(lightning.LightningModule):
    """The step that every contender takes."""

    def __init__(self, task: Task, network: nn.Module) -> None:
        super().__init__()
        self.task, self.network = task, network

    def training_step(self, batch: eager.Batch, number: int) -> torch.Tensor:
        return eager.loss(self.network, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return eager.optimizer(self.task, self.network)


class InTurns(lightning.Callback):
    """Waits between blocks."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_batch_end(self, *_: Any) -> None:
        self.turns()


def train(task: Task, folder: Path, turns: Turns) -> int:
    """One epoch; nothing is held beside the training."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        accelerator="gpu" if task.device == "cuda" else "cpu",
        devices=1,
        precision=PRECISIONS[task.precision],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[InTurns(turns)],
    )
    network = eager.trained(task, folder)
    trainer.fit(Training(task, network), eager.Batches(task, folder, turns))
    return 0
