"""Turns the goal into a method and a schedule, and says why: gathers what is known, and lets `secateur.planner` decide."""

from __future__ import annotations

import math
from dataclasses import replace

from secateur import planner
from secateur.errors import InputError, NothingRemovedError
from secateur.planner import Cost, Decision, Evidence, Option, Overrules, Row
from secateur.schedules import SCHEDULES
from tasks import goals, methods, precisions, tracking
from tasks.methods import Work
from tasks.recipe import COUNTED, Recipe
from tasks.references import Baseline, Pinned, Plan, Selected

EXAMPLES = 512  # of validation, at most, that a one-shot cut is judged by
SHARES = (0.5, 1.0)  # of what is wanted, that one-shot cuts are tried at


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline) -> Plan:
    """Choose the method, the number of cycles and each cycle's share, and the epochs of recovery; or not to prune.

    The reasons are an artifact of the run, with the numbers they rest on. Where nothing is to be pruned the first of them is the
    run's description, and the run ends there.

    Raises:
        InputError: the method that the recipe asks for cannot serve its goal.
    """
    recipe = Recipe.model_validate(pinned.recipe)
    plan = _next_rung(pinned, recipe) if pinned.begun else _decided(pinned, baseline, recipe)
    told = planner.table(plan.reasons)
    print(told, flush=True)
    tracking.put_json(pinned.run_id, "plan.json", plan)
    tracking.put_text(pinned.run_id, told, "plan.txt")
    if plan.method == planner.NONE:
        tracking.describe(pinned.run_id, f"**not pruned** · {plan.reasons[0].because}")
        tracking.finish(pinned.run_id)
    return plan


def _decided(pinned: Pinned, baseline: Baseline, recipe: Recipe) -> Plan:
    seen = _evidence(pinned, baseline, recipe)
    decision = planner.decide(seen, _overrules(recipe))
    rows = (*decision.rows, *_more(recipe, seen, decision))
    count, total = decision.cycles, decision.epochs
    shares = tuple(SCHEDULES[recipe.prune.schedule](cycle, count, seen.share) for cycle in range(1, count + 1))
    epochs = tuple(total * k // count - total * (k - 1) // count for k in range(1, count + 1))
    trial = recipe.trial
    if trial and trial.short and epochs:
        epochs = tuple(max(1, round(trial.share * part)) for part in epochs)
        because = f"rung {trial.rung} of {trial.rungs}, a share of {trial.share:g}; what goes on has the rest later"
        rows = (*rows, Row("rung", f"{sum(epochs)} epochs", because))
    return Plan(decision.method, recipe.goal.given[0], shares, epochs, rows, total)


def _next_rung(pinned: Pinned, recipe: Recipe) -> Plan:
    """The plan of the rung before, its last cut made: what is left to do is more recovery.

    Raises:
        InputError: that rung has not ended.
    """
    before, trial = tracking.recalled(pinned.begun, "plan", Plan), recipe.trial
    if before is None or trial is None or tracking.recalled(pinned.begun, "select", Selected) is None:
        raise InputError(
            f"recipe {pinned.recipe_name}: expected the rung before to have ended, MLflow run {pinned.begun} has not chosen a "
            "cycle; run that first, or start the sweep again"
        )
    if not before.shares:
        return before
    done = before.done + sum(before.epochs)
    more = max(0, round(trial.share * before.budget) - done)
    because = f"rung {trial.rung} of {trial.rungs}; the rungs before have trained {done} of {before.budget}"
    rows = (*before.reasons, Row("rung", f"{more} epochs more", because))
    return replace(before, shares=before.shares[-1:], epochs=(more,), reasons=rows, done=done)


def _evidence(pinned: Pinned, baseline: Baseline, recipe: Recipe) -> Evidence:
    """What is known of the goal, the target, the methods and the budget."""
    wanted, asked, budget = goals.wanted(recipe.goal, baseline.figures), _asked(recipe)[0], recipe.budget
    steps = math.ceil(pinned.examples / recipe.recovery.batch)
    seen = Evidence(
        goal=str(recipe.goal),
        counted=recipe.goal.given[0] in COUNTED,
        wanted=wanted,
        allowed_drop=budget.accuracy_drop,
        options=(),
        int8=baseline.int8_alone,
        trained_epochs=budget.trained_epochs or (budget.trained_steps and budget.trained_steps / steps),
    )
    if wanted <= 1 or asked in (planner.NONE, planner.QUANTIZE):
        return seen
    from secateur import program as programs

    with tracking.fetched(pinned.program) as path:
        program, lineage = programs.load(path), programs.lineage(path)
    prune = recipe.prune
    if prune.allocation == "sensitivity":  # whose curves take as long as a cut's recovery
        prune = prune.model_copy(update={"allocation": "uniform"})
    work = Work(
        recipe.model_copy(update={"prune": prune}),
        pinned.inputs,
        program,
        lineage,
        baseline.latencies,
        pinned.run_id,
        "plan",
    )
    return replace(seen, options=tuple(_option(work, method, asked, wanted) for method in planner.PREFERRED))


def _option(work: Work, method: str, asked: str | None, wanted: float) -> Option:
    """A method on this target; if it is asked for or may be chosen, how far it can go and what that costs."""
    gain = methods.gain_of(work.recipe, method)
    option = Option(method, gain.buys, gain.why, misfit=methods.misfit(work.recipe, method, gain))
    if option.misfit or (method != asked if asked else not planner.serves(option)):
        return option
    try:
        reach = methods.most(work, method)
    except InputError as error:
        return replace(option, misfit=str(error))
    return replace(option, reach=reach, costs=_costs(work, method, min(wanted, reach)) if reach > 1 else ())


def _costs(work: Work, method: str, times: float) -> tuple[Cost, ...]:
    """What one-shot cuts of so many times less, and of half that share, cost before any recovery."""
    import numpy as np

    from secateur import curves
    from secateur.objectives import objective_of
    from tasks import datasets

    recipe, objective = work.recipe, objective_of(work.recipe.objective)
    split = datasets.load(recipe, work.names).validation
    split = split.take(np.sort(np.random.default_rng(recipe.seed).permutation(len(split))[:EXAMPLES]))
    dense = curves.answers_of(work.program, split, objective)
    costs = []
    for part in (1.0,) if method == "n_m" else SHARES:
        share = part * (1 - 1 / times)
        try:
            made = methods.CUTS[method](work, 1 / (1 - share))
        except NothingRemovedError:
            continue
        cut = curves.answers_of(made.program, split, objective)
        costs.append(curves.lost(share, dense, cut, objective, recipe.gate.confidence, recipe.seed))
        print(f"{method}, one-shot, loses of {objective.metric}: {costs[-1]}", flush=True)
    return tuple(costs)


def _asked(recipe: Recipe) -> tuple[str | None, str]:
    """The method that the recipe asks for, if it does, and the setting that says so."""
    if recipe.prune.method != "auto":
        return recipe.prune.method, "prune.method"
    return ("structured", "prune.sparse_learning") if recipe.prune.sparse_learning else (None, "")


def _overrules(recipe: Recipe) -> Overrules:
    method, by = _asked(recipe)
    budget = recipe.budget
    return Overrules(method, by, recipe.prune.cycles, budget.recovery_epochs, budget.recovery)


def _more(recipe: Recipe, seen: Evidence, decision: Decision) -> list[Row]:
    """What the plan entails beside the choices."""
    if decision.method in (planner.NONE, planner.QUANTIZE):
        return []
    rows = []
    if not seen.counted and decision.method != "n_m":
        because = "every cut is measured before its recovery, and aimed again until it is as wanted"
        rows.append(Row("aim", str(recipe.goal), because, f"{seen.wanted:.2f}x"))
    for precision, row in precisions.ROWS.items():
        if getattr(recipe.quantize, precision):
            gain = methods.gain_of(recipe, row)
            because = f"of the dense and of the pruned model; it may buy {gain.buys} ({gain.why})"
            rows.append(Row("beside", precision.upper(), because))
    return rows
