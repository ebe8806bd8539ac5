"""The surgery of one cycle: from the program that the cycle before left to a smaller one."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import NothingRemovedError, NothingToDo
from tasks import goals, methods, placement, sparse_learning, tracking
from tasks.methods import Made, Work
from tasks.recipe import COUNTED, Recipe
from tasks.references import Baseline, Cut, Cycle, Figures, Pinned, Plan, Selected

if TYPE_CHECKING:
    from secateur.aiming import Shot

AIMS, AIMS_BETWEEN = 4, 2  # cuts that are measured, in the last cycle and in those before
NEAR = 0.995  # of the goal: what is left is less than a cycle can be aimed by


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline, plan: Plan, cycle: int, previous: Cycle | None) -> Cut:
    """Cut to this cycle's share of the dense model, the first time after sparse learning where the recipe asks for it.

    Raises:
        NothingToDo: the plan has no such cycle, the goal is reached, or the cycle before broke the accuracy budget.
        InputError: the goal cannot be reached with the allowed kinds.
    """
    recipe = Recipe.model_validate(pinned.recipe)
    placement.check_here(recipe.target.name)
    _stop_early(recipe, baseline.figures, plan, cycle, previous, pinned.metric)
    if pinned.begun:
        return _as_it_was_left(pinned)
    from secateur import program as programs
    from secateur.pruning import Report
    from tasks import figures

    reached = goals.reached(recipe.goal, baseline.figures, previous) if previous else 1.0
    wanted = ratio_of(plan, cycle, reached)
    source = previous.program if previous else pinned.program
    run_id = tracking.child_run(pinned, f"cycle {cycle}", cycle)
    with tracking.fetched(source) as path:
        program, lineage = programs.load(path), programs.lineage(path)
    work = Work(recipe, pinned.inputs, program, lineage, baseline.latencies, run_id, "cut")
    record = {"cycle": cycle, "seed": recipe.seed, "objective": pinned.objective}
    if cycle == 1 and (learning := recipe.prune.sparse_learning):
        # growing is told beforehand which units the cut will remove
        kept = (
            methods.structured(replace(work, folder="sparse_learning"), wanted / reached).record["kept"]
            if learning.method == "growing"
            else None
        )
        lineage = {"origin": programs.digest(program), **lineage}
        learned = sparse_learning.learn(pinned, run_id, source, kept)
        with tracking.fetched(learned) as path:
            work = replace(work, program=programs.load(path), lineage=lineage)
        record["sparse_learning"] = learning.model_dump()
    if plan.measure in COUNTED or plan.method == "n_m":
        made = methods.CUTS[plan.method](work, wanted / reached)
    else:
        tries = AIMS if cycle == len(plan.shares) else AIMS_BETWEEN
        made = _aimed(pinned, baseline, work, plan.method, (reached, wanted), tries)
    print(made.report)
    lineage = programs.descend(
        lineage | {"data": pinned.data_digest}, programs.digest(work.program), {**record, **made.record}
    )
    counted = figures.counts(made.program, lineage)
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "cut.pt2"
        programs.save(made.program, path, lineage)
        file = tracking.put(run_id, path, "cut")
    tracking.put_text(run_id, str(made.report), "cut/report.txt")
    if isinstance(made.report, Report):
        widths = [
            {name: getattr(axis, name) for name in ("name", "kind", "before", "after")} for axis in made.report.axes
        ]
        tracking.put_json(run_id, "cut/widths.json", widths)
    return Cut(cycle, run_id, file, 1 - counted.weights / baseline.figures.weights)


def _as_it_was_left(pinned: Pinned) -> Cut:
    """Nothing is cut where the rung before has come to the goal: its program, with what was cut of it until then."""
    before = tracking.recalled(pinned.begun, "select", Selected)
    assert before, "the plan has seen it"
    assert before.cycle, "nor has a plan cycles that had none before"
    run_id = tracking.child_run(pinned, "cycle 1", 1)
    widths: dict[str, dict] = {}
    for number in range(1, before.cycle.cycle + 1):
        cut = tracking.recalled(pinned.begun, f"cut_{number}", Cut)
        for axis in (tracking.get_json(cut.run_id, "cut/widths.json") or ()) if cut else ():
            first = widths.get(axis["name"], axis)
            widths[axis["name"]] = {**axis, "before": first["before"]}
    tracking.put_json(run_id, "cut/widths.json", list(widths.values()))
    return Cut(1, run_id, before.cycle.program, before.cycle.sparsity)


def _aimed(
    pinned: Pinned, baseline: Baseline, work: Work, method: str, ratios: tuple[float, float], tries: int
) -> Made:
    """Cut, measure what it gives on the target, and aim again; training changes weights, not what they cost.

    `ratios` to the dense model are those that the program has reached and that is wanted.
    """
    from secateur import aiming, onnx_export
    from tasks import datasets

    validation = datasets.load(work.recipe, pinned.inputs).validation
    seen: dict[str, tuple[float, str]] = {}  # a cut that comes out the same is not measured again
    told: list[str] = []
    shots: list[Shot[Made]] = []
    reached, wanted = ratios

    def shoot(times: float) -> tuple[float, Made]:
        made = methods.CUTS[method](work, times)
        key = tracking.digest({name: value for name, value in made.record.items() if name != "goal"})
        if key not in seen:
            onnx_export.export(made.program, path)
            seen[key] = goals.measured(work.recipe, dense, path, baseline.figures, validation)
        told.append(f"wanted {wanted:.3f}x, asked {reached * times:.3f}x, measured {seen[key][1]}")
        print(told[-1], flush=True)
        return seen[key][0] / reached, made

    with (
        tracking.fetched(baseline.figures.onnx) as dense,
        tempfile.TemporaryDirectory(prefix="secateur-") as folder,
    ):
        path = Path(folder) / "cut.onnx"
        try:
            most = methods.most(work, method)
            aiming.aim(shoot, wanted / reached, most=most, tries=tries, on_shot=shots.append)
        except NothingRemovedError:  # of a smaller ask, after one that measured too much
            if not shots:
                raise
    tracking.put_text(work.run_id, "\n".join(told) + "\n", "cut/aims.txt")
    return aiming.best(shots, wanted / reached).made


def _stop_early(recipe: Recipe, dense: Figures, plan: Plan, cycle: int, previous: Cycle | None, metric: str) -> None:
    if not plan.shares:
        raise NothingToDo(f"cycle {cycle}: {plan.reasons[0].chosen}: {plan.reasons[0].because}")
    if cycle > len(plan.shares):
        raise NothingToDo(f"cycle {cycle}: the plan has {len(plan.shares)}")
    short = recipe.trial is not None and recipe.trial.short  # what a short recovery loses may come back
    if previous and previous.accuracy_delta < -recipe.budget.accuracy_drop and not short:
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
