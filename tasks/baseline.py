"""Measures the dense model: what every later figure is compared with. Its INT8 form is made here too: before any training."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tasks import figures, int8, tracking
from tasks.recipe import Recipe
from tasks.references import Baseline, Pinned


@tracking.remembered
def run(pinned: Pinned) -> Baseline:
    """Export the dense program to ONNX and measure it; logged as step 0 of the parent run."""
    from secateur import program as programs
    from tasks import datasets

    recipe = Recipe.model_validate(pinned.recipe)
    with tracking.fetched(pinned.program) as path, tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        program, onnx_path = programs.load(path), Path(folder) / "dense.onnx"
        validation = datasets.load(recipe, pinned.inputs).validation
        dense = figures.measure(program, onnx_path, pinned.run_id, validation, recipe)
        quantised = int8.made(pinned, onnx_path, dense.onnx, pinned.program, "dense_int8")
    speedups = dict.fromkeys(("speedup", "speedup_low", "speedup_high", "theoretical_speedup"), 1.0)
    start = {"sparsity": 0.0, f"{pinned.metric}_delta": 0.0, **speedups}
    tracking.log(pinned.run_id, {**figures.metrics(dense, pinned.metric), **start}, step=0)
    return Baseline(dense, quantised)
