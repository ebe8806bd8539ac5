"""Asks the reliability gate, with the untouched test split, whether the exported file may serve."""

from __future__ import annotations

from tasks import figures, tracking
from tasks.recipe import Recipe
from tasks.references import Exported, GateResult, Pinned, RuleResult, Validated


@tracking.remembered
def run(pinned: Pinned, exported: Exported, validated: Validated) -> GateResult:
    """Judge on the files themselves; the verdict and its evidence become an artifact, the reason the run's description."""
    import numpy as np

    from secateur import gate, runtime
    from tasks import datasets

    recipe = Recipe.model_validate(pinned.recipe)
    test = datasets.load(recipe, pinned.inputs).test
    right = []
    for file in (exported.dense, exported.pruned):
        with tracking.fetched(file) as path:
            predicted = runtime.predict(runtime.open_session(path, figures.target_of(recipe)), test.inputs)
            right.append(predicted == test.labels)
    asked = recipe.gate
    verdict = gate.judge(
        [
            gate.accuracy_rule(right[0], right[1], recipe.budget.accuracy_drop, asked.confidence),
            gate.speedup_rule(
                validated.speedup, validated.speedup_low, validated.speedup_high, asked.speedup, validated.confidence
            ),
            gate.parity_rule(validated.parity, asked.parity),
        ]
    )
    evidence = {
        "verdict": verdict,
        "test_examples": len(test),
        "data_digest": pinned.data_digest,
        "lost": np.flatnonzero(right[0] & ~right[1]).tolist(),  # positions in the test split
        "gained": np.flatnonzero(right[1] & ~right[0]).tolist(),
        "files": {"dense": exported.dense, "pruned": exported.pruned},
        "validated": validated,
    }
    digest = tracking.put_json(pinned.run_id, "gate/verdict.json", evidence)
    accuracies = {"dense.accuracy": float(right[0].mean()), "pruned.accuracy": float(right[1].mean())}
    tracking.log(pinned.run_id, accuracies, step=exported.cycle, verdict=verdict.outcome)
    tracking.describe(pinned.run_id, f"**{verdict.outcome}** · {verdict.reason}")
    tracking.finish(pinned.run_id)
    rules = tuple(RuleResult(rule.name, rule.outcome, rule.sentence) for rule in verdict.rules)
    return GateResult(verdict.outcome, verdict.reason, rules, digest)
