"""How often a test set has judged a model: each file that it is used on is one more chance for a file that is too bad.

Looks are parameters of one run in the model's experiment, which MLflow never changes: `<test set>/000002` names the second
file, by the digests of both. Whoever writes a number first has that look; a retry, or another job that ends in the same file,
is no second one.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from tasks import tracking
from tasks.references import File

NONE = 0  # of a verdict without a test set


def take(model: str, test_digest: str, file: File, *, by: str) -> int:
    """Note that a test set is used for a verdict on a file, and say the how-manieth file of the model that is."""
    run_id = _run(model)
    content = {"file": file.sha256, "when": datetime.now(UTC).isoformat(timespec="seconds"), "by": by}
    while file.sha256 not in (taken := _taken(run_id, test_digest)):
        tracking.write_once(run_id, _key(test_digest, len(taken) + 1), json.dumps(content))
    return taken.index(file.sha256) + 1


def _key(test_digest: str, number: int) -> str:
    return f"{test_digest}/{number:06d}"


def _taken(run_id: str, test_digest: str) -> list[str]:
    """The files that a test set was used on, in order."""
    noted = tracking.client().get_run(run_id).data.params
    return [json.loads(noted[key])["file"] for key in sorted(noted) if key.startswith(f"{test_digest}/")]


def _run(model: str) -> str:
    experiment = tracking.experiment_of(model)
    return tracking.find_or_create_run(experiment, f"looks:{model}", "looks at test sets", {"secateur.kind": "looks"})
