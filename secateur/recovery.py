"""Recovery training: the cut program learns from the data and from the dense program what the cut took from it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

from secateur import augmentation, checkpoints
from secateur import program as programs
from secateur.checkpoints import Checkpoint
from secateur.data import Dataset, Split
from secateur.errors import InputError
from secateur.learning_rates import LEARNING_RATES
from secateur.norms import reestimate_norms
from secateur.objectives import Objective, logits_of, objective_of
from secateur.sparsity import apply_masks

NORM_BATCHES = 50  # of training, that norms are measured again with
EVALUATION_BATCH = 256
OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class Settings:
    """How to train. `distillation` is the weight of the teacher's loss, the rest is the labels'."""

    epochs: int = 10
    minutes: float | None = None  # ends the training after the epoch in which they are over
    batch: int = 64
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9  # of SGD, Nesterov's
    weight_decay: float = 5e-4  # of matrices and kernels; norms and biases are left alone
    schedule: str = "cosine"
    warm_up: float = 0.1  # share of the steps
    distillation: float = 0.5
    temperature: float = 4.0
    label_smoothing: float = 0.0
    clip: float | None = None  # largest norm of the gradient
    average: float = 0.0  # decay of the weights' moving average, which is then what is judged and kept; 0: none
    patience: int | None = None  # epochs without a better one that end the training
    augment: tuple[str, ...] = ()
    reestimate_norms: bool = True  # before any gradient, kept where it is better
    seed: int = 0


@dataclass(frozen=True)
class Epoch:
    """What one epoch ended with; epoch 0 is the program as it was cut."""

    epoch: int
    loss: float
    accuracy: float  # on validation; the objective's metric
    seconds: float


@dataclass(frozen=True)
class Recovered:
    """The best candidate's program by validation, the earliest of equals, and every epoch before and after it.

    `kept` says which it is: "cut" (training only harmed), "norms" (as cut, norms measured again) or "trained".
    """

    program: ExportedProgram
    kept: str
    best: Epoch
    history: tuple[Epoch, ...]
    adapted: float | None  # validation after measuring the norms again; None without norms


@dataclass
class _State:
    """Everything that a resumed run needs; `losses` and `seconds` are those of the epoch that is under way."""

    epoch: int = 1
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)
    adapted: float | None = None
    kept: str = "cut"
    best: Epoch = Epoch(0, math.nan, -math.inf, 0.0)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)  # the best
    average: dict[str, torch.Tensor] = field(default_factory=dict)


def recover(
    student: ExportedProgram,
    teacher: ExportedProgram,
    data: Dataset,
    settings: Settings,
    *,
    objective: str = "classification",
    masks: Mapping[str, torch.Tensor] | None = None,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Recovered:
    """Train all weights with labels and distillation (Hinton et al. 2015), keep what is best on validation.

    The loss is (1 - a) L(student, label) + a T^2 KL(teacher_T || student_T). Every step's order, augmentation and dropout
    follow from the seed and the step alone, so that a run that is killed anywhere ends, bit for bit on a CPU, where it
    would have.

    Args:
        masks: what `sparsify` gave, by parameter name, True where a weight stays; the others are exactly zero before
            the first step and after every one, whatever momentum and weight decay do.
        on_step: called with the step, the number of steps and the loss.

    Raises:
        InputError: a setting out of its range, data that cannot be trained with, a mask that does not fit, or a
            checkpoint of another run.
        FloatingPointError: the loss or the weights are not finite; the message names the step.
    """
    goal = objective_of(objective)
    check_settings(settings)
    check_data(data, settings)
    module = programs.graph_module(student)
    masks = masks or {}
    _check_masks(module, masks)
    apply_masks(module, masks)
    run = Run(module, goal, settings, masks, data, None if settings.distillation == 0 else teacher)
    key = _key(student, teacher, data, settings, objective, masks) if checkpoint else ""
    train(run, key, checkpoint, on_epoch, on_step)
    state = run.state
    module.load_state_dict(state.weights)
    return Recovered(programs.reexport(module, student), state.kept, state.best, tuple(state.history), state.adapted)


def train(
    run: Run,
    key: str,
    checkpoint: Checkpoint | None,
    on_epoch: Callable[[Epoch], None],
    on_step: Callable[[int, int, float], None],
) -> None:
    """Take a run to its end, from where the checkpoint of this key left it; the module holds the weights of the last step."""
    if not (checkpoint and run.resume(key, checkpoint)):
        run.judge_as_cut()
        for epoch in run.state.history:
            on_epoch(epoch)
    saved = time.monotonic()
    while not run.finished():
        for step in run.epoch():
            on_step(step, run.steps, run.state.losses[-1])
            if checkpoint and time.monotonic() - saved >= checkpoint.seconds:
                checkpoint.save(run.packed(key))
                saved = time.monotonic()
        told = run.judge_epoch()
        if checkpoint:
            checkpoint.save(run.packed(key))
            saved = time.monotonic()
        on_epoch(told)


class Run:
    """One training: the module, its optimiser, and the state that a checkpoint holds.

    `penalty` is called with the step between the backward pass and the optimiser, and may add to the gradients.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        objective: Objective,
        settings: Settings,
        masks: Mapping[str, torch.Tensor],
        data: Dataset,
        teacher: ExportedProgram | None,
        penalty: Callable[[int], None] = lambda step: None,
    ) -> None:
        self.penalty = penalty
        self.module, self.objective, self.settings, self.masks, self.data = module, objective, settings, masks, data
        self.columns = [torch.from_numpy(column) for column in data.train.columns]
        self.labels = torch.from_numpy(data.train.labels)
        self.per_epoch = sum(1 for _ in _orders(len(data.train), settings, 1))
        self.steps = settings.epochs * self.per_epoch
        self.optimizer = _optimizer(module, settings)
        self.guide = programs.graph_module(teacher, shared=True) if teacher is not None else None
        if self.guide is not None:
            programs.set_training(self.guide, False)
        # without augmentation the teacher says the same in every epoch
        self.taught = self._answers_of_teacher() if self.guide is not None and not settings.augment else None
        self.state = _State()

    def _answers_of_teacher(self) -> torch.Tensor:
        assert self.guide is not None
        with torch.no_grad():
            parts = [
                logits_of(self.guide(*(column[start : start + EVALUATION_BATCH] for column in self.columns)))
                for start in range(0, len(self.labels), EVALUATION_BATCH)
            ]
        return torch.cat(parts)

    def judge_as_cut(self) -> None:
        """The candidates before any gradient: the program as it came, and with its norms measured again."""
        state, first = self.state, Epoch(0, math.nan, self.validate(), 0.0)
        state.history, state.best, state.weights = [first], first, _copy_of(self.module)
        if self.settings.reestimate_norms:
            order = _orders(len(self.labels), self.settings, 0)
            parts = ([c[part] for c in self.columns] for _, part in zip(range(NORM_BATCHES), order, strict=False))
            if reestimate_norms(self.module, parts):
                state.adapted = self.validate()
                if state.adapted > first.accuracy:
                    state.kept, state.best = "norms", Epoch(0, math.nan, state.adapted, 0.0)
                    state.weights = _copy_of(self.module)
                else:
                    self.module.load_state_dict(state.weights)
        if self.settings.average:
            state.average = _copy_of(self.module)

    def finished(self) -> bool:
        """Whether epochs, minutes or patience are used up."""
        settings, state = self.settings, self.state
        seconds = sum(epoch.seconds for epoch in state.history)
        late = settings.minutes is not None and seconds >= 60 * settings.minutes
        stale = settings.patience is not None and state.epoch - 1 - state.best.epoch >= settings.patience
        return state.epoch > settings.epochs or late or stale

    def epoch(self) -> Iterator[int]:
        """Train to the end of the epoch that is under way; gives the number of each step after it is done."""
        programs.set_training(self.module, True)
        state = self.state
        done = state.step - (state.epoch - 1) * self.per_epoch
        for position, part in enumerate(_orders(len(self.labels), self.settings, state.epoch)):
            if position < done:
                continue
            began = time.monotonic()
            state.losses.append(self._step(part))
            state.step += 1
            state.seconds += time.monotonic() - began
            yield state.step

    def _step(self, part: torch.Tensor) -> float:
        settings, step = self.settings, self.state.step
        torch.manual_seed(settings.seed * 1_000_003 + step)  # dropout
        draw = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * LEARNING_RATES[settings.schedule](
                (step + 0.5) / self.steps, settings.warm_up
            )
        columns, labels = [column[part] for column in self.columns], self.labels[part]
        mixed = augmentation.augment(columns[0], settings.augment, draw)
        columns[0] = mixed.inputs
        loss = self._loss(columns, labels, mixed, self.taught[part] if self.taught is not None else None)
        if not math.isfinite(value := loss.item()):
            raise FloatingPointError(
                f"recovery diverged: loss {value} in epoch {self.state.epoch}, step {step + 1}; lower the learning rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.penalty(step)
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip)
        self.optimizer.step()
        apply_masks(self.module, self.masks)
        if settings.average:
            _follow(self.state.average, self.module, settings.average)
        return value

    def _loss(
        self,
        columns: list[torch.Tensor],
        labels: torch.Tensor,
        mixed: augmentation.Mixed,
        taught: torch.Tensor | None,
    ) -> torch.Tensor:
        settings, objective = self.settings, self.objective
        logits = logits_of(self.module(*columns))
        loss = objective.loss(logits, labels, settings.label_smoothing)
        if mixed.partner is not None:
            other = objective.loss(logits, labels[mixed.partner], settings.label_smoothing)
            loss = mixed.share * loss + (1 - mixed.share) * other
        if self.guide is None:
            return loss
        if taught is None:
            with torch.no_grad():
                taught = logits_of(self.guide(*columns))
        soft = objective.distillation(logits, taught, labels, settings.temperature)
        return (1 - settings.distillation) * loss + settings.distillation * soft

    def judge_epoch(self) -> Epoch:
        """Validate after the last step of an epoch, keep the weights if they are the best, go on to the next."""
        state = self.state
        if not all(bool(parameter.isfinite().all()) for parameter in self.module.parameters()):
            raise FloatingPointError(
                f"recovery diverged: weights are not finite after epoch {state.epoch}, step {state.step}; "
                "lower the learning rate"
            )
        trained = _copy_of(self.module)
        if state.average:
            self.module.load_state_dict(state.average)
        began = time.monotonic()
        metric = self.validate()
        seconds = state.seconds + time.monotonic() - began
        told = Epoch(state.epoch, float(np.mean(state.losses)), metric, seconds)
        # weights that learnt are preferred to norms alone that do as well on validation
        as_good = state.kept == "norms" and told.accuracy == state.best.accuracy
        if told.accuracy > state.best.accuracy or as_good:
            state.kept, state.best, state.weights = "trained", told, _copy_of(self.module)
        self.module.load_state_dict(trained)
        state.history.append(told)
        state.epoch, state.losses, state.seconds = state.epoch + 1, [], 0.0
        return told

    def validate(self) -> float:
        """The objective's metric on the validation split."""
        return evaluate(self.module, self.data.validation, self.objective)

    def packed(self, key: str) -> bytes:
        """The state as bytes."""
        state = vars(self.state) | {
            "history": [vars(epoch) for epoch in self.state.history],
            "best": vars(self.state.best),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return checkpoints.pack(key, state)

    def resume(self, key: str, checkpoint: Checkpoint) -> bool:
        """Put everything back to where the newest whole checkpoint left it; False when there is none."""
        stored = checkpoints.unpack(key, checkpoint.load())
        if stored is None:
            return False
        self.module.load_state_dict(stored.pop("module"))
        self.optimizer.load_state_dict(stored.pop("optimizer"))
        history, best = [Epoch(**epoch) for epoch in stored.pop("history")], Epoch(**stored.pop("best"))
        self.state = _State(**stored, history=history, best=best)
        return True


def check_settings(settings: Settings) -> None:
    """Raise InputError for a setting that cannot be."""
    for setting, name, known in (
        ("schedule", settings.schedule, tuple(LEARNING_RATES)),
        ("optimizer", settings.optimizer, OPTIMIZERS),
    ):
        if name not in known:
            raise InputError(f"{setting}: expected one of {', '.join(known)}, got {name!r}")
    for setting, value in (("distillation", settings.distillation), ("label_smoothing", settings.label_smoothing)):
        if not 0 <= value <= 1:
            raise InputError(f"{setting}: expected a weight from 0 to 1, got {value}")
    for setting, value in (("average", settings.average), ("warm_up", settings.warm_up)):
        if not 0 <= value < 1:
            raise InputError(f"{setting}: expected a share from 0 up to 1, got {value}")
    if settings.batch < 2:
        raise InputError(f"batch: expected at least 2 examples, got {settings.batch}; a norm needs a variance")


def check_data(data: Dataset, settings: Settings) -> None:
    """Raise InputError for data that cannot be trained with."""
    augmentation.check(settings.augment, data.train.inputs.shape[1:])
    if len(data.train) < 2 or not len(data.validation):
        raise InputError(
            f"data: expected at least two examples of training and one of validation, got {len(data.train)} and "
            f"{len(data.validation)}"
        )


def _check_masks(module: fx.GraphModule, masks: Mapping[str, torch.Tensor]) -> None:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name, mask in masks.items():
        if name not in parameters:
            raise InputError(f"masks: expected names of the student's parameters, got {name!r}; use what sparsify gave")
        if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
            raise InputError(
                f"masks: expected {tuple(parameters[name].shape)} (torch.bool) for {name}, got {tuple(mask.shape)} "
                f"({mask.dtype}); sparsify the program that is recovered"
            )


def evaluate(module: fx.GraphModule, split: Split, objective: Objective) -> float:
    """The objective's metric over a split, in evaluation mode."""
    answers, targets = [], []
    columns, labels = [torch.from_numpy(column) for column in split.columns], torch.from_numpy(split.labels)
    with programs.evaluating(module):
        for start in range(0, len(split), EVALUATION_BATCH):
            part = slice(start, start + EVALUATION_BATCH)
            answer, target = objective.answers(logits_of(module(*(column[part] for column in columns))), labels[part])
            answers.append(answer.numpy())
            targets.append(target.numpy())
    return objective.score(np.concatenate(answers), np.concatenate(targets))


def _optimizer(module: fx.GraphModule, settings: Settings) -> torch.optim.Optimizer:
    """Weight decay for matrices and kernels only: norms and biases are left alone."""
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, settings.learning_rate)
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, settings.learning_rate, momentum=settings.momentum, nesterov=nesterov)


def _orders(count: int, settings: Settings, epoch: int) -> Iterator[torch.Tensor]:
    """The examples of each step of an epoch, in an order of its own."""
    order = torch.from_numpy(np.random.default_rng([settings.seed, epoch]).permutation(count))
    for start in range(0, count, settings.batch):
        part = order[start : start + settings.batch]
        if len(part) > 1:  # a batch norm in training has no variance over one example
            yield part


def _copy_of(module: fx.GraphModule) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _follow(average: dict[str, torch.Tensor], module: fx.GraphModule, decay: float) -> None:
    """An exponential moving average of the weights; statistics of norms and counters are taken as they are."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name in parameters:
                average[name].lerp_(tensor, 1 - decay)
            else:
                average[name].copy_(tensor)


def _key(
    student: ExportedProgram,
    teacher: ExportedProgram,
    data: Dataset,
    settings: Settings,
    objective: str,
    masks: Mapping[str, torch.Tensor],
) -> str:
    """What a checkpoint belongs to."""
    zeros = {name: hashlib.sha256(mask.numpy().tobytes()).hexdigest() for name, mask in masks.items()}
    parts = [programs.digest(student), programs.digest(teacher), data.digest, asdict(settings), objective, zeros]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
