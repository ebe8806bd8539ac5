"""Registers and publishes what the gate let through. Reads the verdict, judges nothing."""

from __future__ import annotations

from secateur.errors import NothingToDo
from tasks import tracking
from tasks.references import Exported, GateResult, Pinned, Promotion


def run(pinned: Pinned, exported: Exported, verdict: GateResult) -> Promotion:
    """Register the dense file (the first time) and the one that the verdict is on, and let that one serve.

    Not remembered like other steps: what serves may have changed since, and every part of it is repeatable.

    Raises:
        NothingToDo: the verdict is not a pass.
    """
    if verdict.outcome != "pass":
        raise NothingToDo(f"{verdict.outcome}: {verdict.reason}")
    from tasks import bucket, champion, registry, report

    model = pinned.model
    tags = {"secateur.source": f"models:/{model}/{pinned.version}", "secateur.run": pinned.run_id}
    dense = registry.register_onnx(
        model,
        pinned.run_id,
        exported.dense,
        f"Dense: ONNX of {model} version {pinned.version}.",
        {**tags, "secateur.kind": "dense", "secateur.precision": "float32"},
    )
    with tracking.fetched(exported.dense) as path:
        bucket.publish(registry.onnx_name(model), dense, path)
    kind, _, int8 = verdict.ships.partition("_")
    about = {
        "secateur.kind": kind,
        "secateur.precision": int8 or "float32",
        "secateur.recipe": pinned.recipe_name,
        "secateur.evidence": verdict.evidence,
    }
    title = kind.capitalize() + (f", {int8.upper()}" if int8 else "")
    who = f"prune_model {pinned.dag_run_id}"
    card = report.card(pinned.run_id, title, verdict, who)
    version = registry.register_onnx(model, pinned.run_id, exported.candidates[verdict.ships], card, {**tags, **about})
    promoted = champion.move(
        model, version, action="promote", reason=verdict.reason, who=who, evidence=verdict.evidence, first_from=dense
    )
    tracking.log(pinned.run_id, {}, promoted=f"models:/{registry.onnx_name(model)}/{version}")
    return promoted
