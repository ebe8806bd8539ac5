"""The doctor: each thing that can be wrong with a deployment is found, with its remedy, while all else is looked at too."""

import contextlib
import importlib
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from authority import authority
from services import LOOPBACK, MODEL, Servers, free_ports, recipe_for, write_recipe
from typer.testing import CliRunner
from wire import LATE_S, wire

from tasks import placement, watch
from tasks.cli import airflow_api, doctor
from tasks.cli.app import app
from tasks.cli.doctor import (
    clocks,
    environment,
    exposure,
    machine,
    orchestration,
    queues,
    recipes,
    registry,
    storage,
)
from tasks.cli.doctor.finding import Check, Finding

REPOSITORY = Path(__file__).parents[1]
OTHER = "127.0.0.2"  # reaches this machine, and is not what servers here call themselves
FIRST_REVISION = "451aebb31d03"  # of MLflow's database


@pytest.fixture(autouse=True)
def deployment(services: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that are all well, two recipes, and nothing of another installation."""
    for name in list(os.environ):
        if name.startswith(("AIRFLOW__", "SECATEUR_AIRFLOW", "SECATEUR_PLACEMENT")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("SECATEUR_STACK_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("NO_PROXY", f"{LOOPBACK},{OTHER}")
    monkeypatch.setenv("no_proxy", f"{LOOPBACK},{OTHER}")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "recipes"
    folder.mkdir()
    monkeypatch.setenv("SECATEUR_RECIPES", str(folder))
    for name in ("one", "two"):
        write_recipe(name, recipe_for("data.npz"))


def problems(check: Check) -> list[Finding]:
    """What a check finds that is not well; every remedy says something."""
    found = [finding for finding in check() if finding.level != "ok"]
    assert all(finding.remedy and "\n" not in str(finding) for finding in found)
    return found


def only(check: Check, level: str) -> str:
    """The one thing that a check finds, of this level."""
    (found,) = problems(check)
    assert found.level == level
    return str(found)


# --- the command


def test_a_deployment_that_is_well_has_no_failure() -> None:
    done = CliRunner().invoke(app, ["doctor", "--json"], catch_exceptions=False)
    seen = [Finding(**one) for one in json.loads(done.stdout)]
    assert done.exit_code == 0
    assert [one for one in seen if one.level == "fail"] == []
    assert {"MLflow 3", "s3://mod", "2 of 2 r", "the cloc"} <= {one.what[:8] for one in seen if one.level == "ok"}


def test_one_line_for_each_finding_and_the_exit_status_says_that_something_cannot_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECATEUR_BUCKET", "s3://nowhere")
    done = CliRunner().invoke(app, ["doctor"], catch_exceptions=False)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert {line.split()[0] for line in lines} == {"ok", "warn", "fail"}
    (failed,) = (line for line in lines if line.startswith("fail"))
    assert "s3://nowhere: expected a bucket that exists" in failed
    assert failed.endswith(": create it, or correct the variable")


def test_without_any_setting_each_is_said_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "SECATEUR_BUCKET", "SECATEUR_RECIPES"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "none.pem"))
    failed = [finding.what.split()[0] for finding in doctor.examine() if finding.level == "fail"]
    assert failed == ["MLFLOW_TRACKING_URI", "SECATEUR_BUCKET:", "REQUESTS_CA_BUNDLE:"]


def test_a_check_that_fails_or_hangs_keeps_no_other_back() -> None:
    def broken() -> Iterator[Finding]:
        yield Finding("ok", "begun")
        raise KeyError("a bug")

    def hanging() -> Iterator[Finding]:
        time.sleep(60)
        yield Finding("ok", "never")

    def well() -> Iterator[Finding]:
        yield Finding("ok", "well")

    begun = time.monotonic()
    found = list(doctor.examine({"broken": broken, "hanging": hanging, "well": well}, within_s=0.2))
    assert time.monotonic() - begun < 2
    assert [one.what for one in found] == [
        "begun",
        "broken could not be checked",
        "hanging: no answer within 0.2 s",
        "well",
    ]


def test_a_check_whose_library_is_elsewhere_says_where_to_run_it() -> None:
    def absent() -> Iterator[Finding]:
        importlib.import_module("no_such_module")
        yield Finding("ok", "never")

    (found,) = doctor.examine({"bucket": absent})
    assert (found.level, found.what) == ("warn", "bucket cannot be checked here, no_such_module is not installed")
    assert "on a worker" in found.remedy


def test_servers_that_hang_do_not_hang_it(services: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire(services["MLFLOW_TRACKING_URI"]) as mlflow, wire(services["AWS_ENDPOINT_URL_S3"]) as s3:
        for one in (mlflow, s3):
            one.become("stalling")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow.address)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.address)
        begun = time.monotonic()
        found = list(doctor.examine(within_s=1.0))
        assert time.monotonic() - begun < 3
    assert {"MLflow: no answer within 1 s", "bucket: no answer within 1 s"} <= {one.what for one in found}


# --- MLflow


def test_mlflow_that_is_not_named_or_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{LOOPBACK}:{port}")
    assert f"MLflow at http://{LOOPBACK}:{port} does not answer (ConnectError" in only(registry.check, "fail")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:secret-word@{LOOPBACK}:{port}")
    found = only(registry.check, "fail")
    assert f"set MLFLOW_TRACKING_URI=http://{LOOPBACK}:{port} with MLFLOW_TRACKING_USERNAME" in found
    assert "secret-word" not in found
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert "it is not set: set MLFLOW_TRACKING_URI" in only(registry.check, "fail")


def test_mlflow_that_refuses_its_name(services: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire(services["MLFLOW_TRACKING_URI"], OTHER) as alias:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", alias.address)
        host = alias.address.removeprefix("http://")
        assert f"--allowed-hosts {host}" in only(registry.check, "fail")


def test_pickle_that_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    assert "run code" in only(registry.check, "fail")


def test_mlflow_of_another_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "version", lambda _: "3.99.0")
    assert "the client here 3.99.0: let both be of one release" in only(registry.check, "warn")


def test_a_database_of_an_older_mlflow(services: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path(services["SECATEUR_RECIPES"]).parent / "mlflow.db"
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"sqlite:///{real}")
    assert problems(registry.database) == []

    old = tmp_path / "old.db"
    with contextlib.closing(sqlite3.connect(old)) as made, made:
        made.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
        made.execute("INSERT INTO alembic_version VALUES (?)", (FIRST_REVISION,))
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"sqlite:///{old}")
    found = only(registry.database, "fail")
    assert FIRST_REVISION in found
    assert "mlflow db upgrade" in found

    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"sqlite:///{tmp_path}/none.db")
    assert "there is no file" in only(registry.database, "warn")
    assert not (tmp_path / "none.db").exists()


def test_a_database_of_mlflow_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", f"postgresql://mlflow:secret-word@{LOOPBACK}:{port}/mlflow")
    found = only(registry.database, "fail")
    assert "does not answer" in found
    assert "secret-word" not in found


# --- the bucket


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("SECATEUR_BUCKET", "s3://nowhere", "create it"),
        ("SECATEUR_BUCKET", "models", "expected an address like s3://bucket/prefix"),
        ("SECATEUR_BUCKET", "s3://No Bucket!", "correct it"),
        ("AWS_SECRET_ACCESS_KEY", "0" * 40, "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", "NOBODYNOBODYNOBODY", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("SECATEUR_BUCKET_OPTIONS", "{", "SECATEUR_BUCKET_OPTIONS: expected JSON"),
    ],
)
def test_a_bucket_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str) -> None:
    monkeypatch.setenv(variable, value)
    assert said in only(storage.check, "fail")


def test_a_bucket_that_is_away_full_or_not_ours(services: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire(services["AWS_ENDPOINT_URL_S3"]) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.address)
        assert problems(storage.check) == []
        said = {"read-only": "s3:PutObject", "full": "InsufficientStorage", "refusing": "S3 does not answer"}
        for state, words in said.items():
            s3.become(state)
            assert words in only(storage.check, "fail")
        s3.become("keeping")
        assert "allow s3:DeleteObject" in only(storage.check, "warn")


def test_a_bucket_without_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    assert "found none" in only(storage.check, "fail")


# --- clocks


def test_a_clock_that_is_five_minutes_late(services: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    with wire(services["AWS_ENDPOINT_URL_S3"]) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.address)
        assert problems(clocks.check) == []
        s3.become("late")
        found = only(clocks.check, "fail")
        assert any(f"S3 is {LATE_S + off} s behind" in found for off in (-1, 0, 1))
        monkeypatch.setattr(clocks, "FAIL_S", LATE_S + 5.0)
        assert "let NTP set both" in only(clocks.check, "warn")


# --- recipes, and where steps run


def test_a_recipe_that_does_not_load_and_a_folder_without_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert problems(recipes.check) == []
    write_recipe("wrong", recipe_for("data.npz", gaol={"speedup": 2.0}))
    assert "recipe wrong: gaol: unknown setting" in only(recipes.check, "fail")
    write_recipe("wrong", {"base": "one", "matrix": {"prune.criterion": ["l1", "l2"]}})
    assert problems(recipes.check) == []
    write_recipe("wrong", {"base": "one", "matrix": {"prune.criterion": ["l1"]}})
    assert "sweep wrong: expected from 2" in only(recipes.check, "fail")
    monkeypatch.setenv("SECATEUR_RECIPES", str(tmp_path / "nowhere"))
    assert "there is no recipe" in only(recipes.check, "fail")


def test_a_model_that_asks_for_a_recipe_that_is_not_there_or_for_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks import tracking

    client = tracking.client()
    client.create_registered_model("asking", tags={watch.RECIPE: "three"})
    try:
        assert "model asking asks for recipe 'three'" in only(recipes.asked_for, "fail")
        client.set_registered_model_tag("asking", watch.RECIPE, "one")
        assert f"which is for model {MODEL}" in only(recipes.asked_for, "fail")
        write_recipe("three", recipe_for("data.npz", "asking"))
        client.set_registered_model_tag("asking", watch.RECIPE, "three")
        monkeypatch.setattr(recipes, "_PAGE", 1)  # pages are followed
        client.create_registered_model("asking-too", tags={watch.RECIPE: "four"})
        assert "asks for recipe 'four'" in only(recipes.asked_for, "fail")
        client.delete_registered_model("asking-too")
        assert problems(recipes.asked_for) == []
    finally:
        client.delete_registered_model("asking")


def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Mapping[str, Any]) -> None:
    (tmp_path / "placement.yaml").write_text(yaml.safe_dump(dict(content)))
    monkeypatch.setenv(placement.VARIABLE, str(tmp_path / "placement.yaml"))


def test_a_placement_that_cannot_be_read_and_a_target_that_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places(tmp_path, monkeypatch, {"targets": {"edge-cpu": {"queue": "edge"}}})
    assert problems(recipes.placed) == []
    write_recipe("two", recipe_for("data.npz", target={"name": "edge-gpu"}))
    assert "edge-gpu" in only(recipes.check, "fail")
    places(tmp_path, monkeypatch, {"trian": {}})
    assert "trian" in only(recipes.placed, "fail")


# --- Celery


@contextlib.contextmanager
def worker(broker: str, names: str) -> Iterator[None]:
    """A Celery worker that listens on these queues; others do not hear it before it does."""
    argv = [sys.executable, "-m", "celery", "worker", "--queues", names, "--pool", "solo", "--loglevel", "INFO"]
    variables = {**os.environ, "CELERY_BROKER_URL": broker}
    process = subprocess.Popen(argv, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout
        assert any(" ready." in line for line in process.stdout)
        yield
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_celery_without_a_broker_and_with_a_wrong_password(broker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(queues.check()) == []
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    assert "AIRFLOW__CELERY__BROKER_URL is not set" in only(queues.check, "fail")
    monkeypatch.setenv(queues.BROKER, broker.replace("redis://:", "redis://:not"))
    found = only(queues.check, "fail")
    assert "does not let us in" in found
    assert broker.partition("@")[0].removeprefix("redis://:") not in found


def test_a_target_whose_steps_other_workers_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv(queues.BROKER + "_CMD", "cat /run/secrets/broker")
    edge = {"queue": "edge"}
    places(tmp_path, monkeypatch, {"bench": {"queue": "bench"}, "targets": {"edge-1": edge, "edge-2": {}}})
    assert "target edge-2 has no queue of its own: steps of control, train go to default" in only(queues.check, "fail")
    places(tmp_path, monkeypatch, {"targets": {"edge-1": edge, "edge-2": edge}})
    assert [one.what.split(" has no queue")[0] for one in queues.check()] == ["target edge-1", "target edge-2"]
    places(tmp_path, monkeypatch, {"targets": {"edge-1": edge}})
    assert list(queues.check()) == []


@pytest.mark.slow
def test_a_queue_that_no_worker_listens_on(broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    monkeypatch.setenv(queues.BROKER, broker)
    places(tmp_path, monkeypatch, {"train": {"queue": "train"}, "targets": {"edge-cpu": {"queue": "edge"}}})
    with worker(broker, "default,train"):
        assert "no worker listens on queue edge, where steps of target edge-cpu go" in only(queues.check, "fail")
        places(tmp_path, monkeypatch, {"train": {"queue": "train"}})
        assert problems(queues.check) == []


# --- secrets, exposure, room


def test_airflows_secrets_that_are_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(environment.check()) == []
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "sqlite:////tmp/none.db")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "given")
    monkeypatch.setenv("AIRFLOW__API__SECRET_KEY_CMD", "cat /run/secrets/key")
    signing = ["airflow", "-c", "import time; time.sleep(60)", "scheduler"]  # what it calls itself
    with subprocess.Popen(signing, executable=sys.executable) as signer:
        assert "AIRFLOW__API_AUTH__JWT_SECRET" in only(environment.check, "warn")
        signer.kill()
    monkeypatch.setattr("psutil.process_iter", lambda _: [])  # whatever else runs on the machine of the tests
    assert list(environment.check()) == []  # as on a worker, which must not have it


def test_a_server_that_others_reach_without_tls_or_sign_in(services: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems(exposure.check) == []
    with wire(services["AWS_ENDPOINT_URL_S3"], OTHER) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.address)
        assert "AWS_ENDPOINT_URL_S3 goes to" in only(exposure.check, "warn")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", services["AWS_ENDPOINT_URL_S3"])
    monkeypatch.setenv(queues.BROKER, "redis://:secret-word@redis:6379/0")
    found = only(exposure.check, "warn")
    assert "goes to redis://redis:6379/0 without TLS" in found
    assert "use rediss://" in found


def test_a_database_that_others_can_listen_to(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
    monkeypatch.delenv("PGSSLMODE", raising=False)
    monkeypatch.setenv(name, "postgresql+psycopg2://airflow:hidden@postgres.example/airflow")
    found = only(exposure.check, "warn")
    assert f"{name} goes to postgresql+psycopg2://postgres.example/airflow with sslmode prefer" in found
    assert "hidden" not in found
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert problems(exposure.check) == []
    monkeypatch.setenv(name, "postgresql+psycopg2://airflow@postgres.example/airflow?sslmode=require")
    assert "asyncpg" in only(exposure.check, "warn")
    monkeypatch.setenv("PGSSLMODE", "disable")
    monkeypatch.setenv(name, "postgresql+psycopg2://airflow@127.0.0.1/airflow")
    assert problems(exposure.check) == []


def test_servers_that_ask_nobody_who_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Open(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, template: str, *values: object) -> None: ...

    with ThreadingHTTPServer((OTHER, 0), Open) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("MLFLOW_TRACKING_URI", "SECATEUR_AIRFLOW_URL", "AWS_ENDPOINT_URL_S3"):
            monkeypatch.setenv(name, f"http://{OTHER}:{server.server_port}")
        found = [str(finding) for finding in problems(exposure.check)]
        server.shutdown()
    for said in (
        "experiments to whoever",
        "an administrator's token to whoever",
        "the bucket models shows its objects",
    ):
        assert [one for one in found if said in one], said
    assert len(found) == 6


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LEAST_BYTES", 1)
    assert problems(machine.check) == []
    monkeypatch.setattr(machine, "LEAST_BYTES", 1 << 60)
    assert [
        word
        for found in problems(machine.check)
        for word in ("temporary files", "the cache", "memory")
        if word in found.what
    ] == ["temporary files", "the cache", "memory"]


# --- Airflow


def test_airflow_that_does_not_answer_or_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Airflow is not looked at" in only(orchestration.check, "warn")
    (port,) = free_ports(1)
    settings = {"URL": f"http://{LOOPBACK}:{port}", "USERNAME": "operator", "PASSWORD": "a password"}
    for name, value in settings.items():
        monkeypatch.setenv(f"SECATEUR_AIRFLOW_{name}", value)
    assert "does not answer (ConnectError)" in only(orchestration.check, "fail")


@pytest.fixture
def airflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An Airflow, over TLS, of which only the API server lives, with a broken DAG, without pools, all its DAGs paused."""
    home, private = tmp_path / "airflow", authority(tmp_path)
    shutil.copytree(REPOSITORY / "dags", home / "dags")
    (home / "dags" / "broken.py").write_text("from airflow.sdk import dag\nimport no_such_module\n")
    (home / "dags" / "rollback_model.py").unlink()
    (port,), password = free_ports(1), secrets.token_hex(8)
    (home / "passwords.json").write_text(json.dumps({"operator": password}))
    url = f"https://{LOOPBACK}:{port}"
    options = {
        "REQUESTS_CA_BUNDLE": str(private.ca),
        "AIRFLOW__API__SSL_CERT": str(private.cert),
        "AIRFLOW__API__SSL_KEY": str(private.key),
        "AIRFLOW_HOME": str(home),
        "PYTHONPATH": str(REPOSITORY),
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "operator:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__API__WORKERS": "1",
        "SECATEUR_AIRFLOW_URL": url,
        "SECATEUR_AIRFLOW_USERNAME": "operator",
        "SECATEUR_AIRFLOW_PASSWORD": password,
    }
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(orchestration, "_PATIENCE_S", 100.0)  # other tests may keep the machine busy
    assert "run `airflow db migrate`" in only(orchestration.database, "fail")
    for argv in (["db", "migrate"], ["dag-processor", "--num-runs", "1"]):
        subprocess.run([sys.executable, "-m", "airflow", *argv], check=True, capture_output=True, timeout=120)
    argv = [sys.executable, "-m", "airflow", "api-server", "--host", LOOPBACK, "--port", str(port)]
    with (home / "log").open("wb") as sink:
        process = subprocess.Popen(argv, stdout=sink, stderr=sink, start_new_session=True)
    try:
        end = time.monotonic() + 120
        while not clocks_of_airflow_agree():
            assert process.poll() is None, (home / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.5)
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def clocks_of_airflow_agree() -> bool:
    return any("Airflow" in finding.what for finding in clocks.check() if finding.level == "ok")


@pytest.mark.slow
@pytest.mark.usefixtures("airflow")
def test_an_airflow_that_could_not_carry_out_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [finding.level for finding in orchestration.database()] == ["ok"]
    found = "\n".join(map(str, problems(orchestration.check)))
    for said in (
        "fail  Airflow's scheduler does not live, it was never there: no step is started: start `airflow scheduler`",
        "Airflow's dag-processor does not live, its last sign of life is of 20",
        "Airflow's triggerer does not live",
        "fail  Airflow has no DAG rollback_model",
        "warn  DAG prune_model is paused",
        "broken.py: ModuleNotFoundError: No module named 'no_such_module'",
        "fail  Airflow has no pool bench",
    ):
        assert said in found
    with airflow_api.connect() as client:
        airflow_api.ensure_pool(client, "bench", slots=2, description="")
        assert "pool bench has 2 slots: measurements would disturb each other" in "\n".join(
            map(str, orchestration.check())
        )
        client.delete("/api/v2/pools/bench").raise_for_status()
        airflow_api.ensure_pool(client, "bench", slots=1, description="")
        assert "ok    a pool of one slot for each device: bench" in map(str, orchestration.check())
    monkeypatch.setenv("SECATEUR_AIRFLOW_PASSWORD", "not it")
    assert "refused the sign-in" in only(orchestration.check, "fail")
