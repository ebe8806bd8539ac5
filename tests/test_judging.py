"""Looks are judged: healthy, watch, breach and unknown, and whose fault it is, in words."""

import dataclasses

import numpy as np
import pytest

from secateur.monitoring import judging
from secateur.monitoring.detectors import Detector
from secateur.monitoring.drift import Difference
from secateur.monitoring.judging import BREACH, HEALTHY, OURS, UNKNOWN, WATCH, WORLD, Judged, Labelled, Observed
from secateur.monitoring.levels import Levels, levels_of
from secateur.monitoring.shadow import Shadow

CLASSES, TEST, EXAMPLES, DROP = 4, 2000, 200, 0.02
DRIFTED = (Difference("x mean", "ks", 0.4, 1e-9, drifted=True),)


def served(
    rng: np.random.Generator,
    n: int,
    *,
    parted: float = 0.02,
    doubt: float = 0.05,
    wrong: float = 0.05,
    lost: float = 0.0,
) -> Observed:
    """Examples where the models part and err so often; what only the pruned one loses comes on top."""
    truth = rng.integers(0, CLASSES, n)
    dense = np.where(rng.random(n) < wrong, (truth + 1) % CLASSES, truth)
    pruned = np.where(rng.random(n) < parted, (dense + 1) % CLASSES, dense)
    pruned = np.where(rng.random(n) < lost, (truth + 2) % CLASSES, pruned)
    unsure = np.clip(rng.normal(doubt, doubt / 3, n), 0.001, 0.7)
    shadow = Shadow((dense != pruned).astype(float), unsure, rng.normal(0, 0.01, n), dense)
    positions = {f"label {kind}": np.flatnonzero(truth == kind) for kind in range(CLASSES)}
    return Observed(shadow, np.full(n, 1.0), Labelled(dense, pruned, truth, np.ones(n, bool), positions))


@pytest.fixture(scope="module")
def levels() -> Levels:
    test = served(np.random.default_rng(0), TEST)
    assert test.labelled
    seen = test.labelled
    right = (seen.dense == seen.truth, seen.pruned == seen.truth)
    return levels_of(test.shadow, right, DROP, seen.slices)


def looks(levels: Levels, count: int, labelled: bool = True, seed: int = 1, **rates: float) -> list[Judged]:
    rng, detectors, found = np.random.default_rng(seed), dict[str, Detector](), []
    for _ in range(count):
        seen = served(rng, EXAMPLES, **rates)
        seen = seen if labelled else dataclasses.replace(seen, labelled=None)
        judged, detectors = judging.judge(detectors, seen, levels, slow_ms=2.0)
        found.append(judged)
    return found


def test_clean_traffic_stays_healthy(levels: Levels) -> None:
    assert {one.outcome for one in looks(levels, 300)} == {HEALTHY}


def test_what_only_the_pruned_model_loses_is_a_breach_of_ours(levels: Levels) -> None:
    found = looks(levels, 20, lost=0.15)
    breach = next(one for one in found if one.outcome == BREACH)
    assert breach.cause == OURS
    assert "below the dense one's by more than the recipe allows" in breach.reason
    assert "the dense model serves better" in breach.reason
    assert found.index(breach) < 5


def test_what_hurts_both_is_the_worlds(levels: Levels) -> None:
    found = looks(levels, 20, wrong=0.3)
    breach = next(one for one in found if one.outcome == BREACH)
    assert breach.cause == WORLD
    assert "hurts both models" in breach.reason
    assert all(one.cause != OURS for one in found)


def test_what_hurts_both_and_the_pruned_one_more_is_ours(levels: Levels) -> None:
    breach = next(one for one in looks(levels, 20, wrong=0.3, lost=0.15) if one.cause == OURS)
    assert breach.outcome == BREACH


def test_without_labels_parting_where_the_dense_model_is_sure_is_ours(levels: Levels) -> None:
    found = looks(levels, 20, labelled=False, parted=0.2)
    assert found[-1].outcome == BREACH
    assert found[-1].cause == OURS
    assert "nothing says which of the two is right" in found[-1].reason


def test_without_labels_parting_where_the_dense_model_doubts_too_is_watched(levels: Levels) -> None:
    found = looks(levels, 20, labelled=False, parted=0.1, doubt=0.5)
    assert found[-1].outcome == WATCH
    assert all(one.cause != OURS for one in found)


def test_labels_of_the_same_requests_outrank_what_is_only_otherwise(levels: Levels) -> None:
    """The pruned model is right where they part: the dense one, confident and wrong, would serve worse."""

    def right_where_they_part(seen: Observed, own: bool) -> Observed:
        assert seen.labelled
        labels = dataclasses.replace(seen.labelled, truth=seen.labelled.pruned, own=np.full(EXAMPLES, own))
        return dataclasses.replace(seen, labelled=labels)

    outcomes = {}
    for own in (True, False):
        rng, detectors = np.random.default_rng(4), dict[str, Detector]()
        for _ in range(10):
            seen = right_where_they_part(served(rng, EXAMPLES, parted=0.2), own)
            judged, detectors = judging.judge(detectors, seen, levels)
        unexplained = next(one for one in judged.findings if one.name == judging.UNEXPLAINED)
        outcomes[own] = (unexplained.outcome, judged.cause)
        assert ("yet accuracy changed by +" in unexplained.sentence) == own
    assert outcomes == {True: (WATCH, WORLD), False: (BREACH, OURS)}, "labels of earlier requests clear nothing"


def test_the_gates_own_rules_are_asked_of_the_labels_that_came(levels: Levels) -> None:
    rules = {rule.name: rule for rule in looks(levels, 1, lost=0.3)[0].rules}
    assert {name: rule.outcome for name, rule in rules.items()} == {"accuracy": "fail", "slices": "reported"}
    assert f"on {EXAMPLES} examples whose labels came" in rules["accuracy"].sentence
    assert len(rules["slices"].parts) == CLASSES
    assert levels.labels
    asked = dataclasses.replace(levels, labels=dataclasses.replace(levels.labels, slices_drop=0.05))
    assert looks(asked, 1, lost=0.3)[0].rules[1].outcome == "fail"
    assert looks(levels, 1, labelled=False)[0].rules == ()


def test_what_is_over_is_soon_forgotten(levels: Levels) -> None:
    rng, detectors, outcomes = np.random.default_rng(6), dict[str, Detector](), []
    for wrong in [0.4] * 50 + [0.01] * 40:
        judged, detectors = judging.judge(detectors, served(rng, EXAMPLES, wrong=wrong), levels)
        outcomes.append(judged.outcome)
        if judged.outcome != HEALTHY and len(outcomes) > 51:
            assert "and the looks before weigh more" in judged.reason
    assert outcomes[49] == BREACH
    assert outcomes[-1] == HEALTHY


def test_one_class_alone_is_seen(levels: Levels) -> None:
    rng, detectors = np.random.default_rng(3), dict[str, Detector]()
    for _ in range(20):
        seen = served(rng, EXAMPLES)
        assert seen.shadow.answers is not None
        hurt = (seen.shadow.answers == 2) & (rng.random(EXAMPLES) < 0.15)
        shadow = dataclasses.replace(seen.shadow, parted=np.maximum(seen.shadow.parted, hurt))
        judged, detectors = judging.judge(detectors, Observed(shadow, seen.latency_ms), levels)
    assert next(one for one in judged.findings if one.name == "answer 2").outcome == WATCH
    assert next(one for one in judged.findings if one.name == "answer 1").outcome == HEALTHY


def hurt_in_one_slice(rng: np.random.Generator, n: int, lost: float) -> Observed:
    """Only examples of label 0 are lost by the pruned model."""
    seen = served(rng, n).labelled
    assert seen
    pruned = np.where((seen.truth == 0) & (rng.random(n) < lost), 3, seen.dense)
    shadow = Shadow((seen.dense != pruned).astype(float))
    return Observed(shadow, np.full(n, 1.0), dataclasses.replace(seen, pruned=pruned))


def test_what_a_slice_lost_at_the_gate_already_is_no_news_and_what_it_loses_more_is() -> None:
    test = hurt_in_one_slice(np.random.default_rng(0), TEST, 0.06)
    assert test.labelled
    right = (test.labelled.dense == test.labelled.truth, test.labelled.pruned == test.labelled.truth)
    passed = levels_of(test.shadow, right, DROP, test.labelled.slices)
    rng, detectors = np.random.default_rng(1), dict[str, Detector]()
    for _ in range(300):
        judged, detectors = judging.judge(detectors, hurt_in_one_slice(rng, EXAMPLES, 0.06), passed)
        assert judged.outcome == HEALTHY
    for _ in range(10):
        judged, detectors = judging.judge(detectors, hurt_in_one_slice(rng, EXAMPLES, 0.3), passed)
    assert (judged.outcome, judged.cause) == (BREACH, OURS)
    assert judged.reason.startswith(
        "the accuracy of the pruned model lies below the dense one's by more than the recipe allows"
    )
    assert "; likewise slice label 0; " in judged.reason


def test_slow_requests_are_watched_and_break_nothing(levels: Levels) -> None:
    detectors: dict[str, Detector] = {}
    for seed in range(5):
        seen = dataclasses.replace(served(np.random.default_rng(seed), EXAMPLES), latency_ms=np.full(EXAMPLES, 9.0))
        judged, detectors = judging.judge(detectors, seen, levels, slow_ms=2.0)
    assert judged.outcome == WATCH
    assert "longer than 2 ms" in judged.reason


def test_drift_that_hurts_nobody_is_the_worlds_and_watched(levels: Levels) -> None:
    judged, _ = judging.judge({}, served(np.random.default_rng(1), EXAMPLES), levels, DRIFTED)
    assert (judged.outcome, judged.cause) == (WATCH, WORLD)
    assert "x mean" in judged.reason


def test_no_data_is_unknown_and_never_healthy(levels: Levels) -> None:
    before = {"disagreement": Detector()}
    judged, after = judging.judge(before, None, levels)
    assert judged.outcome == UNKNOWN
    assert after == before
    few, _ = judging.judge({}, served(np.random.default_rng(1), 5), levels)
    assert few.outcome == UNKNOWN


def test_labels_of_earlier_requests_alone_are_judged_and_make_nothing_healthy(levels: Levels) -> None:
    nothing = Shadow(np.zeros(0))
    detectors: dict[str, Detector] = {}
    good = dataclasses.replace(served(np.random.default_rng(1), EXAMPLES), shadow=nothing, latency_ms=np.zeros(0))
    judged, _ = judging.judge({}, good, levels)
    assert judged.outcome == UNKNOWN
    for seed in range(5):
        bad = dataclasses.replace(served(np.random.default_rng(seed), EXAMPLES, lost=0.2), shadow=nothing)
        judged, detectors = judging.judge(detectors, bad, levels)
    assert (judged.outcome, judged.cause) == (BREACH, OURS)


def test_outputs_that_are_no_classes_are_watched_by_their_distance() -> None:
    rng = np.random.default_rng(0)
    levels = levels_of(Shadow(np.abs(rng.normal(0, 0.01, TEST))))
    detectors: dict[str, Detector] = {}
    for _ in range(5):
        judged, detectors = judging.judge(
            detectors, Observed(Shadow(np.full(EXAMPLES, 0.2)), np.ones(EXAMPLES)), levels
        )
    assert judged.outcome == WATCH
