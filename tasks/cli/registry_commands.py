"""What the commands on a model's history do without Airflow: they reach MLflow and S3 themselves."""

from __future__ import annotations

import getpass
import socket
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from secateur.errors import InputError
from tasks.cli.follow import Outcome
from tasks.cli.settings import export_settings

if TYPE_CHECKING:
    from tasks.journal import Entry


@dataclass(frozen=True)
class History:
    """A model's journal, and what is wrong with it where it was verified."""

    entries: tuple[Entry, ...]
    findings: tuple[str, ...]


def history(model: str, *, verify: bool) -> History:
    """Read the journal, and with `verify` all that must agree with it."""
    from tasks import champion, journal, registry  # bring boto3, which the other commands do without

    export_settings()
    registry.check_name(model)
    book = journal.read(model)
    return History(book.entries, tuple(champion.findings(book)) if verify else ())


def as_json(seen: History) -> list[dict[str, Any]] | dict[str, Any]:
    """The entries, as ever; beside what is wrong, where something is."""
    entries = [asdict(entry) for entry in seen.entries]
    return {"entries": entries, "findings": seen.findings} if seen.findings else entries


def rollback(model: str, to: str, reason: str) -> Outcome:
    """Roll back from this process."""
    from tasks import rollback

    export_settings()
    return _done(asdict(rollback.run(model, to, reason, _who())))


def repair(model: str, reason: str | None) -> Outcome:
    """Make alias, pointer and copies agree with the journal again."""
    from tasks import champion, rollback

    if reason is None:
        raise InputError("--reason: expected why the journal is repaired, got none; it is written into the journal")
    rollback.check_words("reason", reason, rollback.LONGEST_REASON)
    export_settings()
    return _done(asdict(champion.repair(model, reason, _who())))


def _done(promotion: dict[str, Any]) -> Outcome:
    return Outcome(ending="done", dag_run_id="", airflow_url="", promotion=promotion)


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
