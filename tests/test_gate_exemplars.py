"""Pruning-identified exemplars: which they are, the worst first, and where they gather."""

import numpy as np

from secateur.gate.exemplars import KEPT, exemplars

EXAMPLES, CLASSES = 400, 4
LABELS = np.arange(EXAMPLES) % CLASSES
RIGHT = np.ones(EXAMPLES, bool)


def test_only_what_the_dense_model_alone_gets_right_counts() -> None:
    dense, pruned = RIGHT.copy(), RIGHT.copy()
    dense[[0, 1]] = pruned[[1, 2, 3]] = False
    found = exemplars(dense, pruned, LABELS, None)
    assert (found.lost, found.worst) == (2, (2, 3))


def test_the_surest_wrong_answers_are_the_worst_and_few_are_kept() -> None:
    certainty = np.linspace(0, 1, EXAMPLES)
    found = exemplars(RIGHT, ~RIGHT, LABELS, certainty)
    assert found.lost == EXAMPLES
    assert found.worst == tuple(range(EXAMPLES - 1, EXAMPLES - 1 - KEPT, -1))


def test_a_class_that_is_forgotten_stands_out() -> None:
    pruned = RIGHT.copy()
    pruned[np.flatnonzero(LABELS == 2)[:20]] = False
    pruned[np.flatnonzero(LABELS == 1)[:1]] = False
    first, second = exemplars(RIGHT, pruned, LABELS, None).classes
    assert (first.label, first.examples, first.lost) == (2, 100, 20)
    assert first.p < 1e-6
    assert (second.label, second.lost) == (1, 1)
    assert second.p > 0.9


def test_exemplars_that_are_spread_evenly_say_nothing_of_a_class() -> None:
    pruned = RIGHT.copy()
    pruned[:40] = False
    assert all(one.p > 0.5 for one in exemplars(RIGHT, pruned, LABELS, None).classes)


def test_without_exemplars_no_class_lost_anything() -> None:
    found = exemplars(RIGHT, RIGHT, LABELS, None)
    assert (found.lost, found.worst, found.classes) == (0, (), ())
