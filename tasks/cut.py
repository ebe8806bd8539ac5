"""The surgery of one cycle: from the program that the cycle before left to a smaller one."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import NothingToDo
from tasks import sparse_learning, tracking
from tasks.recipe import Recipe
from tasks.references import Baseline, Cut, Cycle, Pinned, Plan

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from secateur.allocate import Curves, Goal
    from secateur.calibration import Batch
    from secateur.objectives import Objective
    from secateur.pruning import Report

BATCH = 32  # of calibration
CURVES = "curves.json"


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline, plan: Plan, cycle: int, previous: Cycle | None) -> Cut:
    """Cut to this cycle's share of the dense model, the first time after sparse learning where the recipe asks for it.

    Raises:
        NothingToDo: the plan has no such cycle, the goal is reached, or the cycle before broke the accuracy budget.
        InputError: the goal cannot be reached with the allowed kinds.
    """
    recipe = Recipe.model_validate(pinned.recipe)
    _stop_early(recipe, plan, cycle, previous, pinned.metric)
    from secateur import Macs, Parameters
    from secateur import program as programs

    share = aim(recipe, plan, cycle, baseline, previous)
    source = previous.program if previous else pinned.program
    now = previous.figures if previous else baseline.figures
    dense_count, count = (
        (baseline.figures.params, now.params) if plan.measure == "sparsity" else (baseline.figures.macs, now.macs)
    )
    rest = 1 - (1 - share) * dense_count / count  # of what is left
    if rest <= 0:
        raise NothingToDo(f"cycle {cycle}: {share:.1%} {plan.measure} is already gone")
    run_id = tracking.child_run(pinned, f"cycle {cycle}", cycle)
    with tracking.fetched(source) as path:
        program, lineage = programs.load(path), programs.lineage(path)
    goal = Parameters(rest) if plan.measure == "sparsity" else Macs(rest)
    record = {"cycle": cycle, "goal": str(goal), "criterion": recipe.prune.criterion, "seed": recipe.seed}
    record["objective"] = pinned.objective
    if cycle == 1 and (learning := recipe.prune.sparse_learning):
        # growing is told beforehand which units the cut will remove
        kept = (
            _cut(recipe, pinned.inputs, run_id, program, goal, "sparse_learning")[1].kept
            if learning.method == "growing"
            else None
        )
        lineage = {"origin": programs.digest(program), **lineage}
        learned = sparse_learning.learn(pinned, run_id, source, kept)
        with tracking.fetched(learned) as path:
            program = programs.load(path)
        record["sparse_learning"] = learning.model_dump()
    pruned, report = _cut(recipe, pinned.inputs, run_id, program, goal, "cut")
    print(report)
    sparsity = 1 - report.parameters_after / baseline.figures.params
    lineage = programs.descend(
        lineage | {"data": pinned.data_digest}, programs.digest(program), {**record, "kept": report.kept}
    )
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "cut.pt2"
        programs.save(pruned, path, lineage)
        file = tracking.put(run_id, path, "cut")
    tracking.put_text(run_id, str(report), "cut/report.txt")
    return Cut(cycle, run_id, file, sparsity)


def _cut(
    recipe: Recipe, names: Sequence[str], run_id: str, program: ExportedProgram, goal: Goal, folder: str
) -> tuple[ExportedProgram, Report]:
    """Prune as the recipe says; what is measured for it is kept in this folder of the cycle's run."""
    from secateur import prune
    from secateur.objectives import objective_of, plain_loss
    from secateur.pruning import Choice, needs_data

    choice = {**recipe.prune.choice, "seed": recipe.seed}
    batches = _calibration(recipe, names) if needs_data(Choice(**choice)) else ()
    by_curves = recipe.prune.allocation == "sensitivity"
    objective = objective_of(recipe.objective)
    curves = _curves(run_id, program, choice, batches, objective, folder) if by_curves else None
    return prune(program, goal=goal, calibration=batches, loss=plain_loss(objective), curves=curves, **choice)


def _calibration(recipe: Recipe, names: Sequence[str]) -> list[Batch]:
    """Examples of the training split, the same ones in every cycle."""
    import numpy as np
    import torch

    from tasks import datasets

    train = datasets.load(recipe, names).train
    chosen = np.random.default_rng(recipe.seed).permutation(len(train))[: recipe.prune.calibration]
    parts = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
    return [tuple(torch.from_numpy(array[part]) for array in (*train.columns, train.labels)) for part in parts]


def _curves(
    run_id: str,
    program: ExportedProgram,
    choice: dict[str, Any],
    batches: Sequence[Batch],
    objective: Objective,
    folder: str,
) -> Curves:
    """Sensitivity curves, kept in the cycle's run axis by axis: a killed task goes on from them."""
    from secateur import sensitivity
    from secateur.objectives import distance, plain_loss

    chosen = {name: choice[name] for name in ("kinds", "include", "exclude", "criterion", "seed")}
    with tempfile.TemporaryDirectory(prefix="secateur-") as local:
        path = Path(local) / CURVES
        if stored := tracking.get_bytes(run_id, f"{folder}/{CURVES}"):
            path.write_bytes(stored)

        def keep(axis: str, curve: dict[float, float]) -> None:
            tracking.put_bytes(run_id, path.read_bytes(), folder, CURVES)
            print(
                f"{axis}: loss {', '.join(f'{loss:.4f} at {share:.0%}' for share, loss in curve.items())}", flush=True
            )

        return sensitivity(
            program,
            calibration=batches,
            loss=plain_loss(objective),
            distance=distance(objective),
            path=path,
            on_axis=keep,
            **chosen,
        )


def _stop_early(recipe: Recipe, plan: Plan, cycle: int, previous: Cycle | None, metric: str) -> None:
    if cycle > len(plan.shares):
        raise NothingToDo(f"cycle {cycle}: the plan has {len(plan.shares)}")
    if previous and previous.accuracy_delta < -recipe.budget.accuracy_drop:
        raise NothingToDo(
            f"cycle {cycle}: cycle {previous.cycle} lost {-previous.accuracy_delta:.4f} of {metric} on validation, more than "
            f"the budget of {recipe.budget.accuracy_drop:g}"
        )
    if previous and recipe.goal.speedup and previous.speedup_low >= recipe.goal.speedup:
        raise NothingToDo(f"cycle {cycle}: {recipe.goal.speedup:g}x is reached ({previous.speedup:.2f}x measured)")


def aim(recipe: Recipe, plan: Plan, cycle: int, baseline: Baseline, previous: Cycle | None) -> float:
    """The share of the dense model that is gone after this cycle.

    For a speedup the plan's share is only where the first cycle starts: from then on the measured speedup tells how much
    time a removed multiply-accumulate saves, as the exponent in speedup = (MAC ratio)^e, and the rest is shared out
    over the cycles that are left.
    """
    if not recipe.goal.speedup or not previous:
        return plan.shares[cycle - 1]
    ratio = baseline.figures.macs / previous.figures.macs
    exponent = min(max(math.log(previous.speedup) / math.log(ratio), 0.3), 1.2) if previous.speedup > 1 else 0.3
    step = (recipe.goal.speedup / previous.speedup) ** (1 / (len(plan.shares) - cycle + 1))
    return 1 - 1 / (ratio * step ** (1 / exponent))
