"""The promotion journal: append-only, one entry per change of champion, each holding the digest of the one before.

Entries are artifacts `journal/000001.json`, ... of one run in the model's experiment, because an alias has no history.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tasks import tracking

INTENT = "secateur.intent"


@dataclass(frozen=True)
class Entry:
    """One change of what serves. `evidence` is the digest of the verdict; `previous` the digest of the entry before."""

    number: int
    when: str
    who: str
    action: str  # promote or rollback
    from_version: str | None
    to_version: str
    reason: str
    evidence: str
    previous: str
    digest: str


def entries(model: str) -> list[Entry]:
    """The whole journal, oldest first."""
    client = tracking.client()
    experiment = client.get_experiment_by_name(tracking.experiment_name(model))
    run_id = experiment and tracking.find_run(experiment.experiment_id, _key(model))
    if not run_id:
        return []
    names = sorted(Path(entry.path).name for entry in client.list_artifacts(run_id, "journal"))
    found = (tracking.get_json(run_id, f"journal/{name}") for name in names)
    return [Entry(**entry) for entry in found if entry is not None]


def append(
    model: str, *, who: str, action: str, from_version: str | None, to_version: str, reason: str, evidence: str
) -> Entry:
    """Write the next entry."""
    before = entries(model)
    content = {
        "number": len(before) + 1,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": who,
        "action": action,
        "from_version": from_version,
        "to_version": to_version,
        "reason": reason,
        "evidence": evidence,
        "previous": before[-1].digest if before else "",
    }
    entry = Entry(**content, digest=tracking.digest(content))  # type: ignore[arg-type]
    tracking.put_json(_run(model), f"journal/{entry.number:06d}.json", asdict(entry))
    return entry


def announce(model: str, request: str, version: str) -> None:
    """Note what is about to be done, so that the same request, made again after a crash, is finished and not redone."""
    tracking.client().set_tag(_run(model), INTENT, json.dumps({"request": request, "version": version}))


def announced(model: str, request: str) -> str | None:
    """The version that an unfinished request of the same words was for, or None."""
    intent = json.loads(tracking.client().get_run(_run(model)).data.tags.get(INTENT, "{}"))
    return intent.get("version") if intent.get("request") == request else None


def settle(model: str) -> None:
    """Forget the announcement: it is done."""
    tracking.client().set_tag(_run(model), INTENT, "{}")


def _key(model: str) -> str:
    return f"journal:{model}"


def _run(model: str) -> str:
    return tracking.find_or_create_run(
        tracking.experiment_of(model), _key(model), "promotion journal", {"secateur.kind": "journal"}
    )
