"""Sparse learning: training under a penalty before a cut, so that the cut takes little away."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from torch.export import ExportedProgram

from secateur import distributed, pruning, training
from secateur import program as programs
from secateur.axes.infer import infer
from secateur.checkpoints import Checkpoint
from secateur.data import Dataset
from secateur.errors import InputError
from secateur.objectives import identity_of, objective_of
from secateur.penalties import PenaltySettings, Targets, check_penalty, penalty_of
from secateur.pruning import Choice
from secateur.training import Epoch, Settings


@dataclass(frozen=True)
class Learned:
    """The program as the last step left it, and every epoch; epoch 0 is the program as it came. Losses are without the penalty."""

    program: ExportedProgram
    history: tuple[Epoch, ...]


def learn_sparsity(
    program: ExportedProgram,
    data: Dataset,
    settings: Settings,
    choice: Choice,
    penalty: PenaltySettings,
    *,
    kept: Mapping[str, Sequence[int]] | None = None,
    objective: str = "classification",
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Learned:
    """Train a program so that `prune` with the same choices loses little; its sizes stay as they are.

    Trains as `recover` does, with the program as it came for a teacher, but keeps the last weights (or their average):
    the point is the sparsity, which the best epoch on validation may not have yet. For the same reason patience does not
    end it, and norms are not measured again. Steps, seeds and checkpoints are those of `recover`: a run that is killed
    anywhere ends where it would have.

    Args:
        settings: of the training; `epochs` at least 1.
        choice: the axes that the cut may take units from.
        kept: for the method growing, the units that the cut will leave, as `report.kept` of that cut says.
        on_step: called with the step, the number of steps and the loss.

    Raises:
        InputError: a setting out of its range, data that cannot be trained with, nothing that the method could shrink,
            units or branches that the program does not have, or a checkpoint of another run.
        FloatingPointError: the loss or the weights are not finite; the message names the step.
    """
    goal = objective_of(objective)
    training.check_settings(settings)
    if settings.epochs < 1:
        raise InputError(f"epochs: expected at least 1 of sparse learning, got {settings.epochs}")
    training.check_data(data, settings)
    settings = dataclasses.replace(settings, patience=None, reestimate_norms=False)
    targets = _targets(program, choice, kept)
    module, teacher = targets.module, program if settings.distillation or settings.hidden_states else None
    run = training.Run(module, goal, settings, {}, data, teacher, penalty_of(targets, penalty))
    key = _key(program, data, settings, targets, penalty, objective) if checkpoint else ""
    training.train(run, key, checkpoint, on_epoch, on_step)
    if run.state.average:
        module.load_state_dict(run.state.average)
    return Learned(run.exported(program), tuple(run.state.history))


def check_learnable(program: ExportedProgram, choice: Choice, penalty: PenaltySettings) -> None:
    """Raise InputError when `learn_sparsity` could not use this penalty on the axes of these choices."""
    check_penalty(penalty)
    targets = _targets(program, choice, None)
    if penalty.method != "growing":  # what that shrinks is known when the cut is
        penalty_of(targets, penalty)


def _targets(program: ExportedProgram, choice: Choice, kept: Mapping[str, Sequence[int]] | None) -> Targets:
    """A trainable copy of the program, and its axes that may be cut."""
    pruning.check_choice(choice)
    programs.check_supported(program)
    module = programs.move(programs.graph_module(program), distributed.device())
    structure = infer(module)
    chosen, _ = pruning.choose(module, structure, choice)
    if not chosen:
        raise InputError(
            f"kinds: expected a kind of axes, whose units sparse learning shrinks, got {', '.join(choice.kinds)} alone; name "
            "those that live in the branches"
        )
    units, dropped = pruning.split(module, structure, kept or {})
    pruning.check_kept(chosen, units)
    doomed = {info.axis: info for each in dropped for info in each.inside}
    axes = list({info.axis: info for info in (*chosen, *doomed.values())}.values())
    return Targets(module, structure, axes, {**units, **{info.name: () for info in doomed.values()}})


def _key(
    program: ExportedProgram,
    data: Dataset,
    settings: Settings,
    targets: Targets,
    penalty: PenaltySettings,
    objective: str,
) -> str:
    """What a checkpoint belongs to."""
    axes = [info.name for info in targets.axes]
    units = {name: list(units) for name, units in (targets.kept or {}).items()}
    what = [programs.digest(program), data.digest, asdict(settings), identity_of(objective)]
    parts = [*what, axes, units, asdict(penalty)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
