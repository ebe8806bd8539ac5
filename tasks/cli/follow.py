"""Follows a DAG run to its end: reports every change of its tasks, then collects what came out of it."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from tasks.cli import airflow_api, mlflow_api
from tasks.cli.airflow_api import Task
from tasks.references import WHY, Answer, Person

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `promoted`, `refused` (the plan, the gate or a person said no), `done` (no gate in it) or `failed`."""

    ending: str
    dag_run_id: str
    airflow_url: str
    error: str | None = None
    plan: Mapping[str, Any] | None = None
    verdict: Mapping[str, Any] | None = None
    approval: str | None = None  # what a person said to the verdict
    promotion: Mapping[str, Any] | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    metric: str = "accuracy"  # the objective's
    run_id: str | None = None
    mlflow_url: str | None = None
    report_url: str | None = None
    sweep: Mapping[str, Any] | None = None  # what came of a sweep (`tasks.references.Swept`)

    @property
    def exit_code(self) -> int:
        """0 when it did what was asked, 3 when the plan, the gate or a person said no, 1 on an error."""
        return {"promoted": 0, "done": 0, "refused": 3}.get(self.ending, 1)


def follow(client: httpx.Client, dag: str, run: str, report: Callable[[str, list[Task]], None]) -> str:
    """Call `report(state, tasks)` until the run is finished; returns its last state."""
    while True:
        state = airflow_api.run_state(client, dag, run)
        report(state, airflow_api.tasks(client, dag, run))
        if state in airflow_api.FINISHED:
            return state
        time.sleep(_POLL_SECONDS)


def pruning_outcome(client: httpx.Client, dag: str, run: str, state: str) -> Outcome:
    """What a finished run of `prune_model` gave."""
    url = airflow_api.run_url(str(client.base_url), dag, run)
    pinned = airflow_api.xcom(client, dag, run, "resolve") or {}
    run_id = pinned.get("run_id")
    remembered = mlflow_api.run(run_id) if run_id else None
    failed = state != "success"
    promotion = airflow_api.xcom(client, dag, run, "promote")
    reported = airflow_api.xcom(client, dag, run, "report") or {}
    return Outcome(
        ending="failed" if failed else "promoted" if promotion else "refused",
        dag_run_id=run,
        airflow_url=url,
        error=failure(client, dag, run) if failed else None,
        plan=airflow_api.xcom(client, dag, run, "plan"),
        verdict=airflow_api.xcom(client, dag, run, "gate"),
        approval=_approval(airflow_api.xcom(client, dag, run, "approve", map_index=0)),
        promotion=promotion,
        metrics=remembered.metrics if remembered else {},
        metric=pinned.get("metric", "accuracy"),
        run_id=run_id,
        mlflow_url=remembered.url if remembered else None,
        report_url=reported.get("address"),
    )


def _approval(answer: Mapping[str, Any] | None) -> str | None:
    if answer is None:
        return None
    person, words = answer["responded_by_user"], answer["params_input"]
    return Answer(tuple(answer["chosen_options"]), Person(**person) if person else None, words or {}).sentence


def sweep_outcome(client: httpx.Client, dag: str, run: str, state: str) -> Outcome:
    """What a finished run of `sweep_model` gave."""
    failed, swept = state != "success", airflow_api.xcom(client, dag, run, "report")
    remembered = mlflow_api.run(swept["run_id"]) if swept else None
    return Outcome(
        ending="failed" if failed or not swept else "promoted" if swept["winner"] else "refused",
        dag_run_id=run,
        airflow_url=airflow_api.run_url(str(client.base_url), dag, run),
        error=failure(client, dag, run) if failed else None,
        metric=swept["metric"] if swept else "accuracy",
        run_id=swept["run_id"] if swept else None,
        mlflow_url=remembered.url if remembered else None,
        report_url=swept["address"] if swept else None,
        sweep=swept,
    )


def rollback_outcome(client: httpx.Client, dag: str, run: str, state: str) -> Outcome:
    """What a finished run of `rollback_model` gave."""
    failed = state != "success"
    return Outcome(
        ending="failed" if failed else "done",
        dag_run_id=run,
        airflow_url=airflow_api.run_url(str(client.base_url), dag, run),
        error=failure(client, dag, run) if failed else None,
        promotion=airflow_api.xcom(client, dag, run, "rollback"),
    )


def failure(client: httpx.Client, dag: str, run: str) -> str:
    """One sentence on why a run failed: the exception of the first task that did, in its own words."""
    failed = [task for task in airflow_api.tasks(client, dag, run) if task.state == "failed"]
    if not failed:
        return "The run was ended from outside: no step of it failed."
    first = min(failed, key=lambda task: task.ended or 0.0)
    if why := airflow_api.xcom(client, dag, run, first.name, first.index, WHY):
        return f"Step {first.name} failed: {why}"
    lines = airflow_api.logs(client, dag, run, first)
    raised = [detail for line in lines for detail in line.get("error_detail") or []]
    if not raised:
        return f"Step {first.name} failed after {first.tries} tries and left no exception: its process was killed, or its log is gone."
    # Of a chain the last entry is the one that reached the top.
    last = raised[-1]
    kind = "" if last["exc_type"] == "InputError" else f"{last['exc_type']}: "
    return f"Step {first.name} failed: {kind}{last['exc_value']}"
