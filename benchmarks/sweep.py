"""The same sweep of six recipes on one worker and on two: how much sooner it ends.

A real deployment, the one that the tests start: Postgres, Redis, S3, MLflow, Airflow with the CeleryExecutor, each worker a process
of one slot that takes every kind of step. `make bench-sweep` prints the result; EPOCHS=<n> of recovery, WORKERS="1 2".
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cluster import Cluster, cluster, finished
from services import MODEL, examples, recipe_for, register_tiny, using, write_recipe

from benchmarks import machine
from benchmarks.context import say
from tasks.cli import airflow_api, follow

QUEUES = ("bench", "control", "train")  # the first that has a step: what is begun ends before a long recovery begins
IN_ORDER = {"AIRFLOW__CELERY_BROKER_TRANSPORT_OPTIONS__QUEUE_ORDER_STRATEGY": "priority"}
CALM = {  # the machine is for the workers, and no DAG file changes
    "SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "1",
    "DAG_PROCESSOR__REFRESH_INTERVAL": "300",
    "DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",
}
MATRIX = {"prune.criterion": ["l1", "l2"], "goal.sparsity": [0.3, 0.4, 0.5]}
TIMES = 20
WITHIN_S = 3600.0
READY_S = 120.0
LOOK_S = 3.0
ASKED = 0.65  # of the time on one worker, on two


@dataclass(frozen=True)
class Swept:
    """One sweep: how long it took, and what its steps took, summed, by the name of the step."""

    workers: int
    seconds: float
    candidates: int  # that were measured
    steps: Mapping[str, float]  # seconds


def main() -> int:
    """Run it and print what came of it; the exit status is 1 when two workers gained less than is asked."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--epochs", type=int, default=450)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 1])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="secateur-sweep-") as folder:
        say("starting the deployment")
        with cluster(Path(folder), {name: {"queue": name} for name in QUEUES}, **CALM) as made:
            prepare(made, Path(folder), asked.epochs)
            swept = [sweep(made, workers) for workers in asked.workers]
    print(told(swept, asked.epochs))
    seconds = {one.workers: one.seconds for one in swept}
    return int({1, 2} <= set(seconds) and seconds[2] > ASKED * seconds[1])


def prepare(made: Cluster, folder: Path, epochs: int) -> None:
    """A model, a recipe of one cycle with so much recovery, and the sweep `six` of it."""
    data = folder / "data"
    data.mkdir()
    with using(made.servers):
        register_tiny(data)
        budget = {"accuracy_drop": 0.2, "recovery_epochs": epochs, "measuring_s": 3}
        small = {"learning_rate": 0.003, "batch": 4}  # epochs of half a second: a real one is no mere log entry either
        recipe = recipe_for(more_examples(data), budget=budget, recovery=small, prune={"align": 4, "cycles": 1})
        write_recipe("base", recipe)
        write_recipe("six", {"base": "base", "matrix": MATRIX, "halving": False, "finalists": 1})


def more_examples(folder: Path) -> Path:
    """The tests' examples, many times over with noise: epochs that compute, where theirs are all bookkeeping."""
    inputs, labels = examples()
    noise = np.random.default_rng(0).normal(0, 0.1, (TIMES, *inputs.shape))
    path = folder / "more.npz"
    np.savez(
        path, inputs=(inputs + noise).reshape(-1, *inputs.shape[1:]).astype(inputs.dtype), labels=np.tile(labels, TIMES)
    )
    return path


def sweep(made: Cluster, workers: int) -> Swept:
    """One sweep that finds nothing of another's, on so many workers."""
    names = [f"worker-{workers}-{number}" for number in range(1, workers + 1)]
    for name in names:
        made.worker(name, ",".join(QUEUES), **IN_ORDER)
    for name in names:
        started = time.monotonic()
        while f"{name}@" not in (log := made.log(name)) or "ready" not in log:
            if made.parts[name].process.poll() is not None or time.monotonic() > started + READY_S:
                raise RuntimeError(f"worker {name} did not come up:\n{log}")
            time.sleep(1)
    say(f"sweeping on {workers} worker(s)")
    begun = time.monotonic()
    with made.client() as client:
        run = airflow_api.trigger(client, "sweep_model", {"model": MODEL, "sweep": "six", "fresh": True})
    state = finished(made, [run], WITHIN_S, "sweep_model", LOOK_S)[run]
    seconds = time.monotonic() - begun
    for name in names:
        made.stop(name)
    with made.client() as client, using(made.servers):
        outcome = follow.sweep_outcome(client, "sweep_model", run, state)
        if outcome.sweep is None:
            raise RuntimeError(f"the sweep ended as {outcome.ending}: {outcome.error}")
        states = [one["state"] for one in outcome.sweep["candidates"]]
        if set(states) != {"measured"} or outcome.ending != "promoted":
            raise RuntimeError(f"the sweep ended as {outcome.ending}, its candidates as {states}: {outcome.sweep}")
        swept = Swept(workers, seconds, len(states), steps_of(client, run))
    say(f"{workers} worker(s): {swept.seconds:.0f} s")
    return swept


def steps_of(client: Any, sweep_run: str) -> dict[str, float]:
    """Seconds of all runs of a sweep, by step."""
    found: dict[str, float] = {}
    query = {"limit": 100}
    for run in client.get("/api/v2/dags/prune_model/dagRuns", params=query).json()["dag_runs"]:
        if run["dag_run_id"].startswith(sweep_run):
            path = f"/api/v2/dags/prune_model/dagRuns/{run['dag_run_id']}/taskInstances"
            for one in client.get(path, params=query).json()["task_instances"]:
                step = one["task_id"].rpartition(".")[2]
                found[step] = found.get(step, 0.0) + (one["duration"] or 0.0)
    return found


def told(swept: Sequence[Swept], epochs: int) -> str:
    """The result in words."""
    lines = []
    for one in sorted(swept, key=lambda one: one.workers):
        longest = sorted(one.steps.items(), key=lambda item: -item[1])[:4]
        parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in longest)
        lines.append(
            f"{one.workers} worker(s): {one.seconds:.0f} s, {one.candidates} candidates measured; "
            f"steps {sum(one.steps.values()):.0f} s in all: {parts}"
        )
    seconds = {one.workers: one.seconds for one in swept}
    if {1, 2} <= set(seconds):
        lines.append(f"Two workers take {seconds[2] / seconds[1]:.2f} of the time on one; asked: at most {ASKED}")
    lines.append(f"{epochs} epochs of recovery each; {os.cpu_count()} cores for all parts of the deployment together")
    lines.append(f"{machine.in_words()}; code {machine.commit()}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
