"""Chooses the cycle that goes on, on validation data alone."""

from __future__ import annotations

from secateur.errors import InputError
from tasks import tracking
from tasks.recipe import Recipe
from tasks.references import Baseline, Cycle, Pinned, Selected


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline, cycles: list[Cycle | None]) -> Selected:
    """The fastest cycle within the accuracy budget; if none is, the most accurate one, which the gate will judge."""
    recipe = Recipe.model_validate(pinned.recipe)
    done = [cycle for cycle in cycles if cycle is not None]
    if not done:
        raise InputError("cycles: expected at least one finished cycle, got none")
    within = [cycle for cycle in done if cycle.accuracy_delta >= -recipe.budget.accuracy_drop]
    if within:
        best = max(within, key=lambda cycle: (cycle.speedup, cycle.sparsity))
        reason = f"cycle {best.cycle}: the fastest of {len(within)} within {recipe.budget.accuracy_drop:g} of the dense {pinned.metric}"
    else:
        best = max(done, key=lambda cycle: cycle.accuracy_delta)
        reason = f"cycle {best.cycle}: none is within {recipe.budget.accuracy_drop:g} of the dense {pinned.metric}, this is the nearest"
    tracking.log(pinned.run_id, {}, selected=reason)
    return Selected(best, reason)
