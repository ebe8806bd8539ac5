"""A deployment of several machines, really run: queues, a worker that dies, a database that restarts, several models at once."""

import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from cluster import Cluster, cluster, finished
from services import MODEL, recipe_for, register, register_tiny, using, versions_of, write_recipe

from tasks import bucket, tracking
from tasks.cli import airflow_api

pytestmark = [pytest.mark.slow, pytest.mark.alone]

PLACES = {
    "control": {"queue": "control"},
    "train": {"queue": "train"},
    "bench": {"queue": "bench"},
    "targets": {"edge-cpu": {"queue": "edge"}},
}
OTHER = "tiny-too"
WITHIN_S = 500.0


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A worker for each queue, one of which is the device edge-cpu; two models with a recipe each."""
    folder = tmp_path_factory.mktemp("cluster")
    with cluster(folder, PLACES) as made:
        (folder / "data").mkdir()
        with using(made.servers):
            register_tiny(folder / "data")
            examples_at = bucket.upload(folder / "data" / "tiny.npz", "data", "tiny.npz")
            shutil.rmtree(folder / "data")  # the machines share the bucket alone
            write_recipe("edge", recipe_for(examples_at, also_on=[{"name": "edge-cpu"}]))
            register(OTHER)
            long = {"accuracy_drop": 0.2, "recovery_epochs": 1500, "measuring_s": 6}  # to be killed in the middle of
            for name in (MODEL, OTHER):
                write_recipe(
                    f"long-{name}", recipe_for(examples_at, name, budget=long, prune={"align": 4, "cycles": 1})
                )
        made.worker("control", "control", slots=2)
        made.worker("train", "train")
        made.worker("bench", "bench")
        made.worker("edge", "edge", SECATEUR_DEVICE="edge-cpu")
        yield made


@pytest.fixture(scope="module")
def client(deployed: Cluster) -> Iterator[httpx.Client]:
    with deployed.client() as made:
        yield made


def start(client: httpx.Client, recipe: str, model: str = MODEL) -> str:
    return airflow_api.trigger(client, "prune_model", {"model": model, "recipe": recipe, "fresh": True})


def steps(client: httpx.Client, run: str) -> dict[str, dict[str, Any]]:
    """The task instances of a run, by name."""
    path = f"/api/v2/dags/prune_model/dagRuns/{run}/taskInstances"
    return {one["task_id"]: one for one in client.get(path, params={"limit": 100}).json()["task_instances"]}


def until(said: Callable[[], object], within_s: float = WITHIN_S) -> None:
    """Wait for something to be so."""
    end = time.monotonic() + within_s
    while not said():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_a_pruning_runs_to_promotion_each_step_where_it_belongs(deployed: Cluster, client: httpx.Client) -> None:
    run = start(client, "edge")
    assert finished(deployed, [run], WITHIN_S) == {run: "success"}
    done = {name: one for name, one in steps(client, run).items() if one["state"] == "success"}
    queues = {name.rpartition(".")[2]: one["queue"] for name, one in done.items()}
    assert {name for name, queue in queues.items() if queue == "train"} == {"recover", "export"}
    assert {name for name, queue in queues.items() if queue == "edge"} == {"validate_on"}
    assert {name for name, queue in queues.items() if queue == "bench"} == {
        "baseline",
        "cut",
        "evaluate",
        "validate",
        "gate",
    }
    assert done["validate_on"]["pool"] == "bench-edge-cpu"
    assert done["promote"]["state"] == "success"
    with using(deployed.servers):
        assert versions_of(MODEL) == ["1", "2"]
        pinned = airflow_api.xcom(client, "prune_model", run, "resolve")
        verdict = tracking.get_json(pinned["run_id"], "gate/verdict.json")
    assert {"speedup on edge-cpu", "accuracy on edge-cpu"} <= {rule["name"] for rule in verdict["verdict"]["rules"]}


def test_two_models_at_once_outlive_a_killed_worker_and_a_restart_of_postgres(
    deployed: Cluster, client: httpx.Client
) -> None:
    runs = {model: start(client, f"long-{model}", model) for model in (MODEL, OTHER)}

    def recovering() -> list[str]:
        return [run for run in runs.values() if steps(client, run)["cycle_1.recover"]["state"] == "running"]

    until(recovering)
    (struck,) = recovering()  # the worker has one slot
    time.sleep(10)  # it has read everything, and trains
    assert recovering() == [struck]
    deployed.kill("train")
    deployed.worker("train-2", "train")
    deployed.postgres.stop()
    time.sleep(5)
    deployed.postgres.start()
    assert finished(deployed, list(runs.values()), WITHIN_S) == dict.fromkeys(runs.values(), "success")
    assert steps(client, struck)["cycle_1.recover"]["try_number"] > 1
    with using(deployed.servers):
        for model, run in runs.items():
            promoted = airflow_api.xcom(client, "prune_model", run, "promote")
            assert promoted is not None
            assert versions_of(model)[-1] == promoted["version"]
