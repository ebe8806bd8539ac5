"""Measures the dense model: what every later figure is compared with. Its forms in lower precision are made here too: before
any training."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.planner import Alone
from tasks import figures, goals, placement, precisions, tracking, workers
from tasks.goals import TIMES
from tasks.recipe import COUNTED, Recipe
from tasks.references import Baseline, Converted, Figures, File, Pinned

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from secateur.data import Split


@tracking.remembered
def run(pinned: Pinned) -> Baseline:
    """Export the dense program to ONNX and measure it; logged as step 0 of the parent run. Once for all rungs of a candidate."""
    found = tracking.recalled(pinned.begun, "baseline", Baseline) if pinned.begun else None
    found = found or _measured(pinned)
    speedups = dict.fromkeys(("speedup", "speedup_low", "speedup_high", "theoretical_speedup"), 1.0)
    start = {"sparsity": 0.0, f"{pinned.metric}_delta": 0.0, **speedups}
    tracking.log(pinned.run_id, {**figures.metrics(found.figures, pinned.metric), **start}, step=0)
    return found


def _measured(pinned: Pinned) -> Baseline:
    from secateur import program as programs
    from tasks import datasets

    recipe = Recipe.model_validate(pinned.recipe)
    placement.check_here(recipe.target.name)
    with tracking.fetched(pinned.program) as path, tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        program, lineage, onnx_path = programs.load(path), programs.lineage(path), Path(folder) / "dense.onnx"
        validation = datasets.load(recipe, pinned.inputs).validation
        dense = figures.measure(program, lineage, onnx_path, pinned.run_id, validation, recipe)
        quantised, halved = (
            precisions.made(pinned, onnx_path, dense.onnx, pinned.program, f"dense_{precision}")
            for precision in precisions.ALL
        )
        alone = _alone(recipe, dense, onnx_path, quantised, validation) if quantised else None
        latencies = _latencies(program, recipe, dense, Path(folder), pinned.run_id)
    return Baseline(dense, quantised, halved, latencies, alone)


def _alone(recipe: Recipe, dense: Figures, onnx_path: Path, quantised: Converted, validation: Split) -> Alone | None:
    """What INT8 gives without any pruning, where the plan may make do with it."""
    from secateur import compare
    from secateur.objectives import objective_of

    goal, _ = recipe.goal.given
    if recipe.prune.method not in ("auto", "quantize") or goal in COUNTED:
        return None
    target, objective = figures.target_of(recipe), objective_of(recipe.objective)
    with tracking.fetched(quantised.file) as path:
        accuracy = objective.score(*figures.answers(path, target, validation, objective))
        seen = compare.compare(
            onnx_path,
            path,
            target,
            validation.columns,
            until=0.02,
            budget_s=recipe.budget.on_the_way_s,
            seed=recipe.seed,
        )
        reached = seen.low if goal == "speedup" else goals.measured(recipe, onnx_path, path, dense, validation)[0]
    alone = Alone(dense.accuracy - accuracy, reached, seen.speedup, seen.low, seen.high)
    print(f"INT8 of the dense model: {alone}", flush=True)
    return alone


def _latencies(program: ExportedProgram, recipe: Recipe, dense: Figures, folder: Path, run_id: str) -> File | None:
    """The latency table of a goal that is a time, kept in the run; of a provider that does not tell a kernel's time none.

    Times of operations stay on the machine, for the next model of this target and for a task that is killed.
    """
    from secateur.latency import table
    from secateur.runtime import CPU

    target = figures.target_of(recipe)
    by_widths = recipe.prune.method in ("auto", "structured")
    if recipe.goal.given[0] not in TIMES or target.provider != CPU or not by_widths:
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
        folder=workers.cache_folder() / "latencies",
        on_operation=tell,
    )
    path = folder / "latency_table.json"
    path.write_text(json.dumps(made.to_json()), encoding="utf-8")
    return tracking.put(run_id, path, "plan")
