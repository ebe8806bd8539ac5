"""Arrays in NumPy's files: `inputs` and `labels`, or for a program of several inputs an array by the name of each."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram

from secateur import program as programs
from secateur.data import Split, class_numbers
from secateur.errors import InputError

_UNREADABLE = (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile)


def digits() -> Split:
    """The handwritten digits of scikit-learn: 1,797 images [1, 8, 8] in 0..1 (Alpaydin and Kaynak, UCI, 1998)."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    return Split((inputs.reshape(-1, 1, 8, 8) / 16).astype(np.float32), labels.astype(np.int64))


def npz(
    path: str | Path, names: Sequence[str] = ("inputs",), *, labelled: bool = True, metadata: Sequence[str] = ()
) -> Split:
    """The arrays of an `.npz` file, read into memory.

    Args:
        path: the file.
        names: the program's inputs in order; a single one is called `inputs` in the file, whatever its name.
        labelled: whether to read `labels`; without, they are zeros that nothing may learn from.
        metadata: arrays [N] beside them that no model sees.

    Raises:
        InputError: the file is missing, unreadable or empty, lacks an array, or its arrays differ in length.
    """
    wanted = _wanted(names, labelled, metadata)
    try:
        stored = np.load(path, allow_pickle=False)
        if isinstance(stored, np.ndarray):
            raise InputError(f"data.path: expected an .npz file with named arrays, got a single array in {path}")
        with stored:
            if missing := set(wanted) - set(stored.files):
                raise InputError(
                    f"data.path: expected arrays {' and '.join(map(repr, wanted))} in {path}, "
                    f"{', '.join(sorted(missing))} is missing; found {', '.join(stored.files) or 'none'}"
                )
            arrays = {name: stored[name] for name in wanted}
    except _UNREADABLE as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"data.path: expected a readable .npz file, got {path}: {error}") from error
    return _split(arrays, path, metadata)


def npy(
    folder: str | Path, names: Sequence[str] = ("inputs",), *, labelled: bool = True, metadata: Sequence[str] = ()
) -> Split:
    """The arrays of a folder of `.npy` files, `inputs.npy` and `labels.npy`, mapped into memory and not read.

    They may be larger than memory: what is mapped is read-only, and pages are fetched as they are looked at.

    Args:
        folder: where the files lie.
        names: the program's inputs in order; the file of a single one is called `inputs.npy`, whatever its name.
        labelled: whether to read `labels.npy`; without, labels are zeros that nothing may learn from.
        metadata: names of files beside them, whose arrays [N] no model sees.

    Raises:
        InputError: a file is missing, unreadable or empty, or the arrays differ in length.
    """
    wanted = _wanted(names, labelled, metadata)
    return _split({name: _mapped(Path(folder, f"{name}.npy")) for name in wanted}, folder, metadata)


def files(names: Sequence[str], *, labelled: bool, metadata: Sequence[str] = ()) -> list[str]:
    """The names of the files that `npy` reads."""
    return [f"{name}.npy" for name in _wanted(names, labelled, metadata)]


def _wanted(names: Sequence[str], labelled: bool, metadata: Sequence[str]) -> list[str]:
    taken = [*(names if len(names) > 1 else ("inputs",)), *(("labels",) if labelled else ())]
    if seen := sorted(set(taken) & set(metadata)):
        raise InputError(f"data.metadata: expected arrays that no model sees, {seen[0]} is given to it; leave it out")
    return [*taken, *metadata]


def _mapped(path: Path) -> np.ndarray:
    try:
        stored = np.load(path, mmap_mode="r", allow_pickle=False)
    except _UNREADABLE as error:
        raise InputError(f"data.path: expected a readable .npy file of numbers, got {path}: {error}") from error
    if not isinstance(stored, np.ndarray):
        raise InputError(f"data.path: expected a single array in {path}, got an .npz file; use source npz")
    return np.asarray(stored)  # an ndarray that lies on the mapping


def _split(arrays: dict[str, np.ndarray], path: str | Path, metadata: Sequence[str]) -> Split:
    for name, array in arrays.items():
        if not array.ndim or not len(array):
            raise InputError(f"data.path: expected at least one example in {name} of {path}, got shape {array.shape}")
    about = {name: arrays.pop(name) for name in metadata}
    labels = arrays.pop("labels", None)
    first, *more = arrays.values()
    labels = np.zeros(len(first), dtype=np.int64) if labels is None else labels
    for name, array in about.items():
        if array.shape != (len(labels),):
            raise InputError(
                f"data.metadata: expected a value of {name} for each of {len(labels)} examples in {path}, got {array.shape}"
            )
    return Split(first, labels, tuple(more), metadata=about)


def batches(path: str | Path, program: ExportedProgram, size: int = 32) -> list[tuple[torch.Tensor, ...]]:
    """Calibration batches (inputs..., labels) from an `.npz` file: `labels`, and `inputs` or an array per input by name.

    Raises:
        InputError: the file is missing, unreadable, lacks an array, or its arrays differ in length.
    """
    read = class_numbers(npz(path, list(programs.input_specs(program))))
    tensors = [torch.from_numpy(array) for array in (*read.columns, read.labels)]
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))
