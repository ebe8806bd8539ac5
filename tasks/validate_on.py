"""Holds the file that ships against the dense one on another target that will serve it, where that target is."""

from __future__ import annotations

import dataclasses

from tasks import figures, placement, tracking
from tasks.recipe import Recipe
from tasks.references import Exported, OnTarget, Pinned, Validated


def targets(pinned: Pinned, validated: Validated) -> list[str]:
    """The names of the recipe's other targets, in their order, now that it is known what ships."""
    del validated  # nothing is measured elsewhere before
    return [str(target.name) for target in Recipe.model_validate(pinned.recipe).also_on]


@tracking.remembered
def run(pinned: Pinned, exported: Exported, validated: Validated, target: str) -> OnTarget:
    """Speedup and metric on validation there: kernels differ from machine to machine, those of INT8 even in what they answer.

    The rules are those of the recipe's gate, asked of this target's own figures.

    Raises:
        InputError: this worker is another device, or its runtime lacks the target's provider.
    """
    from secateur import probe
    from secateur.gate import judging
    from secateur.gate.evidence import Evidence
    from secateur.gate.verdict import REPORTED
    from secateur.objectives import objective_of
    from secateur.runtime import Target
    from tasks import datasets

    placement.check_here(target)
    recipe = Recipe.model_validate(pinned.recipe)
    there = next(Target(**other.settings) for other in recipe.also_on if other.name == target)
    probe.try_provider(there.provider)
    validation, objective = datasets.load(recipe, pinned.inputs).validation, objective_of(recipe.objective)
    with tracking.fetched(exported.dense) as dense, tracking.fetched(exported.candidates[validated.ships]) as path:
        compared = figures.compared(recipe, there, dense, path, validation)
        print(f"{target}: {compared.inconclusive or compared}", flush=True)
        before, after = (figures.seen(file, there, validation, objective) for file in (dense, path))
    speedup = (compared.speedup, compared.low, compared.high)
    evidence = Evidence(objective.metric, before, after, measured={"speedup": speedup})
    asked = judging.Asked(
        confidence=recipe.gate.confidence,
        drop=recipe.budget.accuracy_drop,
        speedup=recipe.gate.speedup,
        candidates=recipe.trial.candidates if recipe.trial else 1,
        seed=recipe.seed,
    )
    rules = judging.verdict_on(evidence, asked, objective).rules
    decided = [rule for rule in rules if rule.outcome != REPORTED]
    named = tuple(dataclasses.replace(rule, name=f"{rule.name} on {target}") for rule in decided)
    found = OnTarget(target, validated.ships, *speedup, named, compared.inconclusive or str(compared.noise))
    scores = {name: objective.score(*side.pair) for name, side in {"dense": before, "pruned": after}.items()}
    logged = {f"speedup{end}": value for end, value in zip(("", "_low", "_high"), speedup, strict=True)}
    logged |= {f"{name}_validation_{pinned.metric}": score for name, score in scores.items()}
    tracking.log(pinned.run_id, {f"{target}.{name}": value for name, value in logged.items()}, step=exported.cycle)
    return found
