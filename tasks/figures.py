"""A program as the target sees it: exported to ONNX, its accuracy on validation, its cost on the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tasks import tracking
from tasks.recipe import Recipe
from tasks.references import Figures

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from secateur.data import Split
    from secateur.runtime import Target


def target_of(recipe: Recipe) -> Target:
    """The recipe's target as the science knows it."""
    from secateur.runtime import Target

    return Target(**recipe.target.model_dump())


def measure(program: ExportedProgram, path: Path, run_id: str, validation: Split, target: Target) -> Figures:
    """Export to `path`, keep the file in the run, measure it on the target."""
    from secateur import measure, onnx_export, runtime
    from secateur import program as programs
    from secateur.axes.infer import infer

    onnx_export.export(program, path)
    structure = infer(programs.graph_module(program))
    latency = measure.latency(path, target, validation.inputs)
    predicted = runtime.predict(runtime.open_session(path, target), validation.inputs)
    shape = (target.batch, *validation.inputs.shape[1:])
    return Figures(
        onnx=tracking.put(run_id, path, "onnx"),
        params=structure.count_parameters(),
        macs=structure.count_macs(programs.per_example_symbols(program)),
        size_bytes=path.stat().st_size,
        accuracy=float((predicted == validation.labels).mean()),
        latency_p50_ms=latency.p50_ms,
        latency_p90_ms=latency.p90_ms,
        latency_p99_ms=latency.p99_ms,
        throughput=latency.throughput,
        peak_memory_bytes=measure.peak_memory(path, target, shape, str(validation.inputs.dtype)),
    )


def metrics(figures: Figures) -> dict[str, float | None]:
    """The figures under the names that every cycle and every run logs."""
    return {name: value for name, value in vars(figures).items() if name != "onnx"}
