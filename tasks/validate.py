"""Holds every file that could be deployed against the dense one on the runtime that will serve it, and says which ships."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks import figures, goals, placement, tracking
from tasks.figures import Counts
from tasks.recipe import COUNTED, Recipe
from tasks.references import Baseline, Exported, Figures, File, Pinned, Validated

if TYPE_CHECKING:
    from secateur.batches import AtBatch
    from secateur.compare import Comparison
    from secateur.data import Split


@dataclass(frozen=True)
class Candidate:
    """A file that could ship, held against the dense one."""

    compared: Comparison
    accuracy: float  # on validation
    size_bytes: int
    counted: Counts
    share_of_goal: float  # its ratio to the dense one over the ratio that is wanted

    @property
    def reaches(self) -> bool:
        """Whether that is taken for the goal."""
        return self.share_of_goal >= goals.NEAR


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline, exported: Exported) -> Validated:
    """Speedup of alternating measurements with its interval, realised beside theoretical, and ONNX against torch.

    What ships is chosen on validation alone: `choose`.
    """
    from tasks import datasets

    recipe = Recipe.model_validate(pinned.recipe)
    placement.check_here(recipe.target.name)
    validation = datasets.load(recipe, pinned.inputs).validation
    counts = _counts(baseline.figures, exported)
    found: dict[str, Candidate] = {}
    with tracking.fetched(exported.dense) as dense:
        for name, file in exported.candidates.items():
            with tracking.fetched(file) as path:
                found[name] = _measured(
                    recipe, baseline.figures, dense, path, validation, counts[name.partition("_")[0]]
                )
            print(f"{name}: {found[name].compared.inconclusive or found[name].compared}", flush=True)
        size = dense.stat().st_size
        _explain(pinned, exported, dense, validation)
    ships, reason = choose(found, baseline.figures.accuracy, recipe.budget.accuracy_drop, pinned.metric)
    print(reason, flush=True)
    shipped = found[ships]
    compared = shipped.compared
    with tracking.fetched(exported.candidates[ships]) as path:
        costs = figures.costs(path, validation, recipe)
        others = _at_other_sizes(recipe, exported.dense, path, validation)
    _keep(pinned, recipe, found, others, len(validation))
    result = Validated(
        ships=ships,
        speedup=compared.speedup,
        speedup_low=compared.low,
        speedup_high=compared.high,
        confidence=compared.confidence,
        theoretical_speedup=baseline.figures.macs / shipped.counted.macs,
        parity=_parity(exported, ships, validation),
        noise=compared.inconclusive or str(compared.noise),
        costs=costs,
    )
    measured = {
        name: value for name, value in vars(result).items() if isinstance(value, float) and name != "confidence"
    }
    dense_figures = {
        **{f"dense.latency_{p}_ms": getattr(compared.first, f"{p}_ms") for p in ("p50", "p90", "p99")},
        "dense.size_bytes": size,
        "dense.params": baseline.figures.params,
        "dense.macs": baseline.figures.macs,
        f"dense.validation_{pinned.metric}": baseline.figures.accuracy,
        "sparsity": 1 - shipped.counted.weights / baseline.figures.weights,
    }
    candidates = {
        f"{name}.{what}": value for name, one in found.items() for what, value in _figures(one, pinned.metric).items()
    }
    sizes = {f"batch_{at.batch}.{name}": value for at in others for name, value in _at_size(at).items()}
    tracking.log(pinned.run_id, {**measured, **dense_figures, **candidates, **sizes}, step=exported.cycle, ships=reason)
    return result


def choose(found: dict[str, Candidate], dense_accuracy: float, drop: float, metric: str) -> tuple[str, str]:
    """The name of the candidate that ships and why.

    Of those within the accuracy budget on validation that reach the goal the fastest, by the low end of its interval; of equals
    the first. If none of them reaches it, the nearest to it; if none is within the budget, the most accurate one, which the
    gate will judge.
    """
    within = [name for name, one in found.items() if one.accuracy - dense_accuracy >= -drop]
    if not within:
        nearest = max(found, key=lambda name: found[name].accuracy)
        return (
            nearest,
            f"{nearest}: none of {', '.join(found)} is within {drop:g} of the dense {metric}, this is the nearest",
        )
    others = "" if len(found) == 1 else f", of {', '.join(found)}"
    there = [name for name in within if found[name].reaches]
    if not there:
        nearest = max(within, key=lambda name: (found[name].share_of_goal, found[name].compared.low))
        return nearest, f"{nearest}: the nearest to the goal within {drop:g} of the dense {metric}{others}"
    fastest = max(there, key=lambda name: found[name].compared.low)
    return fastest, f"{fastest}: the fastest that reaches the goal within {drop:g} of the dense {metric}{others}"


def _measured(
    recipe: Recipe, baseline: Figures, dense: Path, path: Path, validation: Split, counted: Counts
) -> Candidate:
    from secateur.objectives import objective_of

    target, objective = figures.target_of(recipe), objective_of(recipe.objective)
    compared = figures.compared(recipe, target, dense, path, validation)
    accuracy = objective.score(*figures.answers(path, target, validation, objective))
    name, _ = recipe.goal.given
    if name in COUNTED:
        reached = goals.counted(recipe.goal, baseline, counted)
    elif name == "speedup":
        reached = compared.speedup
    else:
        try:
            reached, _ = goals.measured(recipe, dense, path, baseline, validation)
        except InputError as error:  # no rate keeps the limit of a goal of requests: it may be another file that ships
            print(f"{path.name} is not known to reach {recipe.goal}: {error}", flush=True)
            reached = 0.0
    return Candidate(compared, accuracy, path.stat().st_size, counted, reached / goals.wanted(recipe.goal, baseline))


def _at_other_sizes(recipe: Recipe, dense: File, path: Path, validation: Split) -> tuple[AtBatch, ...]:
    """What ships against the dense file at the sizes that the recipe names beside the one that is judged."""
    from secateur import batches

    if not recipe.target.batches:
        return ()
    with tracking.fetched(dense) as dense_path:
        found = batches.at_batches(
            dense_path,
            path,
            figures.target_of(recipe),
            recipe.target.batches,
            validation.columns,
            confidence=recipe.measured_with,
            until=0.01,
            budget_s=recipe.budget.measuring_s,
            seed=recipe.seed,
        )
    for at in found:
        print(at, flush=True)
    return found


def _at_size(at: AtBatch) -> dict[str, float]:
    """What is logged of a size, its number before each."""
    return {
        "speedup": at.compared.speedup,
        "speedup_low": at.compared.low,
        "speedup_high": at.compared.high,
        "throughput": at.compared.second.throughput,
        "peak_memory_bytes": at.second_memory,
        "dense_throughput": at.compared.first.throughput,
        "dense_peak_memory_bytes": at.first_memory,
    }


def _keep(
    pinned: Pinned, recipe: Recipe, found: dict[str, Candidate], others: Sequence[AtBatch], examples: int
) -> None:
    """What a reader of the measurements needs beside them: the machine, the runtime, the distribution of every file's latency."""
    import onnxruntime

    from secateur import machine
    from secateur.objectives import objective_of

    latencies = {"dense": next(iter(found.values())).compared.first}
    latencies |= {name: one.compared.second for name, one in found.items()}
    measured = {
        "machine": machine.here(),
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "validation_examples": examples,
        "right_or_wrong": objective_of(recipe.objective).right_or_wrong,
        "latencies": latencies,
        "batches": [{"batch": at.batch, **_at_size(at)} for at in others],
    }
    tracking.put_json(pinned.run_id, "validate/measured.json", measured)


def _figures(one: Candidate, metric: str) -> dict[str, float | None]:
    """What is logged of a candidate, its name before each."""
    return {
        "speedup": one.compared.speedup,
        "speedup_low": one.compared.low,
        "speedup_high": one.compared.high,
        **{f"latency_{p}_ms": getattr(one.compared.second, f"{p}_ms") for p in ("p50", "p90", "p99")},
        "share_of_goal": one.share_of_goal,
        "size_bytes": one.size_bytes,
        "params": one.counted.params,
        "macs": one.counted.macs,
        "zeros": one.counted.zeros or None,
        f"validation_{metric}": one.accuracy,
    }


def _explain(pinned: Pinned, exported: Exported, dense: Path, validation: Split) -> None:
    """Say node by node where the pruned file is slower than its work promised, where the runtime tells the time of a node."""
    from secateur.explain import difference
    from secateur.runtime import CPU

    target = figures.target_of(Recipe.model_validate(pinned.recipe))
    if target.provider != CPU or exported.pruned is None:
        return
    with tracking.fetched(exported.pruned) as path:
        seen = difference.explain(dense, path, target, validation.columns, budget_s=1.0)
    print(seen, flush=True)
    tracking.put_text(pinned.run_id, str(seen), "validate/explained.txt")
    ratios = {"bytes_ratio": seen.ratios["bytes"], "roofline_speedup": seen.ratios["roofline"]}
    tracking.log(pinned.run_id, {**ratios, "kernels_speedup": seen.ratios["measured"]}, step=exported.cycle)


def _counts(dense: Figures, exported: Exported) -> dict[str, Counts]:
    """What is counted in the dense program and in the pruned one, where there is one."""
    from secateur import program as programs

    counted = {"dense": Counts(dense.params, dense.macs, dense.zeros, dense.kv_cache_bytes)}
    if exported.program is not None:
        with tracking.fetched(exported.program) as path:
            counted["pruned"] = figures.counts(programs.load(path), programs.lineage(path))
    return counted


def _parity(exported: Exported, ships: str, validation: Split) -> float:
    """Of the float32 file that ships, or that what ships was made from, with its program."""
    from secateur import onnx_export
    from secateur import program as programs

    converted = exported.converted.get(ships)
    program, file = (converted.program, converted.onnx) if converted else (exported.program, exported.pruned)
    assert program is not None
    assert file is not None
    with tracking.fetched(program) as program_path, tracking.fetched(file) as path:
        return onnx_export.parity(programs.load(program_path), path, validation.columns).worst
