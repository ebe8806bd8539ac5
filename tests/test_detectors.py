"""Detectors keep quiet for as many looks as they promise, and find what has risen, early or late."""

import math

import numpy as np
import pytest

from secateur.monitoring.detectors import Detector, look

LEVEL, RISEN, EXAMPLES = 0.05, 0.15, 100
PROMISED = 1000
NOTHING = Detector()


def looked(rng: np.random.Generator, rate: float, looks: int, before: Detector = NOTHING) -> list[Detector]:
    seen = []
    for _ in range(looks):
        before = look(before, (rng.random(EXAMPLES) < rate).astype(float), LEVEL)
        seen.append(before)
    return seen


def reached(one: Detector, looks: float) -> bool:
    return one.evidence >= math.log(looks)


def first(seen: list[Detector], looks: float = PROMISED) -> int | None:
    return next((number for number, one in enumerate(seen, 1) if reached(one, looks)), None)


def test_while_nothing_changes_an_alarm_takes_as_many_looks_as_promised_on_the_average() -> None:
    rng, alarms, looks = np.random.default_rng(0), 0, 0
    for _ in range(20):
        seen = looked(rng, LEVEL, 1000)
        at = first(seen, 100)
        alarms += at is not None
        looks += at or len(seen)
    assert looks / max(alarms, 1) >= 100


def test_below_the_level_there_is_less_evidence_still() -> None:
    assert first(looked(np.random.default_rng(1), LEVEL / 2, 3000), 100) is None


def test_what_has_risen_is_found() -> None:
    found = [first(looked(np.random.default_rng(seed), RISEN, 30)) for seed in range(20)]
    assert None not in found
    assert np.median(found) <= 4


def test_a_change_after_a_long_time_is_found_as_soon_as_one_at_the_beginning() -> None:
    late = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        before = looked(rng, LEVEL / 2, 1500)[-1]
        late.append(first(looked(rng, RISEN, 30, before)))
    assert None not in late
    assert np.median(late) <= 4


def test_the_sum_grows_by_one_in_a_look_on_the_average() -> None:
    ends = [math.exp(looked(np.random.default_rng(seed), LEVEL, 5)[-1].evidence) for seed in range(3000)]
    assert np.mean(ends) <= 5 + 3 * np.std(ends) / math.sqrt(len(ends))


def test_differences_between_minus_one_and_one_have_a_level_too() -> None:
    rng, before = np.random.default_rng(2), Detector()
    for _ in range(20):
        before = look(before, rng.choice([-1.0, 0.0, 1.0], EXAMPLES, p=[0.05, 0.75, 0.20]), 0.02, lowest=-1.0)
    assert reached(before, PROMISED)


def test_levels_may_differ_from_example_to_example() -> None:
    rng, quiet, loud = np.random.default_rng(3), Detector(), Detector()
    for _ in range(40):
        levels = rng.choice([0.01, 0.6], EXAMPLES)
        quiet = look(quiet, (rng.random(EXAMPLES) < levels).astype(float), levels)
        loud = look(loud, (rng.random(EXAMPLES) < levels + 0.1).astype(float), levels)
    assert not reached(quiet, PROMISED)
    assert reached(loud, PROMISED)


def test_a_look_without_examples_is_none() -> None:
    before = looked(np.random.default_rng(4), RISEN, 3)[-1]
    assert look(before, np.zeros(0), LEVEL) == before


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_many_looks_overflow_nothing(value: float) -> None:
    before = Detector()
    for _ in range(2000):
        before = look(before, np.full(EXAMPLES, value), LEVEL)
    assert reached(before, PROMISED) == bool(value)
    assert not math.isnan(before.evidence)
