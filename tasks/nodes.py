"""A training of a step, shared by several machines of a Kubernetes cluster that train as one (`resources.nodes`).

The step's own pod is the pattern: every machine runs a copy of it, same image, environment and account, in which torchrun
starts `python -m tasks.nodes RUN NAME`. They are pods of a PyTorchJob where the cluster has the training operator, else of an
Indexed Job. The order, and the answer or the first error, travel as artifacts of the MLflow run. What was made belongs to the
step's pod: Kubernetes removes it with that. Of a pod that was evicted, or ended for its memory, the object stays: the next try
removes what that one has left.
"""

from __future__ import annotations

import os
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from secateur.errors import InputError
from tasks import tracking, workers
from tasks.faults import persist

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

    from tasks.recipe import Resources

OWN = ("POD_NAME", "POD_NAMESPACE")  # of the pod that runs the step; `tasks.airflow_policy` sets them
PORT = 29500  # where the first machine's processes wait for the others, torchrun's usual one
LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 300.0  # with an API server that does not answer: meanwhile the machines train
CONTAINER = "base"  # of the step's pod
OPERATOR = {"group": "kubeflow.org", "version": "v1", "plural": "pytorchjobs"}
KEEP_SECONDS = 600  # for who wants to read the pods' logs
ENDED = {"Complete": True, "Succeeded": True, "Failed": False}  # conditions of a Job and of a PyTorchJob
RUN = "secateur/run"  # the label of a training's jobs
ENDED_PODS = ("Succeeded", "Failed")
_OF_ONE_POD = ("nodeName", "hostname", "subdomain", "ephemeralContainers", "containers", "restartPolicy")

Manifest = Mapping[str, Any]
T = TypeVar("T")


def check(nodes: int) -> None:
    """Raise InputError unless so many machines can be had from here."""
    if nodes == 1:
        return
    if not all(name in os.environ for name in ("KUBERNETES_SERVICE_HOST", *OWN)):
        raise InputError(
            f"resources.nodes: expected 1 outside Kubernetes, got {nodes}; ask for more processes or GPUs of one machine, or run "
            f"the steps by the KubernetesExecutor, which tells them {' and '.join(OWN)}"
        )
    if not _may_make_jobs():
        raise InputError(
            f"resources.nodes: expected an account of the steps that may make jobs, which {nodes} machines take; set "
            "recovery.distributed: true in the chart's values"
        )


def _may_make_jobs() -> bool:
    from kubernetes import client, config

    try:
        config.load_config()
    except config.ConfigException:  # the account's pods have no token
        return False
    wanted = {"group": "batch", "resource": "jobs", "namespace": os.environ["POD_NAMESPACE"]}
    reviews = [{"spec": {"resourceAttributes": {**wanted, "verb": verb}}} for verb in ("create", "list")]
    asked = client.AuthorizationV1Api()
    return all(asked.create_self_subject_access_review(review).status.allowed for review in reviews)


def share(function: Callable[..., T | None], resources: Resources, processes: int, run_id: str, **arguments: Any) -> T:
    """Call a module's function in so many processes on each machine, within `secateur.distributed.joined`; the first one's answer.

    Args:
        run_id: the run that carries order and answer.

    Raises:
        InputError, FloatingPointError: what the function raised, in its own words, or there is no cluster.
        OSError: a fault of the wire, or a machine that was lost; worth a retry.
        RuntimeError: anything else; the traceback is in the pods' logs.
    """
    from kubernetes import client, config

    check(resources.nodes)
    config.load_config()
    api = client.ApiClient()
    own, namespace = (os.environ[variable] for variable in OWN)
    name, pod = f"secateur-{secrets.token_hex(5)}", client.CoreV1Api(api).read_namespaced_pod(own, namespace)
    tracking.put_json(run_id, _place(name, "order"), workers.order(function, arguments))
    pattern, operator = api.sanitize_for_serialization(pod), _has_operator(api)
    made = manifests(pattern, name, run_id, resources, processes, operator=operator)
    _remove_left(api, namespace, run_id, operator=operator)
    try:
        for manifest in made:
            _create(api, namespace, manifest)
        ended_well = _await(api, namespace, made[-1])
    finally:
        for manifest in reversed(made):
            _delete(api, namespace, manifest)
    if error := tracking.get_json(run_id, _place(name, "error")):
        workers.raise_told(error)
    answer = tracking.get_json(run_id, _place(name, "answer"))
    if answer is None or not ended_well:
        raise ChildProcessError(
            f"resources.nodes: expected {resources.nodes} machines to train to the end, one was lost; a retry goes on from the "
            "last checkpoint; the events of the pods say more"
        )
    return workers.answered(function, answer["of_the_first"])


def manifests(
    pattern: Manifest, name: str, run_id: str, resources: Resources, processes: int, *, operator: bool
) -> list[Manifest]:
    """What the cluster is asked to make, the job last: a PyTorchJob, or a service by which the pods of an Indexed Job meet, and that.

    Args:
        pattern: the step's pod, as Kubernetes describes it.
        run_id: the run that carries order and answer.
    """
    argv = ["-m", "tasks.nodes", run_id, name]
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pattern["metadata"]["name"], "uid": pattern["metadata"]["uid"]}
    labels = {"app.kubernetes.io/name": "secateur", "app.kubernetes.io/component": "recovery", "secateur/nodes": name}
    metadata = {"name": name, "labels": {**labels, RUN: run_id}, "ownerReferences": [owner]}
    if operator:  # it tells torchrun who is who, by variables
        pod = _copy(pattern, labels, resources, argv, container="pytorch")
        replicas = {"Master": 1, "Worker": resources.nodes - 1}
        roles = {
            role: {"replicas": count, "restartPolicy": "Never", "template": pod} for role, count in replicas.items()
        }
        policy = {"backoffLimit": 0, "cleanPodPolicy": "All", "ttlSecondsAfterFinished": KEEP_SECONDS}
        spec = {"nprocPerNode": str(processes), "runPolicy": policy, "pytorchReplicaSpecs": roles}
        version = f"{OPERATOR['group']}/{OPERATOR['version']}"
        return [{"apiVersion": version, "kind": "PyTorchJob", "metadata": metadata, "spec": spec}]
    meeting = {
        "--nnodes": resources.nodes,
        "--nproc-per-node": processes,
        "--node-rank": "$(NODE_RANK)",
        "--master-addr": f"{name}-0.{name}",  # an indexed pod's name within its service
        "--master-port": PORT,
    }
    options = [str(part) for option in meeting.items() for part in option]
    pod = _copy(pattern, labels, resources, [*options, *argv], container=CONTAINER)
    pod["spec"] |= {"subdomain": name, "restartPolicy": "Never"}
    index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    pod["spec"]["containers"][0]["env"].append({"name": "NODE_RANK", "valueFrom": {"fieldRef": index}})
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "clusterIP": "None",
            "selector": labels,
            "publishNotReadyAddresses": True,  # they look for each other before they are ready
            "ports": [{"name": "torchrun", "port": PORT}],
        },
    }
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completions": resources.nodes,
            "parallelism": resources.nodes,
            "completionMode": "Indexed",
            "backoffLimit": 0,  # one that is lost leaves the others waiting: the step is tried again, from its checkpoint
            "ttlSecondsAfterFinished": KEEP_SECONDS,
            "template": pod,
        },
    }
    return [service, job]


def _copy(
    pattern: Manifest, labels: Mapping[str, str], resources: Resources, argv: list[str], *, container: str
) -> dict[str, Any]:
    """A template of the step's pod that starts torchrun with these arguments, on the GPUs that are asked for."""
    spec = {name: value for name, value in pattern["spec"].items() if name not in _OF_ONE_POD}
    base = next(one for one in pattern["spec"]["containers"] if one["name"] == CONTAINER)
    needs = {kind: dict(base.get("resources", {}).get(kind, {})) for kind in ("requests", "limits")}
    if resources.gpus:
        for kind in needs.values():
            kind["nvidia.com/gpu"] = str(resources.gpus)
    copy = {
        **base,
        "name": container,
        "command": ["python", "-m", "torch.distributed.run"],
        "args": argv,
        "env": [*base.get("env", ())],
        "resources": {kind: values for kind, values in needs.items() if values},
    }
    return {"metadata": {"labels": dict(labels)}, "spec": {**spec, "containers": [copy]}}


def _has_operator(api: ApiClient) -> bool:
    """Whether the cluster has Kubeflow's training operator."""
    from kubernetes import client

    try:
        found = client.CustomObjectsApi(api).get_api_resources(OPERATOR["group"], OPERATOR["version"])
    except client.ApiException as error:
        if error.status == 404:
            return False
        raise
    return any(resource.name == OPERATOR["plural"] for resource in found.resources)


def _remove_left(api: ApiClient, namespace: str, run_id: str, *, operator: bool) -> None:
    """Remove the jobs of this training whose step has ended."""
    from kubernetes import client

    wanted = {"namespace": namespace, "label_selector": f"{RUN}={run_id}"}
    if operator:
        found = client.CustomObjectsApi(api).list_namespaced_custom_object(**OPERATOR, **wanted)
    else:
        found = api.sanitize_for_serialization(client.BatchV1Api(api).list_namespaced_job(**wanted))
    for job in found["items"]:
        if _ended(api, namespace, job["metadata"]["ownerReferences"][0]["name"]):
            _delete(api, namespace, {"kind": "PyTorchJob" if operator else "Job", "metadata": job["metadata"]})


def _ended(api: ApiClient, namespace: str, pod: str) -> bool:
    from kubernetes import client

    try:
        return client.CoreV1Api(api).read_namespaced_pod(pod, namespace).status.phase in ENDED_PODS
    except client.ApiException as error:
        if error.status != 404:
            raise
        return True


def _create(api: ApiClient, namespace: str, manifest: Manifest) -> None:
    from kubernetes import client

    if manifest["kind"] == "Service":
        client.CoreV1Api(api).create_namespaced_service(namespace, manifest)
    elif manifest["kind"] == "Job":
        client.BatchV1Api(api).create_namespaced_job(namespace, manifest)
    else:
        client.CustomObjectsApi(api).create_namespaced_custom_object(**OPERATOR, namespace=namespace, body=manifest)


def _status(api: ApiClient, namespace: str, job: Manifest) -> dict[str, Any]:
    from kubernetes import client

    name = job["metadata"]["name"]
    if job["kind"] == "Job":
        found = api.sanitize_for_serialization(client.BatchV1Api(api).read_namespaced_job_status(name, namespace))
    else:
        found = client.CustomObjectsApi(api).get_namespaced_custom_object(**OPERATOR, namespace=namespace, name=name)
    return dict(found.get("status") or {})


def _await(api: ApiClient, namespace: str, job: Manifest) -> bool:
    """Wait for the job's end, and say what changes; whether it ended well."""
    from kubernetes import client

    said = None
    while True:
        try:
            status = persist(lambda: _status(api, namespace, job), time.monotonic() + PATIENCE_SECONDS)
        except client.ApiException as error:
            if error.status != 404:
                raise
            return False  # somebody removed it
        now = [condition["type"] for condition in status.get("conditions") or () if condition["status"] == "True"]
        seen = f"{', '.join(now) or 'begun'}, {status.get('ready') or status.get('active') or 0} machines at work"
        if seen != said:
            print(f"{job['kind']} {job['metadata']['name']}: {seen}", flush=True)
            said = seen
        if ends := [ENDED[condition] for condition in now if condition in ENDED]:
            return ends[0]
        time.sleep(LOOK_SECONDS)


def _delete(api: ApiClient, namespace: str, manifest: Manifest) -> None:
    """Remove what was made, and its pods; what is gone already, or was never made, is as wanted.

    What cannot be removed is said and ends nothing: it goes with the step's pod.
    """
    from kubernetes import client

    name, options = manifest["metadata"]["name"], {"propagation_policy": "Background"}
    try:
        if manifest["kind"] == "Service":
            client.CoreV1Api(api).delete_namespaced_service(name, namespace, **options)
        elif manifest["kind"] == "Job":
            client.BatchV1Api(api).delete_namespaced_job(name, namespace, **options)
        else:
            client.CustomObjectsApi(api).delete_namespaced_custom_object(
                **OPERATOR, namespace=namespace, name=name, **options
            )
    except Exception as error:  # whatever the wire or the server has to say
        if getattr(error, "status", None) != 404:
            print(f"{manifest['kind']} {name} was not removed: {' '.join(str(error).split())}", flush=True)


def _place(name: str, what: str) -> str:
    return f"nodes/{name}/{what}.json"


def main(run_id: str, name: str) -> int:
    """One process of one machine; the exit status is 1 when anything was raised here."""
    from secateur import distributed

    order = tracking.get_json(run_id, _place(name, "order"))
    assert order is not None
    try:
        with distributed.joined():
            try:
                answer = workers.carry_out(order)
            except Exception as error:
                return _tell(run_id, name, error)  # before the others find this process gone
            if distributed.rank() == 0:
                tracking.put_json(run_id, _place(name, "answer"), {"of_the_first": answer})
    except InputError as error:  # this machine cannot take part
        return _tell(run_id, name, error)
    return 0


def _tell(run_id: str, name: str, error: Exception) -> int:
    """Leave an error for the step, if it is the first and says more than that a partner has gone; the exit status."""
    from secateur import distributed

    if not distributed.partner_gone(error) and tracking.get_json(run_id, _place(name, "error")) is None:
        tracking.put_json(run_id, _place(name, "error"), workers.told(error))
    traceback.print_exc()
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
