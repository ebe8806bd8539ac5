"""The promotion journal: one entry per change, each bound to the one before; begun by one process, ended once."""

import json
import time

import pytest
from services import Servers, runs_since, using

from secateur.errors import InputError
from tasks import journal, mirror, tracking
from tasks.journal import DONE, UNDONE, Entry, Journal

pytestmark = pytest.mark.usefixtures("services")


def begin(book: Journal, to: str, claimant: str = "this one", **changes: str) -> Journal | None:
    """Begin a promotion to a version."""
    content = {"who": "test", "action": "promote", "reason": "because", "evidence": f"evidence of {to}", "request": ""}
    return journal.claim(book, claimant, from_version=None, to_version=to, **(content | changes))


def append(model: str, to: str, outcome: str = DONE) -> Entry:
    """A promotion to a version that is begun and ended."""
    begun = begin(journal.read(model), to)
    assert begun is not None
    assert journal.end(begun, outcome)
    return journal.entries(model)[-1]


def test_entries_come_back_in_their_order_as_they_were_written() -> None:
    written = [append("diary", version) for version in ("2", "1", "3")]
    assert journal.entries("diary") == written
    assert [entry.number for entry in written] == [1, 2, 3]
    assert journal.read("diary").findings == ()


def test_every_entry_holds_its_own_digest_and_the_link_of_the_one_before_with_how_it_ended() -> None:
    for version, outcome in (("2", DONE), ("1", UNDONE), ("3", DONE)):
        append("chained", version, outcome)
    link = ""
    for entry in journal.entries("chained"):
        content = journal.written(entry)
        assert content.pop("digest") == entry.digest == tracking.digest(content)
        assert entry.previous == link
        link = entry.link
        assert link == tracking.digest([journal.written(entry), entry.outcome])


def test_journals_of_two_models_are_two() -> None:
    append("one", "1")
    append("other", "7")
    assert [entry.to_version for entry in journal.entries("other")] == ["7"]


def test_reading_the_journal_of_an_unknown_model_writes_nothing() -> None:
    started = time.time()
    assert journal.entries("never-heard-of-it") == []
    assert tracking.client().get_experiment_by_name("secateur/never-heard-of-it") is None
    assert runs_since(started) == []


def test_of_two_that_begin_the_same_entry_one_has_it_also_when_there_was_no_journal_yet() -> None:
    for before in (journal.read("contended"), None):
        book = before or journal.read("contended")
        first, second = begin(book, "1", "first"), begin(book, "2", "second")
        assert first is not None
        assert second is None
        assert journal.end(first, DONE)
    assert [entry.claimant for entry in journal.entries("contended")] == ["first", "first"]


def test_what_is_undone_is_in_the_journal_and_did_not_serve() -> None:
    append("undoing", "1")
    append("undoing", "2", UNDONE)
    book = journal.read("undoing")
    assert [entry.outcome for entry in book.entries] == [DONE, UNDONE]
    assert book.head is not None
    assert (book.head.to_version, book.served) == ("1", ("1",))


def test_an_entry_that_was_taken_over_cannot_be_ended_by_the_one_who_began_it() -> None:
    begun = begin(journal.read("taken"), "1", "slow")
    assert begun is not None
    taken = journal.take_over(begun, "quick")
    assert taken is not None
    assert journal.take_over(begun, "late") is None
    assert journal.end(begun, DONE) is None
    assert journal.end(taken, UNDONE)
    (entry,) = journal.entries("taken")
    assert (entry.claimant, entry.holder, entry.outcome) == ("slow", "quick", UNDONE)


def test_an_entry_that_is_too_long_is_refused_before_it_would_be_cut_off() -> None:
    with pytest.raises(InputError, match="reason: expected one that fits into a journal entry of 6000 characters"):
        begin(journal.read("wordy"), "1", reason="x" * 6000)
    assert journal.entries("wordy") == []


def test_a_journal_whose_run_was_deleted_is_not_taken_for_a_new_one() -> None:
    append("dropped", "1")
    tracking.client().delete_run(str(journal.read("dropped").run_id))
    with pytest.raises(
        InputError, match=r"^journal: expected the run .* of dropped, it is deleted; restore it in MLflow"
    ):
        journal.read("dropped")


@pytest.fixture(scope="module")
def parameters(servers: Servers) -> dict[str, str]:
    """A journal of four entries as MLflow keeps it."""
    with using(servers):
        for version in ("1", "2", "3", "2"):
            append("verified", version)
        return journal._parameters("verified", str(journal.read("verified").run_id))


class TestVerifying:
    """What a journal says of what was done to it."""

    @pytest.mark.parametrize(
        ("change", "sentences"),
        [
            ({}, ()),
            ({"000002": {"reason": "another"}}, ("entry 2 was altered", "entry 3 does not follow")),
            ({"000004": {"to_version": "9"}}, ("entry 4 was altered",)),
            ({"000002.1": UNDONE}, ("entry 3 does not follow",)),
            ({"000002": None}, ("entry 2 is missing", "entry 3 does not follow")),
            ({"000002": "no JSON"}, ("entry 2 cannot be read", "entry 3 does not follow")),
            ({"000003.1": None}, ("entry 3 was never ended, and others follow", "entry 4 does not follow")),
        ],
        ids=["as it was", "altered", "last altered", "outcome altered", "missing", "unreadable", "never ended"],
    )
    def test_what_was_changed_is_found(self, parameters: dict[str, str], change: dict, sentences: tuple) -> None:
        changed = dict(parameters)
        for key, value in change.items():
            changed.pop(key)
            if isinstance(value, dict):
                changed[key] = json.dumps(json.loads(parameters[key]) | value)
            elif value is not None:
                changed[key] = value
        self.says(changed, sentences)

    def test_a_changed_order_is_found(self, parameters: dict[str, str]) -> None:
        swapped = parameters | {"000002": parameters["000003"], "000003": parameters["000002"]}
        self.says(
            swapped,
            (
                *("entry 2 says that it is number 3", "entry 2 does not follow"),
                *("entry 3 says that it is number 2", "entry 3 does not follow", "entry 4 does not follow"),
            ),
        )

    def test_an_end_that_was_cut_off_is_found_by_the_copies(self, parameters: dict[str, str]) -> None:
        whole = journal._parsed("verified", "run", parameters)
        copies = {entry.number: {"entry": journal.written(entry), "outcome": entry.outcome} for entry in whole.entries}
        assert mirror.findings(whole, copies) == []
        shorter = journal._parsed("verified", "run", {k: v for k, v in parameters.items() if k < "000004"})
        assert shorter.findings == ()
        assert mirror.findings(shorter, copies) == [
            "entry 4 is in the bucket, not in MLflow; was MLflow restored from an older backup?"
        ]
        del copies[1]
        copies[2] = {**copies[2], "outcome": UNDONE}
        assert mirror.findings(whole, copies) == ["entry 1 is not in the bucket", "entry 2 is another in the bucket"]

    def test_what_a_repair_accepted_is_no_finding_any_more_and_what_came_after_is(
        self, parameters: dict[str, str]
    ) -> None:
        altered = parameters | {"000002": json.dumps(json.loads(parameters["000002"]) | {"reason": "another"})}
        found = journal._parsed("verified", "run", altered)
        assert found.findings
        content = {
            **{name: value for name, value in journal.written(found.entries[-1]).items() if name != "digest"},
            **{"number": 5, "action": journal.REPAIR, "previous": found.link},
            **{"evidence": tracking.digest(list(found.findings))},
        }
        repaired = altered | {"000005": json.dumps({**content, "digest": tracking.digest(content)}), "000005.1": DONE}
        assert journal._parsed("verified", "run", repaired).findings == ()
        more = repaired | {"000001": json.dumps(json.loads(parameters["000001"]) | {"who": "nobody"})}
        assert journal._parsed("verified", "run", more).findings

    @staticmethod
    def says(parameters: dict[str, str], sentences: tuple[str, ...]) -> None:
        """The findings begin as the sentences do, one for one."""
        found = journal._parsed("verified", "run", parameters).findings
        assert len(found) == len(sentences), found
        assert all(one.startswith(sentence) for one, sentence in zip(found, sentences, strict=True)), found
