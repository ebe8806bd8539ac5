"""The plainest loop: no schedule, nothing logged, the loss never read."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.recovery import eager
from benchmarks.recovery.rows import Task
from benchmarks.recovery.turns import Turns


def train(task: Task, folder: Path, turns: Turns) -> int:
    """One epoch; nothing is held beside the training."""
    device = torch.device(task.device)
    network = eager.trained(task, folder).to(device)
    optimizer = eager.optimizer(task, network)
    for batch in eager.Batches(task, folder, turns):
        optimizer.zero_grad()
        with torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bfloat16"):
            loss = eager.loss(network, [column.to(device) for column in batch])
        loss.backward()
        optimizer.step()
        turns()
    return 0
