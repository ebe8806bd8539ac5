"""Lets an earlier version serve again."""

from __future__ import annotations

from secateur.errors import InputError
from tasks.references import Promotion


def run(model: str, to: str, reason: str, who: str) -> Promotion:
    """Go to a version of `<model>-onnx`, or to `previous`: the one that served before, by the journal.

    The request is announced before anything moves: killed at any point and run again with the same words, it is
    finished, not done a second time.

    Raises:
        InputError: no such version, no version before, no reason, or it serves already.
    """
    from tasks import champion, journal, registry, tracking

    tracking.client()
    if not reason.strip():
        raise InputError("reason: expected a sentence that says why, got none; it is written into the journal")
    now = registry.champion(model)
    if now is None:
        raise InputError(f"model: expected one with a promoted version, {model!r} has none; promote a version first")
    request = tracking.digest([to, reason, who])
    version = journal.announced(model, request) or _target(model, to, now)
    journal.announce(model, request, version)
    promotion = champion.move(model, version, action="rollback", reason=reason, who=who, evidence="")
    journal.settle(model)
    return promotion


def _target(model: str, to: str, now: str) -> str:
    """The version that is meant."""
    from tasks import journal, registry

    version = (
        _previous(model, journal.entries(model)) if to == "previous" else registry.number(registry.onnx_name(model), to)
    )
    if version == now:
        raise InputError(
            f"to: {registry.onnx_name(model)} version {version} serves already; see `secateur history {model}`"
        )
    return version


def _previous(model: str, written: list) -> str:
    last = written[-1].from_version if written else None
    if last is None:
        raise InputError(
            f"to: expected a version before the present one, the journal of {model} has none; name a version"
        )
    return last
