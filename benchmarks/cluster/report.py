"""Writes what was measured as JSON and as a page of Markdown, with the sizing that follows from it."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.cluster import figures
from benchmarks.context import Row
from benchmarks.engine.report import table

PACKAGES = ("apache-airflow", "mlflow", "psycopg2-binary")
PER_DAY = (10, 100, 1000, 10_000)
MEASURING_MIN, RECOVERY_MIN = 10.0, (5.0, 30.0, 240.0)  # assumed: they are the user's models'


def store(out: Path, result: Row) -> None:
    """Write `cluster.json` and `cluster.md`; what is not measured yet is left out."""
    said = {
        "command": "make bench-cluster",
        "date": datetime.date.today().isoformat(),
        "code": machine.commit(),
        "machine": machine.in_words(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }
    if "kept_per_run" in result:
        result = {**result, "sizing": sizing(result)}
    (out / "cluster.json").write_text(json.dumps(said | result, indent=1) + "\n", encoding="utf-8")
    (out / "cluster.md").write_text("\n\n".join(page(said, result)) + "\n", encoding="utf-8")


def costs(result: Row) -> figures.Costs:
    """Of one pruning. Airflow's from all settings under the full backlog; MLflow's from whole runs sent to it alone.

    Postgres has both parts: a little of MLflow's is counted twice.
    """
    counted, loaded = result["recorded"], result["trials"][1:]
    per_run = len(counted["steps"])
    runs = sum(trial["tasks"] for trial in loaded) / per_run

    def of_trials(role: str) -> float:
        return float(sum(trial["cores"][role] * trial["seconds"] for trial in loaded)) / runs

    def of_requests(name: str) -> float:
        return float(max(row[name] for row in result["mlflow"])) * counted["requests"] / 1000

    seconds = {
        "scheduler": of_trials("airflow-scheduler"),
        "API server": of_trials("airflow-api-server"),
        "MLflow": of_requests("ms_of_mlflow"),
        "Postgres": of_trials("postgres") + of_requests("ms_of_postgres"),
        "tasks": of_trials("tasks"),
    }
    return figures.Costs(seconds, per_run, counted["requests"], result["kept_per_run"], MEASURING_MIN, RECOVERY_MIN)


def sizing(result: Row) -> list[Row]:
    """A row for each number of prunings a day."""
    return [figures.sizing(per_day, costs(result)) for per_day in PER_DAY]


def page(said: Mapping[str, Any], result: Row) -> list[str]:
    """The paragraphs."""
    used = ", ".join(f"{name} {version}" for name, version in said["versions"].items())
    counted = result["recorded"]
    parts = [
        "# Many prunings at once, without their science",
        f"Written by `{said['command']}`; the numbers are in `cluster.json`. {said['date']}, code {said['code']}. {said['machine']}; {used}. "
        "Servers, tasks and whatever else ran on the machine shared its cores: `others` says how many those others took.",
        f"One pruning of a tiny model in two cycles was recorded: {len(counted['steps'])} tasks, {counted['requests']} requests to MLflow, "
        f"{counted['writes']} of which write and {counted['health']} only ask whether it is up, {counted['bytes'] / 1e3:.0f} kB in them. "
        "Every simulated task sends the requests of its step.",
    ]
    if "mlflow" in result:
        parts += ["## MLflow alone", mlflow_table(result["mlflow"])]
    if "trials" in result:
        parts += ["## Airflow, MLflow and Postgres together", trial_table(result["trials"])]
        parts += ["Cores in use, by component:", role_table(result["trials"], "cores", "{:.2f}")]
        parts += ["Memory in MB, by component:", role_table(result["trials"], "memory_mb", "{:.0f}")]
        parts += ["## Watching", watching(result)]
    if "sizing" in result:
        parts += ["## Kept", kept(result), "## Sizing", *sizing_parts(result)]
    return parts


def mlflow_table(rows: Sequence[Row]) -> str:
    """A line for each number of workers."""
    head = [
        "workers",
        "clients",
        "requests/s",
        "ms of MLflow each",
        "ms of Postgres each",
        "cores of MLflow",
        "MB of MLflow",
        "kB kept per run",
    ]
    return table(
        head,
        [
            [
                str(row["workers"]),
                str(row["clients"]),
                f"{row['requests_per_s']:.0f}",
                f"{row['ms_of_mlflow']:.1f}",
                f"{row['ms_of_postgres']:.1f}",
                f"{row['cores']['mlflow']:.2f}",
                f"{row['memory_mb']['mlflow']:.0f}",
                f"{row['bytes_per_run'] / 1e3:.0f}",
            ]
            for row in rows
        ],
    )


def trial_table(rows: Sequence[Row]) -> str:
    """A line for each setting."""
    head = [
        *(
            "setting",
            "s",
            "tasks",
            "failed",
            "tasks/min",
            "per core left",
            "runs/h",
            "MLflow requests/s",
            "scheduled to running, s",
        ),
        *("running, s", "loop, s", "critical section, s"),
    ]
    columns = ("scheduled_to_running_s", "running_s", "loop_s", "critical_s")
    return (
        table(
            head,
            [
                [
                    row["name"],
                    f"{row['seconds']:.0f}",
                    str(row["tasks"]),
                    str(row["failed"]),
                    f"{row['tasks_per_min']:.1f}",
                    f"{row['tasks_per_min'] / row['cores_left']:.0f}",
                    f"{row['runs_per_hour']:.0f}",
                    f"{row['requests_per_s']:.1f}",
                    *(in_words(row[name]) for name in columns),
                ]
                for row in rows
            ],
        )
        + "\n\nOf times the median, then the 99th percentile. `per core left`: tasks a minute over the cores that others did not use."
    )


def role_table(rows: Sequence[Row], what: str, form: str) -> str:
    """A line for each setting, a column for each component."""
    roles = sorted({role for row in rows for role in row[what]})
    others = ["others"] if what == "cores" else []
    lines = [
        [
            row["name"],
            *(form.format(row[what].get(role, 0.0)) for role in roles),
            *(form.format(row["cores_of_others"]) for _ in others),
        ]
        for row in rows
    ]
    return table(["setting", *roles, *others], lines)


def in_words(spread: Mapping[str, float] | None) -> str:
    """A median and a 99th percentile."""
    return "-" if spread is None else f"{spread['p50']:.2f}, {spread['p99']:.2f}"


def watching(result: Row) -> str:
    """What looking at the registry costs, and how long a version waits."""
    models, poll, new = result["asked"]["models"], result["poll"], result.get("poll_with_new")
    text = f"With {models} models watched one look takes {poll['requests']:.0f} requests and {poll['seconds'] * 1000:.0f} ms when nothing is new"
    if new:
        text += (
            f"; {new['requests']:.0f} requests and {new['seconds'] * 1000:.0f} ms with {new['waiting']} new versions"
        )
    head = ["setting", "version to run, s", "version to first task, s", "runs"]
    lines = [
        [row["name"], in_words(row["version_to_run_s"]), in_words(row["version_to_first_task_s"]), str(row["progress"])]
        for row in result["trials"]
    ]
    return f"{text}.\n\n{table(head, lines)}"


def kept(result: Row) -> str:
    """What stays in the databases and on disk."""
    tables = "; ".join(
        f"{name}: " + ", ".join(f"{one} {size / 1e6:.1f} MB" for one, size in sizes.items())
        for name, sizes in result["tables"].items()
    )
    before, after = result["sizes_before"], result["sizes_after"]
    return (
        f"{result['runs_started']} runs were started, and tasks worth {result['runs_done']:.1f} runs done. "
        + " ".join(
            f"{name.capitalize()}'s database grew from {before[name] / 1e6:.1f} to {after[name] / 1e6:.1f} MB; a run keeps {size / 1e3:.0f} kB."
            for name, size in result["kept_per_run"].items()
        )
        + f" Without XComs and the log of events, and after VACUUM FULL, Airflow's is {result['airflow_cleaned'] / 1e6:.1f} MB. "
        f"Airflow's log files: {result['logs_per_run'] / 1e3:.0f} kB a run. The largest tables: {tables}."
    )


def sizing_parts(result: Row) -> list[str]:
    """How it is reckoned, and the table."""
    one = costs(result)
    seconds = ", ".join(f"{name} {value:.1f}" for name, value in one.cpu_s.items())
    names = list(one.cpu_s)
    head = [
        *("prunings a day", "tasks/min", "MLflow requests/s", *(f"{name} processes" for name in names), "cores in all"),
        *(f"{name} GB in {figures.DAYS_KEPT} days" for name in one.bytes_kept),
        "devices",
        *(f"train workers at {minutes:.0f} min" for minutes in RECOVERY_MIN),
    ]
    lines = [
        [
            f"{row['per_day']:,}",
            f"{row['tasks_per_min']:.1f}",
            f"{row['requests_per_s']:.2f}",
            *(str(row[f"{name} processes"]) for name in names),
            f"{row['cores']:.1f}",
            *(f"{row[f'{name} GB']:.2f}" for name in one.bytes_kept),
            str(row["devices"]),
            *(str(count) for count in row["train_workers"]),
        ]
        for row in result["sizing"]
    ]
    return [
        f"Extrapolated: Airflow's share from all settings under the backlog, MLflow's from whole runs sent to it alone. Processor seconds of one pruning: {seconds}. Cores are prunings in a second, "
        f"times {figures.PEAK:.0f} for the busiest hour, times those seconds, over {figures.FULL:.0%}; a process uses at most one core. "
        f"Devices and train workers: {MEASURING_MIN:.0f} minutes of measuring (assumed) and the minutes of recovery at the column's head, over "
        f"{figures.FULL:.0%} of a day. `tasks` are processes without their science.",
        table(head, lines),
    ]
