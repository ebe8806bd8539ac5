"""Registers and publishes what the gate let through. Reads the verdict, judges nothing."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict

from secateur.errors import NothingToDo
from tasks import tracking
from tasks.references import Exported, GateResult, Pinned, Promotion

LONGEST_REASON = 1000  # in the journal; the evidence has all of it


def run(pinned: Pinned, exported: Exported, verdict: GateResult) -> Promotion:
    """Register the dense file (the first time) and the one that the verdict is on, and let that one serve.

    Not remembered like other steps: every part of it is repeatable, and the journal knows whether this run has promoted.

    Raises:
        NothingToDo: the verdict is not a pass.
        InputError: this run has promoted already and something else serves since, or the journal disagrees with the alias.
    """
    if verdict.outcome != "pass":
        raise NothingToDo(f"{verdict.outcome}: {verdict.reason}")
    from tasks import bucket, champion, figures, registry
    from tasks.recipe import Recipe

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
    kind, _, int8 = verdict.ships.partition("_")
    about = {
        registry.KIND: kind,
        "secateur.precision": int8 or "float32",
        "secateur.recipe": pinned.recipe_name,
        "secateur.evidence": verdict.evidence,
    }
    title = kind.capitalize() + (f", {int8.upper()}" if int8 else "")
    version = registry.register_onnx(
        model, pinned.run_id, exported.candidates[verdict.ships], f"{title}. {verdict.reason}", {**tags, **about}
    )
    registry.set_alias(model, registry.CHALLENGER, version)
    who = f"prune_model {pinned.dag_run_id}"
    promoted = champion.move(
        model,
        version,
        action="promote",
        reason=textwrap.shorten(verdict.reason, LONGEST_REASON, placeholder=" ..."),
        who=who,
        evidence=verdict.evidence,
        request=who,
        first_from=dense,
    )
    registry.set_alias(model, registry.CHALLENGER, None)
    tracking.log(pinned.run_id, {}, promoted=f"models:/{registry.onnx_name(model)}/{version}")
    return promoted
