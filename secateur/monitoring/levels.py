"""What was normal when the gate let a file through: the levels that later looks must not find risen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from secateur.gate.bounds import mean_difference, paired_difference, share
from secateur.monitoring.shadow import Shadow

CONFIDENCE = 0.999  # of each level, since one below the truth would be found risen sooner or later
FEWEST = 30  # examples of a class that has a level of its own
LEAST = 1e-4  # level of a share: below it a test set says nothing


@dataclass(frozen=True)
class OfClasses:
    """Levels that only answers which are classes have.

    `doubt`: of the probability that the dense model leaves to other answers than its own, the mean itself. `surer` and `less_sure`: by how
    much the pruned model is, against the dense one. `answers`: of disagreement, by the dense model's answer.
    """

    doubt: float
    surer: float
    less_sure: float
    answers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class OfLabels:
    """Levels of what can be known once labels come: `wrong`, of the dense model's errors, and `drop`, of what accuracy may be lost.

    `slices`: what may be lost in each that is looked at by itself too. What the gate let through is no news: it is what was allowed there,
    and where nothing was, what the test set leaves possible. `slices_drop` is what was allowed.
    """

    wrong: float
    drop: float
    slices: Mapping[str, float] = field(default_factory=dict)
    slices_drop: float | None = None


@dataclass(frozen=True)
class Levels:
    """Upper bounds of means over the test set's examples; `disagreement` is that of `Shadow.parted`."""

    disagreement: float
    classes: OfClasses | None = None
    labels: OfLabels | None = None

    def explained(self, doubt: np.ndarray) -> np.ndarray:
        """How often the pruned model may part from the dense one that has these doubts [N] of its answers [N].

        Half of the disagreement on the test set is taken to come anyhow and half with the dense model's doubt: a shift that makes both
        unsure makes even a faithful copy part from it more often, one that only the pruned model cannot bear does not make the dense
        one doubt.
        """
        assert self.classes is not None
        return np.minimum(self.disagreement * (1 + doubt / self.classes.doubt) / 2, 1.0)


def levels_of(
    seen: Shadow,
    right: tuple[np.ndarray, np.ndarray] | None = None,
    drop: float | None = None,
    slices: Mapping[str, np.ndarray] | None = None,
    slices_drop: float | None = None,
) -> Levels:
    """The levels that a test set sets.

    Args:
        seen: both models' answers to it.
        right: which of the dense and of the pruned model's are right [N], where an answer is right or wrong.
        drop: what the accuracy may lose.
        slices: the positions of each whose accuracy is looked at by itself.
        slices_drop: what the accuracy may lose in each, where the gate judged that.
    """
    classes = None
    if seen.doubt is not None and seen.shift is not None and seen.answers is not None:
        nothing = np.zeros(len(seen))
        ups, downs = (mean_difference(nothing, sign * seen.shift, CONFIDENCE, 1.0)[2] for sign in (1, -1))
        classes = OfClasses(
            doubt=max(float(seen.doubt.mean()), LEAST),
            surer=max(ups, LEAST),
            less_sure=max(downs, LEAST),
            answers={
                str(answer): _at_most(seen.parted[seen.answers == answer])
                for answer in np.unique(seen.answers).tolist()
                if (seen.answers == answer).sum() >= FEWEST
            },
        )
    labels = None
    if right is not None and drop is not None:
        allowed = {
            name: slices_drop if slices_drop is not None else max(drop, -_lost(*(side[at] for side in right)))
            for name, at in sorted((slices or {}).items())
        }
        labels = OfLabels(_at_most(~right[0]), drop, allowed, slices_drop)
    return Levels(_at_most(seen.parted), classes, labels)


def _lost(dense_right: np.ndarray, pruned_right: np.ndarray) -> float:
    """A lower bound of how the accuracy of a slice changed."""
    return paired_difference(dense_right, pruned_right, CONFIDENCE)[1]


def _at_most(values: np.ndarray) -> float:
    """An upper bound of the mean of numbers between 0 and 1: exact where they are nothing else."""
    if np.isin(values, (0, 1)).all():
        return max(share(int(values.sum()), len(values), CONFIDENCE)[2], LEAST)
    return max(mean_difference(np.zeros(len(values)), values, CONFIDENCE, 1.0)[2], LEAST)
