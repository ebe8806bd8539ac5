"""The INT8 form of an exported file, where the recipe asks for it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks import figures, tracking
from tasks.recipe import Recipe
from tasks.references import File, Pinned

if TYPE_CHECKING:
    import numpy as np

FOLDER = "int8"  # of the parent run's artifacts


def made(pinned: Pinned, file: Path, name: str) -> File | None:
    """Quantise a file on examples of the training split and keep it in the parent run under this name.

    None where the recipe leaves INT8 out, or says auto and the target gains no time by it or cannot run it; a text beside
    says why, or what was quantised.

    Raises:
        InputError: the recipe asks for INT8 and the file or the target does not allow it.
    """
    from secateur import gains, machine, quantization

    recipe = Recipe.model_validate(pinned.recipe)
    wanted, target = recipe.quantize, figures.target_of(recipe)
    if wanted.int8 is False:
        return None
    gain = gains.gain("INT8", target.provider, machine.here())
    if wanted.int8 == "auto" and gain.buys != "time":
        _say(pinned, name, f"left out, on {target.provider} it buys {gain.buys} ({gain.why})")
        return None
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / f"{name}.onnx"
        try:
            quantised = quantization.quantise(file, path, _examples(pinned, recipe), target, method=wanted.method)
        except InputError as error:
            if wanted.int8 is True:
                raise InputError(f"quantize.int8: {name} cannot be made: {error}") from error
            _say(pinned, name, f"left out, {error}")
            return None
        _say(pinned, name, str(quantised))
        return tracking.put(pinned.run_id, path, FOLDER)


def _say(pinned: Pinned, name: str, what: str) -> None:
    print(f"{name}: {what}", flush=True)
    tracking.put_text(pinned.run_id, what, f"{FOLDER}/{name}.txt")


def _examples(pinned: Pinned, recipe: Recipe) -> list[np.ndarray]:
    """Inputs of examples of the training split, drawn by the seed: the same ones for every file."""
    import numpy as np

    from tasks import datasets

    train = datasets.load(recipe, pinned.inputs).train
    drawn = np.random.default_rng(recipe.seed).permutation(len(train))[: recipe.quantize.calibration]
    return [np.asarray(column[np.sort(drawn)]) for column in train.columns]
