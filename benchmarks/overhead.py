"""Seconds of work against seconds of overhead, per step of a finished run of `prune_model` on the running stack.

    make bench-overhead [RUN=<dag run id>]

Work is what the step itself took (its memo in MLflow; a dash where the step only found an earlier run's result). Overhead is
the rest of the task's time: process start, imports, XCom. Wait is the scheduler's: from the end of the step before it until
the step starts.
"""

import argparse
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from secateur.errors import InputError
from tasks.cli import airflow_api, mlflow_api
from tasks.cli.airflow_api import AirflowError, Task
from tasks.cli.mlflow_api import MlflowError
from tasks.cli.settings import export_settings

DAG = "prune_model"


@dataclass(frozen=True)
class Cost:
    """One step's seconds; `work` is None when it did none in this run, `wait` is None for the first."""

    name: str
    work: float | None
    task: float
    wait: float | None

    @property
    def overhead(self) -> float | None:
        """What the task took beyond the work."""
        return None if self.work is None else self.task - self.work


def main() -> int:
    """Print the table; the exit status is 1 when there is no such run or a server is down."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", help="DAG run id; the last successful run by default")
    try:
        show(*costs(parser.parse_args().run))
    except (InputError, AirflowError, MlflowError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def costs(run: str | None) -> tuple[str, list[Cost]]:
    """The steps of a run in the order in which they started, with the run's id."""
    export_settings()
    with airflow_api.connect() as client:
        run = run or next(iter(airflow_api.runs(client, DAG, state="success", limit=1)), None)
        if run is None:
            raise InputError(f"{DAG} has no finished run yet: start one with `secateur run`.")
        run_id = (airflow_api.xcom(client, DAG, run, "resolve") or {}).get("run_id")
        if run_id is None:
            raise InputError(f"Run {run} has no MLflow run: its step resolve did not succeed.")
        done = [task for task in airflow_api.tasks(client, DAG, run) if task.state == "success"]
        return run, [cost(task, _seconds_of_work(run_id, task), _ended_before(task, done)) for task in done]


def cost(task: Task, work: float | None, before: float | None) -> Cost:
    """One step's seconds; a memo older than the task means that the work was done in an earlier run."""
    started, ended = task.started or 0.0, task.ended or 0.0
    own = work if work is not None and work <= ended - started else None
    return Cost(task.name, own, ended - started, None if before is None else started - before)


def _seconds_of_work(run_id: str, task: Task) -> float | None:
    # The steps of a cycle are remembered as `cut_1`, `recover_1`, ...
    group, _, name = task.name.rpartition(".")
    memo = mlflow_api.artifact(run_id, f"steps/{name}{group.removeprefix('cycle')}.json") or {}
    return memo.get("seconds")


def _ended_before(task: Task, done: list[Task]) -> float | None:
    ends = [other.ended for other in done if other.ended and task.started and other.ended <= task.started]
    return max(ends, default=None)


def show(run: str, rows: list[Cost]) -> None:
    """Print a row per step and the sums."""
    table = Table(title=f"Run {run}: seconds", title_justify="left")
    table.add_column("step")
    for title in ("work", "task", "overhead", "wait"):
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(row.name, _number(row.work), _number(row.task), _number(row.overhead), _number(row.wait))
    table.add_section()
    columns = ([getattr(row, name) for row in rows] for name in ("work", "task", "overhead", "wait"))
    table.add_row("sum", *[_number(sum(value or 0.0 for value in column)) for column in columns])
    Console().print(table)


def _number(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"


if __name__ == "__main__":
    sys.exit(main())
