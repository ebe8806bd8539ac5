"""Registers and publishes what the gate let through. Reads the verdict, judges nothing."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict

from secateur.errors import NothingToDo
from tasks import precisions, tracking
from tasks.recipe import Recipe
from tasks.references import Answer, Exported, GateResult, Pinned, Promotion

LONGEST_REASON = 1000  # in the journal; the evidence has all of it


def run(
    pinned: Pinned, exported: Exported | None, verdict: GateResult | None, answers: tuple[Answer, ...] = ()
) -> Promotion:
    """Register the dense file (the first time) and the one that the verdict is on, and let that one serve.

    `answers` are a person's, to the question of `tasks.ask`. Without a file there is no verdict: the plan ended the run. Not
    remembered like other steps: every part of it is repeatable, and the journal knows whether this run has promoted.

    Raises:
        NothingToDo: the verdict is neither a pass nor approved, or the recipe wants it approved and it is not; or there is none;
            or the run is a trial.
        InputError: this run has promoted already and something else serves since, or the journal disagrees with the alias.
    """
    if pinned.trial:
        raise NothingToDo("a trial: what wins a sweep is promoted by a run of its own")
    if exported is None or verdict is None:
        raise NothingToDo("nothing was judged: the plan was not to prune")
    reason = _reason(pinned, verdict, answers)
    from tasks import bucket, champion, figures, registry, report

    model = pinned.model
    target = figures.target_of(Recipe.model_validate(pinned.recipe))
    tags = {
        registry.SOURCE: f"models:/{model}/{pinned.version}",
        "secateur.run": pinned.run_id,
        registry.TARGET: json.dumps(asdict(target)),
    }
    dense = registry.register_onnx(
        model,
        pinned.run_id,
        exported.dense,
        f"Dense: ONNX of {model} version {pinned.version}.",
        {**tags, registry.KIND: "dense", "secateur.precision": "float32"},
    )
    with tracking.fetched(exported.dense) as path:
        bucket.publish(registry.onnx_name(model), dense, path)
    kind, _, precision = verdict.ships.partition("_")
    about = {
        **tags,
        registry.KIND: kind,
        registry.DENSE: dense,
        "secateur.precision": precision or "float32",
        "secateur.recipe": pinned.recipe_name,
        "secateur.evidence": verdict.evidence,
    }
    title = precisions.spoken(verdict.ships, ", ").capitalize()
    who = f"prune_model {pinned.dag_run_id}"
    by = "; ".join([who, *(answer.sentence.rstrip(".") for answer in answers)])
    card = report.card(pinned.run_id, title, verdict, by)
    version = registry.register_onnx(model, pinned.run_id, exported.candidates[verdict.ships], card, about)
    registry.set_alias(model, registry.CHALLENGER, version)
    promoted = champion.move(
        model,
        version,
        action="promote",
        reason=_one_line(reason),
        who=who,
        evidence=verdict.evidence,
        request=who,
        first_from=dense,
    )
    registry.set_alias(model, registry.CHALLENGER, None)
    # An earlier run may have registered the same file. Not before the change: one that is refused lets nothing through.
    registry.describe(model, version, card, about)
    tracking.log(pinned.run_id, {}, promoted=f"models:/{registry.onnx_name(model)}/{version}")
    return promoted


def _one_line(reason: str) -> str:
    shown = "".join(sign if sign.isprintable() else " " for sign in reason)
    return textwrap.shorten(shown, LONGEST_REASON, placeholder=" ...")


def _reason(pinned: Pinned, verdict: GateResult, answers: tuple[Answer, ...]) -> str:
    """Why it may serve: who approved in which words, where the recipe leaves it to a person, and the gate's reason."""
    approval = Recipe.model_validate(pinned.recipe).approval
    if approval is None or verdict.outcome not in approval.verdicts:
        if verdict.outcome != "pass":
            raise NothingToDo(f"{verdict.outcome}: {verdict.reason}")
        return verdict.reason
    # An Airflow where everybody is an administrator lets everybody answer.
    named = [one for one in answers if one.responded_by_user is None or one.responded_by_user.id in approval.users]
    said = " ".join(one.sentence for one in named) or f"None of {', '.join(approval.users)} has answered."
    reason = f"{said.rstrip('.')}. {verdict.reason}"  # in this order: of what is too long, the end is cut
    if not named or not all(one.yes for one in named):
        tracking.describe(pinned.run_id, f"**{verdict.outcome}, not promoted** · {reason}")
        raise NothingToDo(f"{verdict.outcome}, not approved: {reason}")
    tracking.describe(pinned.run_id, f"**{verdict.outcome}, approved** · {reason}")
    return reason
