"""How the pruned model's answers differ from the dense one's to the same inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from secateur.gate.evidence import Evidence

NOT_FINITE = -1  # the answer that is no class


@dataclass(frozen=True)
class Shadow:
    """An entry of each array for every example [N].

    `parted` is 1 where the answers differ and 0 where not; of outputs that are no classes their distance, relative to the dense
    one, 1 at most. Of classes also `doubt`, the probability that the dense model leaves to other answers, `shift`, how much surer
    the pruned one is, and `answers`, the dense model's.
    """

    parted: np.ndarray
    doubt: np.ndarray | None = None
    shift: np.ndarray | None = None
    answers: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.parted)


def shadow(dense: np.ndarray, pruned: np.ndarray) -> Shadow:
    """From both models' outputs [N, ...]; logits [N, C] are classes. An output that is not finite differs from every other."""
    if dense.ndim == 2 and dense.shape[1] > 1:
        (answers, sure), (others, surer) = told(dense), told(pruned)
        parted = (answers != others) | (others == NOT_FINITE)
        return Shadow(parted.astype(float), 1 - sure, surer - sure, answers)
    first, second = (side.reshape(len(side), -1).astype(np.float64) for side in (dense, pruned))
    with np.errstate(all="ignore"):
        away = np.linalg.norm(second - first, axis=1) / np.maximum(np.linalg.norm(first, axis=1), 1e-12)
    return Shadow(np.where(np.isfinite(away), np.minimum(away, 1.0), 1.0))


def of_evidence(evidence: Evidence) -> Shadow | None:
    """From what a gate saw of the whole test set; None where that was not of classes."""
    dense, pruned = evidence.dense, evidence.pruned
    if dense.certainty is None or pruned.certainty is None:
        return None
    parted = (dense.answers != pruned.answers).astype(float)
    return Shadow(parted, 1 - dense.certainty, pruned.certainty - dense.certainty, dense.answers)


def told(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The answers [N] of logits [N, C] and how sure they are [N]; `NOT_FINITE` and 0 where one is not finite."""
    finite = np.isfinite(logits).all(1)
    shown = np.where(finite[:, None], logits, 0.0).astype(np.float64)
    answers, sure = shown.argmax(1), softmax(shown, axis=1).max(1)
    return np.where(finite, answers, NOT_FINITE), np.where(finite, sure, 0.0)
