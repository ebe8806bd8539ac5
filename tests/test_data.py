"""Data sets: split by a seed, drawn by class, and identified by every byte."""

import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import InputError, data

SHARES = (0.6, 0.2, 0.2)
EXAMPLES = 60


def labels(count: int = EXAMPLES) -> np.ndarray:
    return np.arange(count) % models.CLASSES


def numbered(count: int = EXAMPLES) -> data.Split:
    """Inputs that tell which example they are."""
    inputs = np.repeat(np.arange(count, dtype=np.float32)[:, None], models.FEATURES, axis=1)
    return data.Split(inputs, labels(count))


def dataset(inputs: np.ndarray | None = None, of: np.ndarray | None = None) -> data.Dataset:
    examples = data.Split(models.vectors(EXAMPLES) if inputs is None else inputs, labels() if of is None else of)
    return data.split(examples, SHARES, 0)


@given(st.integers(40, 120), st.integers(0, 99))
@settings(max_examples=20)
def test_every_example_is_in_exactly_one_split_with_its_own_label(count: int, seed: int) -> None:
    made = data.split(numbered(count), SHARES, seed)
    parts = made.splits.values()
    seen = np.concatenate([part.inputs[:, 0] for part in parts]).astype(int)
    assert sorted(seen) == list(range(count))
    assert np.array_equal(np.concatenate([part.labels for part in parts]), seen % models.CLASSES)


@given(st.integers(40, 120), st.integers(0, 99))
@settings(max_examples=20)
def test_splits_have_the_asked_sizes_and_the_classes_of_the_whole(count: int, seed: int) -> None:
    made = data.split(numbered(count), SHARES, seed)
    for part, share in zip((made.train, made.validation, made.test), SHARES, strict=True):
        assert len(part) == pytest.approx(count * share, abs=2)
        counts = np.bincount(part.labels, minlength=models.CLASSES)
        assert counts.max() - counts.min() <= 2


def test_the_seed_decides_the_split() -> None:
    assert data.split(numbered(), SHARES, 1).digest == data.split(numbered(), SHARES, 1).digest
    assert data.split(numbered(), SHARES, 1).digest != data.split(numbered(), SHARES, 2).digest


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("array", ["inputs", "labels"])
def test_the_digest_changes_with_any_value_of_any_split(split: str, array: str) -> None:
    made = dataset()
    before = made.digest
    getattr(getattr(made, split), array)[-1] += 1
    assert made.digest != before


def test_the_digest_changes_with_the_type_and_the_shape_of_the_same_bytes() -> None:
    def digest(inputs: np.ndarray) -> str:
        part = data.Split(inputs, np.zeros(len(inputs), dtype=np.int64))
        return data.Dataset(part, part, part).digest

    inputs = np.zeros((4, 2, 2), dtype=np.float32)
    assert len({digest(inputs), digest(inputs.view(np.int32)), digest(inputs.reshape(4, 4))}) == 3


def test_the_digest_does_not_depend_on_how_an_array_lies_in_memory() -> None:
    inputs = models.images(EXAMPLES)
    assert dataset(inputs).digest == dataset(np.asfortranarray(inputs)).digest


def test_the_digest_does_not_depend_on_the_chunks_it_is_read_in(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = dataset().digest
    monkeypatch.setattr(data, "CHUNK_BYTES", 3 * models.FEATURES)
    assert dataset().digest == whole


def test_chunks_are_the_array_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    array = models.vectors(7)
    monkeypatch.setattr(data, "CHUNK_BYTES", 2 * array[:1].nbytes)
    runs = list(data.chunks(array))
    assert [len(run) for run in runs] == [2, 2, 2, 1]
    assert np.array_equal(np.concatenate(runs), array)


def test_all_inputs_of_an_example_go_into_the_same_split() -> None:
    one = numbered()
    made = data.split(data.Split(one.inputs, one.labels, (one.inputs + 1,)), SHARES, 0)
    for part in made.splits.values():
        assert np.array_equal(part.inputs + 1, part.more[0])


@pytest.mark.parametrize(("count", "more"), [(59, ()), (60, (models.vectors(58),))])
def test_arrays_of_different_lengths_are_refused_with_them(count: int, more: tuple[np.ndarray, ...]) -> None:
    seen = f"60{' and 58' if more else ''} inputs and {count} labels"
    with pytest.raises(InputError, match=rf"^data: expected one label for each input, got {seen}"):
        data.Split(models.vectors(EXAMPLES), labels(count), more)


def test_a_class_with_too_few_examples_is_refused() -> None:
    of = labels()
    of[0] = models.CLASSES
    with pytest.raises(InputError, match=r"^data.split: .* of 60 examples cannot be stratified"):
        dataset(of=of)


@pytest.mark.parametrize(
    "of", [np.eye(models.CLASSES, dtype=np.int64)[labels()], np.linspace(0, 1, EXAMPLES)], ids=["rows", "floats"]
)
def test_labels_that_are_no_class_numbers_are_drawn_without_regard_to_them(of: np.ndarray) -> None:
    made = dataset(of=of)
    assert [len(part) for part in made.splits.values()] == [len(part) for part in dataset().splits.values()]
    drawn = np.concatenate([part.labels for part in made.splits.values()])
    assert sorted(drawn.tolist()) == sorted(of.tolist())


def test_a_validation_split_carved_out_of_train_leaves_the_rest_and_has_all_classes() -> None:
    train, validation = data.carve(numbered(), 0.25, 0)
    assert (len(train), len(validation)) == (45, 15)
    assert sorted([*train.inputs[:, 0], *validation.inputs[:, 0]]) == list(range(EXAMPLES))
    assert set(np.bincount(validation.labels)) == {5}


def test_a_proxy_is_a_share_of_every_class_drawn_by_the_seed() -> None:
    first, again, other = (data.proxy(numbered(), 0.2, seed) for seed in (0, 0, 1))
    assert set(np.bincount(first.labels)) == {4}
    assert np.array_equal(first.inputs, again.inputs)
    assert not np.array_equal(first.inputs, other.inputs)


def test_a_proxy_too_small_for_every_class_is_refused() -> None:
    with pytest.raises(InputError, match=r"^data.proxy: 0.02 of 60 examples cannot be stratified"):
        data.proxy(numbered(), 0.02, 0)


@pytest.mark.parametrize("kind", [np.int32, np.uint8, np.float64])
def test_whole_labels_of_any_type_become_class_numbers(kind: type) -> None:
    made = data.class_numbers(data.Split(models.vectors(EXAMPLES), labels().astype(kind)))
    assert made.labels.dtype == np.int64
    assert np.array_equal(made.labels, labels())


@pytest.mark.parametrize("of", [labels() + 0.5, labels().astype(str), np.full(EXAMPLES, np.nan)])
def test_labels_that_are_no_class_numbers_are_refused(of: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"^data: expected integer labels \(class numbers\), got "):
        data.class_numbers(data.Split(models.vectors(EXAMPLES), of))
