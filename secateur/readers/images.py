"""Folders of images: a folder for each class, or the images alone where they have no labels."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from secateur.data import Split
from secateur.errors import InputError

MODES = {1: "L", 3: "RGB"}
DEEP = ("I", "F")  # first letters of the modes of more than 8 bits, which a conversion would clip
_UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)

Place = Path | zipfile.Path


def images(
    path: str | Path,
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    mean: Sequence[float] = (0.0,),
    deviation: Sequence[float] = (1.0,),
    labelled: bool = True,
) -> Split:
    """Images as float32 [N, channels, height, width]: pixels in 0..1, less the mean, over the deviation.

    Labels number the class folders in the order of their names, as torchvision's ImageFolder does; in a folder the order is
    that of the files' names. Names that start with a dot are passed over.

    Args:
        path: the folder, or a .zip of what is in it.
        channels: 3 for colour, 1 for grey.
        size: height and width to resize to (bilinear, the shape is not kept); without, all images must have one size.
        mean: of pixels in 0..1, for each channel or one for all.
        deviation: likewise, greater than 0.
        labelled: whether there is a folder for each class; without, the images lie in the folder itself, and labels are
            zeros that nothing may learn from.

    Raises:
        InputError: there is no such folder, a file is no image, or the sizes differ.
    """
    root = _root(path)
    if labelled:
        folders = [root / name for name in class_folders(path)]
        found = [(file, label) for label, folder in enumerate(folders) for file in _listed(folder)]
    else:
        found = [(file, 0) for file in _listed(root)]
    if not found:
        raise InputError(f"data.path: expected images in {path}, found none")
    pixels = [_pixels(file, channels, size) for file, _ in found]
    for (file, _), image in zip(found, pixels, strict=True):
        if image.shape != pixels[0].shape:
            raise InputError(
                f"data.images.size: expected images of one size, {found[0][0].name} has {_size(pixels[0])} and {file.name} "
                f"{_size(image)}; set data.images.size"
            )
    inputs = np.empty((len(pixels), channels, *pixels[0].shape[:2]), dtype=np.float32)
    for position, image in enumerate(pixels):
        scaled = (image / np.float32(255) - np.asarray(mean, np.float32)) / np.asarray(deviation, np.float32)
        inputs[position] = scaled.transpose(2, 0, 1)
    return Split(inputs, np.array([label for _, label in found], dtype=np.int64))


def class_folders(path: str | Path) -> list[str]:
    """The names of the class folders, sorted: the label is the position.

    Raises:
        InputError: there is no such folder, or it has none.
    """
    names = [place.name for place in _listed(_root(path)) if place.is_dir()]
    if not names:
        raise InputError(f"data.path: expected a folder for each class in {path}, found none")
    return names


def _root(path: str | Path) -> Place:
    """The folder, or the inside of an archive: nothing of it is written to disk."""
    if Path(path).is_dir():
        return Path(path)
    try:
        return zipfile.Path(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"data.path: expected a folder of images or a .zip of one, got {path}: {error}") from error


def _listed(folder: Place) -> list[Place]:
    return sorted((place for place in folder.iterdir() if not place.name.startswith(".")), key=lambda place: place.name)


def _pixels(file: Place, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """The bytes [height, width, channels] of one image."""
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            if image.mode.startswith(DEEP):
                raise ValueError(f"it has more than 8 bits per channel ({image.mode})")
            made = image.convert(MODES[channels])
    except _UNREADABLE as error:
        raise InputError(
            f"data.path: expected an image, {file} cannot be read as one: {error}; mend or remove it"
        ) from error
    if size is not None:
        made = made.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(made).reshape(made.height, made.width, channels)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"
