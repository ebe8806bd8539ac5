"""Whether a data set can be pruned with: it fits the program and the objective, and its splits can be believed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.export import ExportedProgram

from secateur import program as programs
from secateur.data import Dataset, Split, chunks
from secateur.errors import InputError
from secateur.measure import request_of
from secateur.objectives import IGNORED, Objective, objective_of
from secateur.runtime import Target

SHOWN = 10  # classes that a message lists


def check_fits(dataset: Dataset, program: ExportedProgram, objective: str = "classification") -> None:
    """Raise InputError unless the program takes every split's columns in order, and its output goes with all labels.

    Labels are, as in `secateur.objectives`: class numbers [N]; 0/1 [N, C] for multi_label; finite numbers [N] or [N, K] for
    regression; class numbers [N, T] for the token objectives, where -100 is ignored. A user's own objective is tried on the
    first two examples of every split.
    """
    goal = objective_of(objective)
    specs = programs.input_specs(program)
    for name, (shape, _) in specs.items():
        if shape[0] is not None:
            raise InputError(
                f"model: expected a dynamic batch dimension, input {name} is fixed at {shape[0]}; "
                "export or log it with an input example of batch size two or more"
            )
    for part, split in dataset.splits.items():
        if len(split.columns) != len(specs):
            raise InputError(
                f"data: expected an array for each of the model's {len(specs)} inputs ({', '.join(specs)}), got "
                f"{len(split.columns)} in the {part} split"
            )
        for column, (name, (shape, dtype)) in zip(split.columns, specs.items(), strict=True):
            _check_column(column, name, shape, dtype, part)
    module = program.module(check_guards=False)
    for part, split in dataset.splits.items():
        with torch.no_grad():
            output = module(*(torch.from_numpy(np.array(column[:2])) for column in split.columns))
        wanted = _WANTED.get(objective, _OWN)
        if not isinstance(output, torch.Tensor) or output.dim() not in wanted.dimensions:
            raise InputError(f"model: expected one output of {wanted.output} for {objective}, got {_described(output)}")
        wanted.check(output, split, part)
        if wanted is _OWN:
            _check_own(objective, goal, output, torch.from_numpy(np.array(split.labels[:2])), part)


def check_length(program: ExportedProgram, columns: Sequence[np.ndarray], length: int) -> None:
    """Raise InputError unless the program takes requests of a length that examples can be cut to.

    Args:
        program: what the target will serve.
        columns: its inputs in order, [N, T, ...] each.
        length: the target's.
    """
    for name, (shape, _) in programs.input_specs(program).items():
        if len(shape) < 2 or shape[1] is not None:
            fixed = f"fixed at {shape[1]}" if len(shape) > 1 else "missing"
            raise InputError(
                f"target.length: expected inputs whose second dimension is dynamic, that of {name} is {fixed}; leave "
                "target.length out, or export the model with that dimension dynamic"
            )
    request = request_of(columns, Target(batch=2, length=length))
    try:
        with torch.no_grad():
            program.module(check_guards=False)(*map(torch.from_numpy, request))
    except Exception as error:  # whatever the model raises
        raise InputError(
            f"target.length: expected a length that the model takes, got {length}: {' '.join(str(error).split())}"
        ) from error


def _check_column(column: np.ndarray, name: str, shape: Sequence[int | None], dtype: torch.dtype, part: str) -> None:
    if column.dtype.kind not in "iufb":
        raise InputError(f"data: expected numbers as inputs (such as float32), got an array of {column.dtype}")
    fits = len(shape) == column.ndim and all(s in (None, n) for s, n in zip(shape[1:], column.shape[1:], strict=True))
    if not fits or str(dtype) != f"torch.{column.dtype}":
        wanted = "x".join("any" if s is None else str(s) for s in shape[1:])
        got = "x".join(map(str, column.shape[1:]))
        raise InputError(
            f"data: expected examples of {wanted} ({dtype}) for input {name}, got {got} ({column.dtype}) in the {part} split"
        )
    _check_finite(column, "inputs", part)


def _check_finite(array: np.ndarray, what: str, part: str) -> None:
    if array.dtype.kind != "f":
        return
    start = 0
    for rows in chunks(array):
        good = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
        if not good.all():
            raise InputError(
                f"data: expected finite {what}, found NaN or infinity in example {start + int(good.argmin())} of the {part} "
                "split; clean the data first"
            )
        start += len(rows)


def _check_classes(output: torch.Tensor, split: Split, part: str) -> None:
    if split.labels.ndim != 1:
        raise InputError(
            f"data: expected labels [N], one class number per example, got shape {split.labels.shape} in the {part} split"
        )
    _check_range(split.labels, output.shape[1], part)


def _check_tokens(output: torch.Tensor, split: Split, part: str) -> None:
    if split.labels.ndim != 2 or split.labels.shape[1] != output.shape[1]:
        raise InputError(
            f"data: expected labels [N, {output.shape[1]}], a class number per token, got shape {split.labels.shape} in the "
            f"{part} split; use {IGNORED} for tokens that do not count"
        )
    counting = split.labels[split.labels != IGNORED]
    if not len(counting):
        raise InputError(f"data: expected labels that count, all of the {part} split are {IGNORED}, which is ignored")
    _check_range(counting, output.shape[2], part)


def _check_range(labels: np.ndarray, classes: int, part: str) -> None:
    if labels.dtype != np.int64:
        raise InputError(f"data: expected labels as int64 (class numbers), got {labels.dtype} in the {part} split")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"data: expected labels in 0..{classes - 1}, got {labels.min()}..{labels.max()} in the {part} split; "
            "number the classes as the model does"
        )


def _check_multi_label(output: torch.Tensor, split: Split, part: str) -> None:
    if split.labels.ndim != 2 or split.labels.shape[1] != output.shape[1]:
        raise InputError(
            f"data: expected labels [N, {output.shape[1]}] of 0 and 1, got shape {split.labels.shape} in the {part} split"
        )
    if not np.isin(split.labels, (0, 1)).all():
        raise InputError(
            f"data: expected labels of 0 and 1, got others in the {part} split, such as "
            f"{split.labels[~np.isin(split.labels, (0, 1))][0]}"
        )


def _check_regression(output: torch.Tensor, split: Split, part: str) -> None:
    wanted = output.shape[1:].numel()
    if split.labels.ndim not in (1, 2) or split.labels[:1].size != wanted:
        raise InputError(
            f"data: expected {wanted} numbers per example as labels, [N] or [N, K], got shape {split.labels.shape} in the "
            f"{part} split"
        )
    if split.labels.dtype.kind != "f":
        raise InputError(f"data: expected floating-point labels, got {split.labels.dtype} in the {part} split")
    _check_finite(split.labels, "labels", part)


def _check_numbers(output: torch.Tensor, split: Split, part: str) -> None:
    if split.labels.dtype.kind not in "iufb":
        raise InputError(f"data: expected numbers as labels, got {split.labels.dtype} in the {part} split")
    _check_finite(split.labels, "labels", part)


def _check_own(name: str, objective: Objective, output: torch.Tensor, labels: torch.Tensor, part: str) -> None:
    """A user's own objective takes the outputs and labels of a split, and gives finite losses and a row for each example."""
    try:
        losses = {
            "loss": float(objective.loss(output, labels, 0.0)),
            "distillation": float(objective.distillation(output, output, labels, 1.0)),
        }
        objective.counted(labels)
        rows = [len(array) for array in objective.answers(output, labels)]
    except Exception as error:  # whatever a user's code raises
        raise InputError(
            f"objective: expected {name} to take outputs {list(output.shape)} and labels {list(labels.shape)} "
            f"({labels.dtype}) of the {part} split, it failed: {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    if rows != [len(labels)] * 2:
        raise InputError(
            f"objective: expected answers and targets of {name} with a row for each of {len(labels)} examples, got {rows} rows"
        )
    for what, value in losses.items():
        if not math.isfinite(value):
            raise InputError(f"objective: expected a finite {what} of {name} in the {part} split, got {value}")


@dataclass(frozen=True)
class _Wanted:
    """What an objective wants of the output, in words and in numbers of dimensions, and of the labels beside it."""

    output: str
    dimensions: tuple[int, ...]
    check: Callable[[torch.Tensor, Split, str], None]  # output for the first examples, split, its name


_TOKENS = _Wanted("logits [batch, tokens, classes]", (3,), _check_tokens)
_WANTED: dict[str, _Wanted] = {
    "classification": _Wanted("logits [batch, classes]", (2,), _check_classes),
    "multi_label": _Wanted("logits [batch, labels]", (2,), _check_multi_label),
    "regression": _Wanted("numbers [batch] or [batch, numbers]", (1, 2), _check_regression),
    "token_classification": _TOKENS,
    "masked_lm": _TOKENS,
    "causal_lm": _TOKENS,
}
_OWN = _Wanted("a tensor [batch, ...]", tuple(range(1, 9)), _check_numbers)  # what else, it says itself


def _described(output: object) -> str:
    return f"{output.dim()} dimensions" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"


def check_every_class(splits: Mapping[str, Split]) -> None:
    """Raise InputError for a class (labels [N]) that one of the splits has and another lacks."""
    seen = {part: set(np.unique(split.labels).tolist()) for part, split in splits.items()}
    known = set().union(*seen.values())
    for part, classes in seen.items():
        if missing := sorted(known - classes):
            listed = ", ".join(map(str, missing[:SHOWN])) + (", ..." if len(missing) > SHOWN else "")
            raise InputError(
                f"data: expected examples of each of {len(known)} classes in the {part} split, found none of {listed}; add "
                "some, or give that split a larger share"
            )


def check_separate(splits: Mapping[str, Split], pairs: Iterable[tuple[str, str]]) -> None:
    """Raise InputError for an example that both splits of a pair hold, by a digest of its inputs; labels do not count."""
    digests = {part: _digests(split) for part, split in splits.items()}
    for first, second in pairs:
        if common := digests[first].keys() & digests[second].keys():
            at = min(digests[second][digest] for digest in common)
            raise InputError(
                f"data.splits: expected no example in two splits, found {len(common)} in both {first} and {second}, such as "
                f"example {at} of {second}; remove them from one of the two"
            )


def _digests(split: Split) -> dict[str, int]:
    """Where an example was seen last, by the digest of its inputs."""
    return {str(name): position for position, name in enumerate(split.ids)}


def check_enough(train: Split, batch: int) -> None:
    """Raise InputError unless an epoch of training has two batches; a last batch of one example is none."""
    if len(train) < batch + 2:
        raise InputError(
            f"recovery.batch: expected at least two batches of training, {len(train)} examples make no second one after "
            f"{batch}; lower recovery.batch or give the training split more"
        )
