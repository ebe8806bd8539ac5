"""The forms in lower precision of an exported file, where the recipe asks for them; each is named for what it was made from."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks import figures, tracking
from tasks.recipe import Recipe
from tasks.references import Converted, File, Pinned

if TYPE_CHECKING:
    import numpy as np

ALL = INT8, FP16 = "int8", "fp16"  # settings of the recipe, ends of names, and folders of the parent run's artifacts
CONVERTED = tuple(f"{source}_{precision}" for precision in ALL for source in ("dense", "pruned"))  # files
ROWS = {INT8: "INT8", FP16: "FP16/BF16"}  # of the table of what a target gains


def of(name: str) -> str:
    """The lower precision of a file by its name, such as "INT8" of "pruned_int8"; nothing for one in float32."""
    return name.partition("_")[2].upper()


def spoken(name: str, between: str = " ") -> str:
    """A file's name for a person."""
    return between.join(filter(None, [name.partition("_")[0], of(name)]))


def made(pinned: Pinned, path: Path, onnx: File, program: File, name: str) -> Converted | None:
    """Convert a file to the precision that the name ends in, on examples of the training split, and keep it in the parent run.

    None where the recipe leaves that precision out, or says auto and the target gains no time by it or cannot run it; a text
    beside says why, or what was made.

    Args:
        path: the file, which is `onnx`, exported from `program`.

    Raises:
        InputError: the recipe asks for it and the file or the target does not allow it.
    """
    from secateur import gains, half, machine, quantization

    recipe, precision = Recipe.model_validate(pinned.recipe), name.rpartition("_")[2]
    wanted, target = getattr(recipe.quantize, precision), figures.target_of(recipe)
    if wanted is False:
        return None
    gain = gains.gain(ROWS[precision], target.provider, machine.here())
    if wanted == "auto" and gain.buys != "time":
        say(pinned, name, f"left out, on {target.provider} it buys {gain.buys} ({gain.why})")
        return None
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        output, examples = Path(folder) / f"{name}.onnx", _examples(pinned, recipe)
        try:
            if precision == INT8:
                what = str(quantization.quantise(path, output, examples, target, method=recipe.quantize.method))
            else:
                what = str(half.halve(path, output, examples, target))
        except InputError as error:
            if wanted is True:
                raise InputError(f"quantize.{precision}: {name} cannot be made: {error}") from error
            say(pinned, name, f"left out, {error}")
            return None
        say(pinned, name, what)
        return Converted(tracking.put(pinned.run_id, output, precision), onnx, program)


def say(pinned: Pinned, name: str, what: str) -> None:
    """Print what became of a file, and keep it beside it."""
    print(f"{name}: {what}", flush=True)
    tracking.put_text(pinned.run_id, what, f"{name.rpartition('_')[2]}/{name}.txt")


def _examples(pinned: Pinned, recipe: Recipe) -> list[np.ndarray]:
    """Inputs of examples of the training split, drawn by the seed: the same ones for every file."""
    import numpy as np

    from tasks import datasets

    train = datasets.load(recipe, pinned.inputs).train
    drawn = np.random.default_rng(recipe.seed).permutation(len(train))[: recipe.quantize.calibration]
    return [np.asarray(column[np.sort(drawn)]) for column in train.columns]
