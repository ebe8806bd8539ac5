"""Changes what serves: one path for a promotion and for a rollback, every step of it repeatable."""

from __future__ import annotations

from tasks import bucket, journal, registry, tracking
from tasks.references import Promotion


def move(
    model: str, version: str, *, action: str, reason: str, who: str, evidence: str, first_from: str | None = None
) -> Promotion:
    """Let a version of `<model>-onnx` serve: publish and try it first, then alias, pointer and journal.

    Nothing moves before the file in the bucket has answered a request. Killed at any point and run again, it ends as
    it would have: publishing compares content, alias and pointer are set to the same value, and the journal is only
    written when its last entry names another version. `first_from` is what served before the journal began.
    """
    name = registry.onnx_name(model)
    with tracking.fetched(registry.onnx_file(model, version)) as path:
        uri = bucket.publish(name, version, path)
    bucket.check_serves(name, version)
    written = journal.entries(model)
    last = written[-1] if written else None
    changes = last is None or last.to_version != version
    before = first_from if last is None else last.to_version if changes else last.from_version
    registry.set_champion(model, version)
    bucket.point(name, version)
    if changes:
        entry = {"who": who, "action": action, "reason": reason, "evidence": evidence}
        journal.append(model, from_version=before, to_version=version, **entry)
    return Promotion(model, version, before, uri)
