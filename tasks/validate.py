"""Holds the exported file against the dense one on the runtime that will serve it."""

from __future__ import annotations

from tasks import figures, tracking
from tasks.recipe import Recipe
from tasks.references import Baseline, Exported, Pinned, Validated


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline, exported: Exported) -> Validated:
    """Speedup of alternating measurements with its interval, realised beside theoretical, and ONNX against torch."""
    from secateur import compare, onnx_export
    from secateur import program as programs
    from secateur.axes.infer import infer
    from tasks import datasets

    recipe = Recipe.model_validate(pinned.recipe)
    columns = datasets.load(recipe, pinned.inputs).validation.columns
    with (
        tracking.fetched(exported.dense) as dense,
        tracking.fetched(exported.pruned) as pruned,
        tracking.fetched(exported.program) as program_path,
    ):
        program = programs.load(program_path)
        confidence = recipe.gate.confidence
        compared = compare.compare(
            dense,
            pruned,
            figures.target_of(recipe),
            columns,
            confidence=confidence,
            until=0.01,
            budget_s=300,
            seed=recipe.seed,
        )
        print(compared.inconclusive or compared, flush=True)
        parity = onnx_export.parity(program, pruned, columns)
        sizes = {"dense.size_bytes": dense.stat().st_size, "pruned.size_bytes": pruned.stat().st_size}
    structure = infer(programs.graph_module(program))
    macs = structure.count_macs(programs.per_example_symbols(program))
    result = Validated(
        speedup=compared.speedup,
        speedup_low=compared.low,
        speedup_high=compared.high,
        confidence=confidence,
        theoretical_speedup=baseline.figures.macs / macs,
        parity=parity.worst,
        noise=compared.inconclusive or str(compared.noise),
    )
    latencies = {
        f"{name}.latency_{p}_ms": getattr(latency, f"{p}_ms")
        for name, latency in (("dense", compared.first), ("pruned", compared.second))
        for p in ("p50", "p90", "p99")
    }
    counts = {
        "dense.params": baseline.figures.params,
        "pruned.params": structure.count_parameters(),
        "dense.macs": baseline.figures.macs,
        "pruned.macs": macs,
        "sparsity": 1 - structure.count_parameters() / baseline.figures.params,
    }
    measured = {name: value for name, value in vars(result).items() if name not in ("confidence", "noise")}
    tracking.log(pinned.run_id, {**measured, **latencies, **sizes, **counts}, step=exported.cycle)
    return result
