"""The training loop that recovery and sparse learning share: every step follows from the seed and its number alone."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram

from secateur import augmentation, checkpoints, compilation, distributed, hidden_states
from secateur import program as programs
from secateur.checkpoints import Checkpoint
from secateur.data import Dataset, Split
from secateur.errors import InputError
from secateur.learning_rates import LEARNING_RATES
from secateur.norms import reestimate_norms
from secateur.objectives import Objective, logits_of
from secateur.recompute import recomputing
from secateur.sparsity import apply_masks

NORM_BATCHES = 50  # of training, that norms are measured again with
EVALUATION_BATCH = 256
BUCKET = 50  # batches whose examples are sorted by length before they are dealt out
OPTIMIZERS = ("sgd", "adamw")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """How to train. `distillation` is the weight of the teacher's loss, the rest is the labels'."""

    epochs: int = 10
    minutes: float | None = None  # ends the training after the epoch in which they are over
    batch: int = 64  # over all processes together
    accumulate: int = 1  # parts that a process takes its share of a batch in, to need less memory
    precision: str = "float32"
    channels_last: bool = False  # how images and kernels lie in memory
    recompute: bool = False  # activations in the backward pass, to need less memory (gradient checkpointing)
    compile: bool = False  # by torch.compile, where a few steps measure that it is faster; by one process
    optimizer: str = "sgd"
    learning_rate: float = 0.05
    momentum: float = 0.9  # of SGD, Nesterov's
    weight_decay: float = 5e-4  # of matrices and kernels; norms and biases are left alone
    schedule: str = "cosine"
    warm_up: float = 0.1  # share of the steps
    distillation: float = 0.5
    temperature: float = 4.0
    hidden_states: float = 0.0  # weight, beside the other two, of the distance to the teacher's hidden states
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


@dataclass
class _State:
    """Everything that a resumed run needs; `losses` and `seconds` are those of the epoch that is under way."""

    epoch: int = 1
    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    history: list[Epoch] = field(default_factory=list)
    adapted: float | None = None
    compiled: bool | None = None  # whether steps are, once it is measured
    kept: str = "cut"
    best: Epoch = Epoch(0, math.nan, -math.inf, 0.0)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)  # the best
    average: dict[str, torch.Tensor] = field(default_factory=dict)


def train(
    run: Run,
    key: str,
    checkpoint: Checkpoint | None,
    on_epoch: Callable[[Epoch], None],
    on_step: Callable[[int, int, float], None],
) -> None:
    """Take a run to its end, from where the checkpoint of this key left it; the module holds the weights of the last step.

    Of several processes the first alone reads and writes the checkpoint and calls back.
    """
    first = distributed.rank() == 0
    if not (checkpoint and run.resume(key, checkpoint)):
        run.judge_as_cut()
        for epoch in run.state.history if first else ():
            on_epoch(epoch)
    saved = time.monotonic()
    while not run.finished():
        for step in run.epoch():
            if first:
                on_step(step, run.steps, run.state.losses[-1])
            if first and checkpoint and time.monotonic() - saved >= checkpoint.seconds:
                checkpoint.save(run.packed(key))
                saved = time.monotonic()
        told = run.judge_epoch()
        if first and checkpoint:
            checkpoint.save(run.packed(key))
            saved = time.monotonic()
        if first:
            on_epoch(told)


class Run:
    """One training: the module, on the device where it is, its optimiser, and the state that a checkpoint holds.

    Several processes each take a share of every batch; norms, losses, gradients and answers are those of all of them.
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
        self.module, self.objective, self.settings, self.data = module, objective, settings, data
        self.device = next(module.parameters()).device
        self.masks = {name: mask.to(self.device) for name, mask in masks.items()}
        if settings.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.columns = [torch.from_numpy(column) for column in data.train.columns]
        self.labels = torch.from_numpy(data.train.labels)
        self.lengths = _lengths(module, data.train)
        self.per_epoch = sum(1 for _ in _orders(len(data.train), settings, 1))
        self.steps = settings.epochs * self.per_epoch
        self.optimizer = _optimizer(module, settings)
        self.trained, self.guide = self._with_hidden_states(teacher)
        self.forward: Callable[..., Any] = self.trained
        # without augmentation the teacher says the same in every epoch, but not in the same shape where answers have lengths
        changes = settings.augment or settings.hidden_states or (self.lengths is not None and self.labels.dim() > 1)
        cached = self.guide is not None and not changes
        self.taught = self._answers_of_teacher() if cached else None
        self.state = _State()

    def _with_hidden_states(self, teacher: ExportedProgram | None) -> tuple[fx.GraphModule, fx.GraphModule | None]:
        """Student and teacher in training and evaluation mode, giving the hidden states that they share if those count."""
        pairs: dict[str, str] = {}
        guide = None
        if teacher is not None:
            # moving would take the program's own tensors along
            guide = programs.graph_module(teacher, shared=self.device.type == "cpu")
            programs.set_training(programs.move(guide, self.device), False)
            if self.settings.hidden_states:
                pairs = hidden_states.shared_nodes(self.module, guide)
                if not pairs:
                    raise InputError(
                        "hidden_states: expected a hidden state that the cut left as wide as the teacher's, found none; "
                        "set its weight to 0"
                    )
            guide = hidden_states.tapped(guide, list(pairs.values()))
        trained = hidden_states.tapped(self.module, list(pairs))
        programs.set_training(trained, True)
        return trained, guide

    def _answers_of_teacher(self) -> torch.Tensor:
        assert self.guide is not None
        parts = _by_length(len(self.labels), self.lengths).split(EVALUATION_BATCH)
        with torch.no_grad():
            answers = torch.cat([self._answers(self.guide, self._examples(part)[:-1])[0] for part in parts])
        return torch.empty_like(answers).index_copy_(0, torch.cat(parts).to(answers.device), answers)

    def _examples(self, batch: torch.Tensor) -> list[torch.Tensor]:
        """Inputs and labels, no longer than the longest of the batch."""
        # much faster than indexing with a tensor
        taken = [column.index_select(0, batch) for column in (*self.columns, self.labels)]
        return _trimmed(taken, batch, self.lengths)

    def _answers(
        self, module: Callable[..., Any], columns: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The logits of a batch and its hidden states, in single precision whatever they were computed in."""
        precision = PRECISIONS[self.settings.precision]
        inputs = [self._placed(column) for column in columns]
        with torch.autocast(self.device.type, precision, enabled=precision != torch.float32):
            outputs, states = module(*inputs)
        logits = logits_of(outputs)
        if precision == torch.float32:
            return logits, list(states)
        return logits.float(), [state.float() for state in states]

    def _placed(self, x: torch.Tensor) -> torch.Tensor:
        x = x.to(self.device, non_blocking=True)
        return x.contiguous(memory_format=torch.channels_last) if self.settings.channels_last and x.dim() == 4 else x

    def judge_as_cut(self) -> None:
        """The candidates before any gradient: the program as it came, and with its norms measured again."""
        state, first = self.state, Epoch(0, math.nan, self.validate(), 0.0)
        state.history, state.best, state.weights = [first], first, _copy_of(self.module)
        if self.settings.reestimate_norms:
            order = _orders(len(self.labels), self.settings, 0)
            parts = (
                [self._placed(column) for column in self._examples(part)[:-1]]
                for _, part in zip(range(NORM_BATCHES), order, strict=False)
            )
            if reestimate_norms(self.module, parts):
                state.adapted = self.validate()
                if state.adapted > first.accuracy:
                    state.kept, state.best = "norms", Epoch(0, math.nan, state.adapted, 0.0)
                    state.weights = _copy_of(self.module)
                else:
                    self.module.load_state_dict(state.weights)
        distributed.agree(self.module.state_dict().values())
        if self.settings.average:
            state.average = _copy_of(self.module)

    def finished(self) -> bool:
        """Whether epochs, minutes or patience are used up."""
        settings, state = self.settings, self.state
        seconds = sum(epoch.seconds for epoch in state.history)
        late = settings.minutes is not None and seconds >= 60 * settings.minutes
        earliest = max(state.history, key=lambda epoch: epoch.accuracy).epoch  # of equals the first
        stale = settings.patience is not None and state.epoch - 1 - earliest >= settings.patience
        return state.epoch > settings.epochs or late or stale

    def epoch(self) -> Iterator[int]:
        """Train to the end of the epoch that is under way; gives the number of each step after it is done."""
        state = self.state
        done = state.step - (state.epoch - 1) * self.per_epoch
        with distributed.synchronised_norms(self.trained):
            if self.settings.recompute:
                self.forward = recomputing(self.trained)
            elif self.settings.compile and self.forward is self.trained and state.compiled is not False:
                self._compile()
            for position, batch in enumerate(_orders(len(self.labels), self.settings, state.epoch, self.lengths)):
                if position < done:
                    continue
                began = time.monotonic()
                state.losses.append(self._step(batch))
                state.step += 1
                state.seconds += time.monotonic() - began
                yield state.step

    def _compile(self) -> None:
        """Measure with the first batch of all whether compiled steps are faster, if that is not known; leaves no trace."""
        batch = next(_orders(len(self.labels), self.settings, 1, self.lengths))
        function, before = compilation.compiled(self.trained), _copy_of(self.module)

        def attempt(forward: Callable[..., Any]) -> None:
            self.forward = forward
            self._backward(batch, torch.Generator().manual_seed(0))

        if self.state.compiled is None:
            self.state.compiled = compilation.pays(lambda: attempt(self.trained), lambda: attempt(function))
        else:
            compilation.again(lambda: attempt(function))
        self.forward = function if self.state.compiled else self.trained
        self.module.load_state_dict(before)
        self.optimizer.zero_grad(set_to_none=True)

    def _step(self, batch: torch.Tensor) -> float:
        settings, step = self.settings, self.state.step
        number = settings.seed * 1_000_003 + step
        _seed(self.device, number * distributed.size() + distributed.rank())  # dropout, each process its own
        for group in self.optimizer.param_groups:
            group["lr"] = settings.learning_rate * LEARNING_RATES[settings.schedule](
                (step + 0.5) / self.steps, settings.warm_up
            )
        self.optimizer.zero_grad(set_to_none=True)
        total = self._backward(batch, torch.Generator().manual_seed(number))
        distributed.sum_gradients(self.module.parameters())
        self.penalty(step)
        if settings.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), settings.clip)
        self.optimizer.step()
        apply_masks(self.module, self.masks)
        if settings.average:
            _follow(self.state.average, self.module, settings.average)
        loss = total.item()  # waits for the GPU, which by now has the whole step to do
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"training diverged: loss {loss} in epoch {self.state.epoch}, step {step + 1}; lower the learning rate"
            )
        return loss

    def _backward(self, batch: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
        """Add the gradients of this process's share of a batch, part by part; the mean loss of all processes.

        Every process augments the whole batch: what is drawn, and who is blended with whom, does not depend on how many
        there are.
        """
        *columns, labels = self._examples(batch)
        mixed = augmentation.augment(columns[0], self.settings.augment, draw)
        columns[0] = mixed.inputs
        partners = None if mixed.partner is None else labels[mixed.partner]
        total = torch.zeros((), device=self.device)
        for part in _parts(len(batch), self.settings.accumulate):
            weight = self.objective.counted(labels[part]) / max(1, self.objective.counted(labels))
            loss = self._loss(
                [column.index_select(0, part) for column in columns],
                labels[part],
                None if partners is None else (partners[part], mixed.share),
                self.taught[batch[part]] if self.taught is not None else None,
            )
            (weight * loss).backward()
            total += weight * loss.detach()
        return distributed.summed(total)

    def _loss(
        self,
        columns: list[torch.Tensor],
        labels: torch.Tensor,
        blended: tuple[torch.Tensor, float] | None,
        taught: torch.Tensor | None,
    ) -> torch.Tensor:
        """Of labels and teacher; `blended` are the labels of what the inputs are blended with, and their own share."""
        settings, objective, labels = self.settings, self.objective, labels.to(self.device)
        logits, states = self._answers(self.forward, columns)
        loss = objective.loss(logits, labels, settings.label_smoothing)
        if blended is not None:
            partners, share = blended
            other = objective.loss(logits, partners.to(self.device), settings.label_smoothing)
            loss = share * loss + (1 - share) * other
        if self.guide is None:
            return loss
        theirs: list[torch.Tensor] = []
        if taught is None:
            with torch.no_grad():
                taught, theirs = self._answers(self.guide, columns)
        soft = objective.distillation(logits, taught.to(self.device), labels, settings.temperature)
        loss = (1 - settings.distillation) * loss + settings.distillation * soft
        if settings.hidden_states:
            loss = loss + settings.hidden_states * hidden_states.hidden_state_loss(states, theirs)
        return loss

    def judge_epoch(self) -> Epoch:
        """Validate after the last step of an epoch, keep the weights if they are the best, go on to the next."""
        state = self.state
        if not all(bool(parameter.isfinite().all()) for parameter in self.module.parameters()):
            raise FloatingPointError(
                f"training diverged: weights are not finite after epoch {state.epoch}, step {state.step}; "
                "lower the learning rate"
            )
        trained = _copy_of(self.module) if state.average else {}
        if state.average:
            self.module.load_state_dict(state.average)
        began = time.monotonic()
        metric = self.validate()
        seconds = distributed.from_first(torch.tensor([state.seconds + time.monotonic() - began]).double()).item()
        told = Epoch(state.epoch, float(np.mean(state.losses)), metric, seconds)
        # of equals the latest: it has learnt longest, and the rate has fallen most
        as_good = state.kept != "cut" and told.accuracy == state.best.accuracy
        if told.accuracy > state.best.accuracy or as_good:
            state.kept, state.best = "trained", told
            for name, tensor in self.module.state_dict().items():
                state.weights[name].copy_(tensor)  # in place: one copy of the weights at a time
        if trained:
            self.module.load_state_dict(trained)
        state.history.append(told)
        state.epoch, state.losses, state.seconds = state.epoch + 1, [], 0.0
        return told

    def validate(self) -> float:
        """The objective's metric on the validation split."""
        return evaluate(self.module, self.data.validation, self.objective)

    def exported(self, like: ExportedProgram) -> ExportedProgram:
        """The module as a program, on the CPU and laid out as usual, with the inputs of `like`."""
        module = programs.move(self.module, torch.device("cpu"))
        module.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return programs.reexport(module, like)

    def packed(self, key: str) -> bytes:
        """The state as bytes."""
        state = vars(self.state) | {
            "history": [vars(epoch) for epoch in self.state.history],
            "best": vars(self.state.best),
            "module": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return checkpoints.pack(key, self.state.step, state)

    def resume(self, key: str, checkpoint: Checkpoint) -> bool:
        """Put everything back to where the newest whole checkpoint left it; False when there is none."""
        content = checkpoints.newest(checkpoint.load()) if distributed.rank() == 0 else b""
        content = distributed.from_first(torch.from_numpy(np.frombuffer(content, np.uint8).copy())).numpy().tobytes()
        if not content:
            return False
        stored = checkpoints.unpack(key, content)
        self.module.load_state_dict(stored.pop("module"))
        self.optimizer.load_state_dict(stored.pop("optimizer"))
        history, best = [Epoch(**epoch) for epoch in stored.pop("history")], Epoch(**stored.pop("best"))
        self.state = _State(**stored, history=history, best=best)
        self.state.average = {name: tensor.to(self.device) for name, tensor in self.state.average.items()}
        return True


def check_settings(settings: Settings) -> None:
    """Raise InputError for a setting that cannot be."""
    for setting, name, known in (
        ("schedule", settings.schedule, tuple(LEARNING_RATES)),
        ("optimizer", settings.optimizer, OPTIMIZERS),
        ("precision", settings.precision, tuple(PRECISIONS)),
    ):
        if name not in known:
            raise InputError(f"{setting}: expected one of {', '.join(known)}, got {name!r}")
    for setting, value in (("distillation", settings.distillation), ("label_smoothing", settings.label_smoothing)):
        if not 0 <= value <= 1:
            raise InputError(f"{setting}: expected a weight from 0 to 1, got {value}")
    if not 0 <= settings.hidden_states < math.inf:
        raise InputError(f"hidden_states: expected a weight of at least 0, got {settings.hidden_states}")
    for setting, value in (("average", settings.average), ("warm_up", settings.warm_up)):
        if not 0 <= value < 1:
            raise InputError(f"{setting}: expected a share from 0 up to 1, got {value}")
    _check_parts(settings)
    if settings.epochs < 0 or (settings.minutes is not None and not settings.minutes > 0):
        raise InputError(
            f"epochs: expected at least 0, and minutes more than 0 or none, got {settings.epochs} and {settings.minutes}; "
            "without a budget leave the recovery out"
        )


def _check_parts(settings: Settings) -> None:
    if settings.accumulate < 1:
        raise InputError(f"accumulate: expected at least 1 part, got {settings.accumulate}")
    least = 2 * distributed.size() * settings.accumulate
    if settings.batch < least:
        raise InputError(
            f"batch: expected at least {least} examples, 2 for each part of each process, as a norm needs a variance; "
            f"got {settings.batch}"
        )
    if settings.compile and (settings.recompute or distributed.size() > 1):
        raise InputError(
            f"compile: expected one process that keeps its activations, got {distributed.size()} with recompute "
            f"{settings.recompute}; leave compile out, or the others"
        )


def check_data(data: Dataset, settings: Settings) -> None:
    """Raise InputError for data that cannot be trained with."""
    augmentation.check(settings.augment, data.train.inputs.shape[1:])
    if len(data.train) < 2 or not len(data.validation):
        raise InputError(
            f"data: expected at least two examples of training and one of validation, got {len(data.train)} and "
            f"{len(data.validation)}"
        )


def evaluate(module: fx.GraphModule, split: Split, objective: Objective) -> float:
    """The objective's metric over a split, in evaluation mode; several processes share the examples."""
    device, lengths = next(module.parameters()).device, _lengths(module, split)
    arrays = [torch.from_numpy(array) for array in (*split.columns, split.labels)]
    answers, targets = [], []
    with programs.evaluating(module):
        for part in distributed.own(_by_length(len(split), lengths)).split(EVALUATION_BATCH):
            *columns, labels = _trimmed([array[part] for array in arrays], part, lengths)
            logits = logits_of(module(*(column.to(device) for column in columns)))
            answer, target = objective.answers(logits.cpu(), labels)
            answers.append(answer)
            targets.append(target)
    everywhere = (distributed.gathered(torch.cat(parts)).numpy() for parts in (answers, targets))
    return objective.score(*everywhere)


def _lengths(module: fx.GraphModule, split: Split) -> np.ndarray | None:
    """The examples' lengths, where there are any and the program takes any length."""
    shapes = [node.meta["val"].shape for node in module.graph.find_nodes(op="placeholder")]
    takes_any = all(len(shape) > 1 and not isinstance(shape[1], int) for shape in shapes)
    return split.lengths if takes_any else None


def _by_length(count: int, lengths: np.ndarray | None) -> torch.Tensor:
    """All positions, those of like lengths beside each other."""
    return torch.arange(count) if lengths is None else torch.from_numpy(np.argsort(lengths, kind="stable"))


def _trimmed(arrays: list[torch.Tensor], batch: torch.Tensor, lengths: np.ndarray | None) -> list[torch.Tensor]:
    """The arrays [n, T] of a batch without the positions that are padding in all its examples; others as they are."""
    if lengths is None:
        return arrays
    width, longest = arrays[0].shape[1], int(lengths[batch.numpy()].max())
    return [array[:, :longest] if array.dim() > 1 and array.shape[1] == width else array for array in arrays]


def _optimizer(module: fx.GraphModule, settings: Settings) -> torch.optim.Optimizer:
    """Weight decay for matrices and kernels only: norms and biases are left alone.

    Fused, a step is one pass over the weights; torch has it for real numbers, and on a CPU it does not look how gradients
    lie in memory: autograd lays them as the weights, and so must whatever else makes one.
    """
    parameters = list(module.parameters())
    fused = all(p.is_floating_point() for p in parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, settings.learning_rate, fused=fused)
    nesterov = settings.momentum > 0
    return torch.optim.SGD(groups, settings.learning_rate, settings.momentum, nesterov=nesterov, fused=fused)


def _orders(count: int, settings: Settings, epoch: int, lengths: np.ndarray | None = None) -> Iterator[torch.Tensor]:
    """The examples of each step of an epoch, in an order of its own; where they have lengths, a step's are alike."""
    draw = np.random.default_rng([settings.seed, epoch])
    order = draw.permutation(count)
    steps = np.arange(0, count, settings.batch)
    if lengths is not None:
        bucket = BUCKET * settings.batch
        parts = (order[start : start + bucket] for start in range(0, count, bucket))
        order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
        steps = draw.permutation(steps)
    for start in steps:
        batch = torch.from_numpy(order[start : start + settings.batch])
        if len(batch) >= 2 * distributed.size():  # a batch norm in training has no variance over one example
            yield batch


def _parts(count: int, accumulate: int) -> tuple[torch.Tensor, ...]:
    """This process's positions in a batch, in as many parts as asked, none of a single example."""
    own = distributed.own(torch.arange(count))
    return own.chunk(min(accumulate, len(own) // 2))


def _seed(device: torch.device, seed: int) -> None:
    """Seed what draws on this device; `torch.manual_seed` sees to all there may be, which takes a small step's time."""
    generators = torch.cuda.default_generators if device.type == "cuda" else [torch.default_generator]
    generators[device.index or 0].manual_seed(seed)


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
