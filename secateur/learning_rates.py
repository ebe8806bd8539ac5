"""Learning rates over a recovery: pure functions of the share of steps done, as factors of the rate in the settings."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[float, float], float]  # share of the steps done in 0..1, share of them that warms up


def cosine(done: float, warm_up: float) -> float:
    """Linear warm-up, then half a cosine down to zero (Loshchilov and Hutter, "SGDR", ICLR 2017)."""
    if done < warm_up:
        return done / warm_up
    return 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def rewind(done: float, warm_up: float) -> float:
    """The schedule that residual networks are trained with, from its top: a tenth at one half, a hundredth at three quarters.

    Going back to the large rates instead of fine-tuning at the last one is learning-rate rewinding (Renda et al., ICLR
    2020).
    """
    if done < warm_up:
        return done / warm_up
    return 1.0 if done < 0.5 else 0.1 if done < 0.75 else 0.01


def one_cycle(done: float, warm_up: float) -> float:
    """Up from 1/25 over the warm-up, then a cosine down to 1/10,000 (Smith and Topin, "Super-Convergence", 2018)."""
    low, end = 1 / 25, 1e-4
    if done < warm_up:
        return low + (1 - low) * done / warm_up
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


LEARNING_RATES: dict[str, Schedule] = {"cosine": cosine, "rewind": rewind, "one_cycle": one_cycle}
