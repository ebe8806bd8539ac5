"""Slices: every example is in one, by label, metadata or a statistic of its inputs."""

import numpy as np
import pytest

from secateur import InputError
from secateur.data import Split
from secateur.gate.slices import MOST, parts_of, slices_of

EXAMPLES = 80


def split() -> Split:
    """Images that become brighter and livelier, of four classes, with metadata."""
    number = np.arange(EXAMPLES)
    inputs = number[:, None, None, None] + np.array([-1.0, 1.0])[None, None, None, :] * number[:, None, None, None]
    about = {
        "site": np.where(number < 60, "north", "south").astype(object),
        "age": number.astype(float),
        "name": number.astype(str).astype(object),
    }
    return Split(inputs.astype(np.float32), number % 4, metadata=about)


@pytest.mark.parametrize(
    ("by", "names", "sizes"),
    [
        ("label", ["label 0", "label 1", "label 2", "label 3"], [20] * 4),
        ("site", ["site north", "site south"], [60, 20]),
        ("age", ["age 0 to 19", "age 20 to 39", "age 40 to 59", "age 60 to 79"], [20] * 4),
        ("mean", ["mean 0 to 19", "mean 20 to 39", "mean 40 to 59", "mean 60 to 79"], [20] * 4),
        (
            "deviation",
            ["deviation 0 to 19", "deviation 20 to 39", "deviation 40 to 59", "deviation 60 to 79"],
            [20] * 4,
        ),
    ],
)
def test_examples_fall_into_classes_values_or_quarters(by: str, names: list[str], sizes: list[int]) -> None:
    found, counts = np.unique(slices_of(split(), by), return_counts=True)
    assert found.tolist() == names
    assert counts.tolist() == sizes


def test_texts_are_sliced_by_their_length() -> None:
    lengths = np.repeat([2, 3, 5, 9], 5)
    texts = Split(np.ones((20, 9), np.int64), np.zeros(20, int), lengths=lengths)
    assert np.unique(slices_of(texts, "length")).tolist() == [f"length {n} to {n}" for n in (2, 3, 5, 9)]


def test_equal_values_are_never_torn_apart() -> None:
    constant = Split(np.ones((EXAMPLES, 2), np.float32), np.zeros(EXAMPLES, int))
    assert np.unique(slices_of(constant, "mean")).tolist() == ["mean 1 to 1"]


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("colour", "expected some of label, mean, deviation, length, site, age, name, got 'colour'"),
        ("name", f"expected at most {MOST} different texts in name, got 80"),
        ("length", "length needs texts with a mask"),
    ],
)
def test_what_cannot_slice_is_refused(by: str, said: str) -> None:
    with pytest.raises(InputError, match=r"^gate\.slices\.by: ") as caught:
        slices_of(split(), by)
    assert said in str(caught.value)


def test_labels_that_are_no_classes_slice_nothing() -> None:
    numbers = Split(np.ones((4, 2), np.float32), np.linspace(0, 1, 4))
    with pytest.raises(InputError, match=r"^gate\.slices\.by: label needs one class number per example"):
        slices_of(numbers, "label")


def test_small_slices_are_named_and_not_judged() -> None:
    by = {"site": slices_of(split(), "site"), "label": slices_of(split(), "label")}
    members, small = parts_of(by, 30)
    assert list(members) == ["site north"]
    assert members["site north"].tolist() == list(range(60))
    assert small == ["site south", "label 0", "label 1", "label 2", "label 3"]
