"""The benchmark of many processes on one model, in short."""

import pytest

from benchmarks import registry as bench
from tasks import champion, journal

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("services")]


@pytest.mark.slow
def test_processes_that_change_one_model_at_random_leave_one_champion_and_a_journal_that_verifies() -> None:
    seen, watched = bench.compete("competed-for", processes=4, seconds=8, seed=0)
    assert [failure for one in (*seen, watched) for failure in one.failed] == []
    assert watched.looks > 0
    assert watched.wrong == []
    book = journal.read("competed-for")
    assert champion.findings(book) == []
    assert {entry.outcome for entry in book.entries} == {journal.DONE}
    assert len({entry.claimant for entry in book.entries}) == len(book.entries) > 1
    assert set().union(*(one.refused for one in seen)) <= {
        *("serves already", "followed from what served", "that served before", "expected a version before")
    }, "a refusal that others do not explain"


@pytest.mark.slow
def test_the_way_back_of_a_model_is_timed() -> None:
    assert 0.0 < bench.way_back("timed", megabytes=1) < 60.0
    assert [entry.to_version for entry in journal.entries("timed")] == ["1", "2", "1"]
