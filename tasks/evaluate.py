"""Ends a cycle: measures the recovered program as the target sees it and logs it beside the others."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tasks import figures, placement, tracking
from tasks.recipe import Recipe
from tasks.references import Baseline, Cycle, Pinned, Recovered


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline, recovered: Recovered) -> Cycle:
    """Measure on validation and on the runtime, dense and pruned alternating; log metrics and the cycle's model."""
    from secateur import compare
    from secateur import program as programs
    from tasks import datasets

    recipe = Recipe.model_validate(pinned.recipe)
    placement.check_here(recipe.target.name)
    validation = datasets.load(recipe, pinned.inputs).validation
    with (
        tracking.fetched(recovered.program) as program_path,
        tracking.fetched(baseline.figures.onnx) as dense_path,
        tempfile.TemporaryDirectory(prefix="secateur-") as folder,
    ):
        program, lineage = programs.load(program_path), programs.lineage(program_path)
        onnx_path = Path(folder) / "pruned.onnx"
        seen = figures.measure(program, lineage, onnx_path, recovered.run_id, validation, recipe)
        compared = compare.compare(
            dense_path,
            onnx_path,
            figures.target_of(recipe),
            validation.columns,
            until=0.02,
            budget_s=recipe.budget.on_the_way_s,
            seed=recipe.seed,
        )
        model_id = tracking.log_program(
            recovered.run_id, program_path, program, f"cycle-{recovered.cycle}", recovered.cycle
        )
    print(compared, flush=True)
    cycle = Cycle(
        cycle=recovered.cycle,
        run_id=recovered.run_id,
        program=recovered.program,
        figures=seen,
        sparsity=1 - seen.weights / baseline.figures.weights,
        accuracy_delta=seen.accuracy - baseline.figures.accuracy,
        speedup=compared.speedup,
        speedup_low=compared.low,
        speedup_high=compared.high,
    )
    logged = {
        **figures.metrics(seen, pinned.metric),
        **{name: getattr(cycle, name) for name in ("sparsity", "speedup", "speedup_low", "speedup_high")},
        f"{pinned.metric}_delta": cycle.accuracy_delta,
        f"{pinned.metric}_before_recovery": recovered.accuracy_before,
        "theoretical_speedup": baseline.figures.macs / seen.macs,
        "recovery_epochs": recovered.epochs,
        "recovery_seconds": recovered.seconds,
    }
    tracking.log(recovered.run_id, logged, step=recovered.cycle, model_id=model_id)
    tracking.log(pinned.run_id, logged, step=recovered.cycle)
    tracking.finish(recovered.run_id)
    return cycle
