"""Asks the reliability gate, with the untouched test split, whether the file that ships may serve."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks import figures, tracking
from tasks.recipe import Recipe
from tasks.references import Exported, GateResult, Pinned, RuleResult, Validated

if TYPE_CHECKING:
    import numpy as np

    from secateur.gate import Answers, Rule
    from secateur.objectives import Objective


@tracking.remembered
def run(pinned: Pinned, exported: Exported, validated: Validated) -> GateResult:
    """Judge on the files themselves; the verdict and its evidence become an artifact, the reason the run's description."""
    from secateur import gate
    from secateur.objectives import objective_of
    from tasks import datasets

    recipe, ships = Recipe.model_validate(pinned.recipe), validated.ships
    shipped = exported.candidates[ships]
    test, objective = datasets.load(recipe, pinned.inputs).test, objective_of(recipe.objective)
    with tracking.fetched(exported.dense) as dense_path, tracking.fetched(shipped) as path:
        dense, seen = (figures.answers(one, figures.target_of(recipe), test, objective) for one in (dense_path, path))
    asked = recipe.gate
    verdict = gate.judge(
        [
            _metric_rule(recipe, objective, dense, seen),
            gate.speedup_rule(
                validated.speedup, validated.speedup_low, validated.speedup_high, asked.speedup, validated.confidence
            ),
            gate.parity_rule(validated.parity, asked.parity, int8=ships.endswith("_int8")),
        ]
    )
    evidence = {
        "verdict": verdict,
        "test_examples": len(test),
        "data_digest": pinned.data_digest,
        **(_lost_and_gained(dense, seen) if objective.right_or_wrong else {}),
        "files": {"dense": exported.dense, ships: shipped},
        "validated": validated,
    }
    digest = tracking.put_json(pinned.run_id, "gate/verdict.json", evidence)
    if objective.right_or_wrong:
        tracking.put_json(pinned.run_id, "gate/classes.json", _by_class(dense, seen, asked.confidence))
    scores = {"dense": objective.score(*dense), ships: objective.score(*seen)}
    logged = {f"{which}.{pinned.metric}": score for which, score in scores.items()}
    tracking.log(pinned.run_id, logged, step=exported.cycle, verdict=verdict.outcome)
    tracking.describe(pinned.run_id, f"**{verdict.outcome}** · {verdict.reason}")
    tracking.finish(pinned.run_id)
    rules = tuple(RuleResult(rule.name, rule.outcome, rule.sentence) for rule in verdict.rules)
    return GateResult(ships, verdict.outcome, verdict.reason, rules, digest)


def _metric_rule(recipe: Recipe, objective: Objective, dense: Answers, pruned: Answers) -> Rule:
    """Whether the metric fell by no more than the budget, by the interval that goes with it."""
    from secateur import gate

    drop, confidence = recipe.budget.accuracy_drop, recipe.gate.confidence
    if objective.right_or_wrong:
        return gate.accuracy_rule(_right(dense), _right(pruned), drop, confidence)
    return gate.metric_rule(objective.metric, dense, pruned, objective.score, drop, confidence, recipe.seed)


def _right(found: Answers) -> np.ndarray:
    answers, targets = found
    return answers == targets


def _lost_and_gained(dense: Answers, pruned: Answers) -> dict[str, list[int]]:
    """The positions in the test split that only the one model gets right, or only the other."""
    before, after = _right(dense), _right(pruned)
    return {"lost": (before & ~after).nonzero()[0].tolist(), "gained": (after & ~before).nonzero()[0].tolist()}


def _by_class(dense: Answers, pruned: Answers, confidence: float) -> list[dict[str, float]]:
    """Of each class of the test split how its accuracy changed, with an interval for that class alone: told, not judged."""
    import numpy as np

    from secateur import gate

    before, after, targets = _right(dense), _right(pruned), dense[1]
    found = []
    for label in np.unique(targets).tolist():
        of_class = targets == label
        one, other = before[of_class], after[of_class]
        estimate, low, high = gate.paired_difference(one, other, confidence)
        counts = {"examples": len(one), "lost": int((one & ~other).sum()), "gained": int((other & ~one).sum())}
        found.append({"label": label, **counts, "estimate": estimate, "low": low, "high": high})
    return found
