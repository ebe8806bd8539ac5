"""Corruptions of a test set, to see whether the pruned model has become more fragile than the dense one.

All are drawn from a seed, batch by batch: whoever asks again, of whichever model, is given the same examples.
Severities are 1 to 5, as in ImageNet-C (Hendrycks and Dietterich, ICLR 2019).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter

from secateur.errors import InputError
from secateur.runtime import Change

# by severity; images as in the CIFAR-10-C that goes with ImageNet-C, blur in pixels of a side of 32
NOISE = (0.04, 0.06, 0.08, 0.09, 0.10)  # deviation, of the range of values
BLUR = (0.4, 0.6, 0.7, 0.8, 1.0)  # deviation of the Gaussian
CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)  # share of it that stays
JPEG = (80, 65, 58, 50, 40)  # quality
TYPOS = (0.05, 0.1, 0.15, 0.2, 0.3)  # share of the words that are long enough
DROPS = (0.05, 0.1, 0.15, 0.2, 0.3)  # share of the words
FEATURES = (0.05, 0.1, 0.2, 0.3, 0.5)  # deviation, of each feature's own
SIDE = 32
LONG_ENOUGH = 4  # letters, so that two inner ones can change places

Ends = tuple[np.ndarray, np.ndarray]  # the lowest and the highest value, by channel: [C, 1, 1]


def noise(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Normal noise on each pixel."""
    return images + rng.normal(0, NOISE[severity - 1], images.shape)


def blur(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Each image out of focus."""
    sigma = BLUR[severity - 1] * images.shape[-1] / SIDE
    return gaussian_filter(images, (0, 0, sigma, sigma))


def contrast(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Each image nearer to its own mean."""
    mean = images.mean((2, 3), keepdims=True)
    return mean + CONTRAST[severity - 1] * (images - mean)


def jpeg(images: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Each image through JPEG and back; three channels as one picture in colour, others as pictures in grey."""
    pixels = np.clip(np.rint(images * 255), 0, 255).astype(np.uint8)
    if pixels.shape[1] == 3:
        return np.stack([_recoded(one.transpose(1, 2, 0), severity).transpose(2, 0, 1) for one in pixels]) / 255.0
    return np.stack([np.stack([_recoded(channel, severity) for channel in one]) for one in pixels]) / 255.0


def _recoded(picture: np.ndarray, severity: int) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=JPEG[severity - 1])
    return np.asarray(Image.open(stream))


def typos(texts: Sequence[str], severity: int, rng: np.random.Generator) -> list[str]:
    """Two neighbouring inner letters of some words change places (Belinkov and Bisk, ICLR 2018)."""

    def mistyped(word: str) -> str:
        if len(word) < LONG_ENOUGH or rng.random() >= TYPOS[severity - 1]:
            return word
        at = int(rng.integers(1, len(word) - 2))
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]

    return [" ".join(map(mistyped, text.split(" "))) for text in texts]


def word_drops(texts: Sequence[str], severity: int, rng: np.random.Generator) -> list[str]:
    """Some words are missing; the last one that is left stays."""

    def shortened(text: str) -> str:
        words = text.split(" ")
        stays = rng.random(len(words)) >= DROPS[severity - 1]
        stays[rng.integers(len(words))] |= not stays.any()
        return " ".join(word for word, kept in zip(words, stays, strict=True) if kept)

    return list(map(shortened, texts))


IMAGES: dict[str, Callable[[np.ndarray, int, np.random.Generator], np.ndarray]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "jpeg": jpeg,
}
TEXTS: dict[str, Callable[[Sequence[str], int, np.random.Generator], list[str]]] = {
    "typos": typos,
    "word_drops": word_drops,
}
FEATURE_NOISE = "feature_noise"
CORRUPTIONS = (*IMAGES, *TEXTS, FEATURE_NOISE)


def of_images(name: str, severity: int, inputs: np.ndarray, seed: int) -> Change:
    """How to corrupt batches of images that begin as `inputs` [N, C, H, W] of the whole split do.

    What a value stands for is read from the split: its lowest of a channel is black, its highest white.

    Raises:
        InputError: these are no images.
    """
    if inputs.ndim != 4 or inputs.dtype.kind != "f":
        raise InputError(
            f"gate.robustness.corruptions: {name} needs images [channels, height, width] of floats, the examples are "
            f"{inputs.shape[1:]} of {inputs.dtype}; leave it out"
        )
    low, span = _range(inputs)

    def change(start: int, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        images, *more = batch
        unit = (images - low) / span
        changed = np.clip(IMAGES[name](unit, severity, np.random.default_rng([seed, start])), 0, 1)
        return [(low + span * changed).astype(images.dtype), *more]

    return change


def of_features(severity: int, inputs: np.ndarray, seed: int) -> Change:
    """How to add noise to batches of rows of the table `inputs` [N, columns].

    Raises:
        InputError: these are no rows of numbers.
    """
    if inputs.ndim != 2 or inputs.dtype.kind != "f":
        raise InputError(
            f"gate.robustness.corruptions: {FEATURE_NOISE} needs rows of floats, the examples are {inputs.shape[1:]} of "
            f"{inputs.dtype}; leave it out"
        )
    deviation = FEATURES[severity - 1] * inputs.std(0)

    def change(start: int, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        rows, *more = batch
        drawn = np.random.default_rng([seed, start]).normal(size=rows.shape)
        return [(rows + deviation * drawn).astype(rows.dtype), *more]

    return change


def of_texts(
    name: str, severity: int, texts: np.ndarray, encode: Callable[[Sequence[str]], list[np.ndarray]], seed: int
) -> Change:
    """How to replace batches by the tokens of their corrupted texts.

    Args:
        name: of TEXTS.
        severity: 1 to 5.
        texts: of all examples, in order [N].
        encode: texts to the program's inputs.
        seed: of what is drawn.
    """

    def change(start: int, batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        part = [str(text) for text in texts[start : start + len(batch[0])]]
        return encode(TEXTS[name](part, severity, np.random.default_rng([seed, start])))

    return change


def _range(inputs: np.ndarray) -> Ends:
    """The lowest value of each channel and the distance to its highest, [C, 1, 1] each."""
    low, high = (getattr(inputs, end)((0, 2, 3)).astype(inputs.dtype)[:, None, None] for end in ("min", "max"))
    return low, np.where(high > low, high - low, 1)
