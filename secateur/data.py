"""Data sets as arrays, split once by a seed, checked against the model's input, identified by a digest."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from secateur import program as programs
from secateur.errors import InputError


@dataclass(frozen=True)
class Split:
    """Inputs [N, ...] and labels [N, ...]; a program with several inputs takes `more` after the first."""

    inputs: np.ndarray
    labels: np.ndarray
    more: tuple[np.ndarray, ...] = ()

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """All inputs in order."""
        return (self.inputs, *self.more)

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Train for recovery, validation for every choice, test for the verdict alone."""

    train: Split
    validation: Split
    test: Split

    @property
    def digest(self) -> str:
        """SHA-256 over every example of every split, in order."""
        sha = hashlib.sha256()
        for split in (self.train, self.validation, self.test):
            for array in (*split.columns, split.labels):
                sha.update(f"{array.shape}{array.dtype}".encode())
                sha.update(np.ascontiguousarray(array).tobytes())
        return sha.hexdigest()


def digits() -> tuple[np.ndarray, np.ndarray]:
    """The handwritten digits of scikit-learn: 1,797 images [1, 8, 8] in 0..1 (Alpaydin and Kaynak, UCI, 1998)."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    return (inputs.reshape(-1, 1, 8, 8) / 16).astype(np.float32), labels.astype(np.int64)


def npz(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """The arrays `inputs` and `labels` of an `.npz` file.

    Raises:
        InputError: the file is missing, unreadable, or lacks one of the two arrays.
    """
    arrays = _arrays(path, ["inputs", "labels"])
    return arrays["inputs"], _whole(arrays["labels"])


def _arrays(path: str | Path, names: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if isinstance(arrays, np.ndarray):
                raise InputError(f"data.path: expected an .npz file with named arrays, got a single array in {path}")
            if missing := set(names) - set(arrays.files):
                raise InputError(
                    f"data.path: expected arrays {' and '.join(map(repr, names))} in {path}, "
                    f"{', '.join(sorted(missing))} is missing; found {', '.join(arrays.files) or 'none'}"
                )
            return {name: arrays[name] for name in names}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"data.path: expected a readable .npz file, got {path}: {error}") from error


def batches(path: str | Path, program: ExportedProgram, size: int = 32) -> list[tuple[torch.Tensor, ...]]:
    """Calibration batches (inputs..., labels) from an `.npz` file: `labels`, and `inputs` or an array per input by name.

    Raises:
        InputError: the file is missing, unreadable, lacks an array, or its arrays differ in length.
    """
    names = list(programs.input_specs(program))
    if len(names) == 1:
        arrays = dict(zip(("inputs", "labels"), npz(path), strict=True))
        names = ["inputs"]
    else:
        arrays = _arrays(path, [*names, "labels"])
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise InputError(f"data.path: expected arrays of one length in {path}, got {lengths}")
    tensors = [torch.from_numpy(arrays[name]) for name in (*names, "labels")]
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))


def _whole(labels: np.ndarray) -> np.ndarray:
    """Labels as integers; refuses what rounding would change."""
    if labels.dtype.kind not in "iufb" or (labels.dtype.kind == "f" and not (labels == np.floor(labels)).all()):
        raise InputError(f"data: expected integer labels (class numbers), got {labels.dtype} such as {labels.flat[:3]}")
    return labels.astype(np.int64)


def split(inputs: np.ndarray, labels: np.ndarray, shares: Sequence[float], seed: int) -> Dataset:
    """Split stratified by label: `shares` of train, validation and test, summing to one.

    Raises:
        InputError: lengths differ, values are not finite, or a class has too few examples for three splits.
    """
    if labels.ndim != 1:
        raise InputError(f"data: expected labels [N], one class number per example, got shape {labels.shape}")
    if len(inputs) != len(labels):
        raise InputError(f"data: expected one label for each input, got {len(inputs)} inputs and {len(labels)} labels")
    if inputs.dtype.kind not in "iufb":
        raise InputError(f"data: expected numbers as inputs (such as float32), got an array of {inputs.dtype}")
    if np.issubdtype(inputs.dtype, np.floating) and not np.isfinite(inputs).all():
        raise InputError("data: expected finite inputs, found NaN or infinity; clean the array before registering it")
    from sklearn.model_selection import train_test_split

    order = np.arange(len(labels))
    try:
        rest, test = train_test_split(order, test_size=shares[2], random_state=seed, stratify=labels)
        ratio = shares[1] / (shares[0] + shares[1])
        train, validation = train_test_split(rest, test_size=ratio, random_state=seed, stratify=labels[rest])
    except ValueError as error:
        raise InputError(
            f"data.split: {shares} of {len(labels)} examples cannot be stratified by label: {error}"
        ) from error
    parts = (Split(inputs[part], labels[part]) for part in (train, validation, test))
    return Dataset(*parts)


def check_fits(dataset: Dataset, program: ExportedProgram) -> None:
    """Raise InputError unless the program takes one tensor of the data's shape and type and knows all its labels."""
    specs = programs.input_specs(program)
    if len(specs) != 1:
        raise InputError(
            f"data: expected a model with one input tensor, this one takes {len(specs)}: {', '.join(specs)}"
        )
    ((name, (shape, dtype)),) = specs.items()
    seen = dataset.train.inputs
    if shape[0] is not None:
        raise InputError(
            f"model: expected a dynamic batch dimension, input {name} is fixed at {shape[0]}; "
            "export or log it with an input example of batch size two or more"
        )
    fits = len(shape) == seen.ndim and all(s in (None, n) for s, n in zip(shape[1:], seen.shape[1:], strict=True))
    if not fits or dtype != torch.from_numpy(seen[:1]).dtype:
        wanted = "x".join("any" if s is None else str(s) for s in shape[1:])
        got = "x".join(map(str, seen.shape[1:]))
        raise InputError(f"data: expected examples of {wanted} ({dtype}) for input {name}, got {got} ({seen.dtype})")
    with torch.no_grad():
        logits = program.module(check_guards=False)(torch.from_numpy(seen[:2]))
    labels = np.concatenate([s.labels for s in (dataset.train, dataset.validation, dataset.test)])
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2:
        raise InputError("model: expected one output of logits [batch, classes] for classification")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise InputError(f"data: expected labels in 0..{logits.shape[1] - 1}, got {labels.min()}..{labels.max()}")
