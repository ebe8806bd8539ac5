"""The INT8 form of an exported file, where the recipe asks for it, and the training that makes up for what it costs."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks import figures, tracking, training
from tasks.recipe import Recipe
from tasks.references import Baseline, File, Int8, Pinned

if TYPE_CHECKING:
    import numpy as np

FOLDER = "int8"  # of the parent run's artifacts
AWARE = "int8_aware"
AWARE_RATE = 0.1  # of the recovery's learning rate: the weights are learnt, they only move to where rounding hurts less


def made(pinned: Pinned, path: Path, onnx: File, program: File, name: str) -> Int8 | None:
    """Quantise a file on examples of the training split and keep it in the parent run under this name.

    None where the recipe leaves INT8 out, or says auto and the target gains no time by it or cannot run it; a text beside
    says why, or what was quantised.

    Args:
        path: the file, which is `onnx`, exported from `program`.

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
        output = Path(folder) / f"{name}.onnx"
        try:
            quantised = quantization.quantise(path, output, _examples(pinned, recipe), target, method=wanted.method)
        except InputError as error:
            if wanted.int8 is True:
                raise InputError(f"quantize.int8: {name} cannot be made: {error}") from error
            _say(pinned, name, f"left out, {error}")
            return None
        _say(pinned, name, str(quantised))
        return Int8(tracking.put(pinned.run_id, output, FOLDER), onnx, program)


def made_up_for(pinned: Pinned, baseline: Baseline, plain: Int8) -> Int8:
    """The INT8 file, or where it breaks the accuracy budget on validation one of a program that was trained for INT8.

    That training is tried where the recipe gives it epochs, and its result kept where it is better on validation.
    """
    recipe = Recipe.model_validate(pinned.recipe)
    epochs, least = recipe.quantize.aware_epochs, baseline.figures.accuracy - recipe.budget.accuracy_drop
    if not epochs or (accuracy := _accuracy(pinned, recipe, plain.file)) >= least:
        return plain
    aware = _trained(pinned, recipe, plain.program)
    better = None if aware is None else _accuracy(pinned, recipe, aware.file)
    kept = aware if aware is not None and better is not None and better > accuracy else plain
    _say(
        pinned,
        AWARE,
        f"{pinned.metric} of INT8 on validation is {accuracy:.4f}, the budget allows {least:.4f}; after {epochs} epochs of "
        f"training for it {'not better' if better is None else format(better, '.4f')}: "
        f"{'kept' if kept is aware else 'left out'}",
    )
    return kept


def _trained(pinned: Pinned, recipe: Recipe, program: File) -> Int8 | None:
    """Train a program for INT8 with the dense one as teacher, in one process, and quantise it; None if that only harmed it."""
    from secateur import machine, onnx_export, quantization
    from secateur import program as programs
    from secateur.training import Settings

    settings = replace(
        Settings(epochs=recipe.quantize.aware_epochs, seed=recipe.seed, **recipe.recovery.training),
        learning_rate=AWARE_RATE * recipe.recovery.learning_rate,
        compile=False,  # this and the next two look into the graph
        recompute=False,
        hidden_states=0.0,
    )
    recovered, lineage = training.taught(
        pinned,
        recipe,
        program,
        settings,
        run_id=pinned.run_id,
        phase="aware",
        place="aware.pt",
        rounding=quantization.scheme_of(machine.here()).largest,
    )
    print(recovered, flush=True)
    if recovered.kept == "cut":
        return None
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        onnx_path, program_path = Path(folder) / "aware.onnx", Path(folder) / "aware.pt2"
        programs.save(recovered.program, program_path, lineage | {"quantization_aware_epochs": recovered.best.epoch})
        onnx_export.export(recovered.program, onnx_path)
        onnx, stored = (tracking.put(pinned.run_id, local, FOLDER) for local in (onnx_path, program_path))
        return made(pinned, onnx_path, onnx, stored, AWARE)


def _accuracy(pinned: Pinned, recipe: Recipe, file: File) -> float:
    """The objective's metric of a file on validation."""
    from secateur.objectives import objective_of
    from tasks import datasets

    objective, validation = objective_of(recipe.objective), datasets.load(recipe, pinned.inputs).validation
    with tracking.fetched(file) as path:
        return objective.score(*figures.answers(path, figures.target_of(recipe), validation, objective))


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
