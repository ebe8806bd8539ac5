"""Corruptions: the same for whoever asks, of the strength that was asked for, within what an input may be."""

import numpy as np
import pytest

from secateur import InputError
from secateur.gate.corruptions import (
    CORRUPTIONS,
    FEATURES,
    IMAGES,
    TEXTS,
    of_features,
    of_images,
    of_texts,
    typos,
    word_drops,
)

BATCH, SIDE, SEED = 6, 16, 3
TEXT = "the gardener prunes every branch before winter comes again"


def images(channels: int = 3) -> np.ndarray:
    """Images whose channels have ranges of their own."""
    rng = np.random.default_rng(0)
    smooth = np.cumsum(rng.normal(size=(BATCH, channels, SIDE, SIDE)), axis=-1)
    return (smooth * np.array([1.0, 5.0, 0.1])[:channels, None, None] + 3).astype(np.float32)


def length_of(words: list[str]) -> list[np.ndarray]:
    """Texts as a program's inputs, for the tests: how many letters each has."""
    return [np.array([[len(text)] for text in words])]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", IMAGES)
def test_images_are_changed_within_their_range_and_the_same_every_time(name: str, channels: int) -> None:
    x, beside = images(channels), np.arange(BATCH)
    change = of_images(name, 3, x, SEED)
    changed, more = change(0, [x, beside])
    assert (changed.shape, changed.dtype, more is beside) == (x.shape, x.dtype, True)
    assert not np.allclose(changed, x, rtol=1e-3)
    assert np.abs(changed - x).mean() < 0.3 * np.ptp(x, axis=(0, 2, 3)).mean()
    low, high = x.min((0, 2, 3)), x.max((0, 2, 3))
    slack = 1e-3 * (high - low)
    assert (changed.min((0, 2, 3)) >= low - slack).all()
    assert (changed.max((0, 2, 3)) <= high + slack).all()
    assert np.array_equal(of_images(name, 3, x, SEED)(0, [x, beside])[0], changed)


def test_batches_and_seeds_draw_differently() -> None:
    x = images()
    first = of_images("noise", 3, x, SEED)(0, [x])[0]
    assert not np.allclose(first, of_images("noise", 3, x, SEED)(BATCH, [x])[0])
    assert not np.allclose(first, of_images("noise", 3, x, SEED + 1)(0, [x])[0])


@pytest.mark.parametrize("name", IMAGES)
def test_a_higher_severity_changes_more(name: str) -> None:
    x = images()
    mild, strong = (np.abs(of_images(name, severity, x, SEED)(0, [x])[0] - x).mean() for severity in (1, 5))
    assert strong > 1.2 * mild


def test_a_black_channel_stays_black() -> None:
    x = images()
    x[:, 1] = 0
    assert np.isfinite(of_images("contrast", 5, x, SEED)(0, [x])[0]).all()


def test_noise_on_features_has_each_features_own_deviation() -> None:
    rows = (np.random.default_rng(0).normal(size=(4000, 2)) * [1.0, 100.0]).astype(np.float32)
    (changed,) = of_features(3, rows, SEED)(0, [rows])
    assert changed.dtype == np.float32
    assert (changed - rows).std(0) == pytest.approx(FEATURES[2] * rows.std(0), rel=0.05)


def test_a_typo_leaves_the_ends_and_the_letters_of_a_word() -> None:
    (changed,) = typos([TEXT], 5, np.random.default_rng(SEED))
    assert changed != TEXT
    for before, after in zip(TEXT.split(), changed.split(), strict=True):
        assert sorted(before) == sorted(after)
        assert (before[0], before[-1]) == (after[0], after[-1])


def test_words_are_dropped_but_never_all_of_them() -> None:
    changed = word_drops([TEXT, "alone", ""] * 50, 5, np.random.default_rng(SEED))
    assert len({text for text in changed if len(text.split()) > 1}) > 10
    assert all(set(text.split()) <= set(TEXT.split()) | {"alone"} for text in changed)
    assert all(text == "alone" for text in changed[1::3])


@pytest.mark.parametrize("name", TEXTS)
def test_texts_are_corrupted_and_encoded_anew(name: str) -> None:
    texts = np.array([TEXT] * 4, dtype=object)
    change = of_texts(name, 5, texts, length_of, SEED)
    (whole,) = change(2, [np.zeros((2, 1))])
    assert whole.shape == (2, 1)
    assert np.array_equal(change(2, [np.zeros((2, 1))])[0], whole)


def test_corruptions_of_other_data_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"^gate.robustness.corruptions: blur needs images \[channels, height, width\]"
    ):
        of_images("blur", 1, np.zeros((4, 3), np.float32), SEED)
    with pytest.raises(InputError, match=r"^gate.robustness.corruptions: feature_noise needs rows of floats"):
        of_features(1, np.zeros((4, 3), np.int64), SEED)


def test_every_corruption_has_a_name() -> None:
    assert CORRUPTIONS == ("noise", "blur", "contrast", "jpeg", "typos", "word_drops", "feature_noise")
