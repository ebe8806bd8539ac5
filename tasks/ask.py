"""Puts a verdict before a person, where the recipe wants that."""

from __future__ import annotations

import os

from tasks.recipe import Recipe
from tasks.references import GateResult, Pinned, Question


def run(pinned: Pinned, verdict: GateResult) -> list[Question]:
    """One question, or none where the verdict is nobody's to decide."""
    approval = Recipe.model_validate(pinned.recipe).approval
    if approval is None or verdict.outcome not in approval.verdicts:
        return []
    subject = (
        f"Promote {pinned.model} version {pinned.version}, pruned by recipe {pinned.recipe_name}? ({verdict.outcome})"
    )
    return [Question(subject, _report(pinned, verdict), approval.users, approval.hours)]


def _report(pinned: Pinned, verdict: GateResult) -> str:
    """What one needs to decide, as Markdown."""
    rules = "\n".join(f"- **{rule.outcome}**: {rule.sentence}" for rule in verdict.rules)
    address = os.environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    run = f"{address}/#/experiments/{pinned.experiment_id}/runs/{pinned.run_id}"
    where = f"[the run in MLflow]({run})" if address.startswith("http") else f"MLflow run {pinned.run_id}"
    return (
        f"The gate says **{verdict.outcome}** of `{verdict.ships}`:\n\n{rules}\n\n"
        f"Evidence: `gate/verdict.json` of {where}, digest `{verdict.evidence[:12]}`.\n"
    )
