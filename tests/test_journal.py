"""The promotion journal: one entry per change, each bound to the one before; reading it writes nothing."""

from dataclasses import asdict

import pytest
from services import runs_of

from tasks import journal, tracking

pytestmark = pytest.mark.usefixtures("services")


def append(model: str, to: str, **changes: str) -> journal.Entry:
    """One promotion to a version."""
    content = {"who": "test", "action": "promote", "reason": "because", "evidence": f"evidence of {to}"}
    return journal.append(model, from_version=None, to_version=to, **(content | changes))


def test_entries_come_back_in_their_order_as_they_were_written() -> None:
    written = [append("diary", version) for version in ("2", "1", "3")]
    assert journal.entries("diary") == written
    assert [entry.number for entry in written] == [1, 2, 3]


def test_every_entry_holds_its_own_digest_and_that_of_the_one_before() -> None:
    for version in ("1", "2", "1"):
        append("chained", version)
    previous = ""
    for entry in journal.entries("chained"):
        content = asdict(entry)
        assert content.pop("digest") == entry.digest == tracking.digest(content)
        assert entry.previous == previous
        previous = entry.digest


def test_journals_of_two_models_are_two() -> None:
    append("one", "1")
    append("other", "7")
    assert [entry.to_version for entry in journal.entries("other")] == ["7"]


def test_reading_the_journal_of_an_unknown_model_writes_nothing() -> None:
    before = len(runs_of())
    assert journal.entries("never-heard-of-it") == []
    assert tracking.client().get_experiment_by_name("secateur/never-heard-of-it") is None
    assert len(runs_of()) == before
