"""A program as the target sees it: exported to ONNX, its metric on examples, its cost on the runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import InputError
from tasks import tracking
from tasks.recipe import Recipe
from tasks.references import Figures

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from secateur.compare import Comparison
    from secateur.data import Split
    from secateur.gate.evidence import Seen
    from secateur.objectives import Objective
    from secateur.runtime import Change, Target


def target_of(recipe: Recipe) -> Target:
    """The recipe's target as the science knows it."""
    from secateur.runtime import Target

    return Target(**recipe.target.settings)


def answers(path: Path, target: Target, split: Split, objective: Objective) -> tuple[np.ndarray, np.ndarray]:
    """What an ONNX file answers to every example of a split, and the targets: what the objective's score compares."""
    from secateur import runtime
    from secateur.objectives import answered

    return answered(objective, runtime.predict(runtime.open_session(path, target), split.columns), split.labels)


def seen(path: Path, target: Target, split: Split, objective: Objective, change: Change | None = None) -> Seen:
    """The same as evidence for the gate: what it answers, and how surely, of examples that may be changed first."""
    from secateur import runtime
    from secateur.gate import evidence

    outputs = runtime.predict(runtime.open_session(path, target), split.columns, change=change)
    return evidence.seen(objective, outputs, split.labels, split.ids, split.digest)


def compared(recipe: Recipe, target: Target, dense: Path, path: Path, split: Split) -> Comparison:
    """A file that could ship against the dense one, as the recipe asks it of a verdict's figures."""
    from secateur import compare

    return compare.compare(
        dense,
        path,
        target,
        split.columns,
        confidence=recipe.measured_with,
        until=0.01,
        budget_s=recipe.budget.measuring_s,
        seed=recipe.seed,
    )


@dataclass(frozen=True)
class Counts:
    """What is counted in a program; nothing of it is measured."""

    params: int
    macs: int
    zeros: int  # of the parameters, by a pattern that was cut
    kv_cache_bytes: int | None

    @property
    def weights(self) -> int:
        """The parameters that are left: what sparsity is counted by."""
        return self.params - self.zeros


def counts(program: ExportedProgram, lineage: Mapping[str, Any]) -> Counts:
    """Count a program, whose lineage says whether its zeros are a pattern's."""
    from secateur import program as programs
    from secateur.axes.infer import infer
    from secateur.sparsity import recorded_zeros

    structure = infer(programs.graph_module(program))
    return Counts(
        params=structure.count_parameters(),
        macs=structure.count_macs(programs.per_example_symbols(program)),
        zeros=recorded_zeros(program, lineage),
        kv_cache_bytes=structure.count_cache() or None,
    )


def measure(
    program: ExportedProgram,
    lineage: Mapping[str, Any],
    path: Path,
    run_id: str,
    validation: Split,
    recipe: Recipe,
) -> Figures:
    """Export to `path`, keep the file in the run, measure it on the recipe's target."""
    from secateur import measure, onnx_export
    from secateur.objectives import objective_of

    target, objective = target_of(recipe), objective_of(recipe.objective)
    onnx_export.export(program, path)
    counted = counts(program, lineage)
    sizes = measure.sizes(path)
    latency = measure.latency(path, target, validation.columns, fewest=requests_for(recipe))
    return Figures(
        onnx=tracking.put(run_id, path, "onnx"),
        params=counted.params,
        macs=counted.macs,
        size_bytes=sizes.file,
        gzip_bytes=sizes.gzip,
        weight_bytes=sizes.weights,
        accuracy=objective.score(*answers(path, target, validation, objective)),
        latency_p50_ms=latency.p50_ms,
        latency_p90_ms=latency.p90_ms,
        latency_p99_ms=latency.p99_ms,
        throughput=latency.throughput,
        peak_memory_bytes=measure.peak_memory(path, target, validation.columns),
        kv_cache_bytes=counted.kv_cache_bytes,
        requests_per_s=served(path, validation, recipe) if recipe.goal.qps else None,
        zeros=counted.zeros,
    )


def served(path: Path, split: Split, recipe: Recipe) -> float:
    """Requests a second within the goal's limit: the highest rate that LoadGen calls VALID.

    Raises:
        InputError: no rate keeps the limit, or the machine is too noisy to tell.
    """
    from secateur.load import rate

    assert recipe.goal.qps
    limit = recipe.goal.qps.p99_ms
    (found,) = rate.highest_rates([path], target_of(recipe), split.columns, limit, seed=recipe.seed)
    print(found, flush=True)
    if found.low is None:
        raise InputError(f"goal.qps: expected a rate that keeps the limit of {limit:g} ms, {found}")
    return found.low


def costs(path: Path, split: Split, recipe: Recipe) -> dict[str, tuple[float, float, float]]:
    """What the gate asks of a file by itself: an estimate with its interval for each; measured only where it is asked."""
    from secateur.gate.costs import costs as measured
    from secateur.load import rate
    from secateur.load.scenario import Arrivals

    asked, target = recipe.gate, target_of(recipe)
    size = path.stat().st_size / 1e6
    found = {"size_mb": (size, size, size)}
    if asked.p99_ms is not None or asked.memory_mb is not None:
        found["p99_ms"], found["memory_mb"] = measured(path, target, split.columns, recipe.measured_with)
    if asked.qps is not None:
        arrivals = Arrivals(asked.qps.rate, asked.qps.p99_ms)
        runs = rate.runs_at(path, target, split.columns, arrivals, seed=recipe.seed)
        found["qps"] = (sum(run.valid for run in runs) / len(runs),) * 3
    return found


def requests_for(recipe: Recipe) -> int:
    """How many requests a latency takes at least: with a limit on the 99th percentile, as many as give one."""
    from secateur import measure

    return measure.FOR_P99 if recipe.goal.p99_ms else measure.FEWEST


def metrics(figures: Figures, metric: str) -> dict[str, float | None]:
    """The figures under the names that every cycle and every run logs; accuracy under that of the objective's metric."""
    values = {name: value for name, value in vars(figures).items() if name != "onnx"}
    return {metric if name == "accuracy" else name: value for name, value in values.items()}
