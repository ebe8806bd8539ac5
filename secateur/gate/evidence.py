"""The evidence of a verdict: what the files answer to the test set, and what was measured, as values and as one file.

A file of evidence can be judged again anywhere, by other rules too, without the models, the data and any server.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy.special import softmax

from secateur.errors import InputError
from secateur.gate.bounds import Answers, Bounds
from secateur.objectives import Objective, answered

SEEN = ("ids", "answers", "targets", "certainty", "brier")


@dataclass(frozen=True)
class Seen:
    """What one file answers to a set of examples; an entry of each array is one of them.

    `certainty` is the probability that the file gives its answer, `brier` the squared distance of its probabilities from the
    truth; there are both or neither, and only where answers are classes.
    """

    digest: str  # of the set of examples
    ids: np.ndarray  # of each example
    answers: np.ndarray
    targets: np.ndarray
    certainty: np.ndarray | None = None
    brier: np.ndarray | None = None

    @property
    def pair(self) -> Answers:
        """What a metric compares."""
        return self.answers, self.targets

    @property
    def right(self) -> np.ndarray:
        """Which answers are their targets, where an answer is right or wrong."""
        return self.answers == self.targets


@dataclass(frozen=True)
class Evidence:
    """Everything that a verdict rests on.

    `slices` [N] names, for each way to slice the test set, the slice that an example is in; `documents` [N] the document.
    `changed` holds what the dense and the pruned file answer to the same examples changed: corrupted, or another set.
    `measured` is an estimate with its interval for each figure of the pruned file.
    """

    metric: str
    dense: Seen
    pruned: Seen
    measured: Mapping[str, Bounds]
    slices: Mapping[str, np.ndarray] = field(default_factory=dict)
    documents: np.ndarray | None = None
    changed: Mapping[str, tuple[Seen, Seen]] = field(default_factory=dict)
    incumbent: Seen | None = None


def seen(objective: Objective, outputs: Iterable[np.ndarray], labels: np.ndarray, ids: np.ndarray, digest: str) -> Seen:
    """Reduce a file's outputs, batch by batch in the order of the examples, to what rules look at.

    Args:
        objective: what the outputs answer.
        outputs: of all examples.
        labels: of all examples [N, ...].
        ids: their names [N].
        digest: of the set of them.
    """
    pairs, sureness, start = [], [], 0
    for output in outputs:
        part = labels[start : start + len(output)]
        start += len(output)
        pairs.append(answered(objective, [output], part))
        if objective.right_or_wrong and output.ndim == 2 and part.ndim == 1 and part.dtype.kind in "iu":
            sureness.append(_sureness(output, part))
    answers, targets = (np.concatenate(part) for part in zip(*pairs, strict=True))
    certainty, brier = (np.concatenate(part) for part in zip(*sureness, strict=True)) if sureness else (None, None)
    return Seen(digest, ids, answers, targets, certainty, brier)


def _sureness(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest probability [N] and the Brier score [N] of logits [N, C]."""
    probabilities = softmax(logits.astype(np.float64), axis=1)
    distance = probabilities.copy()
    distance[np.arange(len(labels)), labels] -= 1
    return probabilities.max(1), (distance**2).sum(1)


def check(evidence: Evidence, digest: str | None = None) -> None:
    """Raise InputError unless all of it is about the same examples, and every number is one.

    Args:
        evidence: to check.
        digest: of the test set that the verdict is to be on; without, that of the dense model's answers.
    """
    wanted = digest or evidence.dense.digest
    sides = {"dense": evidence.dense, "pruned": evidence.pruned}
    if evidence.incumbent is not None:
        sides["incumbent"] = evidence.incumbent
    for name, side in sides.items():
        if side.digest != wanted:
            raise InputError(
                f"gate: expected answers to the test set {wanted[:12]}, got those of {name} to {side.digest[:12]}; evaluate it "
                "again on this one"
            )
    pairs = [("the test set", evidence.dense, side) for side in sides.values()]
    for place, first, second in [*pairs, *((name, *both) for name, both in evidence.changed.items())]:
        _check_same(place, first, second)
    for name, side in [*sides.items(), *((name, one) for name, both in evidence.changed.items() for one in both)]:
        _check_numbers(name, side)
    for name, bounds in evidence.measured.items():
        if not np.isfinite(bounds).all():
            raise InputError(f"gate: expected a finite {name} with its interval, got {bounds}; measure it again")
    for name, named in evidence.slices.items():
        if named.shape != evidence.dense.ids.shape:
            raise InputError(
                f"gate.slices: expected a slice for each of {len(evidence.dense.ids)} examples, got {named.shape} by {name}"
            )


def _check_same(place: str, first: Seen, second: Seen) -> None:
    if first.ids.shape != second.ids.shape:
        raise InputError(
            f"gate: expected the same examples of {place} for both files, got {len(first.ids)} and {len(second.ids)}"
        )
    if len(differing := np.flatnonzero(first.ids != second.ids)):
        at = int(differing[0])
        raise InputError(
            f"gate: expected the same examples of {place} for both files, {len(differing)} of {len(first.ids)} differ, such as "
            f"number {at}: {first.ids[at]} and {second.ids[at]}; evaluate both in the same order"
        )


def _check_numbers(name: str, side: Seen) -> None:
    for what in ("answers", "targets", "certainty", "brier"):
        array = getattr(side, what)
        if array is None:
            continue
        if len(array) != len(side.ids) or not len(array):
            raise InputError(f"gate: expected {what} of {name} for each of {len(side.ids)} examples, got {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int((~np.isfinite(array.reshape(len(array), -1)).all(1)).sum())
            raise InputError(
                f"gate: expected finite {what} of {name}, got NaN or infinity for {bad} of {len(array)} examples; is the file "
                "damaged?"
            )


def write(path: str | Path, evidence: Evidence) -> None:
    """Keep it as one `.npz` file, that `read` reads."""
    places = _places(evidence)
    digests = {place: side.digest for place, side in places.items()}
    about = {"metric": evidence.metric, "measured": evidence.measured, "digests": digests}
    arrays: dict[str, np.ndarray] = {f"slices/{name}": named for name, named in evidence.slices.items()}
    if evidence.documents is not None:
        arrays["documents"] = np.asarray(evidence.documents).astype(str)
    for place, side in places.items():
        for name in SEEN:
            if getattr(side, name) is not None:
                arrays[f"{place}/{name}"] = getattr(side, name)
    np.savez_compressed(path, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)


def read(path: str | Path, digest: str | None = None) -> Evidence:
    """Read what `write` has kept, and check it.

    Args:
        path: the file.
        digest: as in `check`.

    Raises:
        InputError: it is no such file, lacks a part, or `check` refuses it.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(str(arrays.pop("about")))
        sides = {place: _side(arrays, place, digest_of) for place, digest_of in about["digests"].items()}
        evidence = Evidence(
            metric=about["metric"],
            dense=sides["dense"],
            pruned=sides["pruned"],
            measured={name: tuple(bounds) for name, bounds in about["measured"].items()},
            slices={name.removeprefix("slices/"): one for name, one in arrays.items() if name.startswith("slices/")},
            documents=arrays.get("documents"),
            changed={
                place.removeprefix("dense/"): (side, sides[f"pruned/{place.removeprefix('dense/')}"])
                for place, side in sides.items()
                if place.startswith("dense/")
            },
            incumbent=sides.get("incumbent"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EOFError, BadZipFile) as error:
        raise InputError(f"gate: expected a file of evidence, got {path}: {' '.join(str(error).split())}") from error
    check(evidence, digest)
    return evidence


def _side(arrays: Mapping[str, np.ndarray], place: str, digest: str) -> Seen:
    missing = [name for name in SEEN[:3] if f"{place}/{name}" not in arrays]
    if missing:
        raise KeyError(f"{place} lacks {', '.join(missing)}")
    ids, answers, targets, certainty, brier = (arrays.get(f"{place}/{name}") for name in SEEN)
    assert ids is not None
    assert answers is not None
    assert targets is not None
    return Seen(digest, ids, answers, targets, certainty, brier)


def _places(evidence: Evidence) -> dict[str, Seen]:
    places = {"dense": evidence.dense, "pruned": evidence.pruned}
    for name, (dense, pruned) in evidence.changed.items():
        places |= {f"dense/{name}": dense, f"pruned/{name}": pruned}
    return places if evidence.incumbent is None else places | {"incumbent": evidence.incumbent}
