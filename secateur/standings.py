"""Candidates for one place, compared: who is beaten in everything, who goes on from a short recovery, who is to be judged first.

Which of two cuts is better often turns round in their recovery, so only recovered candidates are compared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from secateur.gate.verdict import FAIL, INCONCLUSIVE, PASS

SCALE = 0.01  # of the metric, by which a shortfall counts where no loss is allowed


@dataclass(frozen=True)
class Candidate:
    """One candidate against the dense model.

    `change` is that of the metric, larger is better; `change_low` and `speedup_low` are the bad ends of their intervals, at a
    confidence that is corrected for the number of candidates.
    """

    name: str
    change: float
    change_low: float
    speedup: float
    speedup_low: float
    size: float  # bytes of its file
    outcome: str  # of the gate's rules on validation

    @property
    def gains(self) -> tuple[float, float, float]:
        """What is compared, all of it the more the better."""
        return self.change, self.speedup, -self.size


def dominates(one: Candidate, other: Candidate) -> bool:
    """Whether one is at least as good in everything, and better in something (Pareto)."""
    pairs = list(zip(one.gains, other.gains, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def fronts(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Those that no other dominates, then those that only the first do, and so on (Deb et al., IEEE Trans. Evol. Comput. 6, 2002)."""
    left, found = list(candidates), []
    while left:
        front = [one for one in left if not any(dominates(other, one) for other in left)]
        found.append(front)
        left = [one for one in left if one not in front]
    return found


def worth(candidate: Candidate, drop: float) -> float:
    """Doublings of speed, less the metric's shortfall beyond the allowed drop, in units of that drop; by the bad ends.

    It is what the sweep is after, the fastest that keeps the budget, made soft: a candidate that misses the budget by as much
    again is worth one that keeps it at half the speed, since a recovery that goes on may still win that back.
    """
    shortfall = max(0.0, -candidate.change_low - drop) / (drop or SCALE)
    return math.log2(candidate.speedup_low) - shortfall


def in_order(candidates: Sequence[Candidate], drop: float) -> list[Candidate]:
    """Front by front; within a front by worth, of equals the smaller file first."""
    return [one for front in fronts(candidates) for one in sorted(front, key=lambda one: _key(one, drop))]


def survivors(candidates: Sequence[Candidate], drop: float, eta: int) -> list[Candidate]:
    """The first of every `eta` in that order, one at least: who goes on to the next rung."""
    return in_order(candidates, drop)[: math.ceil(len(candidates) / eta)]


def to_be_judged(candidates: Sequence[Candidate], drop: float) -> list[Candidate]:
    """Whom the test split is worth being asked about, the best first: none that fails on validation already.

    Those that keep every bound there come before those of which validation cannot tell, each by worth.
    """
    standing = [one for one in candidates if one.outcome != FAIL]
    return sorted(standing, key=lambda one: ((PASS, INCONCLUSIVE).index(one.outcome), *_key(one, drop)))


def _key(candidate: Candidate, drop: float) -> tuple[float, float, str]:
    return -worth(candidate, drop), candidate.size, candidate.name
