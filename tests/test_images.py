"""Folders of images: one per class in the order of names, scaled as asked, and no file is passed over in silence."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from secateur import InputError
from secateur.readers.images import class_folders, images

COLOURS = {"ant": (255, 0, 0), "bee": (0, 255, 0), "cat": (0, 0, 255)}
SIDE = 4


def draw(path: Path, colour: tuple[int, int, int] = (51, 102, 204), size: tuple[int, int] = (SIDE, SIDE)) -> Path:
    """An image of one colour; sizes are width and height, as PIL has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images of each class, made in no order."""
    for name in ("cat", "ant", "bee"):
        for number in (2, 1):
            draw(tmp_path / name / f"{number}.png", COLOURS[name])
    return tmp_path


def test_labels_are_positions_of_the_sorted_class_folders(folder: Path) -> None:
    assert class_folders(folder) == ["ant", "bee", "cat"]
    read = images(folder)
    assert read.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (read.inputs.shape, read.inputs.dtype) == ((6, 3, SIDE, SIDE), np.float32)
    assert np.array_equal(read.inputs[:, :, 0, 0], np.eye(3)[read.labels])


def test_pixels_are_scaled_by_mean_and_deviation_of_each_channel(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "1.png")
    assert images(tmp_path).inputs[0, :, 0, 0] == pytest.approx([0.2, 0.4, 0.8])
    scaled = images(tmp_path, mean=(0.1, 0.2, 0.3), deviation=(0.1, 0.2, 0.5))
    assert scaled.inputs[0, :, 0, 0] == pytest.approx([1, 1, 1])
    assert images(tmp_path, mean=(0.5,), deviation=(0.1,)).inputs[0, :, 0, 0] == pytest.approx([-3, -1, 3])


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "1.png", (51, 51, 51))
    read = images(tmp_path, channels=1)
    assert read.inputs.shape == (1, 1, SIDE, SIDE)
    assert read.inputs == pytest.approx(0.2)


def test_images_are_resized_to_height_and_width(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "1.png", size=(6, 4))
    draw(tmp_path / "a" / "2.png", size=(9, 3))
    assert images(tmp_path, size=(2, 5)).inputs.shape == (2, 3, 2, 5)


def test_height_comes_before_width(tmp_path: Path) -> None:
    draw(tmp_path / "a" / "1.png", size=(6, 4))
    assert images(tmp_path).inputs.shape == (1, 3, 4, 6)


def test_an_archive_reads_as_the_folder_it_was_made_of(folder: Path, tmp_path: Path) -> None:
    archive = tmp_path / "images.zip"
    with zipfile.ZipFile(archive, "w") as made:
        for path in sorted(folder.rglob("*.png")):
            made.write(path, path.relative_to(folder))
    assert class_folders(archive) == ["ant", "bee", "cat"]
    assert np.array_equal(images(archive).inputs, images(folder).inputs)
    assert np.array_equal(images(archive).labels, images(folder).labels)


def test_images_without_labels_lie_in_the_folder_itself(tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / f"{number}.png")
    read = images(tmp_path, labelled=False)
    assert (len(read), read.labels.tolist()) == (3, [0, 0, 0])


def test_names_that_start_with_a_dot_are_passed_over(folder: Path) -> None:
    (folder / ".cache").mkdir()
    (folder / "ant" / ".thumbs").write_text("no image")
    assert len(images(folder)) == 6


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n cut"], ids=["empty", "text", "cut"])
def test_a_file_that_is_no_image_is_refused_by_its_name(folder: Path, content: bytes) -> None:
    (folder / "bee" / "3.png").write_bytes(content)
    with pytest.raises(InputError, match=r"^data.path: expected an image, .*bee/3.png cannot be read as one"):
        images(folder)


def test_an_image_cut_short_is_refused(folder: Path) -> None:
    whole = draw(folder / "bee" / "3.png", size=(64, 64)).read_bytes()
    (folder / "bee" / "3.png").write_bytes(whole[:-30])
    with pytest.raises(InputError, match=r"^data.path: expected an image, .*bee/3.png cannot be read as one"):
        images(folder)


def test_an_image_of_more_than_eight_bits_is_refused(folder: Path) -> None:
    Image.fromarray(np.full((SIDE, SIDE), 40_000, dtype=np.uint16)).save(folder / "bee" / "3.png")
    with pytest.raises(InputError, match=r"bee/3.png cannot be read as one: it has more than 8 bits per channel"):
        images(folder)


def test_a_folder_within_a_class_is_refused(folder: Path) -> None:
    (folder / "bee" / "more").mkdir()
    with pytest.raises(InputError, match=r"^data.path: expected an image, .*bee/more cannot be read as one"):
        images(folder)


def test_images_of_different_sizes_are_refused_with_both_and_the_way_out(folder: Path) -> None:
    draw(folder / "bee" / "3.png", size=(6, 5))
    with pytest.raises(InputError, match=r"^data.images.size: .* 1.png has 4x4 and 3.png 5x6; set data.images.size"):
        images(folder)


def test_a_place_without_class_folders_or_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.path: expected a folder for each class in .*, found none"):
        images(tmp_path)
    (tmp_path / "ant").mkdir()
    with pytest.raises(InputError, match=r"^data.path: expected images in .*, found none"):
        images(tmp_path)


@pytest.mark.parametrize("name", ["nowhere", "text.zip"])
def test_what_is_neither_a_folder_nor_an_archive_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(InputError, match=rf"^data.path: expected a folder of images or a .zip of one, got .*{name}"):
        images(tmp_path / name)
