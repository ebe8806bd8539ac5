"""What a recipe's goal means: how far a program is from it, and what an allocation is asked on the way there.

Every goal is a ratio, of the dense model to what is left: of what the goal counts, or of what is measured for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks import figures, tracking
from tasks.figures import Counts
from tasks.recipe import COUNTED, Goal, Recipe
from tasks.references import Cycle, Figures, File

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from secateur import allocate
    from secateur.data import Split
    from secateur.pruning import Choice

NEAR = 0.95  # of a goal is taken for it: a cut goes by whole units
TIMES = ("speedup", "p99_ms", "qps")
COUNTS: Mapping[str, Callable[[Figures | Counts], float | None]] = {  # what a goal counts, the less the better
    "sparsity": lambda seen: seen.weights,
    "macs": lambda seen: seen.macs,
    "kv_cache": lambda seen: seen.kv_cache_bytes,
}
COSTS: Mapping[str, Callable[[Figures], float | None]] = {
    **COUNTS,
    "p99_ms": lambda seen: seen.latency_p99_ms,
    "qps": lambda seen: 1 / seen.requests_per_s if seen.requests_per_s else None,  # seconds of a request
    "size_mb": lambda seen: seen.size_bytes / 1e6,
    "memory_mb": lambda seen: seen.peak_memory_bytes / 1e6,
}


def wanted(goal: Goal, dense: Figures) -> float:
    """The ratio that reaches the goal; at most 1 where the dense model is within it as it is.

    Raises:
        InputError: the goal is nothing that this model has.
    """
    name, value = goal.given
    if name == "kv_cache" and not dense.kv_cache_bytes:
        raise InputError("goal.kv_cache: expected a model with attention, this one has none; choose another goal")
    if name in COUNTED:
        return 1 / (1 - value)
    if name == "speedup":
        return value
    now = COSTS[name](dense)
    assert now, "the baseline measures what the goal counts"
    return now * value if name == "qps" else now / value


def reached(goal: Goal, dense: Figures, cycle: Cycle) -> float:
    """The ratio that a cycle has reached."""
    name, _ = goal.given
    if name == "speedup":
        return cycle.speedup
    return _over(COSTS[name](dense), COSTS[name](cycle.figures))


def counted(goal: Goal, dense: Figures, seen: Counts) -> float:
    """The ratio that a program reaches of a goal that follows from it alone."""
    count = COUNTS[goal.given[0]]
    return _over(count(dense), count(seen))


def _over(before: float | None, now: float | None) -> float:
    assert before, "the baseline has what the goal counts"
    assert now, "so has what came of it"
    return before / now


def measured(recipe: Recipe, dense_path: Path, path: Path, dense: Figures, split: Split) -> tuple[float, str]:
    """The ratio that an ONNX file reaches, measured as its goal is, and how that reads."""
    from secateur import compare, measure

    target, (name, _) = figures.target_of(recipe), recipe.goal.given
    if name == "speedup":
        seen = compare.compare(
            dense_path, path, target, split.columns, until=0.01, budget_s=recipe.budget.on_the_way_s, seed=recipe.seed
        )
        return seen.speedup, str(seen)
    if name == "p99_ms":
        p99 = measure.latency(path, target, split.columns, fewest=figures.requests_for(recipe)).p99_ms
        assert p99
        return (dense.latency_p99_ms or 0.0) / p99, f"p99 {p99:.3f} ms"
    if name == "qps":
        rate = figures.served(path, split, recipe)
        return rate / (dense.requests_per_s or rate), f"{rate:,.4g} requests/s"
    if name == "size_mb":
        size = path.stat().st_size
        return dense.size_bytes / size, f"{size / 1e6:.4g} MB"
    peak = measure.peak_memory(path, target, split.columns)
    return dense.peak_memory_bytes / peak, f"{peak / 1e6:.1f} MB"


def asking(
    goal: Goal, latencies: File | None, program: ExportedProgram
) -> Callable[[float], allocate.Goal | allocate.Speedup]:
    """What an allocation is asked so that a program becomes so many times less, of what the goal counts or as near to it as can
    be told without measuring.

    Times are those of the latency table of the dense program; without one they are taken to follow the multiply-accumulates, as
    size and memory follow the parameters.
    """
    from secateur import KvCache, Macs, Parameters, Speedup

    name, _ = goal.given
    if name in TIMES and latencies:
        latency = _latency(latencies, program)
        return lambda times: Speedup(times, latency)
    if name == "kv_cache":
        return lambda times: KvCache(1 - 1 / times)
    count = Macs if name in ("macs", *TIMES) else Parameters
    return lambda times: count(1 - 1 / times)


def most(ask: Callable[[float], allocate.Goal | allocate.Speedup], program: ExportedProgram, choice: Choice) -> float:
    """How many times less can be asked for at most: every axis at its narrowest, and as many branches dropped as may be.
    Slightly less, since ratios are rounded."""
    from secateur.pruning import reachable

    return 1 / (1 - 0.999 * reachable(program, choice, ask(2.0)))


def _latency(file: File, program: ExportedProgram) -> Callable[[Mapping[str, int]], float]:
    """Seconds by the dense program's table at widths of what is left of it; what is not named is as wide as it is."""
    from secateur import branches
    from secateur import program as programs
    from secateur.axes.infer import infer
    from secateur.latency.table import LatencyTable

    with tracking.fetched(file) as path:
        table = LatencyTable.from_json(json.loads(path.read_text(encoding="utf-8")))
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    sizes = {info.name: info.size for info in structure.prunable}
    now = {name: sizes.get(name, 1) for name in table.sizes}  # a dimension of one unit is no axis any more
    # branches at one place are numbered anew when one of them is dropped, the names of their parameters stay
    kinds = {name.rpartition(":")[2] for name in table.branches}
    dense_names = {
        each.info.name: name
        for each in branches.droppable(module, structure, kinds)
        for name, parameters in table.branches.items()
        if set(parameters) & set(each.branch.tensors)
    }
    left = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    now |= {name: int(not left.isdisjoint(parameters)) for name, parameters in table.branches.items()}
    return lambda widths: table.predict(now | {dense_names.get(name, name): width for name, width in widths.items()})
