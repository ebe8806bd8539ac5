"""Puts load on the servers and reads what came of it."""

from __future__ import annotations

import collections
import contextlib
import datetime
import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from benchmarks.cluster import figures, recording, replay
from benchmarks.cluster.servers import FORKING, Cluster
from benchmarks.context import Row
from tasks import registry, tracking, watch

# A task that Airflow itself skips has no process.
_RAN = """
SELECT task_id, extract(epoch FROM start_date - scheduled_dttm), extract(epoch FROM start_date - queued_dttm),
    extract(epoch FROM end_date - start_date), state
FROM task_instance WHERE dag_id = 'prune_model' AND pid IS NOT NULL AND end_date BETWEEN %s AND %s
"""


def watched(models: int) -> list[str]:
    """The names of the watched models."""
    return [f"watched-model-{number:04d}" for number in range(models)]


def register_models(models: int, source: str) -> None:
    """Registered models with one version, seen already, that ask for a pruning of every new one; and their experiments."""
    client = tracking.client()

    def one(name: str) -> None:
        client.create_registered_model(name, tags={watch.RECIPE: recording.RECIPE, watch.SEEN: "1"})
        client.create_model_version(name, source, model_id=source.rpartition("/")[2])
        client.create_registered_model(registry.onnx_name(name), tags={registry.SOURCE: name})
        client.create_experiment(tracking.experiment_name(name))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, watched(models)))


def register_versions(models: list[str], count: int, source: str) -> None:
    """So many new versions, spread over the models."""
    client = tracking.client()
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda number: client.create_model_version(
                    models[number % len(models)], source, model_id=source.rpartition("/")[2]
                ),
                range(count),
            )
        )


def polls(server: str, count: int = 5) -> Row:
    """What one look at the registry costs: its requests, and its time in seconds."""
    with recording.proxy(server) as (address, seen):
        os.environ["MLFLOW_TRACKING_URI"] = address
        try:
            watch.pending()
            seen.clear()
            begun = time.monotonic()
            for _ in range(count):
                waiting = watch.pending()
            seconds = time.monotonic() - begun
        finally:
            os.environ["MLFLOW_TRACKING_URI"] = server
    return {"requests": len(seen) / count, "seconds": seconds / count, "waiting": len(waiting)}


def whole_run(folder: Path, server: str, model: str) -> int:
    """Send all requests of one recorded run, one after the other; returns their number."""
    names = {recording.MODEL: model, recording.DAG_RUN: uuid.uuid4().hex}
    steps = [
        json.loads(path.read_text()) for path in sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    ]
    key = next(step["result"]["key"] for step in steps if "key" in (step["result"] or {}))
    names[key] = hashlib.sha256(names[recording.DAG_RUN].encode()).hexdigest()
    for step in steps:
        replay.send(step["requests"], server, names)
    return sum(len(step["requests"]) for step in steps)


def mlflow_alone(cluster: Cluster, model: str, clients: int, seconds: float) -> Row:
    """MLflow under so many clients at once, without Airflow: whole recorded runs, for so long; at least one each."""
    server, sent, runs = cluster.stack.url("mlflow"), [0] * clients, [0] * clients
    size, before, begun = cluster.size("mlflow"), processor_seconds(cluster), time.monotonic()

    def client(number: int) -> None:
        while time.monotonic() - begun < seconds:
            sent[number] += whole_run(cluster.recording, server, model)
            runs[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lasted = time.monotonic() - begun
    cores = figures.used(before, processor_seconds(cluster), lasted)
    return {
        "workers": cluster.setting.mlflow_workers,
        "clients": clients,
        "runs": sum(runs),
        "requests_per_s": sum(sent) / lasted,
        "ms_of_mlflow": 1000 * cores["mlflow"] * lasted / max(sum(sent), 1),
        "ms_of_postgres": 1000 * cores["postgres"] * lasted / max(sum(sent), 1),
        "cores": cores,
        "bytes_per_run": (cluster.size("mlflow") - size) / max(sum(runs), 1),
        "memory_mb": memory(cluster),
    }


def window(cluster: Cluster, seconds: float, counted: Row) -> Row:
    """What the cluster does in so many seconds, as it is loaded now."""
    states: collections.Counter[str] = collections.Counter()
    begun, at, machine = time.monotonic(), now(), machine_seconds()
    before, looks = processor_seconds(cluster), 0
    while time.monotonic() - begun < seconds:
        looks += 1
        for state, pool, count in cluster.query(
            "airflow",
            "SELECT state, pool, count(*) FROM task_instance WHERE state IN ('scheduled', 'queued', 'running') GROUP BY 1, 2",
        ):
            states[f"{state} in {pool}"] += count
        time.sleep(min(5.0, max(begun + seconds - time.monotonic(), 0)))
    lasted, ended = time.monotonic() - begun, now()
    cores = figures.used(before, processor_seconds(cluster), lasted)
    others = max(figures.used(machine, machine_seconds(), lasted)["busy"] - sum(cores.values()), 0.0)
    tasks = cluster.query("airflow", _RAN, (at, ended))
    per_run = len(counted["steps"])
    requests = sum(counted["steps"].get(figures.recorded_as(task[0]), 0) for task in tasks)
    return {
        "setting": vars(cluster.setting),
        "seconds": lasted,
        "tasks": len(tasks),
        "failed": sum(task[4] not in ("success", "skipped") for task in tasks),
        "tasks_per_min": len(tasks) / lasted * 60,
        "runs_per_hour": len(tasks) / per_run / lasted * 3600,
        "requests_per_s": requests / lasted,
        "scheduled_to_running_s": figures.spread([float(task[1]) for task in tasks if task[1] is not None]),
        "queued_to_running_s": figures.spread([float(task[2]) for task in tasks if task[2] is not None]),
        "running_s": figures.spread([float(task[3]) for task in tasks]),
        "cores": cores,
        "cores_of_others": others,
        "cores_left": psutil.cpu_count() - others,
        "memory_mb": memory(cluster),
        "mean_states": {name: count / looks for name, count in sorted(states.items())},
        **loops(cluster.loops, at.timestamp(), ended.timestamp()),
    }


def loops(path: Path, begin: float, end: float) -> Row:
    """How long the schedulers' loops took, and their critical section, between two moments."""
    found: dict[str, list[float]] = {"loop": [], "critical": []}
    for line in path.read_text().splitlines():
        moment, kind, seconds = line.split()
        if begin <= float(moment) <= end:
            found[kind].append(float(seconds))
    return {f"{kind}_s": figures.spread(values) for kind, values in found.items()}


def arrivals(cluster: Cluster, since: float) -> Row:
    """From a version's registration (those after `since`, in epoch seconds) to its run, and to its first task that runs."""
    rows = cluster.query(
        "airflow",
        "SELECT run_id, extract(epoch FROM queued_at), (SELECT min(extract(epoch FROM t.start_date)) FROM task_instance t "
        "WHERE t.run_id = d.run_id AND t.dag_id = d.dag_id AND t.pid IS NOT NULL) FROM dag_run d WHERE dag_id = 'prune_model'",
    )
    made = [(registered_at(run_id), float(queued), first) for run_id, queued, first in rows if queued is not None]
    made = [one for one in made if one[0] >= since]
    return {
        "version_to_run_s": figures.spread([queued - at for at, queued, _ in made]),
        "version_to_first_task_s": figures.spread([float(first) - at for at, _, first in made if first is not None]),
    }


def registered_at(run_id: str) -> float:
    """When the version was registered, from the id of the run that `watch_registry` started for it; epoch seconds."""
    moment = datetime.datetime.strptime(run_id.rpartition("__")[2], "%Y%m%dT%H%M%S.%f")
    return moment.replace(tzinfo=datetime.UTC).timestamp()


def progress(cluster: Cluster) -> dict[str, int]:
    """How many runs are in which state, and under `tasks` how many tasks have run."""
    found = dict(
        cluster.query("airflow", "SELECT state, count(*) FROM dag_run WHERE dag_id = 'prune_model' GROUP BY 1")
    )
    found["tasks"] = len(cluster.query("airflow", _RAN, ("-infinity", "infinity")))
    return found


def biggest(cluster: Cluster, database: str, count: int = 6) -> dict[str, int]:
    """The largest tables with their indexes, in bytes."""
    return dict(
        cluster.query(
            database,
            "SELECT relname, pg_total_relation_size(oid) FROM pg_class WHERE relkind = 'r' AND relnamespace = "
            "'public'::regnamespace ORDER BY 2 DESC LIMIT %s",
            (count,),
        )
    )


def cleaned(cluster: Cluster) -> int:
    """Airflow's database once the values between tasks and the log of events are deleted and the space is given back."""
    for statement in ("DELETE FROM xcom", "DELETE FROM log", "VACUUM FULL"):
        cluster.query("airflow", statement)
    return cluster.size("airflow")


def processor_seconds(cluster: Cluster) -> dict[str, float]:
    """By role, of living processes and, but for those whose children are the tasks, of what ended in them."""
    found = {}
    for role, members in cluster.roles().items():
        found[role] = 0.0
        for process in members:
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                ended = 0.0 if role in FORKING else used.children_user + used.children_system
                found[role] += used.user + used.system + ended
    return found


def memory(cluster: Cluster) -> Mapping[str, float]:
    """By role, MB; what processes share is divided among them."""
    found: dict[str, float] = {}
    for role, members in cluster.roles().items():
        for process in members:
            with contextlib.suppress(psutil.Error):
                found[role] = found.get(role, 0.0) + process.memory_full_info().pss / 1e6
    return found


def machine_seconds() -> dict[str, float]:
    """What all processes of the machine have used."""
    times = psutil.cpu_times()
    return {"busy": times.user + times.nice + times.system}


def now() -> datetime.datetime:
    """With its zone, as the database wants it."""
    return datetime.datetime.now(datetime.UTC)
