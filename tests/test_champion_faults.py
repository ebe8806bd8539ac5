"""Servers that fail while what serves is changed: in the end it is done or not done, never half, and it was said which."""

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from services import Servers, registered_onnx
from test_champion import model_of, move, serving
from wire import Wire, wire

from secateur.errors import InputError
from tasks import bucket, champion, journal, registry

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("services", "brief"), pytest.mark.slow]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that is waited for is shorter."""
    for name, seconds in {"FORWARD_S": 3.0, "HOLD_S": 6.0, "LEASE_S": 8.0, "PATIENCE_S": 0.5, "LOOK_S": 0.1}.items():
        monkeypatch.setattr(champion, name, seconds)
    monkeypatch.setattr(bucket, "_s3", lambda: bucket._client(2, 1, bucket._settings()))
    monkeypatch.setattr(bucket, "_s3_small", lambda: bucket._client(1, 1, bucket._settings()))


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model of two versions, the first of which serves."""
    name = model_of(request)
    move(name, registered_onnx(name, 1.0))
    registered_onnx(name, 2.0)
    return name


@pytest.fixture
def s3(model: str, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The wire to the bucket."""
    with wire(servers["AWS_ENDPOINT_URL_S3"]) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", made.address)
        yield made


@pytest.fixture
def mlflow(model: str, servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """The wire to MLflow."""
    with wire(servers["MLFLOW_TRACKING_URI"]) as made:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", made.address)
        yield made


def once_begun(monkeypatch: pytest.MonkeyPatch, what: Any) -> None:
    """Let something happen right after the next entry of a journal was begun."""
    claim = journal.claim

    def claimed(*args: Any, **words: Any) -> Any:
        monkeypatch.setattr(journal, "claim", claim)
        begun = claim(*args, **words)
        what()
        return begun

    monkeypatch.setattr(journal, "claim", claimed)


def for_a_while(fault: Wire, state: str, seconds: float) -> None:
    """A fault that passes."""
    fault.become(state)
    threading.Timer(seconds, fault.become, ["whole"]).start()


@pytest.mark.parametrize("state", ["refusing", "stalling", "full"])
def test_a_bucket_that_fails_before_anything_is_begun_leaves_what_serves(model: str, s3: Wire, state: str) -> None:
    s3.become(state)
    with pytest.raises(
        champion.ChangeError, match=r"^promote of .* to version 2: not done, what serves is unchanged: "
    ):
        move(model, "2")
    s3.become("whole")
    assert serving(model) == ("1", "1", "1")
    assert len(journal.entries(model)) == 1
    assert move(model, "2").previous == "1"


def test_an_upload_that_is_dropped_half_way_is_no_version_and_is_done_again(
    model: str, s3: Wire, tmp_path: Path
) -> None:
    large = tmp_path / "large.onnx"
    large.write_bytes(np.random.default_rng(0).bytes(300_000))
    s3.become("dropping")
    with pytest.raises(Exception, match=r"(?i)connection|endpoint|closed"):
        bucket.publish(registry.onnx_name(model), "9", large)
    s3.become("whole")
    assert bucket.published(registry.onnx_name(model), "9") is None


@pytest.mark.parametrize("state", ["refusing", "stalling", "full"])
def test_a_bucket_that_fails_in_the_middle_and_comes_back_ends_done(
    model: str, s3: Wire, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_begun(monkeypatch, lambda: for_a_while(s3, state, 1.0))
    assert move(model, "2").version == "2"
    assert serving(model) == ("2", "2", "2")
    assert champion.findings(journal.read(model)) == []


def test_a_bucket_that_fails_in_the_middle_and_stays_away_is_said_and_ended_by_the_next(
    model: str, s3: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_begun(monkeypatch, lambda: s3.become("refusing"))
    with pytest.raises(champion.ChangeError, match=r"begun as entry 2 of the journal and neither done nor undone"):
        move(model, "2")
    assert registry.champion(model) == "1"
    s3.become("whole")
    began = time.monotonic()
    with pytest.raises(InputError, match="promote 1 let version 1 serve in entry 1, and version 2 serves"):
        move(model, "1")
    assert time.monotonic() < began + champion.LEASE_S, "who gave up lets the next one in at once"
    assert serving(model) == ("2", "2", "2")


@pytest.mark.parametrize("state", ["refusing", "stalling"])
def test_mlflow_that_goes_away_in_the_middle_and_comes_back_ends_done(
    model: str, mlflow: Wire, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champion, "FORWARD_S", 10.0)
    monkeypatch.setattr(champion, "HOLD_S", 15.0)
    once_begun(monkeypatch, lambda: for_a_while(mlflow, state, 2.0))
    assert move(model, "2").version == "2"
    assert serving(model) == ("2", "2", "2")


def test_mlflow_that_stays_away_is_said_and_the_next_ends_it(
    model: str, mlflow: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champion, "LEASE_S", 1.0)
    once_begun(monkeypatch, lambda: mlflow.become("refusing"))
    with pytest.raises(champion.ChangeError, match="begun as entry 2 of the journal and neither done nor undone"):
        move(model, "2")
    mlflow.become("whole")
    assert move(model, "2").version == "2"
    assert serving(model) == ("2", "2", "2")


def test_a_database_that_is_locked_for_a_while_is_waited_for(
    model: str, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(champion, "FORWARD_S", 20.0)
    monkeypatch.setattr(champion, "HOLD_S", 30.0)

    def lock() -> None:
        held = threading.Event()
        threading.Thread(target=lock_for_a_while, args=(servers, held), daemon=True).start()
        held.wait(10)

    once_begun(monkeypatch, lock)
    assert move(model, "2").version == "2"
    assert serving(model) == ("2", "2", "2")


def lock_for_a_while(servers: Servers, held: threading.Event) -> None:
    """Hold MLflow's database for three seconds."""
    database = Path(servers["SECATEUR_RECIPES"]).with_name("mlflow.db")
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as store:
        store.execute("BEGIN EXCLUSIVE")
        held.set()
        time.sleep(3)
        store.rollback()
