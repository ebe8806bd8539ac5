"""What cuts cost: every axis share by share, saved so that a long measurement resumes, and the metric of a cut of all of them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.nn import functional
from torch.utils import _pytree

from secateur import calibration as calibrating
from secateur import program as programs
from secateur import pruning, surgery
from secateur.allocate import Curves
from secateur.axes.infer import infer
from secateur.calibration import Batch, Loss, classification_loss
from secateur.data import Split
from secateur.errors import InputError
from secateur.gate.bounds import Answers, paired_difference, resampled_difference
from secateur.objectives import Objective, answered, logits_of
from secateur.planner import Cost
from secateur.pruning import DEFAULT_KINDS, Choice

Distance = Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]  # output, the dense answers, target
EVALUATION_BATCH = 256
SHARES = (0.0625, 0.125, 0.25, 0.5, 0.75)  # close together where units cost next to nothing


def sensitivity(
    program: ExportedProgram,
    *,
    calibration: Sequence[Batch],
    kinds: Sequence[str] = DEFAULT_KINDS,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    criterion: str = "l2",
    shares: Sequence[float] = SHARES,
    seed: int = 0,
    loss: Loss = classification_loss,
    cost: Loss | None = None,
    distance: Distance | None = None,
    path: str | Path | None = None,
    on_axis: Callable[[str, dict[float, float]], None] = lambda name, curve: None,
) -> Curves:
    """What cutting each axis alone costs on the calibration batches, share by share (cf. Li et al., ICLR 2017, section 3.2).

    The cost is how far the answers move, by their divergence, unless another is given: labels that a trained model knows by
    heart say little about a cut, its own answers more.

    Args:
        calibration: batches of (inputs..., target).
        loss: for criteria that take gradients.
        cost: a function of output and target, in place of a distance from the dense answers.
        distance: a function of output, dense answers and target, in place of `divergence`.
        shares: of the axis's units that go, the least important first; share 0 (the dense loss) is always added.
        path: a JSON file that every finished axis is written to; when it exists, the measurement goes on from it.
            Program, data and settings are compared with the file's, functions that are given cannot be.
        on_axis: called with the name and the curve of each axis as it is finished.

    Raises:
        InputError: no axis can be cut, data is missing or misfits, a share lies outside 0..1, the program's answers are
            single numbers that do not diverge (give a cost or a distance), or the file at `path` belongs to another program, other data or settings.
    """
    if bad := [share for share in shares if not 0 < share < 1]:
        raise InputError(f"shares: expected shares between 0 and 1 (exclusive), got {bad[0]}")
    choice = Choice(tuple(kinds), tuple(include), tuple(exclude), criterion, seed=seed)
    pruning.check_choice(choice)
    programs.check_supported(program)
    calibrating.check_batches(calibration, programs.input_specs(program))
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    chosen = pruning.choose_axes(structure, choice)
    store = _Store(path, _key(program, choice, shares, calibration, cost))
    missing = [info for info in chosen if info.name not in store.curves]
    if missing:
        scores = pruning.score_units(program, module, structure, missing, choice, calibration, loss)
        batches = calibration if cost else _answered(module, calibration, by_divergence=distance is None)
        measure = functools.partial(
            mean_loss, batches=batches, loss=cost or distance or divergence, targets=1 if cost else 2
        )
        dense = measure(module)
    for info in missing:
        curve = {0.0: dense}
        for share in sorted(shares):
            count = max(1, round(info.size * (1 - share)))
            kept = {info.name: pruning.strongest(scores[info.name], count)}
            curve[1 - count / info.size] = measure(_cut_alone(program, kept))
        store.add(info.name, curve)
        on_axis(info.name, curve)
    return {info.name: store.curves[info.name] for info in chosen}


def divergence(output: Any, answers: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """KL(dense || cut) in nats, over the last dimension of the first output, the mean of all positions before it."""
    logits = _pytree.tree_leaves(output)[0]
    cut, dense = (functional.log_softmax(x.flatten(0, -2), 1) for x in (logits, answers))
    return functional.kl_div(cut, dense, log_target=True, reduction="batchmean")


def _answered(module: fx.GraphModule, batches: Sequence[Batch], *, by_divergence: bool) -> list[Batch]:
    """The batches with the module's own answers before the target."""
    with programs.evaluating(module):
        answered = [(*inputs, _pytree.tree_leaves(module(*inputs))[0], target) for *inputs, target in batches]
    answers = answered[0][-2]
    if by_divergence and (answers.dim() < 2 or answers.shape[-1] < 2 or not answers.is_floating_point()):
        raise InputError(
            f"cost: expected answers of two or more logits to see how far they move, got {tuple(answers.shape)} "
            f"({answers.dtype}); give the function that says what a cut costs"
        )
    return answered


def mean_loss(
    module: fx.GraphModule, batches: Sequence[Batch], loss: Callable[..., torch.Tensor], targets: int = 1
) -> float:
    """The loss over all examples, in evaluation mode; batches count by their size, their last `targets` tensors are no inputs."""
    total, count = 0.0, 0
    with programs.evaluating(module):
        for batch in batches:
            total += float(loss(module(*batch[:-targets]), *batch[-targets:])) * len(batch[0])
            count += len(batch[0])
    return total / count


def answers_of(program: ExportedProgram, split: Split, objective: Objective) -> Answers:
    """What a program answers to every example of a split, and the targets, as the objective's score compares them."""
    module = programs.graph_module(program, shared=True)
    columns = [torch.from_numpy(column) for column in split.columns]
    with programs.evaluating(module):
        parts = torch.arange(len(split)).split(EVALUATION_BATCH)
        outputs = [logits_of(module(*(column[part] for column in columns))).numpy() for part in parts]
    return answered(objective, outputs, split.labels)


def lost(share: float, dense: Answers, cut: Answers, objective: Objective, confidence: float, seed: int) -> Cost:
    """What a cut of this share costs of the metric, with bounds at `confidence` on either side, as the gate takes them."""
    if objective.right_or_wrong:
        before, after = (answers == targets for answers, targets in (dense, cut))
        found = paired_difference(before, after, confidence)
    else:
        found = resampled_difference(dense, cut, objective.score, confidence, seed)
    estimate, low, high = found
    return Cost(share, 0.0 - estimate, 0.0 - high, 0.0 - low, len(dense[0]))  # no loss is no -0


def _cut_alone(program: ExportedProgram, kept: dict[str, np.ndarray]) -> fx.GraphModule:
    """A graph module with some axes, given by name, cut to the kept units."""
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    surgery.cut(module, structure, {info.axis: kept[info.name] for info in structure.axes if info.name in kept})
    return module


def _key(
    program: ExportedProgram, choice: Choice, shares: Sequence[float], batches: Sequence[Batch], cost: Loss | None
) -> str:
    """A digest of everything that a curve depends on; which axes are measured is not part of it."""
    sha = hashlib.sha256(programs.digest(program).encode())
    sha.update(json.dumps([choice.criterion, choice.seed, sorted(shares), cost is None]).encode())
    for tensor in (tensor for batch in batches for tensor in batch):
        sha.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


class _Store:
    """The curves measured so far, in a file when there is a path for one."""

    def __init__(self, path: str | Path | None, key: str) -> None:
        self.path = Path(path) if path is not None else None
        self.key = key
        self.curves: dict[str, dict[float, float]] = {}
        if self.path and self.path.exists():
            self.curves = _read(self.path, key)

    def add(self, name: str, curve: dict[float, float]) -> None:
        self.curves[name] = curve
        if self.path:
            content = {"key": self.key, "curves": {n: sorted(c.items()) for n, c in self.curves.items()}}
            beside = self.path.with_name(self.path.name + ".new")
            beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            os.replace(beside, self.path)  # a kill leaves the old file or the new one


def _read(path: Path, key: str) -> dict[str, dict[float, float]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        curves = {
            name: {float(share): float(value) for share, value in curve} for name, curve in content["curves"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"path: expected curves that secateur.sensitivity wrote in {path}, got something else"
        ) from error
    if content["key"] != key:
        raise InputError(
            f"path: {path} holds curves of another program, other calibration data or other settings; "
            "name another file or remove it"
        )
    return curves
