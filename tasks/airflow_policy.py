"""Puts task instances where `tasks.placement` says, when Airflow's scheduler makes them.

Airflow's settings load it in every one of its processes (entry point `airflow.policy`), so it imports next to nothing.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING, Any

from airflow import settings
from airflow.policies import hookimpl

from tasks import DAGS
from tasks.preload import preload

if TYPE_CHECKING:
    from tasks.placement import Place
    from tasks.recipe import Recipe

FRESH_S = 10.0  # after which a recipe is read again
CONTAINER = "base"  # Airflow's name of the one that runs the task

log = logging.getLogger("secateur.placement")

preload()

# Airflow 3.3 asks a plugin's policy of every new task instance only where there is a local settings file as well.
settings.task_instance_mutation_hook.is_noop = False  # type: ignore[attr-defined]


@hookimpl
def task_instance_mutation_hook(task_instance: Any, dag_run: Any) -> None:
    """The queue, the pod and the pool of a step of ours, by what it needs and by its recipe's target.

    An error would stop the scheduler. What is wrong with placement or recipe the run's first step says in a sentence.
    """
    if task_instance.dag_id not in DAGS or dag_run is None:
        return
    try:
        _place(task_instance, (dag_run.conf or {}).get("recipe"))
    except Exception as error:
        log.error("%s stays where its executor puts it: %s", task_instance.task_id, error)


def _place(task_instance: Any, name: str | None) -> None:
    from tasks import placement

    step, places = task_instance.task_id.rpartition(".")[2], placement.load()
    recipe = _recipe(name, time.monotonic() // FRESH_S) if name and (places.targets or _in_pods()) else None
    place, pool = placement.asked(places, step, recipe, task_instance.map_index)
    task_instance.queue = place.queue or task_instance.queue
    task_instance.pool = pool or task_instance.pool
    if _in_pods():
        task_instance.executor_config = {"pod_override": pod(place, pool)}


@functools.lru_cache(maxsize=64)
def _recipe(name: str, _moment: float) -> Recipe:
    """A run makes some thirty task instances at once, inside the scheduler's loop: its recipe is read for all of them together."""
    from tasks import recipe

    return recipe.load(name)


def _in_pods() -> bool:
    from airflow.configuration import conf

    return "KubernetesExecutor" in str(conf.get("core", "executor"))


def pod(place: Place, pool: str | None) -> Any:
    """What a place changes of the pod that runs a step; it is told its own name, and that of the device that it is."""
    from kubernetes.client import models as k8s

    from tasks.placement import BENCH, HERE

    least = {"cpu": place.cpus and f"{place.cpus:g}", "memory": place.memory_gb and f"{place.memory_gb:g}Gi"}
    asked = {name: value for name, value in least.items() if value}
    gpus = {"nvidia.com/gpu": str(place.gpus)} if place.gpus else {}
    # processor time is a share, not a limit: a step that is throttled would measure its throttling
    limits = {name: value for name, value in asked.items() if name != "cpu"} | gpus
    device = (pool or "").removeprefix(BENCH).removeprefix("-")
    fields = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace"}
    own = [
        k8s.V1EnvVar(name=name, value_from=k8s.V1EnvVarSource(field_ref=k8s.V1ObjectFieldSelector(field_path=path)))
        for name, path in fields.items()
    ]
    container = k8s.V1Container(
        name=CONTAINER,
        resources=k8s.V1ResourceRequirements(requests=asked | gpus or None, limits=limits or None),
        env=[*own, *([k8s.V1EnvVar(name=HERE, value=device)] if device else [])],
    )
    spec = k8s.V1PodSpec(
        containers=[container],
        node_selector=place.node_selector or None,
        tolerations=[toleration.model_dump(exclude_none=True) for toleration in place.tolerations] or None,
    )
    return k8s.V1Pod(spec=spec)
