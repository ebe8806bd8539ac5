"""Looks at clean and at shifted traffic, as many as it takes: false alarms, and time to detect against severity."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from benchmarks.context import Row
from benchmarks.monitor.pairs import Pair
from secateur.monitoring import judging
from secateur.monitoring.detectors import Detector
from secateur.monitoring.drift import compare, features
from secateur.monitoring.judging import Judged, Labelled, Observed
from secateur.monitoring.levels import Levels, levels_of
from secateur.monitoring.shadow import shadow, told

EXAMPLES = 200  # of a look
LONGEST = 60  # looks at a shift
AFTER = 5  # looks after the first breach, in which it may turn out to be another's
BEFORE = 24  # clean looks before it: a day
ALPHA = 1e-3  # of drift, as `tasks.monitoring.observe` has it


@dataclass(frozen=True)
class Halves:
    """The levels of one half of the test set, and the positions of the other, which traffic is drawn from."""

    levels: Levels
    levels_at: np.ndarray
    traffic: np.ndarray


def halves(pair: Pair, seed: int) -> Halves:
    """Split the test set."""
    order = np.random.default_rng(seed).permutation(len(pair.labels))
    mine, others = np.sort(order[: len(order) // 2]), np.sort(order[len(order) // 2 :])
    dense, pruned, truth = pair.dense["clean"][mine], pair.pruned["clean"][mine], pair.labels[mine]
    right = (told(dense)[0] == truth, told(pruned)[0] == truth)
    slices = {f"label {label}": np.flatnonzero(truth == label) for label in np.unique(truth)}
    return Halves(levels_of(shadow(dense, pruned), right, pair.drop, slices), mine, others)


def clean(pair: Pair, parts: Halves, looks: int, seed: int) -> Row:
    """How many of so many looks at clean traffic were a watch or a breach, detectors begun anew every thousand."""
    counts: Counter[str] = Counter()
    for begun in range(0, looks, 1000):
        for judged in _looks(pair, parts, "clean", min(1000, looks - begun), seed + begun, labelled=True, drift=False):
            counts[judged.outcome] += 1
    return {"looks": looks, "watch": counts[judging.WATCH], "breach": counts[judging.BREACH]}


def drifts(pair: Pair, looks: int, seed: int) -> Row:
    """The same of drift alone: looks beside each other at one half differ from the other alike, so each look halves anew."""
    found = 0
    for number in range(looks):
        parts = halves(pair, seed + number)
        at = np.random.default_rng(number).choice(parts.traffic, EXAMPLES, replace=False)
        before, now = (_features(pair, "clean", side) for side in (parts.levels_at, at))
        found += any(one.drifted for one in compare(before, now, ALPHA, number))
    return {"looks": looks, "drifted": found}


def study(pair: Pair, parts: Halves, shift: str, seed: int, *, labelled: bool) -> Row:
    """Of traffic that is shifted after a day: accuracies, the looks until a watch and a breach, and whose it is in the end."""
    first: dict[str, int] = {}
    cause = ""
    for number, judged in enumerate(_looks(pair, parts, shift, LONGEST, seed, labelled=labelled, drift=True), 1):
        if judged.outcome in (judging.WATCH, judging.BREACH):
            first.setdefault(judged.outcome, number)
            cause = judged.cause
        if judging.BREACH in first and number >= first[judging.BREACH] + AFTER:
            break
    truth, at = pair.labels[parts.traffic], parts.traffic
    right = {
        name: float((told(side[shift][at])[0] == truth).mean())
        for name, side in (("dense", pair.dense), ("pruned", pair.pruned))
    }
    return {
        "pair": pair.name,
        "shift": shift,
        "labels": labelled,
        **right,
        "watch": first.get(judging.WATCH),
        "breach": first.get(judging.BREACH),
        "cause": cause,
    }


def _looks(
    pair: Pair, parts: Halves, shift: str, looks: int, seed: int, *, labelled: bool, drift: bool
) -> Iterator[Judged]:
    """Looks at examples that are drawn from the traffic's half; of a shift, after a day without one.

    With replacement that half is the world, and the levels' half as far from it as any test set. Drift is tested as between two
    samples of one world, and then each example comes once in a look.
    """
    rng, detectors = np.random.default_rng(seed), dict[str, Detector]()
    before = _features(pair, "clean", parts.levels_at) if drift else []
    calm = 0 if shift == "clean" else BEFORE
    for number in range(calm + looks):
        name = "clean" if number < calm else shift
        at = rng.choice(parts.traffic, EXAMPLES, replace=not drift)
        dense, pruned, truth = pair.dense[name][at], pair.pruned[name][at], pair.labels[at]
        slices = {f"label {label}": np.flatnonzero(truth == label) for label in np.unique(truth)}
        own = np.ones(EXAMPLES, dtype=bool)
        labels = Labelled(told(dense)[0], told(pruned)[0], truth, own, slices) if labelled else None
        observed = Observed(shadow(dense, pruned), np.ones(EXAMPLES), labels)
        drifted = tuple(compare(before, _features(pair, name, at), ALPHA, number)) if drift and number >= calm else ()
        judged, detectors = judging.judge(detectors, observed, parts.levels, drifted)
        if number >= calm:
            yield judged


def _features(pair: Pair, shift: str, at: np.ndarray) -> list:
    embedding = pair.embedding[shift][at] if shift in pair.embedding else None
    return features({"inputs": pair.inputs[shift][at]}, pair.dense[shift][at], embedding)
