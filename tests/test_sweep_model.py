"""The DAG `sweep_model` on a real Airflow: its candidates run side by side, hold no worker while they are waited for, and one wins."""

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from services import MODEL, free_ports, recipe_for, register_tiny, using, write_recipe
from typer.testing import CliRunner

from tasks.cli import airflow_api, follow, pieces, processes, settings, stack
from tasks.cli.app import app

pytestmark = [pytest.mark.slow, pytest.mark.alone]  # it needs the whole machine


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """A stack of its own that lets runs of a DAG go on side by side, with its own recipes."""
    copy, folder = tmp_path / "repository", tmp_path / "stack"
    (copy / "recipes").mkdir(parents=True)
    folder.mkdir()
    for name in ("dags", "secateur", "tasks"):
        (copy / name).symlink_to(settings.REPOSITORY / name)
    for module in (pieces, stack):
        monkeypatch.setattr(module, "REPOSITORY", copy)
    monkeypatch.setenv(settings.STATE_VARIABLE, str(folder))
    ports = free_ports(len(pieces.DEFAULT_PORTS))
    monkeypatch.setattr(pieces, "DEFAULT_PORTS", dict(zip(pieces.DEFAULT_PORTS, ports, strict=True)))
    options = pieces._airflow_options

    def side_by_side(made: pieces.Stack) -> dict[str, dict[str, str]]:
        found = options(made)
        found["core"] |= {"max_active_runs_per_dag": "4", "parallelism": "3"}
        return found

    monkeypatch.setattr(pieces, "_airflow_options", side_by_side)
    stack.up(lambda _: None)
    try:
        yield dict(settings.stack_environment())
    finally:
        processes.stop(folder.resolve(), grace=0.0)


def test_a_sweep_runs_its_candidates_side_by_side_and_promotes_the_best(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with using(environment):
        register_tiny(tmp_path)
        data = tmp_path / "tiny.npz"
        write_recipe("tiny", recipe_for(data, budget={"accuracy_drop": 0.2, "recovery_epochs": 2, "measuring_s": 3}))
        goals = [{"sparsity": 0.3}, {"sparsity": 0.5}, {"kv_cache": 0.5}]
        write_recipe("goals", {"base": "tiny", "matrix": {"goal": goals}, "halving": {"eta": 2, "rungs": 2}})
        done = CliRunner().invoke(app, ["sweep", MODEL, "--sweep", "goals", "--json"])
        assert done.exit_code == 0, (done.output, done.exception)
        outcome = json.loads(done.stdout)
        states = {one["name"]: one["state"] for one in outcome["sweep"]["candidates"]}
        assert states == {"sparsity-0.3": "measured", "sparsity-0.5": "measured", "kv_cache-0.5": "failed"}
        failed = next(one for one in outcome["sweep"]["candidates"] if one["state"] == "failed")
        assert "goal.kv_cache: expected a model with attention" in failed["reason"]
        with airflow_api.connect() as client:
            check_side_by_side(client, outcome["dag_run_id"])
            runs = airflow_api.runs(client, "prune_model", limit=50)
            check_cleared(client, outcome["dag_run_id"])
            assert airflow_api.runs(client, "prune_model", limit=50) == runs


def check_side_by_side(client: httpx.Client, sweep: str) -> None:
    """Two candidates ran at the same time, and only one run promoted."""
    found = client.get("/api/v2/dags/prune_model/dagRuns", params={"limit": 50}).json()["dag_runs"]
    # by candidate and rung; before them is the sweep's own run in MLflow
    mine = {run["dag_run_id"].removeprefix(f"{sweep}__").partition("__")[2]: run for run in found}
    first, second = mine["sparsity-0.3__1"], mine["sparsity-0.5__1"]
    assert max(first["start_date"], second["start_date"]) < min(first["end_date"], second["end_date"])
    promoted = [
        name for name, run in mine.items() if airflow_api.xcom(client, "prune_model", run["dag_run_id"], "promote")
    ]
    assert [name.rpartition("__")[2] for name in promoted] == ["final"]


def check_cleared(client: httpx.Client, sweep: str) -> None:
    """A sweep that is cleared finds what it started."""
    client.post(f"/api/v2/dags/sweep_model/dagRuns/{sweep}/clear", json={"dry_run": False}).raise_for_status()
    assert follow.follow(client, "sweep_model", sweep, lambda state, tasks: None) == "success"
