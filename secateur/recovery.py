"""Recovery training: the cut program learns from the data and from the dense program what the cut took from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import torch
from torch import fx
from torch.export import ExportedProgram

from secateur import distributed, quantization_aware, training
from secateur import program as programs
from secateur.checkpoints import Checkpoint
from secateur.data import Dataset
from secateur.errors import InputError
from secateur.objectives import identity_of, objective_of
from secateur.sparsity import apply_masks
from secateur.training import Epoch, Settings


@dataclass(frozen=True)
class Recovered:
    """The best candidate's program by validation, of equal epochs the latest, and every epoch before and after it.

    `kept` says which it is: "cut" (training only harmed), "norms" (as cut, norms measured again) or "trained".
    """

    program: ExportedProgram
    kept: str
    best: Epoch
    history: tuple[Epoch, ...]
    adapted: float | None  # validation after measuring the norms again; None without norms
    metric: str = "accuracy"

    def __str__(self) -> str:
        norms = "" if self.adapted is None else f", {self.adapted:.4f} with its norms measured again"
        as_cut = f"validation {self.metric} was {self.history[0].accuracy:.4f} as cut{norms}"
        if self.kept == "trained":
            return (
                f"Training helped: {as_cut}, and {self.best.accuracy:.4f} after epoch {self.best.epoch}, which is kept."
            )
        which = "the program as it was cut" if self.kept == "cut" else "the program with its norms measured again"
        return f"Training did not help: {as_cut}; {which} is kept."


def recover(
    student: ExportedProgram,
    teacher: ExportedProgram,
    data: Dataset,
    settings: Settings,
    *,
    objective: str = "classification",
    masks: Mapping[str, torch.Tensor] | None = None,
    rounding: int | None = None,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Recovered:
    """Train all weights with labels and distillation (Hinton et al. 2015), keep what is best on validation.

    The loss is (1 - a) L(student, label) + a T^2 KL(teacher_T || student_T), and h times the distance between hidden states
    that both share (`hidden_states.hidden_state_loss`) if h is not 0. Every step's order, augmentation and dropout
    follow from the seed and the step alone, so that a run that is killed anywhere ends, bit for bit on a CPU, where it
    would have.

    Several processes that torchrun started, each within `distributed.joined()`, train as one with the same batch; only what
    dropout draws depends on how many there are.

    Args:
        masks: what `sparsify` gave, by parameter name, True where a weight stays; the others are exactly zero before
            the first step and after every one, whatever momentum and weight decay do.
        rounding: the largest integer of a weight (`quantization.Scheme.largest`) to train for INT8: the student is trained
            and judged with its weights and activations rounded, and given back unrounded, to be quantised.
        on_step: called with the step, the number of steps and the loss.

    Raises:
        InputError: a setting out of its range, data that cannot be trained with, a mask that does not fit, or a
            checkpoint of another run.
        FloatingPointError: the loss or the weights are not finite; the message names the step.
    """
    goal = objective_of(objective)
    training.check_settings(settings)
    training.check_data(data, settings)
    module = programs.move(programs.graph_module(student), distributed.device())
    if rounding:
        _check_roundable(settings)
        quantization_aware.insert(module, rounding)
    masks = masks or {}
    _check_masks(module, masks)
    apply_masks(module, masks)
    run = training.Run(
        module, goal, settings, masks, data, teacher if settings.distillation or settings.hidden_states else None
    )
    key = _key(student, teacher, data, settings, objective, masks, rounding) if checkpoint else ""
    training.train(run, key, checkpoint, on_epoch, on_step)
    state = run.state
    module.load_state_dict(state.weights)
    quantization_aware.remove(module)
    return Recovered(run.exported(student), state.kept, state.best, tuple(state.history), state.adapted, goal.metric)


def _check_roundable(settings: Settings) -> None:
    for name in ("hidden_states", "compile", "recompute"):
        if value := getattr(settings, name):
            raise InputError(
                f"{name}: expected none while training for INT8, got {value}; leave it out of that training"
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


def _key(
    student: ExportedProgram,
    teacher: ExportedProgram,
    data: Dataset,
    settings: Settings,
    objective: str,
    masks: Mapping[str, torch.Tensor],
    rounding: int | None,
) -> str:
    """What a checkpoint belongs to."""
    zeros = {name: hashlib.sha256(mask.numpy().tobytes()).hexdigest() for name, mask in masks.items()}
    parts = [
        programs.digest(student),
        programs.digest(teacher),
        data.digest,
        asdict(settings),
        identity_of(objective),
        zeros,
        rounding,
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
