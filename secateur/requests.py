"""Requests for an ONNX file: made up from what its inputs are declared to be, or read from a file of examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from secateur.errors import InputError
from secateur.runtime import Target, open_session

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
