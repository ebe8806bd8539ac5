"""How often a test set has judged a model: each file that it is used on is one more chance for a file that is too bad.

Looks are artifacts `looks/<test set>/<file>.json` of one run in the model's experiment, by the digests of both: a retry, or
another job that ends in the same file, is no second look.
"""

from __future__ import annotations

from datetime import UTC, datetime

from tasks import tracking
from tasks.references import File


def take(model: str, test_digest: str, file: File, *, by: str) -> int:
    """Note that a test set is used for a verdict on a file, and say the how-manieth file of the model that is."""
    client, run_id, folder = tracking.client(), _run(model), f"looks/{test_digest}"
    place = f"{folder}/{file.sha256}.json"
    known = tracking.get_json(run_id, place)
    if known is None:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        known = {"number": len(client.list_artifacts(run_id, folder)) + 1, "when": when, "by": by}
        tracking.put_json(run_id, place, known)
    return int(known["number"])


def _run(model: str) -> str:
    experiment = tracking.experiment_of(model)
    return tracking.find_or_create_run(experiment, f"looks:{model}", "looks at test sets", {"secateur.kind": "looks"})
