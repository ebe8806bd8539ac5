"""Two models' outputs to the same inputs, compared example by example."""

import numpy as np
import pytest

from secateur.monitoring.shadow import NOT_FINITE, shadow, told


def test_classes_part_where_their_answers_differ() -> None:
    dense, pruned = np.array([[2.0, 0.0], [0.0, 1.0]]), np.array([[3.0, 0.0], [1.0, 0.0]])
    seen = shadow(dense, pruned)
    assert seen.parted.tolist() == [0, 1]
    assert seen.answers is not None
    assert seen.answers.tolist() == [0, 1]
    assert seen.doubt is not None
    assert seen.doubt[0] == pytest.approx(1 - np.exp(2) / (np.exp(2) + 1))
    assert seen.shift is not None
    assert seen.shift[0] > 0


def test_an_answer_that_is_not_finite_differs_from_every_other() -> None:
    bad = np.array([[np.nan, 0.0]])
    assert told(bad)[0].tolist() == [NOT_FINITE]
    assert shadow(np.array([[1.0, 0.0]]), bad).parted.tolist() == [1]
    assert shadow(bad, bad).parted.tolist() == [1]


def test_other_outputs_have_a_distance() -> None:
    dense, pruned = np.array([[2.0], [1.0], [1.0], [1.0]]), np.array([[1.0], [1.0], [-9.0], [np.inf]])
    seen = shadow(dense, pruned)
    assert seen.parted == pytest.approx([0.5, 0, 1, 1])
    assert seen.doubt is None
