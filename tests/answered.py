"""Answers of two models, for the tests of the gate."""

import numpy as np

from secateur.gate.bounds import Answers
from secateur.objectives import OBJECTIVES

CONFIDENCE = 0.95
R2 = OBJECTIVES["regression"].score
RATIO = OBJECTIVES["masked_lm"].score


def answers(gained: int, lost: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Which examples the dense and the pruned model get right."""
    counts = (gained, lost, both, neither)
    return np.repeat([False, True, True, False], counts), np.repeat([True, False, True, False], counts)


def regressions(n: int, worse: float, seed: int = 0) -> tuple[Answers, Answers]:
    """Answers of a dense model whose error has deviation 0.5, and of one whose error is `worse` times as large beside it."""
    rng = np.random.default_rng(seed)
    target = rng.normal(size=n)
    dense = target + 0.5 * rng.normal(size=n)
    return (dense, target), (dense + 0.5 * worse * rng.normal(size=n), target)
