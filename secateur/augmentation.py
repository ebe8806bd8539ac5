"""Image augmentation on whole batches of tensors [N, C, H, W]; what is drawn comes from the generator that is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from secateur.errors import InputError

PADDING = 4  # pixels of a crop on every side (He et al. 2016)
ERASED = 0.25  # largest share of an image that is erased


@dataclass(frozen=True)
class Mixed:
    """A batch whose examples may be blends: the target is `share` of its own and the rest of `partner`'s."""

    inputs: torch.Tensor
    partner: torch.Tensor | None = None  # [N], which example each is blended with
    share: float = 1.0


def crop(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Each image shifted by up to four pixels, zeros moving in."""
    n, _, height, width = x.shape
    padded = functional.pad(x, (PADDING,) * 4)
    down, right = (torch.randint(0, 2 * PADDING + 1, (n,), generator=draw) for _ in range(2))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # [N, C, down, right, H, W], nothing copied
    return windows[torch.arange(n), :, down, right]


def flip(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Every other image, on average, seen in a mirror."""
    mirrored = torch.rand(len(x), generator=draw) < 0.5
    return torch.where(mirrored[:, None, None, None], x.flip(3), x)


def erase(x: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """A rectangle of each image set to zero (Zhong et al., "Random Erasing", AAAI 2020; DeVries and Taylor 2017)."""
    return torch.where(_rectangle(x, ERASED * torch.rand(len(x), generator=draw), draw), 0.0, x)


def mixup(x: torch.Tensor, draw: torch.Generator) -> Mixed:
    """share x + (1 - share) x' with a shuffled partner (Zhang et al., ICLR 2018)."""
    share, partner = _share(draw), torch.randperm(len(x), generator=draw)
    return Mixed(share * x + (1 - share) * x[partner], partner, share)


def cutmix(x: torch.Tensor, draw: torch.Generator) -> Mixed:
    """A rectangle of a shuffled partner pasted in (Yun et al., ICCV 2019); the share is the area that stayed."""
    partner = torch.randperm(len(x), generator=draw)
    pasted = _rectangle(x[:1], torch.tensor([1 - _share(draw)]), draw)
    return Mixed(torch.where(pasted, x[partner], x), partner, 1 - float(pasted.float().mean()))


AUGMENTATIONS: dict[str, Callable[[torch.Tensor, torch.Generator], torch.Tensor]] = {
    "crop": crop,
    "flip": flip,
    "erase": erase,
}
BLENDS: dict[str, Callable[[torch.Tensor, torch.Generator], Mixed]] = {"mixup": mixup, "cutmix": cutmix}


def check(names: Sequence[str], shape: Sequence[int]) -> None:
    """Raise InputError unless the augmentations exist and go with examples of this shape (without the batch)."""
    if unknown := [name for name in names if name not in AUGMENTATIONS | BLENDS]:
        raise InputError(f"augment: expected some of {', '.join(AUGMENTATIONS | BLENDS)}, got {unknown[0]!r}")
    if sum(name in BLENDS for name in names) > 1:
        raise InputError(f"augment: expected one of {' and '.join(BLENDS)}, got both")
    if names and len(shape) != 3:
        raise InputError(
            f"augment: {names[0]} needs images [channels, height, width], the examples are {tuple(shape)}; leave it out"
        )


def augment(x: torch.Tensor, names: Sequence[str], draw: torch.Generator) -> Mixed:
    """The augmentations in the order of their names, a blend last."""
    for name in names:
        if name in AUGMENTATIONS:
            x = AUGMENTATIONS[name](x, draw)
    blend = next((BLENDS[name] for name in names if name in BLENDS), None)
    return blend(x, draw) if blend else Mixed(x)


def _share(draw: torch.Generator) -> float:
    """A draw from Beta(1, 1), which is the uniform distribution."""
    return float(torch.rand((), generator=draw))


def _rectangle(x: torch.Tensor, area: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Masks [N, 1, H, W] of rectangles shaped like the image, of a share of its area, cut off at its borders."""
    n, _, height, width = x.shape
    masks = []
    for size in (height, width):
        half = (size * area.sqrt() / 2)[:, None]
        middle = (size * torch.rand(n, generator=draw))[:, None]
        masks.append((torch.arange(size) + 0.5 - middle).abs() < half)
    return (masks[0][:, :, None] & masks[1][:, None, :])[:, None]
