"""Slices of a test set: the part that each example belongs to, by a label, a metadata column, or a statistic of its inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from secateur.data import Split, chunks
from secateur.errors import InputError

MOST = 50  # different values that each make a slice; numbers with more are cut into quarters
LABEL, MEAN, DEVIATION, LENGTH = "label", "mean", "deviation", "length"
COMPUTED = (LABEL, MEAN, DEVIATION, LENGTH)  # the names that are no metadata


def slices_of(split: Split, by: str) -> np.ndarray:
    """The name of the slice [N] that each example is in.

    Args:
        split: the test set.
        by: `label`; `mean` or `deviation`, over all numbers of an example's first input; `length`, its positions that are no
            padding; or the name of a metadata column.

    Raises:
        InputError: the examples have no such thing, or a column of texts has too many of them.
    """
    if by == LABEL:
        if split.labels.ndim != 1 or split.labels.dtype.kind not in "iu":
            raise InputError(
                f"gate.slices.by: label needs one class number per example, got labels {split.labels.shape} of {split.labels.dtype}; "
                "leave it out"
            )
        return np.char.add("label ", split.labels.astype(str))
    if by in (MEAN, DEVIATION):
        return _named(by, _quarters(_statistic(split.inputs, by)))
    if by == LENGTH:
        return _named(by, _quarters(_lengths(split)))
    if by not in split.metadata:
        known = ", ".join((*COMPUTED, *split.metadata))
        raise InputError(f"gate.slices.by: expected some of {known}, got {by!r}; name the column in data.metadata")
    column = np.asarray(split.metadata[by])
    if len(np.unique(column)) <= MOST:
        return _named(by, column.astype(str))
    if column.dtype.kind in "iuf":
        return _named(by, _quarters(column))
    raise InputError(
        f"gate.slices.by: expected at most {MOST} different texts in {by}, got {len(np.unique(column))}; write a coarser column"
    )


def parts_of(slices: Mapping[str, np.ndarray], fewest: int) -> tuple[dict[str, np.ndarray], list[str]]:
    """The positions of each slice's examples by its name, over all ways to slice, and the names of those with too few."""
    members = {str(name): np.flatnonzero(named == name) for named in slices.values() for name in np.unique(named)}
    small = [name for name, positions in members.items() if len(positions) < fewest]
    return {name: positions for name, positions in members.items() if name not in small}, small


def _named(by: str, values: np.ndarray) -> np.ndarray:
    return np.char.add(f"{by} ", values)


def _quarters(values: np.ndarray) -> np.ndarray:
    """Which quarter of all values [N] each is in, as the range of that quarter."""
    quarter = np.searchsorted(np.quantile(values, [0.25, 0.5, 0.75]), values, side="left")
    names = {q: f"{values[quarter == q].min():.4g} to {values[quarter == q].max():.4g}" for q in np.unique(quarter)}
    return np.array([names[q] for q in quarter])


def _statistic(inputs: np.ndarray, by: str) -> np.ndarray:
    rows = (part.reshape(len(part), -1).astype(np.float64) for part in chunks(inputs))
    return np.concatenate([part.mean(1) if by == MEAN else part.std(1) for part in rows])


def _lengths(split: Split) -> np.ndarray:
    if split.lengths is None:
        raise InputError(
            "gate.slices.by: length needs texts with a mask of their padding among the model's inputs, found none; leave it out"
        )
    return split.lengths
