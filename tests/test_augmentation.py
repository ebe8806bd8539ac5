"""Augmentation of whole batches: what each operation may do to an image, and nothing else."""

import pytest
import torch

from secateur.augmentation import AUGMENTATIONS, BLENDS, PADDING, augment, check, crop, cutmix, erase, flip, mixup
from secateur.errors import InputError

SHAPE = (16, 3, 12, 10)


def batch() -> torch.Tensor:
    return torch.rand(SHAPE, generator=torch.Generator().manual_seed(0)) + 1  # no pixel is zero


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", [*AUGMENTATIONS, *BLENDS])
def test_the_same_draw_gives_the_same_batch_and_another_another(name: str) -> None:
    first, again, other = (augment(batch(), [name], draw(seed)).inputs for seed in (1, 1, 2))
    assert first.shape == SHAPE
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_crop_shifts_each_image_by_a_few_pixels_and_fills_with_zeros() -> None:
    x, y = batch(), crop(batch(), draw())
    padded = torch.nn.functional.pad(x, (PADDING,) * 4)
    shifts = set()
    for i in range(len(x)):
        places = [
            (down, right)
            for down in range(2 * PADDING + 1)
            for right in range(2 * PADDING + 1)
            if torch.equal(y[i], padded[i, :, down : down + SHAPE[2], right : right + SHAPE[3]])
        ]
        assert len(places) == 1
        shifts.add(places[0])
    assert len(shifts) > 5


def test_a_flip_mirrors_some_images_whole() -> None:
    x, y = batch(), flip(batch(), draw())
    mirrored = [torch.equal(b, a.flip(2)) for a, b in zip(x, y, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(x, y, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 0 < sum(mirrored) < len(x)


def test_erasing_zeroes_a_rectangle_in_all_channels_alike() -> None:
    x, y = batch(), erase(batch(), draw())
    gone = y == 0
    assert torch.equal(gone.all(1), gone.any(1))
    assert torch.equal(y[~gone], x[~gone])
    for hole in gone[:, 0]:
        rows, columns = hole.any(1), hole.any(0)
        assert torch.equal(hole, rows[:, None] & columns[None, :])
    assert 0 < gone.float().mean() < 0.25


def test_mixup_blends_with_a_partner_by_the_share() -> None:
    x, mixed = batch(), mixup(batch(), draw())
    assert mixed.partner is not None
    assert torch.allclose(mixed.inputs, mixed.share * x + (1 - mixed.share) * x[mixed.partner])


def test_the_share_of_a_cutmix_is_the_area_that_stayed() -> None:
    x, mixed = batch(), cutmix(batch(), draw(3))
    assert mixed.partner is not None
    own = (mixed.inputs == x).all(1).float().mean((1, 2))
    moved = mixed.partner != torch.arange(len(x))
    assert torch.allclose(own[moved], torch.tensor(mixed.share), atol=1e-6)


def test_blends_come_last_whatever_the_order_of_the_names() -> None:
    first, second = (augment(batch(), names, draw()).inputs for names in (("mixup", "flip"), ("flip", "mixup")))
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("names", "shape", "message"),
    [
        (("blur",), SHAPE[1:], "expected some of crop, flip, erase, mixup, cutmix, got 'blur'"),
        (("mixup", "cutmix"), SHAPE[1:], "expected one of mixup and cutmix, got both"),
        (("crop",), (7,), r"crop needs images \[channels, height, width\], the examples are \(7,\)"),
    ],
)
def test_what_cannot_be_augmented_is_refused(names: tuple[str, ...], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check(names, shape)
