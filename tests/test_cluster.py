"""A deployment of several machines, really run: queues, a worker that dies, a database that restarts, several models at once."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cluster as clusters
import httpx
import pytest
from cluster import Cluster, finished
from services import MODEL, register_tiny, recipe_for, using, write_recipe

from tasks.cli import airflow_api

pytestmark = [pytest.mark.slow, pytest.mark.alone]

PLACES = {
    "control": {"queue": "control"},
    "train": {"queue": "train"},
    "bench": {"queue": "bench"},
    "targets": {"edge-cpu": {"queue": "edge"}},
}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two train workers' worth of queues, a bench worker, and one that is the device edge-cpu; the model `tiny`."""
    folder = tmp_path_factory.mktemp("cluster")
    with clusters.cluster(folder, PLACES) as made:
        (folder / "data").mkdir()
        with using(made.servers):
            register_tiny(folder / "data")
            write_recipe("edge", recipe_for(folder / "data" / "tiny.npz", also_on=[{"name": "edge-cpu"}]))
        made.worker("control", "control", slots=2)
        made.worker("train", "train")
        made.worker("bench", "bench")
        made.start("edge", "celery", "worker", "--queues", "edge", "--concurrency", "1", "--skip-serve-logs", SECATEUR_DEVICE="edge-cpu")
        yield made


@pytest.fixture(scope="module")
def client(deployed: Cluster) -> Iterator[httpx.Client]:
    with deployed.client() as made:
        yield made


def start(client: httpx.Client, recipe: str, model: str = MODEL, *, fresh: bool = True) -> str:
    return airflow_api.trigger(client, "prune_model", {"model": model, "recipe": recipe, "fresh": fresh})


def where(client: httpx.Client, run: str) -> Mapping[str, tuple[str, str]]:
    """Of each step that ran the host and the queue."""
    found = client.get(f"/api/v2/dags/prune_model/dagRuns/{run}/taskInstances", params={"limit": 100}).json()
    return {
        one["task_id"].rpartition(".")[2]: (one["hostname"], one["queue"], one["pool"], one["state"])
        for one in found["task_instances"]
        if one["state"] == "success"
    }


def test_a_pruning_runs_to_promotion_each_step_where_it_belongs(deployed: Cluster, client: httpx.Client) -> None:
    run = start(client, "edge")
    t=time.monotonic()
    print(finished(client, [run], 400), time.monotonic()-t)
    print(where(client, run))
