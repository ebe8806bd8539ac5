"""Data sets: split once by a seed, identified by every byte, and checked against the model before anything runs."""

from pathlib import Path

import models
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import ExportedProgram

from secateur import InputError, data

SHARES = (0.6, 0.2, 0.2)
EXAMPLES = 60


def labels(count: int = EXAMPLES) -> np.ndarray:
    return np.arange(count) % models.CLASSES


def dataset(inputs: np.ndarray | None = None, of: np.ndarray | None = None) -> data.Dataset:
    return data.split(models.vectors(EXAMPLES) if inputs is None else inputs, labels() if of is None else of, SHARES, 0)


def numbered(count: int) -> np.ndarray:
    """Inputs that tell which example they are."""
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], models.FEATURES, axis=1)


@given(st.integers(40, 120), st.integers(0, 99))
@settings(max_examples=20)
def test_every_example_is_in_exactly_one_split_with_its_own_label(count: int, seed: int) -> None:
    made = data.split(numbered(count), labels(count), SHARES, seed)
    parts = (made.train, made.validation, made.test)
    seen = np.concatenate([part.inputs[:, 0] for part in parts]).astype(int)
    assert sorted(seen) == list(range(count))
    assert np.array_equal(np.concatenate([part.labels for part in parts]), seen % models.CLASSES)


@given(st.integers(40, 120), st.integers(0, 99))
@settings(max_examples=20)
def test_splits_have_the_asked_sizes_and_the_classes_of_the_whole(count: int, seed: int) -> None:
    made = data.split(numbered(count), labels(count), SHARES, seed)
    for part, share in zip((made.train, made.validation, made.test), SHARES, strict=True):
        assert len(part) == pytest.approx(count * share, abs=2)
        counts = np.bincount(part.labels, minlength=models.CLASSES)
        assert counts.max() - counts.min() <= 2


def test_the_seed_decides_the_split() -> None:
    inputs, of = numbered(EXAMPLES), labels()
    assert data.split(inputs, of, SHARES, 1).digest == data.split(inputs, of, SHARES, 1).digest
    assert data.split(inputs, of, SHARES, 1).digest != data.split(inputs, of, SHARES, 2).digest


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


def test_inputs_and_labels_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match=r"^data: expected one label for each input, got 60 inputs and 59 labels"):
        dataset(of=labels(59))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_refused(value: float) -> None:
    inputs = models.vectors(EXAMPLES)
    inputs[3, 1] = value
    with pytest.raises(InputError, match=r"^data: expected finite inputs, found NaN or infinity"):
        dataset(inputs)


def test_a_class_with_too_few_examples_is_refused() -> None:
    of = labels()
    of[0] = models.CLASSES
    with pytest.raises(InputError, match=r"^data.split: .* of 60 examples cannot be stratified"):
        dataset(of=of)


def test_labels_of_more_than_one_dimension_are_refused() -> None:
    with pytest.raises(InputError, match=r"^data"):
        dataset(of=np.eye(models.CLASSES, dtype=np.int64)[labels()])


def test_the_digits_are_images_between_zero_and_one() -> None:
    inputs, of = data.digits()
    assert (inputs.shape, inputs.dtype, of.dtype) == ((1797, 1, 8, 8), np.float32, np.int64)
    assert (inputs.min(), inputs.max()) == (0, 1)
    assert set(of) == set(range(10))


def test_an_npz_file_gives_its_inputs_and_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", inputs=models.vectors(5), labels=labels(5).astype(np.int32))
    inputs, of = data.npz(tmp_path / "data.npz")
    assert np.array_equal(inputs, models.vectors(5))
    assert of.dtype == np.int64
    assert np.array_equal(of, labels(5))


def test_a_missing_npz_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.path: expected a readable .npz file, got .*nowhere.npz"):
        data.npz(tmp_path / "nowhere.npz")


def test_an_npz_file_without_labels_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", inputs=models.vectors(5), targets=labels(5))
    with pytest.raises(InputError, match=r"^data.path: .*, labels is missing; found inputs, targets"):
        data.npz(tmp_path / "data.npz")


def test_pickled_objects_in_an_npz_file_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", inputs=np.array([object()]), labels=labels(1))
    with pytest.raises(InputError, match=r"^data.path: expected a readable .npz file"):
        data.npz(tmp_path / "data.npz")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text"], ids=["empty", "cut", "text"])
def test_a_broken_npz_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"^data.path: expected a readable .npz file"):
        data.npz(tmp_path / "data.npz")


def test_a_single_array_in_place_of_an_npz_file_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", models.vectors(5))
    with pytest.raises(InputError, match=r"^data.path: expected"):
        data.npz(tmp_path / "data.npy")


def test_data_that_fits_is_accepted() -> None:
    data.check_fits(dataset(), models.exported("perceptron"))


def test_examples_of_another_shape_are_refused_with_both_shapes() -> None:
    with pytest.raises(InputError) as error:
        data.check_fits(dataset(), models.exported("residual"))
    for part in ("data: expected examples of 3x6x6 (torch.float32) for input x", "got 4 (float32)"):
        assert part in str(error.value)


def test_examples_of_another_type_are_refused_with_both_types() -> None:
    with pytest.raises(InputError, match=r"^data: expected examples of 4 \(torch.float32\) .* got 4 \(float64\)"):
        data.check_fits(dataset(models.vectors(EXAMPLES).astype(np.float64)), models.exported("perceptron"))


@pytest.mark.parametrize(("offset", "seen"), [(1, "1..3"), (-1, "-1..1")])
def test_labels_that_the_model_does_not_know_are_refused(offset: int, seen: str) -> None:
    with pytest.raises(InputError, match=rf"^data: expected labels in 0\.\.2, got {seen}"):
        data.check_fits(dataset(of=labels() + offset), models.exported("perceptron"))


def test_a_model_of_a_fixed_batch_is_refused() -> None:
    program = torch.export.export(models.module("perceptron"), (torch.from_numpy(models.vectors(5)),))
    with pytest.raises(InputError, match=r"^model: expected a dynamic batch dimension, input x is fixed at 5"):
        data.check_fits(dataset(), program)


class Two(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + right


class Listed(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x + 2


def exported(made: nn.Module, inputs: int = 1) -> ExportedProgram:
    return models.export(made, *(torch.zeros(2, models.FEATURES) for _ in range(inputs)))


def test_a_model_of_two_inputs_is_refused_with_their_names() -> None:
    with pytest.raises(InputError, match=r"^data: expected a model with one input .* takes 2: left, right"):
        data.check_fits(dataset(), exported(Two(), inputs=2))


@pytest.mark.parametrize("made", [Listed(), nn.Unflatten(1, (2, 2))], ids=["two outputs", "three dimensions"])
def test_a_model_that_gives_no_logits_is_refused(made: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^model: expected one output of logits \[batch, classes\]"):
        data.check_fits(dataset(), exported(made))
