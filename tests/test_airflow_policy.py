"""Airflow's scheduler asks where a step runs: the queue, the pod and the pool that it is told."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tasks import DAGS

REPOSITORY = Path(__file__).parents[1]
PLACES = {
    "control": {"queue": "control"},
    "train": {"queue": "train", "cpus": 4, "memory_gb": 16, "gpus": 1},
    "bench": {"queue": "bench", "cpus": 0.5},
    "targets": {
        "edge-cpu": {
            "queue": "edge",
            "node_selector": {"kubernetes.io/arch": "arm64"},
            "tolerations": [{"key": "edge", "operator": "Exists", "effect": "NoSchedule", "tolerationSeconds": 9}],
        }
    },
}
RECIPE = "model: tiny\ndata: {source: digits}\ngoal: {sparsity: 0.5}\n"

# in an Airflow of its own, whose settings load the policy as its scheduler's do
ASK = """
import json, sys, types
from airflow import settings
from airflow.models import TaskInstance
assert not settings.task_instance_mutation_hook.is_noop
from kubernetes.client import ApiClient
found = []
for task_id, map_index, conf, dag_id in json.load(sys.stdin):
    task = types.SimpleNamespace(
        task_id=task_id, map_index=map_index, dag_id=dag_id, queue="default", pool="default_pool", executor_config={})
    run = types.SimpleNamespace(conf=conf) if conf is not None else None
    settings.task_instance_mutation_hook(task, dag_run=run)
    pod = ApiClient().sanitize_for_serialization(task.executor_config.get("pod_override"))
    found.append({"queue": task.queue, "pool": task.pool, "pod": pod})
print("RESULT" + json.dumps(found))
"""

Ask = Callable[..., list[dict[str, Any]]]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An installation: its recipes, its placement, Airflow's home."""
    folder = tmp_path_factory.mktemp("installation")
    (folder / "recipes").mkdir()
    (folder / "recipes" / "plain.yaml").write_text(RECIPE)
    (folder / "recipes" / "edge.yaml").write_text(RECIPE + "target: {name: edge-cpu}\n")
    (folder / "recipes" / "both.yaml").write_text(RECIPE + "also_on: [{name: other}, {name: edge-cpu}]\n")
    (folder / "recipes" / "deep.yaml").write_text("[" * 3000)  # what the parser itself gives up
    (folder / "recipes" / "too.yaml").write_text(RECIPE + "also_on: [{name: edge-cpu}]\n")
    (folder / "placement.yaml").write_text(yaml.safe_dump(PLACES))
    return folder


@pytest.fixture(scope="module")
def ask(home: Path) -> Ask:
    def asked(*steps: tuple[Any, ...], executor: str) -> list[dict[str, Any]]:
        environment = {
            **os.environ,
            "AIRFLOW_HOME": str(home),
            "AIRFLOW__CORE__EXECUTOR": executor,
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "SECATEUR_RECIPES": str(home / "recipes"),
            "SECATEUR_PLACEMENT": str(home / "placement.yaml"),
            "PYTHONPATH": str(REPOSITORY),
        }
        argv = [sys.executable, "-c", ASK]
        given = json.dumps([(*step, "prune_model")[:4] for step in steps])
        done = subprocess.run(argv, env=environment, input=given, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout.rpartition("RESULT")[2])
        return found

    return asked


def test_a_step_goes_to_the_queue_of_its_kind_or_of_its_recipes_target(ask: Ask) -> None:
    conf = [{"recipe": name} for name in ("plain", "edge", "both", "none such", "too")]
    steps = [("resolve", -1, conf[1]), ("cycle_1.recover", -1, conf[1]), ("cycle_1.cut", -1, conf[0])]
    steps += [
        ("cycle_1.cut", -1, conf[1]),
        ("validate_on", 0, conf[2]),
        ("validate_on", 1, conf[2]),
        ("validate_on", -1, conf[4]),
    ]
    steps += [("validate", -1, conf[3]), ("validate", -1, None), ("validate", -1, conf[1], "a DAG of others")]
    steps += [("validate", -1, {"recipe": "deep"})]
    found = ask(*steps, executor="CeleryExecutor")
    assert [one["queue"] for one in found] == [
        *("control", "train", "bench", "edge", "bench", "edge", "edge"),
        *("default", "default", "default", "default"),
    ]
    assert [one["pool"] for one in found[:7]] == [
        *("default_pool", "default_pool", "bench", "bench-edge-cpu", "bench", "bench-edge-cpu", "bench-edge-cpu"),
    ]
    assert not any(one["pod"] for one in found)


def test_all_steps_of_our_other_dags_are_control(ask: Ask) -> None:
    others = set(DAGS) - {"prune_model"}
    found = ask(*(("a step", -1, {}, dag) for dag in others), executor="CeleryExecutor")
    assert {(one["queue"], one["pool"]) for one in found} == {("control", "default_pool")}


def test_in_a_cluster_it_gets_a_pod_with_what_it_needs(ask: Ask) -> None:
    steps = [("cycle_1.recover", -1, {"recipe": "edge"}), ("validate", -1, {"recipe": "edge"})]
    steps += [("validate", -1, {"recipe": "plain"}), ("resolve", -1, {"recipe": "plain"})]
    train, edge, bench, control = (one["pod"] for one in ask(*steps, executor="KubernetesExecutor"))
    for pod in (train, edge, bench, control):
        whole = json.loads(json.dumps(pod)) | {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "step"}}
        kubernetes_validate.validate(whole, "1.34", strict=True)
        assert [container["name"] for container in pod["spec"]["containers"]] == ["base"]
    of_train = train["spec"]["containers"][0]["resources"]
    assert of_train["requests"] == {"cpu": "4", "memory": "16Gi", "nvidia.com/gpu": "1"}
    assert of_train["limits"] == {"memory": "16Gi", "nvidia.com/gpu": "1"}
    assert edge["spec"]["nodeSelector"] == {"kubernetes.io/arch": "arm64"}
    assert edge["spec"]["tolerations"] == PLACES["targets"]["edge-cpu"]["tolerations"]
    names = {one["name"]: one.get("value") for one in edge["spec"]["containers"][0]["env"]}
    assert names == {"POD_NAME": None, "POD_NAMESPACE": None, "SECATEUR_DEVICE": "edge-cpu"}
    assert bench["spec"]["containers"][0]["resources"]["requests"] == {"cpu": "0.5"}
    assert "SECATEUR_DEVICE" not in str(bench)
    assert control["spec"]["containers"][0]["resources"] == {}


def test_a_recipe_asks_for_gpus_of_one_machine_or_of_each_of_several(ask: Ask, home: Path) -> None:
    (home / "recipes" / "four.yaml").write_text(RECIPE + "resources: {gpus: 4}\n")
    (home / "recipes" / "eight.yaml").write_text(RECIPE + "resources: {gpus: 4, nodes: 2}\n")
    steps = [("cycle_1.recover", -1, {"recipe": name}) for name in ("four", "eight")]
    steps += [("cycle_1.cut", -1, {"recipe": "four"})]
    four, eight, cut = (
        one["pod"]["spec"]["containers"][0]["resources"] for one in ask(*steps, executor="KubernetesExecutor")
    )
    assert four["limits"]["nvidia.com/gpu"] == "4"
    assert "nvidia.com/gpu" not in eight["limits"]  # the machines that it asks for have them
    assert "nvidia.com/gpu" not in str(cut)
