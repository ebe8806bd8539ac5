"""Several machines of a cluster that train as one: what the cluster is asked to make, and torchrun's processes at work in it.

No cluster runs here. Its place takes a server of the few calls that are made of one, which runs an Indexed Job's pods as what
they are on a machine, processes, by the very command and variables of the manifest.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import kubernetes_validate
import pytest
import torch
import yaml
from services import Servers, free_ports

from secateur import distributed
from secateur.errors import InputError
from tasks import nodes, tracking
from tasks.recipe import Resources

TESTS = Path(__file__).parent
POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "recover-1", "namespace": "prune", "uid": "0f3a", "labels": {"kubernetes_executor": "True"}},
    "status": {"phase": "Running"},
    "spec": {
        "nodeName": "machine-7",
        "serviceAccountName": "secateur-worker",
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True},
        "containers": [
            {
                "name": "base",
                "image": "secateur-worker:0.1.0",
                "args": ["airflow", "tasks", "run"],
                "env": [{"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"}],
                "resources": {"requests": {"cpu": "4"}},
                "volumeMounts": [{"name": "recipes", "mountPath": "/recipes"}],
            },
            {"name": "git-sync", "image": "git-sync:4"},
        ],
        "volumes": [{"name": "recipes", "configMap": {"name": "recipes"}}],
    },
}
COUNT, PER_NODE = 2, 1


def add_up(start: int) -> dict[str, int] | None:
    """The sum over all processes of rank and start, and how many there are."""
    total = distributed.summed(torch.tensor([distributed.rank() + start]))
    return {"total": int(total), "size": distributed.size()} if distributed.rank() == 0 else None


def fail(start: int) -> None:
    """The last process fails, the first waits for it."""
    if distributed.rank() == COUNT - 1:
        raise InputError(f"start: expected 0, got {start}")
    distributed.summed(torch.zeros(1))


def vanish(start: int) -> None:
    """The last process ends without a word."""
    if distributed.rank() == COUNT - 1:
        os._exit(start)
    distributed.summed(torch.zeros(1))


def made(*, operator: bool, resources: Resources | None = None) -> list[Any]:
    asked = resources or Resources(gpus=4, nodes=3)
    return list(nodes.manifests(POD, "secateur-1", "run", asked, 4, operator=operator))


def test_an_indexed_job_and_the_service_by_which_its_pods_meet_are_what_kubernetes_knows() -> None:
    service, job = made(operator=False)
    for manifest in (service, job):
        kubernetes_validate.validate(manifest, "1.34", strict=True)
        assert manifest["metadata"]["ownerReferences"] == [
            {"apiVersion": "v1", "kind": "Pod", "name": "recover-1", "uid": "0f3a"}
        ]
    assert (job["spec"]["completions"], job["spec"]["parallelism"], job["spec"]["completionMode"]) == (3, 3, "Indexed")
    pod = job["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert pod["spec"]["subdomain"] == service["metadata"]["name"]
    (container,) = pod["spec"]["containers"]
    assert "secateur-1-0.secateur-1" in container["args"]
    assert {"name": "MLFLOW_TRACKING_URI", "value": "http://mlflow:5000"} in container["env"]


def test_the_operators_job_has_one_master_and_the_others_as_workers() -> None:
    (job,) = made(operator=True)
    roles = job["spec"]["pytorchReplicaSpecs"]
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert {role: one["replicas"] for role, one in roles.items()} == {"Master": 1, "Worker": 2}
    assert job["spec"]["nprocPerNode"] == "4"
    (container,) = roles["Worker"]["template"]["spec"]["containers"]
    assert container["name"] == "pytorch"  # the one that the operator looks for
    assert container["args"] == ["-m", "tasks.nodes", "run", "secateur-1"]


@pytest.mark.parametrize("operator", [False, True])
def test_a_machine_is_a_copy_of_the_steps_pod_that_airflow_does_not_take_for_its_own(operator: bool) -> None:
    job = made(operator=operator)[-1]
    pod = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"] if operator else job["spec"]["template"]
    assert "kubernetes_executor" not in pod["metadata"]["labels"]
    assert "nodeName" not in pod["spec"]
    assert pod["spec"]["serviceAccountName"] == "secateur-worker"
    assert pod["spec"]["securityContext"] == {"runAsNonRoot": True}
    (container,) = pod["spec"]["containers"]
    assert container["image"] == "secateur-worker:0.1.0"
    assert container["volumeMounts"] == [{"name": "recipes", "mountPath": "/recipes"}]
    assert container["resources"]["requests"] == {"cpu": "4", "nvidia.com/gpu": "4"}
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "4"}


def test_without_gpus_none_is_asked_for() -> None:
    _, job = made(operator=False, resources=Resources(nodes=2))
    assert job["spec"]["template"]["spec"]["containers"][0]["resources"] == {"requests": {"cpu": "4"}}


def test_outside_a_cluster_there_is_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    nodes.check(1)
    with pytest.raises(InputError, match=r"^resources.nodes: expected 1 outside Kubernetes, got 2"):
        nodes.check(2)
    monkeypatch.setenv(
        "KUBERNETES_SERVICE_HOST", "10.0.0.1"
    )  # a worker of Celery in a cluster, which is not told its name
    with pytest.raises(InputError, match=r"which tells them POD_NAME and POD_NAMESPACE$"):
        nodes.check(2)


@dataclass
class Stage:
    """What the server made, and the processes of the job."""

    environment: dict[str, str]
    allowed: tuple[str, ...] = ("create", "list")
    made: list[dict[str, Any]] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    left: list[dict[str, Any]] = field(default_factory=list)  # jobs of earlier tries
    faults: list[int] = field(default_factory=list)  # how it first answers about a job
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, job: dict[str, Any]) -> None:
        """A process for each pod."""
        (port,) = free_ports(1)
        (container,) = job["spec"]["template"]["spec"]["containers"]
        name = job["metadata"]["name"]
        for index in range(job["spec"]["completions"]):
            told = {"$(NODE_RANK)": str(index), f"{name}-0.{name}": "127.0.0.1", str(nodes.PORT): str(port)}
            argv = [told.get(part, part) for part in container["args"]]
            command = [sys.executable, *container["command"][1:], *argv]
            self.processes.append(subprocess.Popen(command, env=self.environment))

    def told(self, path: str) -> tuple[Any, int]:
        """What the server answers who looks, and the status."""
        if path.endswith("/pods/recover-1"):
            return POD, 200
        if path.endswith("/status"):
            return {**JOB, "status": self.status()}, 200
        if "/jobs?labelSelector=" in path:
            label = path.partition("labelSelector=")[2]
            found = [job for job in self.left if label in map("=".join, job["metadata"]["labels"].items())]
            return {"kind": "JobList", "items": found}, 200
        return {"kind": "Status", "code": 404}, 404  # no training operator

    def status(self) -> dict[str, Any]:
        codes = [process.poll() for process in self.processes]
        ended = "Failed" if any(codes) else "Complete" if all(code == 0 for code in codes) else None
        conditions = [{"type": ended, "status": "True"}] if ended else []
        return {"active": codes.count(None), "conditions": conditions}

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def stage(services: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """A cluster as far as a step sees it, and the step's own pod in it."""
    path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    stage = Stage({**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stage))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    where = {"cluster": {"server": f"http://127.0.0.1:{server.server_port}"}, "name": "here"}
    context = {"context": {"cluster": "here", "user": "me"}, "name": "here"}
    users = [{"name": "me", "user": {}}]
    said = {"clusters": [where], "contexts": [context], "users": users, "current-context": "here"}
    (tmp_path / "kube.yaml").write_text(yaml.safe_dump(said))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kube.yaml"))
    monkeypatch.setattr("kubernetes.config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kube.yaml"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("POD_NAME", POD["metadata"]["name"])
    monkeypatch.setenv("POD_NAMESPACE", "prune")
    monkeypatch.setattr(nodes, "LOOK_SECONDS", 0.2)
    yield stage
    server.shutdown()
    stage.stop()


def _handler(stage: Stage) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def answer(self, content: Any, status: int = 200) -> None:
            body = json.dumps(content).encode()
            status = stage.faults.pop(0) if stage.faults and "/jobs/" in self.path else status
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.answer(*stage.told(unquote(self.path)))

        def do_POST(self) -> None:
            made = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path.endswith("/selfsubjectaccessreviews"):
                wanted = made["spec"]["resourceAttributes"]
                right = {"group": "batch", "resource": "jobs", "namespace": "prune"}
                allowed = wanted["verb"] in stage.allowed and wanted == {**right, "verb": wanted["verb"]}
                self.answer({**made, "status": {"allowed": allowed}}, 201)
                return
            stage.made.append(made)
            if made["kind"] == "Job":
                stage.start(made)
            self.answer(made, 201)

        def do_DELETE(self) -> None:
            stage.deleted.append(self.path.partition("?")[0])
            self.answer({"kind": "Status", "status": "Success"})

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    return Handler


@pytest.fixture
def run_id(services: Servers) -> str:
    return tracking.find_or_create_run(tracking.experiment_of("nodes"), "nodes", "nodes", {})


def shared(function: Callable[..., Any], run_id: str, start: int) -> Any:
    return nodes.share(function, Resources(nodes=COUNT), PER_NODE, run_id, start=start)


def test_an_account_that_may_make_no_jobs_is_found_before_any_step_trains(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.check(2)
    for allowed in ((), ("create",)):
        stage.allowed = allowed
        with pytest.raises(InputError, match=r"^resources.nodes: expected an account .* recovery.distributed: true"):
            nodes.check(2)
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", "/nowhere")  # no token either
    monkeypatch.setattr("kubernetes.config.KUBE_CONFIG_DEFAULT_LOCATION", "/nowhere")
    with pytest.raises(InputError, match=r"set recovery.distributed: true in the chart's values$"):
        nodes.check(2)


JOB = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "secateur-1"}}


def test_a_server_that_fails_for_a_moment_ends_no_training(stage: Stage) -> None:
    stage.faults = [503, 429, 500]
    assert nodes._await(cluster(), "prune", JOB)


def test_a_job_that_somebody_removed_has_not_ended_well(stage: Stage) -> None:
    stage.faults = [404]
    assert not nodes._await(cluster(), "prune", JOB)


def test_a_job_that_cannot_be_looked_at_is_an_error(stage: Stage) -> None:
    from kubernetes.client import ApiException

    stage.faults = [403]
    with pytest.raises(ApiException, match="403"):
        nodes._await(cluster(), "prune", JOB)


def test_what_cannot_be_removed_is_said_and_ends_nothing(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.faults = [404, 500]
    nodes._delete(cluster(), "prune", JOB)
    assert capsys.readouterr().out == ""
    nodes._delete(cluster(), "prune", JOB)
    assert capsys.readouterr().out.startswith("Job secateur-1 was not removed: (500)")


def cluster() -> Any:
    """A client of the stage's server."""
    from kubernetes import client, config

    config.load_config()
    return client.ApiClient()


def left_by(pod: str, run_id: str) -> dict[str, Any]:
    """A job of an earlier try."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": "1"}
    metadata = {"name": f"of-{pod}", "labels": {nodes.RUN: run_id}, "ownerReferences": [owner]}
    return {"metadata": metadata, "spec": {"template": {"spec": {"containers": []}}}}


def test_what_a_lost_try_has_left_is_removed_and_what_another_run_does_is_not(stage: Stage) -> None:
    stage.left = [left_by("gone", "r1"), left_by("recover-1", "r1"), left_by("gone", "r2")]
    nodes._remove_left(cluster(), "prune", "r1", operator=False)
    assert stage.deleted == ["/apis/batch/v1/namespaces/prune/jobs/of-gone"]


def test_a_machine_that_cannot_take_part_says_why(run_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    tracking.put_json(run_id, "nodes/secateur-1/order.json", {})
    assert nodes.main(run_id, "secateur-1") == 1
    error = tracking.get_json(run_id, "nodes/secateur-1/error.json")
    assert error
    assert (error["kind"], error["message"][:31]) == ("InputError", "processes: expected at most one")


@pytest.mark.slow
def test_torchruns_processes_train_as_one_and_the_first_answers(stage: Stage, run_id: str) -> None:
    assert shared(add_up, run_id, 7) == {"total": 7 + 8, "size": COUNT * PER_NODE}
    assert [one["kind"] for one in stage.made] == ["Service", "Job"]
    assert len(stage.deleted) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        (fail, InputError, r"^start: expected 0, got 7$"),
        (vanish, ChildProcessError, r"^resources.nodes: expected 2 machines to train to the end, one was lost"),
    ],
)
def test_what_ends_a_machine_ends_the_step_in_its_words(
    stage: Stage, run_id: str, function: Callable[..., Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        shared(function, run_id, 7)
    assert len(stage.deleted) == 2
