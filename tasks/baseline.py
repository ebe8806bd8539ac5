"""Measures the dense model: what every later figure is compared with. Its INT8 form is made here too: before any training."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tasks import figures, int8, tracking
from tasks.goals import TIMES
from tasks.recipe import Recipe
from tasks.references import Baseline, Figures, File, Pinned
from tasks.training import cache_folder

if TYPE_CHECKING:
    from torch.export import ExportedProgram


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
        latencies = _latencies(program, recipe, dense, Path(folder), pinned.run_id)
    speedups = dict.fromkeys(("speedup", "speedup_low", "speedup_high", "theoretical_speedup"), 1.0)
    start = {"sparsity": 0.0, f"{pinned.metric}_delta": 0.0, **speedups}
    tracking.log(pinned.run_id, {**figures.metrics(dense, pinned.metric), **start}, step=0)
    return Baseline(dense, quantised, latencies)


def _latencies(program: ExportedProgram, recipe: Recipe, dense: Figures, folder: Path, run_id: str) -> File | None:
    """The latency table of a goal that is a time, kept in the run; of a provider that does not tell a kernel's time none.

    Times of operations stay on the machine, for the next model of this target and for a task that is killed.
    """
    from secateur.latency import table
    from secateur.runtime import CPU

    target = figures.target_of(recipe)
    if recipe.goal.given[0] not in TIMES or target.provider != CPU:
        return None

    def tell(name: str, done: int, total: int) -> None:
        if done in (1, total) or done % 10 == 0:
            print(f"latency table: {done} of {total} operations, {name}", flush=True)

    made = table.measure(
        program,
        target,
        dense=dense.latency_p50_ms / 1e3,
        kinds=recipe.prune.kinds,
        align=recipe.prune.align,
        folder=cache_folder() / "latencies",
        on_operation=tell,
    )
    path = folder / "latency_table.json"
    path.write_text(json.dumps(made.to_json()), encoding="utf-8")
    return tracking.put(run_id, path, "plan")
