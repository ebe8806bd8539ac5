"""The training that makes up for what INT8 costs."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from tasks import figures, precisions, tracking, training
from tasks.recipe import Recipe
from tasks.references import Baseline, Converted, File, Pinned

AWARE = "aware_int8"
AWARE_RATE = 0.1  # of the recovery's learning rate: the weights are learnt, they only move to where rounding hurts less


def made_up_for(pinned: Pinned, baseline: Baseline, plain: Converted) -> Converted:
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
    precisions.say(
        pinned,
        AWARE,
        f"{pinned.metric} of INT8 on validation is {accuracy:.4f}, the budget allows {least:.4f}; after {epochs} epochs of "
        f"training for it {'not better' if better is None else format(better, '.4f')}: "
        f"{'kept' if kept is aware else 'left out'}",
    )
    return kept


def _trained(pinned: Pinned, recipe: Recipe, program: File) -> Converted | None:
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
        onnx, stored = (tracking.put(pinned.run_id, local, precisions.INT8) for local in (onnx_path, program_path))
        return precisions.made(pinned, onnx_path, onnx, stored, AWARE)


def _accuracy(pinned: Pinned, recipe: Recipe, file: File) -> float:
    """The objective's metric of a file on validation."""
    from secateur.objectives import objective_of
    from tasks import datasets

    objective, validation = objective_of(recipe.objective), datasets.load(recipe, pinned.inputs).validation
    with tracking.fetched(file) as path:
        return objective.score(*figures.answers(path, figures.target_of(recipe), validation, objective))
