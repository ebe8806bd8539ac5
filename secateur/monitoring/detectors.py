"""Finds that a mean has risen above a level, asked again and again for as long as the model serves.

E-detectors (Shin, Ramdas and Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", New England
Journal of Statistics in Data Science 2, 2024): a gambler who bets, at every look anew, that the mean is above the level cannot be
expected to gain while it is not (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", Journal of
the Royal Statistical Society B 86, 2024). What the gamblers of all looks own together, a Shiryaev-Roberts sum, grows by one in a
look at most, in expectation, so that waiting until it reaches L takes L looks or more on the average, however the numbers are
distributed and however often one looks. A change that comes after months is found as fast as one on the first day, which a single
sequential test that has lost its stake by then would not do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

BETS = tuple(
    float(bet) for bet in np.geomspace(0.02, 50.0, 12)
)  # stakes for each unit that a number lies above the level
# what is carried to the next look at most: to carry less is as sound, and what is over is forgotten sooner
MOST = math.log(1e8)
AT_STAKE = 0.9  # the most of what a gambler owns that one number can cost


@dataclass(frozen=True)
class Detector:
    """What was seen up to now: `owned` is log(1 + the sum) for each of `BETS`, at most `MOST`, which one carries from look to look."""

    owned: tuple[float, ...] = (0.0,) * len(BETS)

    @property
    def evidence(self) -> float:
        """The sum itself, the mean over the stakes, as a logarithm: of how many looks it takes on the average until chance gives as much."""
        sums = [total + math.log(-math.expm1(-total)) if total > 0 else -math.inf for total in self.owned]
        return float(logsumexp(sums)) - math.log(len(sums))


def look(before: Detector, values: np.ndarray, levels: np.ndarray | float, lowest: float = 0.0) -> Detector:
    """Take one more look, at the values [N] of new examples; without any it is no look.

    Args:
        before: what was seen.
        values: bounded numbers, such as 0 and 1.
        levels: what their mean is not above while nothing has changed; or for each [N], by what was known before its value, numbers up
            to 1 whose mean theirs is not above.
        lowest: the least that a value can be; below every level.
    """
    if not len(values):
        return before
    above = np.asarray(values, dtype=float) - levels
    highest = levels if isinstance(levels, float) else 1.0
    stakes = np.minimum(BETS, AT_STAKE / (highest - lowest))
    gains = np.log1p(stakes[:, None] * above[None, :]).sum(1)
    owned = np.minimum(np.logaddexp(0.0, np.array(before.owned) + gains), MOST)
    return Detector(tuple(float(one) for one in owned))
