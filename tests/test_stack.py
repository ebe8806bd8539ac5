"""The local stack: it heals, it gives way to others' ports, it stops what it started and nothing else."""

import contextlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from secateur.errors import InputError
from secateur.objectives import ALLOWED
from tasks import watch
from tasks.cli import airflow_api, pieces, processes, settings, stack, webhook
from tasks.cli.pieces import Piece, Stack

pytestmark = pytest.mark.alone

SLEEPER = "import time; time.sleep(600)"
PARENT_OF_SLEEPER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEPER!r}])"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The state folder of a stack of its own; whatever a test leaves running in it is stopped."""
    path = tmp_path / "stack"
    path.mkdir()
    monkeypatch.setenv(settings.STATE_VARIABLE, str(path))
    yield path.resolve()
    processes.stop(path.resolve(), grace=0.0)


@pytest.fixture
def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stack of the S3 server and one process without a port, which start in no time."""

    def two_pieces(made: Stack) -> list[Piece]:
        s3 = next(piece for piece in ALL_PIECES(made) if piece.name == "s3")
        return [s3, Piece("mlflow", (sys.executable, "-c", PARENT_OF_SLEEPER), dict(os.environ), lambda _: True)]

    monkeypatch.setattr(pieces, "pieces", two_pieces)
    with socket.socket() as probe:
        probe.bind((pieces.LOOPBACK, 0))
        unused = probe.getsockname()[1]
    monkeypatch.setattr(pieces, "DEFAULT_PORTS", dict.fromkeys(pieces.DEFAULT_PORTS, unused))
    monkeypatch.setattr(stack, "_prepare_airflow", lambda *_: None)
    return folder


ALL_PIECES = pieces.pieces


def start(folder: Path, script: str, piece: str = "s3") -> processes.Started:
    """A Python process of the stack in `folder`."""
    argv = (sys.executable, "-c", script)
    return processes.start(argv, env=os.environ, log=folder / "log", folder=folder, piece=piece)


def wait_for(condition: object, seconds: float = 10.0) -> None:
    """Wait until `condition()` is true."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_process_is_told_from_another_with_its_id(folder: Path) -> None:
    started = start(folder, SLEEPER)
    assert processes.alive(started, folder)
    assert not processes.alive(replace(started, mark="s3:another start"), folder)
    assert not processes.alive(started, folder.parent)


def test_stop_takes_the_orphans_of_a_killed_process_too(folder: Path) -> None:
    started = start(folder, PARENT_OF_SLEEPER)
    wait_for(lambda: len(processes.owned(folder)) == 2)
    os.kill(started.pid, signal.SIGKILL)
    wait_for(lambda: not processes.alive(started, folder))
    assert processes.stop(folder) == 1
    assert processes.owned(folder) == []


def test_stop_leaves_other_processes_and_other_stacks_alone(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with subprocess.Popen([sys.executable, "-c", SLEEPER]) as stranger:
        neighbour = start(other, SLEEPER)
        start(folder, SLEEPER)
        assert processes.stop(folder) == 1
        assert stranger.poll() is None
        assert processes.alive(neighbour, other)
        processes.stop(other, grace=0.0)
        stranger.kill()


def test_stop_forces_a_process_that_does_not_listen(folder: Path) -> None:
    start(folder, f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); {SLEEPER}")
    wait_for(lambda: (folder / "log").read_text() != "")
    assert processes.stop(folder, grace=0.5) == 1
    assert processes.owned(folder) == []


def test_a_taken_port_gives_way_to_the_next_free_one() -> None:
    with socket.socket() as taken:
        taken.bind((pieces.LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert pieces.free_port(port, set()) > port


def test_secrets_are_kept_and_only_their_owner_reads_them(folder: Path) -> None:
    first = pieces.credentials(folder)
    assert pieces.credentials(folder) == first
    made = Stack(folder, pieces.DEFAULT_PORTS, first)
    pieces.write_configuration(made)
    for path in (
        folder / "credentials.json",
        folder / "airflow" / "airflow.cfg",
        folder / "airflow" / "passwords.json",
    ):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_no_secret_is_on_a_command_line(folder: Path) -> None:
    made = Stack(folder, pieces.DEFAULT_PORTS, pieces.credentials(folder))
    secrets = json.loads((folder / "credentials.json").read_text()).values()
    words = " ".join(" ".join(piece.argv) for piece in pieces.pieces(made))
    assert not any(secret in words for secret in secrets)


def test_what_the_shell_says_about_another_installation_stays_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SESSION_TOKEN", "AIRFLOW__CORE__EXECUTOR", "MLFLOW_TRACKING_TOKEN", "RCLONE_VERBOSE"):
        monkeypatch.setenv(name, "theirs")
    made = Stack(folder, pieces.DEFAULT_PORTS, pieces.credentials(folder))
    for piece in pieces.pieces(made):
        assert "theirs" not in piece.env.values()


def test_up_starts_heals_and_down_stops(small: Path) -> None:
    said: list[str] = []
    stack.up(said.append)
    before = stack._read_record(small).started
    assert all(processes.alive(started, small) for started in before.values())

    stack.up(said.append)
    assert "The stack is up already." in said
    assert stack._read_record(small).started == before

    os.kill(before["s3"].pid, signal.SIGKILL)
    stack.up(said.append)
    after = stack._read_record(small).started
    assert after["mlflow"] == before["mlflow"]
    assert after["s3"] != before["s3"]
    assert stat.S_IMODE((small / "env.json").stat().st_mode) == 0o600

    assert stack.down(said.append) == 3
    assert processes.owned(small) == []
    assert not stack.is_up()


def test_up_works_when_everything_was_killed_and_the_record_is_damaged(small: Path) -> None:
    stack.up(lambda _: None)
    for process in processes.owned(small)[:2]:
        process.kill()
    (small / "processes.json").write_text("{")
    stack.up(lambda _: None)
    assert len(processes.owned(small)) == 3


def test_a_taken_port_is_said_and_another_one_used(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((pieces.LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(pieces, "DEFAULT_PORTS", dict.fromkeys(pieces.DEFAULT_PORTS, port))
        said: list[str] = []
        stack.up(said.append)
    used = urlsplit(settings.stack_environment()["AWS_ENDPOINT_URL_S3"]).port
    assert used != port
    assert f"Port {port} is taken by another program: s3 uses {used}." in said


def test_a_piece_that_dies_is_reported_with_the_end_of_its_log(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Piece(
        "s3", (sys.executable, "-c", "print('no such disk'); raise SystemExit(1)"), dict(os.environ), lambda _: False
    )
    monkeypatch.setattr(pieces, "pieces", lambda _: [broken])
    with pytest.raises(stack.StackError, match=r"(?s)s3 stopped right after its start.*s3\.log.*no such disk"):
        stack.up(lambda _: None)
    assert processes.owned(small) == []


def test_an_interrupted_job_stops_the_stack_even_when_it_is_interrupted_again(
    small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down = stack.down

    def impatient(say: stack.Say) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(os.getpid(), number)
        return down(say)

    monkeypatch.setattr(stack, "down", impatient)

    def job() -> None:
        with stack.running(lambda _: None):
            assert stack.is_up()
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        job()
    assert processes.owned(small) == []


def test_a_job_leaves_a_stack_that_was_up_before(small: Path) -> None:
    stack.up(lambda _: None)
    with stack.running(lambda _: None):
        pass
    assert stack.is_up()


def test_down_without_a_stack_says_so(folder: Path) -> None:
    said: list[str] = []
    assert stack.down(said.append) == 0
    assert said == ["The stack was not running."]


def test_settings_come_from_the_environment_before_the_stack(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=r"MLFLOW_TRACKING_URI is not set .* `make up`"):
        settings.setting("MLFLOW_TRACKING_URI")
    (folder / "env.json").write_text(json.dumps({"MLFLOW_TRACKING_URI": "http://stack"}))
    assert settings.setting("MLFLOW_TRACKING_URI") == "http://stack"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine")
    assert settings.setting("MLFLOW_TRACKING_URI") == "http://mine"


def test_tasks_may_import_what_the_caller_allows_and_learn_nothing_of_another_installation(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Stack(folder, {"airflow": 1, "mlflow": 2, "s3": 3, "serve": 4}, pieces.credentials(folder))
    monkeypatch.setenv("SECATEUR_BUCKET", "s3://of/another")
    monkeypatch.delenv(ALLOWED, raising=False)
    assert ALLOWED not in pieces.airflow_environment(made)
    monkeypatch.setenv(ALLOWED, "shop:ranking")
    environment = pieces.airflow_environment(made)
    assert environment[ALLOWED] == "shop:ranking"
    assert environment["SECATEUR_BUCKET"] == f"s3://{pieces.BUCKET}"


QUESTIONS = """
from airflow.sdk import dag, task_group
from tasks.airflow_glue import approval, step
from tasks.references import Answer, Question

def ask(hours: float) -> list[Question]:
    return [Question("Promote it?", "**inconclusive**", ("admin",), hours)] if hours else []

def tell(answers: list[Answer]) -> list[str]:
    return [answer.sentence for answer in answers]

@dag(schedule=None)
def ask_a_person():
    for case, hours in {"yes": 1.0, "no": 1.0, "late": 0.0003, "nobody": 0.0}.items():
        @task_group(group_id=case)
        def one():
            step(tell, task_id="tell", trigger_rule="none_failed")(approval(step(ask, task_id="ask")(hours)))
        one()

ask_a_person()
"""


PEOPLE = {"admin": "admin", "vera": "viewer", "uwe": "user"}


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stack's Airflow knows more than its administrator."""
    options = pieces._airflow_options

    def with_people(made: Stack) -> dict[str, dict[str, str]]:
        found = options(made)
        found["core"]["simple_auth_manager_users"] = ",".join(f"{name}:{role}" for name, role in PEOPLE.items())
        return found

    monkeypatch.setattr(pieces, "_airflow_options", with_people)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The repository with one more DAG, which asks as `prune_model` does."""
    copy = tmp_path / "repository"
    shutil.copytree(settings.REPOSITORY / "dags", copy / "dags")
    (copy / "dags" / "ask_a_person.py").write_text(QUESTIONS)
    for name in ("recipes", "secateur", "tasks"):
        (copy / name).symlink_to(settings.REPOSITORY / name)
    for module in (pieces, stack):
        monkeypatch.setattr(module, "REPOSITORY", copy)
    return copy


@pytest.mark.slow
@pytest.mark.alone  # it says within how many seconds a run starts
@pytest.mark.usefixtures("repository", "people")
def test_the_whole_stack_serves_heals_watches_asks_and_stops(folder: Path) -> None:
    said: list[str] = []
    stack.up(said.append)
    environment = settings.stack_environment()
    assert httpx.get(environment["MLFLOW_TRACKING_URI"] + "/health", trust_env=False).text == "OK"
    assert {buckets_with(environment["AWS_SECRET_ACCESS_KEY"]), buckets_with("0" * 40)} == {
        "secateur",
        "SignatureDoesNotMatch",
    }
    assert httpx.get(f"{folder_url(folder, 'serve')}/v2/health/ready", trust_env=False).json() == {
        "ready": True,
        "versions": {},
    }
    doctor = [sys.executable, "-m", "tasks.cli.app", "doctor"]
    examined = subprocess.run(doctor, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert {line.split()[0] for line in examined} == {"ok"}, examined
    with airflow_api.connect() as client:
        patch(client, "/api/v2/dags/prune_model", {"is_paused": True}).raise_for_status()  # runs wait, do no work
        looked = [airflow_api.trigger(client, "monitor_model", conf) for conf in ({}, {"model": "watched"})]
        asked = airflow_api.trigger(client, "ask_a_person", {})
        mlflow().create_registered_model("watched", tags={watch.RECIPE: "digits"})
        wait_for(lambda: watch.SEEN in mlflow().get_registered_model("watched").tags, 120)
        # the first task of a fresh Airflow waits for its API server to become ready for tasks
        wait_for(lambda: airflow_api.xcom(client, "ask_a_person", asked, "nobody.tell") is not None, 120)
        register(10)
        wait_for(lambda: airflow_api.runs(client, "prune_model"), 20)
        wait_for(lambda: len(airflow_api.runs(client, "prune_model")) >= 10, 60)
        check_what_each_may_do(folder, asked)
        # nothing serves yet: nothing to look at, which is no failure
        wait_for(
            lambda: [airflow_api.run_state(client, "monitor_model", run) for run in looked] == ["success"] * 2, 120
        )
        answers = {"yes": ("Approve", "go"), "no": ("Reject", "too slow")}
        wait_for(lambda: answered(client, asked, answers), 120)
        cases = ("yes", "no", "late", "nobody")
        told = {case: airflow_api.xcom(client, "ask_a_person", asked, f"{case}.tell") for case in cases}
        assert told == {
            "yes": ["Approved by admin: go"],
            "no": ["Rejected by admin: too slow"],
            "late": ["Nobody answered in time."],
            "nobody": [],
        }

    kill({name for name in pieces.NAMES if name.startswith("airflow")}, folder)
    register(1)  # while nobody watches
    kill(set(pieces.NAMES), folder)
    stack.up(said.append)
    assert settings.stack_environment() == environment
    with airflow_api.connect() as client:
        wait_for(lambda: len(airflow_api.runs(client, "prune_model")) >= 11, 120)
        looked = len(airflow_api.runs(client, "watch_registry"))
        webhook.ring()
        wait_for(lambda: len(airflow_api.runs(client, "watch_registry", state="success")) > looked, 60)
        ids = reversed(airflow_api.runs(client, "prune_model"))
        assert [run.split("__")[1:3] for run in ids] == [["watched", str(number)] for number in range(1, 12)]
        assert airflow_api.runs(client, "watch_registry", state="failed") == []
    stack.down(said.append)
    assert processes.owned(folder) == []
    kept = files_with(secrets_of(folder), folder)
    assert kept <= KEEPERS
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in kept} == {0o600}


def folder_url(folder: Path, server: str) -> str:
    """The address of a server of the stack in a folder."""
    return f"http://{pieces.LOOPBACK}:{json.loads((folder / 'processes.json').read_text())['ports'][server]}"


def check_what_each_may_do(folder: Path, asked: str) -> None:
    """A viewer looks, a user starts and rolls back, and only who is named in a question answers it."""
    with signed_in("vera", folder) as vera, signed_in("uwe", folder) as uwe:
        for dag in ("prune_model", "rollback_model"):
            with pytest.raises(airflow_api.AirflowError, match="takes a higher role"):
                airflow_api.trigger(vera, dag, {})
        assert airflow_api.run_state(vera, "ask_a_person", asked) == "running"
        back = airflow_api.trigger(uwe, "rollback_model", {"model": "watched", "to": "dense", "reason": "a drill"})
        wait_for(lambda: airflow_api.run_state(uwe, "rollback_model", back) == "failed", 60)  # nothing served yet
        wait_for(lambda: vera.get(question_of(asked, "yes")).is_success, 60)
        answer = {"chosen_options": ["Approve"], "params_input": {"words": "mine"}}
        for client in (vera, uwe):
            assert patch(client, question_of(asked, "yes"), answer).status_code == 403


def signed_in(name: str, folder: Path) -> httpx.Client:
    """A client of the stack's Airflow, as this person."""
    passwords = json.loads((folder / "airflow" / "passwords.json").read_text())
    url = settings.setting("SECATEUR_AIRFLOW_URL")
    return airflow_api.open_client(url, {"username": name, "password": passwords[name]})


# The only files that hold secrets, readable by their owner alone.
KEEPERS = {"credentials.json", "env.json", "airflow/airflow.cfg", "airflow/passwords.json"}


def secrets_of(folder: Path) -> list[bytes]:
    """Every secret of the stack."""
    made = json.loads((folder / "credentials.json").read_text())
    made.pop("s3_key")  # the public half of the pair
    return [secret.encode() for secret in made.values()]


def files_with(secrets: list[bytes], folder: Path) -> set[str]:
    """The files below `folder`, relative to it, that hold any of these."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "airflow.db" for path in files)
    assert any(path.suffix == ".log" for path in files)
    return {str(path.relative_to(folder)) for path in files if any(secret in path.read_bytes() for secret in secrets)}


def mlflow() -> Any:
    """A client of the stack's MLflow."""
    from mlflow import MlflowClient

    return MlflowClient(settings.setting("MLFLOW_TRACKING_URI"))


def register(count: int) -> None:
    """Register versions of the model `watched`, all at once."""
    client = mlflow()
    run = client.create_run("0").info.run_id
    with ThreadPoolExecutor(count) as pool:
        made = pool.map(lambda _: client.create_model_version("watched", f"runs:/{run}/nothing", run), range(count))
        assert len({version.version for version in made}) == count


def answered(client: httpx.Client, run: str, answers: Mapping[str, tuple[str, str]]) -> bool:
    """Answer what the run asks, as a browser does; True when it is over.

    Not at once: an answer that comes while Airflow still lays the task to rest is forgotten, and asked for again.
    """
    time.sleep(2)
    for case, (option, words) in answers.items():
        path = question_of(run, case)
        question = client.get(path)
        if question.is_success and not question.json()["response_received"]:
            answer = {"chosen_options": [option], "params_input": {"words": words}}
            patch(client, path, answer).raise_for_status()
    return airflow_api.run_state(client, "ask_a_person", run) in airflow_api.FINISHED


def patch(client: httpx.Client, path: str, body: Mapping[str, object]) -> httpx.Response:
    """Send this, once again where Airflow's SQLite was locked: its audit log and a task's result can wait for each other."""
    answer = client.patch(path, json=body)
    return client.patch(path, json=body) if answer.is_server_error else answer


def question_of(run: str, case: str) -> str:
    """The path of the question that this part of the run asks."""
    return f"/api/v2/dags/ask_a_person/dagRuns/{run}/taskInstances/{case}.approve/0/hitlDetails"


def kill(names: set[str], folder: Path) -> None:
    """Kill these pieces of the stack, with their children."""
    for process in processes.owned(folder, names):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def buckets_with(secret: str) -> str:
    """The bucket that this secret lets one see, or the refusal."""
    import boto3
    import botocore.exceptions

    environment = settings.stack_environment()
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=secret,
        region_name=environment["AWS_DEFAULT_REGION"],
    )
    try:
        return ",".join(bucket["Name"] for bucket in client.list_buckets()["Buckets"])
    except botocore.exceptions.ClientError as error:
        return error.response["Error"]["Code"]
