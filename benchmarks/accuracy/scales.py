"""Every constant of training, for all scales, in one place.

What decides most where a row falls short: the learning rate after a cut, the number of cycles, the weight of distillation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from secateur.training import Settings


@dataclass(frozen=True)
class Recipe:
    """Cycles of cut and recovery; the last recovers for longer. Images (or sentences) are drawn anew in each cycle."""

    settings: Settings
    last: int  # epochs after the last cut
    last_images: int | None = None  # None: all of train
    cycles: int = 1
    epochs: int = 1  # after every cut but the last
    images: int | None = None  # or sentences
    schedule: str = "cubic"

    def of_cycle(self, cycle: int, seed: int) -> tuple[Settings, int | None]:
        """Settings and number of images of a cycle, counted from 1."""
        epochs, images = (self.last, self.last_images) if cycle == self.cycles else (self.epochs, self.images)
        return replace(self.settings, epochs=epochs, seed=seed), images

    def told(self) -> dict[str, Any]:
        """What differs from the defaults, as JSON takes it."""
        return {**_told(self), "training": _told(self.settings)}


def _told(value: Any) -> dict[str, Any]:
    said = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in ("settings", "seed")}
    defaults = {f.name: f.default for f in fields(value)}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in said.items() if v != defaults[name]}


@dataclass(frozen=True)
class Scale:
    """How large everything is: by row, or by what a row starts from, its recipe."""

    name: str
    seeds: tuple[int, ...]
    validation: int  # images carved out of train
    sentences: int | None  # of validation, of those that were carved out; None: all
    recipes: Mapping[str, Recipe]


# Published programs are trained already: the rates are between those of fine-tuning (0.01) and of training (0.1).
IMAGES = Settings(
    batch=128, learning_rate=0.03, channels_last=True, augment=("crop", "flip"), distillation=0.5, temperature=4.0
)
SPARSE = replace(IMAGES, distillation=0.0, learning_rate=0.01)  # before the cut: Fang et al.
SCRATCH = replace(IMAGES, distillation=0.0, learning_rate=0.1, warm_up=0.0)
FINE_TUNE = replace(SCRATCH, learning_rate=0.01, warm_up=0.1)
TEXT = Settings(
    batch=32, optimizer="adamw", learning_rate=1e-4, weight_decay=0.01, distillation=0.7, temperature=2.0, clip=1.0
)
STATES = replace(TEXT, hidden_states=1.0)
TOKENS = Settings(
    batch=16, optimizer="adamw", learning_rate=1e-3, weight_decay=0.01, distillation=1.0, temperature=1.0, clip=1.0
)
STORIES = {"stories260k": Recipe(TOKENS, last=10)}

CPU = Scale(
    name="cpu",
    seeds=(0,),
    validation=2_500,
    sentences=1_000,
    recipes={
        "resnet56-structured": Recipe(IMAGES, last=2, last_images=24_000),
        "resnet56-sparse-learning": Recipe(IMAGES, last=1, last_images=20_000),
        "sparse-learning": Recipe(SPARSE, last=1, last_images=16_000),
        "resnet20-structured": Recipe(IMAGES, cycles=2, last=3),
        "resnet20-unstructured": Recipe(IMAGES, cycles=4, images=6_000, last=1, last_images=24_000),
        "resnet56-unstructured": Recipe(IMAGES, cycles=4, images=3_000, last=1, last_images=12_000),
        "oneshot": Recipe(IMAGES, last=1, last_images=18_000),
        "iterative": Recipe(IMAGES, cycles=3, images=4_500, last=1, last_images=9_000),
        "oneshot-channels": Recipe(IMAGES, last=1, last_images=18_000),
        "iterative-channels": Recipe(IMAGES, cycles=3, images=4_500, last=1, last_images=9_000),
        "lottery-early": Recipe(SCRATCH, last=1, last_images=10_000),
        "lottery-dense": Recipe(SCRATCH, last=2),
        "lottery-rewind": Recipe(SCRATCH, cycles=2, epochs=1, last=1, schedule="exponential"),
        "lottery-fine-tune": Recipe(FINE_TUNE, cycles=2, epochs=1, last=1, schedule="exponential"),
        "criteria": Recipe(IMAGES, last=1, last_images=24_000),
        "minilm-heads": Recipe(TEXT, cycles=2, images=6_000, last=1, last_images=16_000),
        "minilm-speedup": Recipe(TEXT, cycles=3, images=5_000, last=1, last_images=20_000),
        "minilm-layers": Recipe(STATES, last=1, last_images=24_000),
        **STORIES,
    },
)

# Where the short protocol falls short: whether it is for want of images. A night on two cores.
CPU_LONG = replace(
    CPU, name="cpu-long", recipes={key: replace(recipe, last=4 * recipe.last) for key, recipe in CPU.recipes.items()}
)

# A step of these small networks takes a GPU as long for 256 images as for 128: twice the batch, twice the rate.
LARGE = replace(IMAGES, batch=256, learning_rate=0.1)
LARGE_SPARSE = replace(SPARSE, batch=256, learning_rate=0.02)
LARGE_SCRATCH = replace(SCRATCH, batch=256, learning_rate=0.2)
LARGE_FINE_TUNE = replace(FINE_TUNE, batch=256, learning_rate=0.02)
GPU = Scale(
    name="gpu",
    seeds=(0, 1, 2),
    validation=5_000,
    sentences=None,
    recipes={
        "resnet56-structured": Recipe(LARGE, cycles=2, epochs=5, last=70),
        "resnet56-sparse-learning": Recipe(LARGE, last=70),
        "sparse-learning": Recipe(LARGE_SPARSE, last=60),
        "resnet20-structured": Recipe(LARGE, cycles=2, epochs=5, last=70),
        "resnet20-unstructured": Recipe(LARGE, cycles=8, epochs=4, last=50),
        "resnet56-unstructured": Recipe(LARGE, cycles=8, epochs=4, last=50),
        "oneshot": Recipe(LARGE, last=25),
        "iterative": Recipe(LARGE, cycles=4, epochs=5, last=10),
        "oneshot-channels": Recipe(LARGE, last=25),
        "iterative-channels": Recipe(LARGE, cycles=4, epochs=5, last=10),
        "lottery-early": Recipe(LARGE_SCRATCH, last=2),
        "lottery-dense": Recipe(LARGE_SCRATCH, last=80),
        "lottery-rewind": Recipe(LARGE_SCRATCH, cycles=4, epochs=40, last=60, schedule="exponential"),
        "lottery-fine-tune": Recipe(LARGE_FINE_TUNE, cycles=4, epochs=40, last=60, schedule="exponential"),
        "criteria": Recipe(LARGE, last=10),
        "minilm-heads": Recipe(TEXT, cycles=2, last=3),
        "minilm-speedup": Recipe(TEXT, cycles=3, last=4),
        "minilm-layers": Recipe(STATES, last=4),
        **STORIES,
    },
)
SCALES = {scale.name: scale for scale in (CPU, CPU_LONG, GPU)}
