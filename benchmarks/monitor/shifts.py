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
LIFE = 1000  # looks with one past
AFTER = 5  # looks after the first breach, in which it may turn out to be another's
BEFORE = 24  # clean looks before it: a day
ALPHA = 1e-3  # of drift, as `tasks.monitoring.observe` has it


@dataclass(frozen=True)
class Past:
    """What a gate saw: a sample of the world that the test set stands for, and the levels that it sets."""

    levels: Levels
    at: np.ndarray


def past(pair: Pair, seed: int) -> Past:
    """Half as many examples as there are, drawn from all with replacement, as the traffic will be: both are samples of one world."""
    at = np.random.default_rng(seed).choice(len(pair.labels), len(pair.labels) // 2)
    dense, pruned, truth = pair.dense["clean"][at], pair.pruned["clean"][at], pair.labels[at]
    right = (told(dense)[0] == truth, told(pruned)[0] == truth)
    slices = {f"label {label}": np.flatnonzero(truth == label) for label in np.unique(truth)}
    return Past(levels_of(shadow(dense, pruned), right, pair.drop, slices), at)


def clean(pair: Pair, looks: int, seed: int) -> Row:
    """How many of so many looks at clean traffic were a watch or a breach, levels and detectors begun anew every thousand."""
    counts: Counter[str] = Counter()
    for begun in range(0, looks, LIFE):
        before = past(pair, seed + begun)
        for judged in _looks(
            pair, before, "clean", min(LIFE, looks - begun), seed + begun + 1, labelled=True, drift=False
        ):
            counts[judged.outcome] += 1
    return {"looks": looks, "watch": counts[judging.WATCH], "breach": counts[judging.BREACH]}


def drifts(pair: Pair, looks: int, seed: int) -> Row:
    """The same of drift alone, each look against a past of its own."""
    found = 0
    for number in range(looks):
        rng = np.random.default_rng([seed, number])
        sides = [rng.choice(len(pair.labels), size) for size in (len(pair.labels) // 2, EXAMPLES)]
        before, now = (_features(pair, "clean", side) for side in sides)
        found += any(one.drifted for one in compare(before, now, ALPHA, number))
    return {"looks": looks, "drifted": found}


def study(pair: Pair, before: Past, shift: str, seed: int, *, labelled: bool) -> Row:
    """Of traffic that is shifted after a day: accuracies, the looks until a watch and a breach, and whose it is in the end."""
    first: dict[str, int] = {}
    cause = ""
    for number, judged in enumerate(_looks(pair, before, shift, LONGEST, seed, labelled=labelled, drift=True), 1):
        if judged.outcome in (judging.WATCH, judging.BREACH):
            first.setdefault(judged.outcome, number)
            cause = judged.cause
        if judging.BREACH in first and number >= first[judging.BREACH] + AFTER:
            break
    right = {
        name: float((told(side[shift])[0] == pair.labels).mean())
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
    pair: Pair, before: Past, shift: str, looks: int, seed: int, *, labelled: bool, drift: bool
) -> Iterator[Judged]:
    """Looks at examples that are drawn from the world; of a shift, after a day without one."""
    rng, detectors = np.random.default_rng(seed), dict[str, Detector]()
    reference = _features(pair, "clean", before.at) if drift else []
    calm = 0 if shift == "clean" else BEFORE
    for number in range(calm + looks):
        name = "clean" if number < calm else shift
        at = rng.choice(len(pair.labels), EXAMPLES)
        dense, pruned, truth = pair.dense[name][at], pair.pruned[name][at], pair.labels[at]
        slices = {f"label {label}": np.flatnonzero(truth == label) for label in np.unique(truth)}
        own = np.ones(EXAMPLES, dtype=bool)
        labels = Labelled(told(dense)[0], told(pruned)[0], truth, own, slices) if labelled else None
        observed = Observed(shadow(dense, pruned), np.ones(EXAMPLES), labels)
        now = _features(pair, name, at) if drift and number >= calm else []
        drifted = tuple(compare(reference, now, ALPHA, number)) if now else ()
        judged, detectors = judging.judge(detectors, observed, before.levels, drifted)
        if number >= calm:
            yield judged


def _features(pair: Pair, shift: str, at: np.ndarray) -> list:
    embedding = pair.embedding[shift][at] if shift in pair.embedding else None
    return features({"inputs": pair.inputs[shift][at]}, pair.dense[shift][at], embedding)
