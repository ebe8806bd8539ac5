"""Requests for an ONNX file: made up from what its inputs are declared to be, or read from a file of examples; and whether
it answers them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.data import chunks
from secateur.errors import InputError
from secateur.runtime import Target, open_session, run

Batch = dict[str, np.ndarray]  # examples of every input, by its name
BATCH = 32  # examples at a time where the file leaves it open

TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


@dataclass(frozen=True)
class Input:
    """One input of a file; a size without a number is None, the first of them is the batch."""

    name: str
    shape: tuple[int | None, ...]
    type: str


def inputs_of(path: str | Path, target: Target) -> list[Input]:
    """What a file takes.

    Raises:
        InputError: the file is missing or is no ONNX file that the target loads.
    """
    if not Path(path).is_file():
        raise InputError(f"model: expected an ONNX file, got {path}, which is not there")
    try:
        session = open_session(path, target)
    except InputError:
        raise
    except Exception as error:  # the runtime's own, without a common class
        raise InputError(f"model: expected an ONNX file, got {path}: {error}") from error
    return [
        Input(one.name, tuple(size if isinstance(size, int) else None for size in one.shape), one.type)
        for one in session.get_inputs()
    ]


def made_up(inputs: list[Input], batch: int, length: int | None = None, seed: int = 0) -> list[np.ndarray]:
    """One batch of every input: normal numbers, ones for whole numbers (a token that every vocabulary has, a mask that hides
    nothing).

    Raises:
        InputError: the file takes another batch, needs a length that is not given, or a type that cannot be made up.
    """
    draw = np.random.default_rng(seed)
    return [_array(one, batch, length, draw) for one in inputs]


def _array(one: Input, batch: int, length: int | None, draw: np.random.Generator) -> np.ndarray:
    if one.type not in TYPES:
        raise InputError(f"inputs: expected one of {', '.join(TYPES)} for {one.name}, got {one.type}; give examples")
    if not one.shape or one.shape[0] not in (None, batch):
        raise InputError(f"batch: the file takes {one.shape or 'no batch'} as {one.name}, got a batch of {batch}")
    if None in one.shape[1:] and length is None:
        raise InputError(f"length: expected a length for input {one.name} {one.shape}, got none")
    shape = [batch, *(size or length or 0 for size in one.shape[1:])]
    kind = TYPES[one.type]
    return draw.normal(size=shape).astype(kind) if np.issubdtype(kind, np.floating) else np.ones(shape, kind)


def read(path: str | Path, inputs: list[Input]) -> list[np.ndarray]:
    """Examples [N, ...] of every input from an `.npz` file, by their names; a single input may be called `inputs`.

    Raises:
        InputError: the file is missing or no `.npz`, or lacks an input.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"inputs: expected an .npz file, got {path}: {error}") from error
    if len(inputs) == 1 and inputs[0].name not in arrays:
        arrays = {inputs[0].name: arrays.get("inputs"), **arrays}
    missing = [one.name for one in inputs if arrays.get(one.name) is None]
    if missing:
        raise InputError(f"inputs: expected {', '.join(missing)} in {path}, found {', '.join(arrays)}")
    return [arrays[one.name].astype(TYPES.get(one.type, arrays[one.name].dtype)) for one in inputs]


def batches(columns: Sequence[np.ndarray], inputs: Sequence[Input]) -> list[Batch]:
    """The examples as requests; of a file with a fixed batch only as many as fill one.

    Raises:
        InputError: not as many of each input, too few, or numbers that are not finite.
    """
    counts = {len(column) for column in columns}
    if len(columns) != len(inputs) or len(counts) != 1:
        raise InputError(
            f"inputs: expected examples of {', '.join(one.name for one in inputs)}, as many of each, got "
            f"{', '.join(str(len(column)) for column in columns) or 'none'}"
        )
    for one, column in zip(inputs, columns, strict=True):
        if any(not np.isfinite(rows).all() for rows in chunks(column)):
            raise InputError(f"inputs: expected finite examples, got NaN or infinity in {one.name}")
    fixed = {one.shape[0] for one in inputs if one.shape and one.shape[0] is not None}
    size, count = (max(fixed), counts.pop()) if fixed else (BATCH, counts.pop())
    starts = range(0, count - size + 1 if fixed else count, size)
    if not starts:
        raise InputError(f"inputs: expected at least {size if fixed else 1} examples, got {count}; give more")
    return [
        {one.name: column[start : start + size] for one, column in zip(inputs, columns, strict=True)}
        for start in starts
    ]


def check_answers(path: Path, target: Target, batch: Batch, which: str) -> None:
    """Raise InputError unless the target loads the file and answers a batch with finite numbers."""
    try:
        answer = run(open_session(path, target), *batch.values())
    except InputError:
        raise
    except Exception as error:  # the runtime's own, without a common class
        raise InputError(
            f"model: expected {target.provider} to run {which} on the examples, it does not: {' '.join(str(error).split())}"
        ) from error
    if np.issubdtype(answer.dtype, np.floating) and not np.isfinite(answer).all():
        raise InputError(f"model: expected finite outputs of {which}, got NaN or infinity; is the file damaged?")
