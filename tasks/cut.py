"""The surgery of one cycle: from the program that the cycle before left to a smaller one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import NothingRemovedError, NothingToDo
from tasks import goals, sparse_learning, tracking
from tasks.recipe import Recipe
from tasks.references import Baseline, Cut, Cycle, Figures, Pinned, Plan

if TYPE_CHECKING:
    from torch.export import ExportedProgram

    from secateur.aiming import Shot
    from secateur.allocate import Curves, Goal, Speedup
    from secateur.calibration import Batch
    from secateur.objectives import Objective
    from secateur.pruning import Report

BATCH = 32  # of calibration
AIMS, AIMS_BETWEEN = 4, 2  # cuts that are measured, in the last cycle and in those before
NEAR = 0.995  # of the goal: what is left is less than a cycle can be aimed by
CURVES = "curves.json"


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline, plan: Plan, cycle: int, previous: Cycle | None) -> Cut:
    """Cut to this cycle's share of the dense model, the first time after sparse learning where the recipe asks for it.

    Raises:
        NothingToDo: the plan has no such cycle, the goal is reached, or the cycle before broke the accuracy budget.
        InputError: the goal cannot be reached with the allowed kinds.
    """
    recipe = Recipe.model_validate(pinned.recipe)
    _stop_early(recipe, baseline.figures, plan, cycle, previous, pinned.metric)
    from secateur import program as programs

    reached = goals.reached(recipe.goal, baseline.figures, previous) if previous else 1.0
    wanted = ratio_of(plan, cycle, reached)
    source = previous.program if previous else pinned.program
    run_id = tracking.child_run(pinned, f"cycle {cycle}", cycle)
    with tracking.fetched(source) as path:
        program, lineage = programs.load(path), programs.lineage(path)
    ask = goals.asking(recipe.goal, baseline.latencies, program)
    goal = ask(wanted / reached)
    record = {"cycle": cycle, "criterion": recipe.prune.criterion, "seed": recipe.seed}
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
    if plan.measure in goals.COUNTED:
        pruned, report = _cut(recipe, pinned.inputs, run_id, program, goal, "cut")
    else:
        tries = AIMS if cycle == len(plan.shares) else AIMS_BETWEEN
        goal, pruned, report = _aimed(pinned, baseline, run_id, program, ask, (reached, wanted), tries)
    print(report)
    sparsity = 1 - report.parameters_after / baseline.figures.params
    lineage = programs.descend(
        lineage | {"data": pinned.data_digest},
        programs.digest(program),
        {**record, "goal": str(goal), "kept": report.kept},
    )
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "cut.pt2"
        programs.save(pruned, path, lineage)
        file = tracking.put(run_id, path, "cut")
    tracking.put_text(run_id, str(report), "cut/report.txt")
    widths = [{name: getattr(axis, name) for name in ("name", "kind", "before", "after")} for axis in report.axes]
    tracking.put_json(run_id, "cut/widths.json", widths)
    return Cut(cycle, run_id, file, sparsity)


def _aimed(
    pinned: Pinned,
    baseline: Baseline,
    run_id: str,
    program: ExportedProgram,
    ask: Callable[[float], Goal | Speedup],
    ratios: tuple[float, float],
    tries: int,
) -> tuple[Goal | Speedup, ExportedProgram, Report]:
    """Cut, measure what it gives on the target, and aim again; training changes weights, not what they cost.

    `ratios` to the dense model are those that the program has reached and that is wanted.
    """
    from secateur import aiming, onnx_export
    from secateur.pruning import Choice
    from tasks import datasets

    recipe = Recipe.model_validate(pinned.recipe)
    validation = datasets.load(recipe, pinned.inputs).validation
    seen: dict[str, tuple[float, str]] = {}  # a cut that comes out the same is not measured again
    told: list[str] = []
    shots: list[Shot[tuple[Goal | Speedup, ExportedProgram, Report]]] = []
    most = goals.most(ask, program, Choice(**recipe.prune.choice))
    reached, wanted = ratios

    def shoot(times: float) -> tuple[float, tuple[Goal | Speedup, ExportedProgram, Report]]:
        goal = ask(times)
        pruned, report = _cut(recipe, pinned.inputs, run_id, program, goal, "cut")
        key = tracking.digest(report.kept)
        if key not in seen:
            onnx_export.export(pruned, path)
            seen[key] = goals.measured(recipe, dense, path, baseline.figures, validation)
        told.append(f"wanted {wanted:.3f}x, asked {reached * times:.3f}x, measured {seen[key][1]}")
        print(told[-1], flush=True)
        return seen[key][0] / reached, (goal, pruned, report)

    with (
        tracking.fetched(baseline.figures.onnx) as dense,
        tempfile.TemporaryDirectory(prefix="secateur-") as folder,
    ):
        path = Path(folder) / "cut.onnx"
        try:
            aiming.aim(shoot, wanted / reached, most=most, tries=tries, on_shot=shots.append)
        except NothingRemovedError:  # of a smaller ask, after one that measured too much
            if not shots:
                raise
    tracking.put_text(run_id, "\n".join(told) + "\n", "cut/aims.txt")
    return aiming.best(shots, wanted / reached).made


def _cut(
    recipe: Recipe, names: Sequence[str], run_id: str, program: ExportedProgram, goal: Goal | Speedup, folder: str
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


def _stop_early(recipe: Recipe, dense: Figures, plan: Plan, cycle: int, previous: Cycle | None, metric: str) -> None:
    if cycle > len(plan.shares):
        raise NothingToDo(f"cycle {cycle}: the plan has {len(plan.shares)}")
    if previous and previous.accuracy_delta < -recipe.budget.accuracy_drop:
        raise NothingToDo(
            f"cycle {cycle}: cycle {previous.cycle} lost {-previous.accuracy_delta:.4f} of {metric} on validation, more than "
            f"the budget of {recipe.budget.accuracy_drop:g}"
        )
    if previous and (done := goals.reached(recipe.goal, dense, previous)) >= NEAR / (1 - plan.shares[-1]):
        raise NothingToDo(f"cycle {cycle}: {recipe.goal} is reached ({done:.2f}x)")


def ratio_of(plan: Plan, cycle: int, reached: float) -> float:
    """What the dense model over what is left shall be after this cycle: what the plan says; where the cycles before have come
    as far already, an equal part of the way that is left."""
    planned, last = (1 / (1 - share) for share in (plan.shares[cycle - 1], plan.shares[-1]))
    if reached < planned:
        return planned
    return reached * (last / reached) ** (1 / (len(plan.shares) - cycle + 1))
