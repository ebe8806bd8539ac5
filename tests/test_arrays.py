"""Arrays in NumPy's files: read by name, never unpickled, and mapped where they may be larger than memory."""

from pathlib import Path

import models
import numpy as np
import pytest
import torch
from torch import nn

from secateur import InputError
from secateur.data import Dataset
from secateur.readers import arrays

EXAMPLES = 5
LABELS = np.arange(EXAMPLES) % models.CLASSES


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where an .npz file may be put."""
    return tmp_path / "data.npz"


def folder_of(path: Path, **given: np.ndarray) -> Path:
    """A folder of .npy files."""
    for name, array in given.items():
        np.save(path / f"{name}.npy", array)
    return path


def test_the_digits_are_images_between_zero_and_one() -> None:
    read = arrays.digits()
    assert (read.inputs.shape, read.inputs.dtype, read.labels.dtype) == ((1797, 1, 8, 8), np.float32, np.int64)
    assert (read.inputs.min(), read.inputs.max()) == (0, 1)
    assert set(read.labels) == set(range(10))


def test_an_npz_file_gives_its_inputs_and_labels(path: Path) -> None:
    np.savez(path, inputs=models.vectors(EXAMPLES), labels=LABELS)
    read = arrays.npz(path)
    assert np.array_equal(read.inputs, models.vectors(EXAMPLES))
    assert np.array_equal(read.labels, LABELS)


def test_several_inputs_are_read_by_name_in_the_programs_order(path: Path, tmp_path: Path) -> None:
    given = {"right": models.vectors(EXAMPLES, 1), "labels": LABELS, "left": models.vectors(EXAMPLES, 2)}
    np.savez(path, **given)
    for read in (
        arrays.npz(path, ["left", "right"]),
        arrays.npy(folder_of(tmp_path, **given), ["left", "right"]),
    ):
        for column, name in zip(read.columns, ("left", "right"), strict=True):
            assert np.array_equal(column, given[name])


def test_a_single_input_is_called_inputs_whatever_the_program_calls_it(path: Path) -> None:
    np.savez(path, inputs=models.vectors(EXAMPLES), labels=LABELS)
    assert np.array_equal(arrays.npz(path, ["x"]).inputs, models.vectors(EXAMPLES))


def test_without_labels_they_are_zeros(path: Path, tmp_path: Path) -> None:
    np.savez(path, inputs=models.vectors(EXAMPLES))
    for read in (
        arrays.npz(path, labelled=False),
        arrays.npy(folder_of(tmp_path, inputs=models.vectors(EXAMPLES)), labelled=False),
    ):
        assert np.array_equal(read.labels, np.zeros(EXAMPLES, dtype=np.int64))


def test_a_missing_npz_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.path: expected a readable .npz file, got .*nowhere.npz"):
        arrays.npz(tmp_path / "nowhere.npz")


def test_an_npz_file_without_labels_is_refused_with_what_it_holds(path: Path) -> None:
    np.savez(path, inputs=models.vectors(EXAMPLES), targets=LABELS)
    with pytest.raises(InputError, match=r"^data.path: .*, labels is missing; found inputs, targets"):
        arrays.npz(path)


def test_pickled_objects_are_refused(path: Path, tmp_path: Path) -> None:
    objects = np.array([object()])
    np.savez(path, inputs=objects, labels=LABELS[:1])
    with pytest.raises(InputError, match=r"^data.path: expected a readable .npz file"):
        arrays.npz(path)
    with pytest.raises(InputError, match=r"^data.path: expected a readable .npy file"):
        arrays.npy(folder_of(tmp_path, inputs=objects, labels=LABELS[:1]))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"text"], ids=["empty", "cut", "text"])
def test_a_broken_file_is_refused(path: Path, tmp_path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^data.path: expected a readable .npz file"):
        arrays.npz(path)
    (tmp_path / "inputs.npy").write_bytes(content)
    with pytest.raises(InputError, match=r"^data.path: expected a readable .npy file of numbers, got .*inputs.npy"):
        arrays.npy(tmp_path)


def test_one_kind_of_file_in_place_of_the_other_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, inputs=models.vectors(EXAMPLES))
    with pytest.raises(InputError, match=r"^data.path: expected an .npz file with named arrays, got a single array"):
        arrays.npz(tmp_path / "inputs.npy")
    with (tmp_path / "inputs.npy").open("wb") as file:
        np.savez(file, inputs=models.vectors(EXAMPLES))
    with pytest.raises(InputError, match=r"^data.path: expected a single array in .*inputs.npy, got an .npz file"):
        arrays.npy(tmp_path)


@pytest.mark.parametrize("array", [np.zeros((0, 4), np.float32), np.float32(1)], ids=["no rows", "one number"])
def test_arrays_without_examples_are_refused(path: Path, array: np.ndarray) -> None:
    np.savez(path, inputs=array, labels=LABELS)
    with pytest.raises(InputError, match=r"^data.path: expected at least one example in inputs"):
        arrays.npz(path)


def test_files_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data: expected one label for each input, got 5 inputs and 4 labels"):
        arrays.npy(folder_of(tmp_path, inputs=models.vectors(EXAMPLES), labels=LABELS[:-1]))


def test_a_folder_without_a_file_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.path: expected a readable .npy file of numbers, got .*labels.npy"):
        arrays.npy(folder_of(tmp_path, inputs=models.vectors(EXAMPLES)))


def test_arrays_larger_than_memory_are_mapped(tmp_path: Path) -> None:
    """The file is a hole of a tebibyte: who reads it whole, or asks for that much memory, ends here."""
    shape = (2**20, 2**18)
    with (tmp_path / "inputs.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + 4 * shape[0] * shape[1])
    np.save(tmp_path / "labels.npy", np.broadcast_to(np.uint8(0), shape[:1]))
    mapped = arrays.npy(tmp_path)
    assert mapped.inputs.shape == shape
    assert mapped.take(np.array([shape[0] - 1])).inputs.sum() == 0


def test_mapped_arrays_have_the_digest_of_read_ones_and_outlive_their_files(path: Path, tmp_path: Path) -> None:
    np.savez(path, inputs=models.vectors(EXAMPLES), labels=LABELS)
    mapped = arrays.npy(folder_of(tmp_path, inputs=models.vectors(EXAMPLES), labels=LABELS))
    for name in ("inputs", "labels"):
        (tmp_path / f"{name}.npy").unlink()
    read = arrays.npz(path)
    assert Dataset(mapped, mapped, mapped).digest == Dataset(read, read, read).digest


class Two(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + right


def test_calibration_batches_have_the_inputs_in_order_and_the_labels_last(path: Path) -> None:
    left, right = models.vectors(EXAMPLES, 1), models.vectors(EXAMPLES, 2)
    np.savez(path, left=left, right=right, labels=LABELS.astype(np.int32))
    program = models.export(Two(), torch.zeros(2, models.FEATURES), torch.zeros(2, models.FEATURES))
    batches = arrays.batches(path, program, size=3)
    assert [len(batch[0]) for batch in batches] == [3, 2]
    for seen, array in zip(zip(*batches, strict=True), (left, right, LABELS), strict=True):
        assert np.array_equal(torch.cat(seen).numpy(), array)
