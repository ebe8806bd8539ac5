"""Airflow with no-op science: many versions registered at once, what the servers do then, and which setting moves it.

`make bench-cluster` starts Postgres, MLflow and Airflow in a temporary folder, records one real pruning of a tiny model,
registers versions of watched models, lets `watch_registry` start a run for each, and looks at the servers under one setting
after the other while the runs are worked off. It writes `cluster.json` and `cluster.md`. RUNS=<n>, MODELS=<n>, MINUTES=<n>.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.cluster import figures, load, recording, report, servers
from benchmarks.cluster.servers import Cluster, Setting
from benchmarks.context import Row, say

# Each is tried on top of those before it, on what is left of the same backlog.
CHANGES: tuple[dict[str, int], ...] = (
    {},
    {"bench_slots": 8},
    {"parallelism": 8},
    {"heartbeat_s": 1},
    {"active_runs": 64},
    {"api_workers": 2},
    {"schedulers": 2, "parallelism": 4},
    {"schedulers": 1, "parallelism": 8, "celery_slots": 8},
)
MLFLOW_WORKERS, CLIENTS = (1, 2), 4
SETTLE_S = 10.0


def main() -> None:
    """Run it and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200, help="versions registered at once")
    parser.add_argument("--models", type=int, default=50, help="models watched")
    parser.add_argument("--first", type=int, default=2, help="versions registered before, on idle servers")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load on Airflow, over all settings")
    parser.add_argument("--mlflow-seconds", type=float, default=20.0, help="of load on MLflow alone, for each setting")
    parser.add_argument("--recording", type=Path, help="a folder that keeps the recorded pruning; made when missing")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the servers are stopped then too
    result: Row = {"asked": {"runs": asked.runs, "models": asked.models, "minutes": asked.minutes}}
    with servers.running(Setting()) as cluster:
        servers.lead_to(cluster)
        source = prepare(cluster, asked.recording)
        result["recorded"] = counted = recording.counted(cluster.recording)
        say(f"a pruning sends MLflow {counted['requests']} requests, {counted['writes']} of which write")
        load.register_models(asked.models, source)
        result["mlflow"] = [*mlflow_alone(cluster, asked.mlflow_seconds)]
        report.store(asked.out, result)
        servers.serve_airflow(cluster)
        say("Airflow is up")
        for row in under_load(cluster, source, result, asked):
            result.setdefault("trials", []).append(row)
            report.store(asked.out, result)
        result |= sizes(cluster, result)
        report.store(asked.out, result)


def prepare(cluster: Cluster, kept: Path | None) -> str:
    """Register the model and have a recording of its pruning; returns what versions are made of."""
    cluster.recording.mkdir()
    source = recording.register(cluster.recording)
    if kept is not None and kept.is_dir():
        shutil.copytree(kept, cluster.recording, dirs_exist_ok=True)
        return source
    recording.record(cluster.stack.url("mlflow"), cluster.recording)
    if kept is not None:
        shutil.copytree(cluster.recording, kept)
    say("a pruning is recorded")
    cluster.stop("s3")
    return source


def mlflow_alone(cluster: Cluster, seconds: float) -> list[Row]:
    """MLflow without Airflow, with one and with more workers; it goes on with one."""
    rows = []
    for workers in MLFLOW_WORKERS:
        cluster.change(dataclasses.replace(cluster.setting, mlflow_workers=workers))
        rows.append(load.mlflow_alone(cluster, load.watched(1)[0], CLIENTS, seconds))
        say(f"MLflow with {workers} worker(s): {rows[-1]['requests_per_s']:.0f} requests a second")
    cluster.change(dataclasses.replace(cluster.setting, mlflow_workers=MLFLOW_WORKERS[0]))
    return rows


def under_load(cluster: Cluster, source: str, result: Row, asked: argparse.Namespace) -> Iterator[Row]:
    """A few versions on idle servers, then all at once; a row for each setting while they are worked off."""
    server, models = cluster.stack.url("mlflow"), load.watched(asked.models)
    before, end = {name: cluster.size(name) for name in servers.DATABASES}, time.monotonic() + asked.minutes * 60
    result["sizes_before"] = before
    result["poll"] = load.polls(server)
    begun = time.time()
    load.register_versions(models, asked.first, source)
    few = time.monotonic() + asked.minutes * 60 / 5
    row = load.window(cluster, min(60.0, few - time.monotonic()), result["recorded"]) | {"name": f"{asked.first} runs"}
    while load.progress(cluster).get("success", 0) < asked.first and time.monotonic() < few:
        time.sleep(1)
    yield row | load.arrivals(cluster, begun) | {"progress": load.progress(cluster)}
    flood = time.time()
    load.register_versions(models, asked.runs, source)
    say(f"{asked.runs} versions are registered, in {time.time() - flood:.0f} s")
    result["poll_with_new"] = load.polls(server, 1)
    for number, change in enumerate(CHANGES):
        cluster.change(dataclasses.replace(cluster.setting, **change))
        left = (end - time.monotonic()) / (len(CHANGES) - number)
        time.sleep(min(SETTLE_S, max(left, 0) / 4))
        row = load.window(cluster, max(left - SETTLE_S, 10.0), result["recorded"]) | {"name": str(cluster.setting)}
        say(f"{row['name']}: {row['tasks_per_min']:.0f} tasks a minute")
        yield row | load.arrivals(cluster, flood) | {"progress": load.progress(cluster)}


def sizes(cluster: Cluster, result: Row) -> Row:
    """What the databases have grown by, and what one run keeps of it.

    In Airflow's a run has its tasks' rows from its start, values and events as they are done. In MLflow's a step that comes
    late leaves more than an early one, so whole runs count: those that were sent to MLflow alone.
    """
    done, per_run = load.progress(cluster), len(result["recorded"]["steps"])
    after = {name: cluster.size(name) for name in servers.DATABASES}
    runs, started = done.pop("tasks") / per_run, sum(done.values())
    tables = {name: load.biggest(cluster, name) for name in servers.DATABASES}
    at_start = sum(tables["airflow"].get(name, 0) for name in ("task_instance", "dag_run"))
    grown = after["airflow"] - result["sizes_before"]["airflow"]
    return {
        "sizes_after": after,
        "runs_started": started,
        "runs_done": runs,
        "kept_per_run": {
            "airflow": figures.kept_per_run(grown, at_start, started, runs),
            "mlflow": max(row["bytes_per_run"] for row in result["mlflow"]),
        },
        "tables": tables,
        "airflow_cleaned": load.cleaned(cluster),
        "logs_per_run": disk(cluster.folder / "airflow" / "logs") / runs,
    }


def disk(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
