"""Chooses the cycle that goes on, on validation data alone."""

from __future__ import annotations

from secateur import planner
from secateur.errors import InputError, NothingToDo
from tasks import goals, tracking
from tasks.recipe import Recipe
from tasks.references import Baseline, Cycle, Pinned, Plan, Selected


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline, plan: Plan, cycles: list[Cycle | None]) -> Selected:
    """The fastest cycle within the accuracy budget; if none is, the most accurate one, which the gate will judge.

    Zeros may buy no time: of cycles that make some, the nearest to the goal goes on, for what their times differ by is noise.

    Raises:
        NothingToDo: the plan is not to prune.
    """
    recipe, why = Recipe.model_validate(pinned.recipe), plan.reasons[0].because
    if plan.method == planner.NONE:
        raise NothingToDo(f"not pruned: {why}")
    if plan.method == planner.QUANTIZE:
        return _selected(pinned, None, f"INT8 of the dense model: {why}")
    done = [cycle for cycle in cycles if cycle is not None]
    if not done:
        raise InputError("cycles: expected at least one finished cycle, got none")
    if recipe.trial and recipe.trial.short:
        best = done[-1]
        reason = f"cycle {best.cycle}: the last; a rung takes every candidate as far as it goes, its recovery goes on in the next"
        return _selected(pinned, best, f"{reason}; {_of_goal(recipe, baseline, done, best)}")
    within = [cycle for cycle in done if cycle.accuracy_delta >= -recipe.budget.accuracy_drop]
    if within:
        if plan.method in ("unstructured", "n_m"):
            best, title = max(within, key=lambda cycle: goals.reached(recipe.goal, baseline.figures, cycle)), "furthest"
        else:
            best, title = max(within, key=lambda cycle: (cycle.speedup, cycle.sparsity)), "fastest"
        reason = f"cycle {best.cycle}: the {title} of {len(within)} within {recipe.budget.accuracy_drop:g} of the dense {pinned.metric}"
    else:
        best = max(done, key=lambda cycle: cycle.accuracy_delta)
        reason = f"cycle {best.cycle}: none is within {recipe.budget.accuracy_drop:g} of the dense {pinned.metric}, this is the nearest"
    return _selected(pinned, best, f"{reason}; {_of_goal(recipe, baseline, done, best)}")


def _selected(pinned: Pinned, cycle: Cycle | None, reason: str) -> Selected:
    print(reason, flush=True)
    tracking.log(pinned.run_id, {}, selected=reason)
    return Selected(cycle, reason)


def _of_goal(recipe: Recipe, baseline: Baseline, done: list[Cycle], best: Cycle) -> str:
    """Whether the goal is reached, and if not, what stands in its way."""
    wanted = goals.wanted(recipe.goal, baseline.figures)
    reached = goals.reached(recipe.goal, baseline.figures, best)
    if reached >= goals.NEAR * wanted:
        return f"goal {recipe.goal} is reached ({reached:.2f}x)"
    broken = next((cycle for cycle in done if cycle.accuracy_delta < -recipe.budget.accuracy_drop), None)
    if broken:
        why = (
            f"cycle {broken.cycle} lost {-broken.accuracy_delta:.4f}; more recovery or a larger budget may get further"
        )
    else:
        why = "what may be cut gives no more on this target; more kinds, a lower floor or a smaller alignment may get further"
    return f"goal {recipe.goal} needs {wanted:.2f}x, {reached:.2f}x is reached: {why}"
