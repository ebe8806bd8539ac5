"""Judges a sweep's candidate on the validation split, as the gate would on the test split, which is not for candidates."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from secateur.gate.verdict import Verdict
from tasks import gate, looks, placement, precisions, tracking
from tasks.recipe import Recipe
from tasks.references import Exported, GateResult, Pinned, RuleResult, Validated

if TYPE_CHECKING:
    from secateur.gate.judging import Asked

FOLDER, VERDICT = "trial", "trial/verdict.json"
NOT_ASKED = ("slices", "robustness", "incumbent")  # for the finalists alone: small parts of a small split prove nothing


@tracking.remembered
def run(pinned: Pinned, exported: Exported, validated: Validated) -> GateResult:
    """The recipe's bounds, each corrected for all candidates of the sweep; what was seen is kept in the run."""
    from secateur.gate import judging
    from secateur.objectives import objective_of
    from tasks import datasets

    recipe, ships = Recipe.model_validate(pinned.recipe), validated.ships
    placement.check_here(recipe.target.name)
    asked = recipe.gate.model_copy(update=dict.fromkeys(NOT_ASKED))
    recipe = recipe.model_copy(update={"gate": asked})
    validation, objective = datasets.load(recipe, pinned.inputs).validation, objective_of(recipe.objective)
    with tracking.fetched(exported.dense) as dense, tracking.fetched(exported.candidates[ships]) as path:
        paths = {"dense": dense, "pruned": path}
        evidence = gate.evidence_of(
            pinned, recipe, validation, objective, paths, validated, gate.Incumbent("not asked")
        )
    limits = _limits(recipe, precisions.of(ships))
    verdict = _of_validation(judging.verdict_on(evidence, limits, objective, validation.digest))
    gate.keep_evidence(pinned.run_id, evidence, FOLDER)
    said = {
        "verdict": verdict,
        "metric": pinned.metric,
        "validation_examples": len(validation),
        "validation_digest": validation.digest,
        "confidence": judging.confidence_of(limits),
        "files": {"dense": exported.dense, ships: exported.candidates[ships]},
        "validated": validated,
    }
    digest = tracking.put_json(pinned.run_id, VERDICT, said)
    tracking.describe(pinned.run_id, f"**{verdict.outcome}** on validation, a trial · {verdict.reason}")
    tracking.finish(pinned.run_id)
    rules = tuple(RuleResult(rule.name, rule.outcome, rule.sentence) for rule in verdict.rules)
    return GateResult(ships, verdict.outcome, verdict.reason, rules, digest, looks.NONE)


def _of_validation(verdict: Verdict) -> Verdict:
    """Its sentences, which the gate words for the test split."""

    def said(sentence: str) -> str:
        return sentence.replace("test examples", "validation examples")

    rules = tuple(replace(rule, sentence=said(rule.sentence)) for rule in verdict.rules)
    return replace(verdict, reason=said(verdict.reason), rules=rules)


def _limits(recipe: Recipe, precision: str) -> Asked:
    limits = gate.limits(recipe, looks.NONE, precision=precision)
    return replace(limits, judged=limits.candidates)
