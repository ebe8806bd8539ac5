"""Recovery training: the cut program learns from the data and from the dense program what the cut took from it."""

from __future__ import annotations

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.nn import functional

from secateur import program as programs
from secateur.data import Dataset, Split
from secateur.errors import InputError

_BATCH_NORM = torch.ops.aten.batch_norm.default


@dataclass(frozen=True)
class Settings:
    """How to train. `distillation` is the weight of the teacher's loss, the rest is the labels'."""

    epochs: int = 10
    batch: int = 64
    learning_rate: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    distillation: float = 0.5
    temperature: float = 4.0
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """What one epoch ended with; epoch 0 is the program as it was cut."""

    epoch: int
    loss: float
    accuracy: float  # on validation
    seconds: float


@dataclass(frozen=True)
class Recovered:
    """The best epoch's program by validation accuracy, the earliest of equals, and every epoch before and after it."""

    program: ExportedProgram
    best: Epoch
    history: tuple[Epoch, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps its last state; `load` returns None when there is none yet."""

    save: Callable[[bytes], None]
    load: Callable[[], bytes | None]


def recover(
    student: ExportedProgram,
    teacher: ExportedProgram,
    data: Dataset,
    settings: Settings,
    *,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> Recovered:
    """Train all weights with labels and distillation (Hinton et al. 2015), keep the epoch best on validation.

    The loss is (1 - a) CE(student, label) + a T^2 KL(teacher_T || student_T); the optimiser is SGD with Nesterov
    momentum, a linear warm-up over the first tenth of the steps and a cosine decay to zero. Every epoch's order follows
    from the seed and the epoch alone, so that a run resumed from its checkpoint ends where it would have.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    torch.manual_seed(settings.seed)
    module = programs.graph_module(student)
    guide = programs.graph_module(teacher)
    programs.set_training(guide, False)
    steps = settings.epochs * math.ceil(len(data.train) / settings.batch)
    optimizer = torch.optim.SGD(
        _decay_groups(module, settings.weight_decay),
        settings.learning_rate,
        momentum=settings.momentum,
        nesterov=settings.momentum > 0,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, steps))
    state = _resume(checkpoint, module, optimizer, schedule)
    if state is None:
        first = Epoch(0, math.nan, accuracy(module, data.validation), 0.0)
        state = {"history": [first], "best": first, "weights": _copy_of_state(module)}
        on_epoch(first)
    for number in range(len(state["history"]), settings.epochs + 1):
        started = time.monotonic()
        loss = _train_epoch(module, guide, data.train, settings, number, optimizer, schedule)
        epoch = Epoch(number, loss, accuracy(module, data.validation), time.monotonic() - started)
        state["history"].append(epoch)
        if epoch.accuracy > state["best"].accuracy:
            state |= {"best": epoch, "weights": _copy_of_state(module)}
        _keep(checkpoint, state, module, optimizer, schedule)
        on_epoch(epoch)
    module.load_state_dict(state["weights"])
    return Recovered(programs.reexport(module, student), state["best"], tuple(state["history"]))


def reestimate_norms(module: fx.GraphModule, batches: Iterable[Sequence[torch.Tensor]]) -> int:
    """Replace the running statistics of batch norms by those of some inputs, in place, and say how many norms there are.

    A cut changes what reaches every norm behind it. As in training, each norm normalises by the batch it sees; what is
    kept is the plain average of the batches' means and (unbiased) variances, where training would let early batches
    fade. No gradient is taken and dropout stays as it was: only what evaluation will see is measured.

    Args:
        batches: the inputs of the module, in order. A larger batch estimates better; its size is not weighed.

    Raises:
        InputError: there is no batch.
    """
    norms = [n for n in module.graph.find_nodes(op="call_function", target=_BATCH_NORM) if n.args[3] is not None]
    if not norms:
        return 0
    names = sorted({str(buffer.target) for node in norms for buffer in node.args[3:5]})
    totals = {name: torch.zeros_like(module.get_buffer(name)) for name in names}
    count = 0
    with _normalising_by_batch(module, norms), torch.no_grad():
        for inputs in batches:
            module(*inputs)
            count += 1
            for name, total in totals.items():
                total += module.get_buffer(name)
    if not count:
        raise InputError(
            "batch norms: expected at least one batch of inputs to estimate their statistics from, got none"
        )
    for name, total in totals.items():
        module.get_buffer(name).copy_(total / count)
    return len(norms)


@contextlib.contextmanager
def _normalising_by_batch(module: fx.GraphModule, norms: Sequence[fx.Node]) -> Iterator[None]:
    """The norms use each batch's statistics, and their buffers hold those of the last batch alone."""
    before = [(node, node.args) for node in norms]
    for node in norms:
        node.args = (*node.args[:5], True, 1.0, *node.args[7:])  # training, momentum
    module.recompile()
    try:
        yield
    finally:
        for node, args in before:
            node.args = args
        module.recompile()


def accuracy(module: fx.GraphModule, split: Split, batch: int = 256) -> float:
    """Share of examples whose largest logit is their label, in evaluation mode."""
    right = 0
    with programs.evaluating(module):
        for start in range(0, len(split), batch):
            logits = module(torch.from_numpy(split.inputs[start : start + batch]))
            right += int((logits.argmax(1).numpy() == split.labels[start : start + batch]).sum())
    return right / len(split)


def _decay_groups(module: fx.GraphModule, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels only: norms and biases are left alone."""
    parameters = list(module.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _warm_cosine(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _batches(split: Split, settings: Settings, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    order = np.random.default_rng([settings.seed, epoch]).permutation(len(split))
    for start in range(0, len(order), settings.batch):
        part = order[start : start + settings.batch]
        if len(part) > 1:  # a batch norm in training has no variance over one example
            yield torch.from_numpy(split.inputs[part]), torch.from_numpy(split.labels[part])


def _train_epoch(
    module: fx.GraphModule,
    guide: fx.GraphModule,
    train: Split,
    settings: Settings,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """One pass over the training split; the mean loss over its batches."""
    torch.manual_seed(settings.seed * 100_003 + epoch)  # dropout
    programs.set_training(module, True)
    losses = []
    for inputs, labels in _batches(train, settings, epoch):
        with torch.no_grad():
            taught = guide(inputs)
        loss = _loss(module(inputs), taught, labels, settings)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"recovery diverged: loss {loss.item()} in epoch {epoch}; lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    if not all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters()):
        raise FloatingPointError(
            f"recovery diverged: weights are not finite after epoch {epoch}; lower the learning rate"
        )
    return float(np.mean(losses))


def _loss(logits: torch.Tensor, taught: torch.Tensor, labels: torch.Tensor, settings: Settings) -> torch.Tensor:
    hard = functional.cross_entropy(logits, labels)
    t = settings.temperature
    soft = functional.kl_div(
        functional.log_softmax(logits / t, 1),
        functional.log_softmax(taught / t, 1),
        log_target=True,
        reduction="batchmean",
    )
    return (1 - settings.distillation) * hard + settings.distillation * t * t * soft


def _copy_of_state(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _keep(
    checkpoint: Checkpoint | None,
    state: dict[str, Any],
    module: fx.GraphModule,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    if checkpoint is None:
        return
    buffer = io.BytesIO()
    torch.save(
        {
            "history": [vars(epoch) for epoch in state["history"]],
            "best": state["best"].epoch,
            "weights": state["weights"],
            "module": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": schedule.last_epoch,
        },
        buffer,
    )
    checkpoint.save(buffer.getvalue())


def _resume(
    checkpoint: Checkpoint | None,
    module: fx.GraphModule,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> dict[str, Any] | None:
    """Put everything back to where the last checkpoint left it; None when there is none."""
    stored = checkpoint.load() if checkpoint else None
    if stored is None:
        return None
    kept = torch.load(io.BytesIO(stored), weights_only=True)
    module.load_state_dict(kept["module"])
    optimizer.load_state_dict(kept["optimizer"])
    schedule.last_epoch = kept["step"]
    history = [Epoch(**epoch) for epoch in kept["history"]]
    return {"history": history, "best": history[kept["best"]], "weights": kept["weights"]}
