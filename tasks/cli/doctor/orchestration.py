"""Airflow: does it answer, does it know us, do its parts live, has it our DAGs and pools, is its database of its own?"""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import httpx

from tasks import DAGS, placement
from tasks.cli import airflow_api
from tasks.cli.airflow_api import AirflowError
from tasks.cli.doctor import asking
from tasks.cli.doctor.finding import Finding

_PATIENCE_S = 11.0
_PARTS = {
    "scheduler": "no step is started",
    "dag_processor": "no DAG is read",
    "triggerer": "nobody can be asked, and the registry is not watched",
}


def check() -> Iterator[Finding]:
    """Whether it could carry out a run from its start to its end."""
    if not asking.named("SECATEUR_AIRFLOW_URL"):
        yield Finding(
            "warn",
            "Airflow is not looked at: nothing says where it is, and as whom to sign in",
            "set SECATEUR_AIRFLOW_URL, SECATEUR_AIRFLOW_USERNAME and SECATEUR_AIRFLOW_PASSWORD",
        )
        return
    try:
        client = airflow_api.connect(timeout=asking.PATIENCE_S, attempts=1)
    except AirflowError as error:
        yield Finding(
            "fail", str(error).rstrip("."), "start its API server, or correct SECATEUR_AIRFLOW_URL and the sign-in"
        )
        return
    with client:
        yield Finding("ok", f"Airflow at {asking.shown(str(client.base_url))} answers")
        for look in (_parts, _release, _dags, _pools):
            try:
                yield from look(client)
            except AirflowError as error:
                yield Finding("fail", str(error).rstrip("."), "its API server's log says why")


def database() -> Iterator[Finding]:
    """Where this machine knows Airflow's database: whether it is of the release that is installed here, as Airflow itself says."""
    name = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
    if not any(os.environ.get(name + end) for end in ("", "_CMD", "_SECRET")) or not importlib.util.find_spec(
        "airflow"
    ):
        return
    command = [sys.executable, "-m", "airflow", "db", "check-migrations", "--migration-wait-timeout", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE_S, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("warn", "Airflow's database was not compared in time", f"run `{' '.join(command[2:])}`")
        return
    if done.returncode == 0:
        yield Finding("ok", "Airflow's database is of the release that is installed here")
    elif "unapplied migrations" in done.stderr + done.stdout:
        yield Finding(
            "fail",
            "Airflow's database is older than the Airflow here, or empty",
            "stop Airflow, back its database up, run `airflow db migrate`, start it again (docs/upgrading.md)",
        )
    else:
        last = (done.stderr.strip() or done.stdout.strip() or "nothing was said").splitlines()[-1]
        yield Finding(
            "fail", f"Airflow's database cannot be read ({last[:200]})", f"correct {name}, or start the database"
        )


def _parts(client: httpx.Client) -> Iterator[Finding]:
    health = airflow_api.health(client)
    if (health.get("metadatabase") or {}).get("status") != "healthy":
        yield Finding(
            "fail", "Airflow's database does not answer it", "start the database; `airflow db check` tries it"
        )
    for part, without in _PARTS.items():
        seen: Mapping[str, Any] = health.get(part) or {}
        if seen.get("status") != "healthy":
            beat = str(seen.get(f"latest_{part}_heartbeat") or "")
            last = f"its last sign of life is of {beat[:19]}" if beat else "it was never there"
            shown = part.replace("_", "-")
            yield Finding("fail", f"Airflow's {shown} does not live, {last}: {without}", f"start `airflow {shown}`")


def _release(client: httpx.Client) -> Iterator[Finding]:
    theirs = airflow_api.release(client)
    try:
        ours = version("apache-airflow-core")
    except PackageNotFoundError:
        return
    if theirs != ours:
        yield Finding(
            "warn",
            f"Airflow is {theirs}, the one installed here {ours}",
            "let both be of one release (docs/upgrading.md)",
        )


def _dags(client: httpx.Client) -> Iterator[Finding]:
    paused, broken = airflow_api.paused(client), airflow_api.import_errors(client)
    for file, trace in broken.items():
        last = (trace.strip().splitlines() or ["it does not say why"])[-1]
        yield Finding(
            "fail", f"Airflow cannot read {file}: {last[:200]}", "mend what it says, or install what is missing there"
        )
    missing = [dag for dag in DAGS if dag not in paused]
    if missing:
        yield Finding(
            "fail",
            f"Airflow has no DAG {', '.join(missing)}",
            "put the folder `dags` where [core] dags_folder says, and see that the DAG processor reads it",
        )
    for dag in DAGS:
        if paused.get(dag):
            yield Finding("warn", f"DAG {dag} is paused: its runs wait", f"run `airflow dags unpause {dag}`")
    if not missing and not any(paused[dag] for dag in DAGS):
        yield Finding("ok", f"Airflow has the DAGs {', '.join(DAGS)}, none is paused")


def _pools(client: httpx.Client) -> Iterator[Finding]:
    wanted, slots = placement.load().pools, airflow_api.pools(client)
    make = "run `secateur pools > pools.json` and `airflow pools import pools.json`"
    for name in wanted:
        if name not in slots:
            yield Finding("fail", f"Airflow has no pool {name}: steps that measure would wait for ever", make)
        elif slots[name] != 1:
            yield Finding(
                "fail",
                f"pool {name} has {slots[name]} slots: "
                + (
                    "measurements would disturb each other" if slots[name] else "steps that measure would wait for ever"
                ),
                f"{make}: each device has one slot",
            )
    if all(slots.get(name) == 1 for name in wanted):
        yield Finding("ok", f"a pool of one slot for each device: {', '.join(wanted)}")
