"""Data sets as arrays: three splits, drawn by a seed where they are not given, and identified by a digest."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from secateur.errors import InputError

CHUNK_BYTES = 1 << 24  # of an array that is looked at as a whole, a chunk at a time: it may be larger than memory


@dataclass(frozen=True)
class Split:
    """Inputs [N, ...] and labels [N, ...]; a program with several inputs takes `more` after the first.

    `lengths` [N] says how many positions of each example [T] are more than padding, where a mask among the inputs says so
    too: a program that takes any length may then be given batches that are only as long as their longest. `metadata` [N] by
    name is what no model sees: the gate slices by it.

    Raises:
        InputError: the arrays differ in length.
    """

    inputs: np.ndarray
    labels: np.ndarray
    more: tuple[np.ndarray, ...] = ()
    lengths: np.ndarray | None = None
    metadata: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if any(len(column) != len(self.labels) for column in self.columns):
            counts = " and ".join(str(len(column)) for column in self.columns)
            raise InputError(
                f"data: expected one label for each input, got {counts} inputs and {len(self.labels)} labels; "
                "arrays are matched by position, so write them from the same list of examples"
            )

    @property
    def columns(self) -> tuple[np.ndarray, ...]:
        """All inputs in order."""
        return (self.inputs, *self.more)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: np.ndarray) -> Split:
        """The examples at these positions, copied into memory."""
        lengths = None if self.lengths is None else self.lengths[chosen]
        metadata = {name: column[chosen] for name, column in self.metadata.items()}
        more = tuple(column[chosen] for column in self.more)
        return Split(self.inputs[chosen], self.labels[chosen], more, lengths, metadata)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over every example, in order."""
        return _digest([self])

    @functools.cached_property
    def ids(self) -> np.ndarray:
        """A name for each example [N]: a digest of its inputs, the same wherever it is read."""
        names = []
        for position in range(len(self)):
            sha = hashlib.blake2b(digest_size=16)
            for column in self.columns:
                sha.update(np.ascontiguousarray(column[position]).tobytes())
            names.append(sha.hexdigest())
        return np.array(names)


@dataclass(frozen=True)
class Dataset:
    """Train for recovery, validation for every choice, test for the verdict alone."""

    train: Split
    validation: Split
    test: Split

    @property
    def splits(self) -> dict[str, Split]:
        """The three by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def digest(self) -> str:
        """SHA-256 over every example of every split, in order."""
        return _digest([self.train, self.validation, self.test])


def _digest(splits: Sequence[Split]) -> str:
    sha = hashlib.sha256()
    for part in splits:
        for array in (*part.columns, part.labels):
            sha.update(f"{array.shape}{array.dtype}".encode())
            for rows in chunks(array):
                sha.update(np.ascontiguousarray(rows).tobytes())
        for name, column in part.metadata.items():
            sha.update(f"{name}{column.shape}".encode())
            sha.update("\0".join(map(str, column.tolist())).encode())
    return sha.hexdigest()


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The array [N, ...] in runs of rows of about 16 MiB."""
    rows = max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def labelled_for(split: Split, objective: str) -> Split:
    """The same examples with labels as an objective of this name takes them; for a user's own they stay as they are.

    Raises:
        InputError: labels that are of another kind.
    """
    if objective == "regression":
        return numbers(split)
    return split if ":" in objective else class_numbers(split)


def numbers(split: Split) -> Split:
    """The same examples with labels as float32.

    Raises:
        InputError: labels that are no numbers.
    """
    if split.labels.dtype.kind not in "iufb":
        raise InputError(
            f"data: expected numbers as labels, got {split.labels.dtype} such as {split.labels.flat[:3]}; write them as floats"
        )
    return dataclasses.replace(split, labels=split.labels.astype(np.float32, copy=False))


def class_numbers(split: Split) -> Split:
    """The same examples with labels as int64.

    Raises:
        InputError: labels that rounding would change, or that are no numbers.
    """
    labels = split.labels
    if labels.dtype.kind not in "iufb" or (labels.dtype.kind == "f" and not (labels == np.floor(labels)).all()):
        raise InputError(
            f"data: expected integer labels (class numbers), got {labels.dtype} such as {labels.flat[:3]}; "
            "number the classes from 0 as the model does"
        )
    return dataclasses.replace(split, labels=labels.astype(np.int64, copy=False))


def split(examples: Split, shares: Sequence[float], seed: int) -> Dataset:
    """Split into `shares` of train, validation and test, summing to one, stratified by class number. The parts are copies.

    Labels that are no class numbers [N] of an integer type, but floats or rows of several, are drawn without regard to them.

    Equal examples may fall on both sides: an array of many short examples has duplicates, and which of them to drop is not
    for a draw to say.

    Raises:
        InputError: a class has too few examples for three splits.
    """
    rest, test = _drawn(examples.labels, np.arange(len(examples)), shares[2], seed)
    train, validation = _drawn(examples.labels, rest, shares[1] / (shares[0] + shares[1]), seed)
    return Dataset(*(examples.take(part) for part in (train, validation, test)))


def carve(train: Split, share: float, seed: int) -> tuple[Split, Split]:
    """Two copies that share nothing: the rest of `train`, and a `share` of it stratified as by `split`, for validation.

    Raises:
        InputError: a class has too few examples.
    """
    rest, carved = _drawn(train.labels, np.arange(len(train)), share, seed)
    return train.take(rest), train.take(carved)


def proxy(train: Split, share: float, seed: int) -> Split:
    """A copy of a share of the training split, drawn by the seed and stratified as by `split`, that stands in for all of it.

    Raises:
        InputError: a class has too few examples.
    """
    _, drawn = _drawn(train.labels, np.arange(len(train)), share, seed, "data.proxy")
    return train.take(drawn)


def _drawn(
    labels: np.ndarray, among: np.ndarray, share: float, seed: int, setting: str = "data.split"
) -> tuple[np.ndarray, np.ndarray]:
    """The positions `among` which to draw, parted: what is left, and the share."""
    from sklearn.model_selection import train_test_split

    classes = labels[among] if labels.ndim == 1 and labels.dtype.kind in "iu" else None
    try:
        left, drawn = train_test_split(among, test_size=share, random_state=seed, stratify=classes)
    except ValueError as error:
        how = "drawn" if classes is None else "stratified by label"
        raise InputError(f"{setting}: {share:.3g} of {len(among)} examples cannot be {how}: {error}") from error
    return left, drawn
