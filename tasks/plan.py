"""Turns the goal into a method and a schedule, and says why."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from secateur.schedules import SCHEDULES
from tasks import goals, tracking
from tasks.recipe import Budget, Recipe
from tasks.references import Baseline, Pinned, Plan

if TYPE_CHECKING:
    from secateur.gains import Gain

ONE_SHOT_BELOW = 0.3  # published boundary: one cut with one recovery does as well as several
ITERATIVE_ABOVE = 0.5  # above it several cycles with recovery in between do better
RECOVERY_SHARE = (0.1, 0.2)  # of the original training, the published range


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline) -> Plan:
    """Choose what is counted, the number of cycles and each cycle's share, and the epochs of recovery.

    Raises:
        InputError: the dense model is within the goal as it is.
    """
    from secateur import gains, machine

    recipe = Recipe.model_validate(pinned.recipe)
    goal, provider, here = recipe.goal, recipe.target.provider, machine.here()
    final = 1 - 1 / goals.wanted(goal, baseline.figures)
    count, why = cycles_for(final, recipe.prune.cycles)
    shares = tuple(SCHEDULES[recipe.prune.schedule](cycle, count, final) for cycle in range(1, count + 1))
    total, of_training = epochs_for(recipe.budget, math.ceil(pinned.examples / recipe.recovery.batch))
    epochs = tuple(total * k // count - total * (k - 1) // count for k in range(1, count + 1))
    reasons = [
        f"structured: on {provider} units that leave buy {_said(gains.gain('structured', provider, here))}",
        f"not single weights: zeros would buy {_said(gains.gain('unstructured', provider, here))}",
        why,
        f"recovery: {total} epochs over {count} cycles, {of_training}, with the dense model as teacher",
    ]
    name, _ = goal.given
    if name not in goals.COUNTED:
        reasons += _of_measured(pinned, baseline, recipe)
    if recipe.quantize.int8:
        reasons.append(
            f"INT8 of the dense and of the pruned model beside them: on {provider} it may buy {_said(gains.gain('INT8', provider, here))}"
        )
    plan = Plan(name, shares, epochs, tuple(reasons))
    tracking.put_json(pinned.run_id, "plan.json", plan)
    return plan


def _of_measured(pinned: Pinned, baseline: Baseline, recipe: Recipe) -> list[str]:
    """What is said of a goal that is measured: how it is aimed at, and whether it is within reach."""
    from secateur import branches
    from secateur import program as programs
    from secateur.pruning import Choice

    with tracking.fetched(pinned.program) as path:
        program = programs.load(path)
    most = goals.most(goals.asking(recipe.goal, baseline.latencies, program), program, Choice(**recipe.prune.choice))
    wanted = goals.wanted(recipe.goal, baseline.figures)
    by = "by the latency table" if baseline.latencies else "by what is counted"
    whole = sorted(set(recipe.prune.kinds) & set(branches.KINDS))
    dropped = f" and all {', '.join(whole)} branches dropped that may be" if whole else ""
    reach = f"with every axis at its narrowest{dropped} {by} at most {most:.2f}x"
    within = "" if wanted <= most else ", so that the goal is out of reach: the cycles go as far as they can"
    return [
        f"{recipe.goal}: {wanted:.2f}x; every cut is measured before its recovery, and aimed again until it is as wanted",
        f"{reach}{within}",
    ]


def _said(gain: Gain) -> str:
    return f"{gain.buys} ({gain.why})"


def cycles_for(share: float, asked: int | None) -> tuple[int, str]:
    """The number of cycles for a final share, and the reason."""
    if asked:
        return asked, f"{asked} cycles: set in the recipe"
    if share <= ONE_SHOT_BELOW:
        return 1, f"one-shot: {share:.0%} is at most {ONE_SHOT_BELOW:.0%}"
    if share <= ITERATIVE_ABOVE:
        return 2, f"two cycles: {share:.0%} lies between {ONE_SHOT_BELOW:.0%} and {ITERATIVE_ABOVE:.0%}"
    return 3, f"three cycles: {share:.0%} is above {ITERATIVE_ABOVE:.0%}, where recovery in between pays"


def epochs_for(budget: Budget, steps_per_epoch: int) -> tuple[int, str]:
    """The epochs of recovery over all cycles, and where their number comes from."""
    if budget.recovery_epochs:
        return budget.recovery_epochs, "set in the recipe"
    assert budget.recovery
    trained = budget.trained_epochs or (budget.trained_steps or 0) / steps_per_epoch
    total = max(1, round(budget.recovery * trained))
    published = "" if RECOVERY_SHARE[0] <= budget.recovery <= RECOVERY_SHARE[1] else ", outside the published 10 to 20%"
    return total, f"{budget.recovery:.0%} of the {trained:g} that the dense model was trained for{published}"
