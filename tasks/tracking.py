"""MLflow as the memory: runs found by key, results of steps kept and found again, files in and out with checksums."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import os
import shutil
import tempfile
import time
import typing
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from secateur.errors import InputError
from tasks import certificates, references
from tasks.references import File, Pinned

if TYPE_CHECKING:
    import ssl

    import httpx
    from mlflow import MlflowClient
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from torch.export import ExportedProgram

KEY = "secateur.key"
SETTLED_S = 1.0  # from a run's beginning until everybody sees it
_OF_RUN = "runs:/"
_RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
_CREDENTIALS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
Step = typing.TypeVar("Step", bound=Callable[..., Any])
Result = typing.TypeVar("Result")


class RegistryDownError(ConnectionError):
    """MLflow does not answer; worth a retry."""


def client() -> MlflowClient:
    """A client of the tracking server named by MLFLOW_TRACKING_URI.

    Raises:
        RegistryDownError: nothing answers there; found within seconds, where MLflow's own retries take minutes.
        InputError: it asks who we are, and does not know us, or its address says who.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    check_address(uri)
    if uri.startswith("http") and os.environ.get(_RETRIES) != "0":  # who asks once, finds out as quickly by asking
        import httpx

        try:
            _http(certificates.trusted(certificates.MLFLOW)).get(f"{uri.rstrip('/')}/health").raise_for_status()
        except httpx.HTTPError as error:
            raise RegistryDownError(
                f"MLFLOW_TRACKING_URI: expected an MLflow server at {uri}, got: {error}; is it up?"
            ) from error
        _admitted(uri, hash(tuple(map(os.environ.get, _CREDENTIALS))))
    from mlflow import MlflowClient

    return MlflowClient()


def check_address(uri: str) -> None:
    """Raise InputError where an address says who asks."""
    if "@" in urlsplit(uri).netloc:
        raise InputError(
            "MLFLOW_TRACKING_URI: expected an address without a user, which would stand in links, logs and questions, got one; "
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )


@functools.cache
def _admitted(uri: str, credentials: int) -> None:
    """Raise InputError where the server refuses our credentials; of each it is asked once."""
    del credentials  # MLflow reads them where we do
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient().search_experiments(max_results=1)
    except MlflowException as error:
        if error.error_code != "UNAUTHENTICATED":
            raise
        raise InputError(
            f"MLFLOW_TRACKING_USERNAME: expected a user whom MLflow at {uri} knows, with MLFLOW_TRACKING_PASSWORD, got "
            f"{os.environ.get('MLFLOW_TRACKING_USERNAME') or 'none'}; it answered that we are not authenticated"
        ) from error


@contextmanager
def impatient() -> typing.Iterator[None]:
    """MLflow's client asks once and waits for seconds, not for minutes: its caller has a moment to keep to."""
    settings = {_RETRIES: "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@functools.cache
def _http(verify: ssl.SSLContext) -> httpx.Client:
    """One client per process and whom it trusts: making one costs more than the request."""
    import httpx

    # The server closes what was idle for five seconds, and a question sent at that moment is lost: ask on a new connection.
    return httpx.Client(timeout=5, limits=httpx.Limits(keepalive_expiry=1), verify=verify)


def digest(value: Any) -> str:
    """SHA-256 of a JSON-able value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=dataclasses.asdict).encode()).hexdigest()


@functools.cache
def code_digest() -> str:
    """SHA-256 of the source of the science and the steps: another release is another result; another picture of it is not.

    Nor is it another one for what comes after a promotion.
    """
    import secateur
    import tasks

    sha = hashlib.sha256()
    for package in (secateur, tasks):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            if not {"cli", "report", "serving", "monitoring", "inference_log"} & set(path.relative_to(root).parts):
                sha.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return sha.hexdigest()


def experiment_name(model: str) -> str:
    """What a model's experiment is called."""
    return f"secateur/{model}"


def experiment_of(model: str) -> str:
    """The id of the model's experiment, made when it is missing."""
    from mlflow.exceptions import MlflowException

    mlflow = client()
    name = experiment_name(model)
    found = mlflow.get_experiment_by_name(name)
    if found is None:
        try:
            return mlflow.create_experiment(name)
        except MlflowException:  # another worker was faster
            found = mlflow.get_experiment_by_name(name)
    assert found is not None
    return found.experiment_id


def find_or_create_run(experiment_id: str, key: str, name: str, tags: Mapping[str, str]) -> str:
    """The id of the run with this key. Of those that were made at once the oldest is everybody's; who made another deletes it.

    A run is begun before others can see it, so a young one is trusted only once an older one would have come to light.
    """
    mlflow, made = client(), None
    while True:
        found = mlflow.search_runs([experiment_id], f"tags.`{KEY}` = '{key}'")
        oldest = min((run.info for run in found), key=lambda run: (run.start_time, run.run_id), default=None)
        if oldest is None:
            if made is not None:
                raise RuntimeError(f"run {name} was created but cannot be found in experiment {experiment_id}")
            made = mlflow.create_run(experiment_id, run_name=name, tags={**tags, KEY: key}).info
        elif (young := SETTLED_S - (time.time() - oldest.start_time / 1e3)) > 0:
            time.sleep(min(young, SETTLED_S))
        else:
            break
    if made is not None and made.run_id != oldest.run_id:
        mlflow.delete_run(made.run_id)
    return oldest.run_id


def write_once(run_id: str, key: str, value: str) -> None:
    """Write a parameter unless there is one of that name, which MLflow never changes: reading it tells who was first."""
    from mlflow.exceptions import MlflowException

    try:
        client().log_param(run_id, key, value, synchronous=True)
    except MlflowException as refused:
        if refused.error_code != "INVALID_PARAMETER_VALUE" or key not in client().get_run(run_id).data.params:
            raise


def child_run(pinned: Pinned, name: str, cycle: int) -> str:
    """The run of one cycle, a child of the parent run."""
    tags = {
        "mlflow.parentRunId": pinned.run_id,
        "secateur.kind": "cycle",
        "secateur.source": f"models:/{pinned.model}/{pinned.version}",
        "secateur.recipe": pinned.recipe_name,
    }
    return find_or_create_run(pinned.experiment_id, f"{pinned.key}:{cycle}", name, tags)


def log(
    run_id: str, metrics: Mapping[str, float | None], step: int = 0, model_id: str | None = None, **tags: str
) -> None:
    """Log metrics (those that are not None) and tags to a run that need not be active."""
    from mlflow.entities import Metric, RunTag

    now = int(time.time() * 1000)
    entries = [
        Metric(name, float(value), now, step, model_id=model_id, run_id=run_id if model_id else None)
        for name, value in metrics.items()
        if value is not None
    ]
    client().log_batch(run_id, entries, tags=[RunTag(f"secateur.{k}", v) for k, v in tags.items()])


def find_run(experiment_id: str, key: str) -> str | None:
    """The id of the run with this key, or None."""
    found = client().search_runs([experiment_id], f"tags.`{KEY}` = '{key}'", order_by=["attributes.start_time ASC"])
    return found[0].info.run_id if found else None


def log_params(run_id: str, params: Mapping[str, str]) -> None:
    """Log parameters; the same ones again change nothing."""
    from mlflow.entities import Param

    client().log_batch(run_id, params=[Param(name, value) for name, value in params.items()])


def log_program(run_id: str, path: Path, program: ExportedProgram, name: str, step: int) -> str:
    """Log a program as a model of the run, byte for byte the file that was measured; returns the model's id."""
    import mlflow
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    from secateur import program as programs

    module = programs.graph_module(program)
    args, kwargs = programs.batch_of_example(program, 2)
    examples = tuple(leaf.numpy() for leaf in torch.utils._pytree.tree_leaves((args, kwargs)))
    alone = len(examples) == 1  # MLflow takes a single input without a name
    inputs: list[ColSpec | TensorSpec] = [
        TensorSpec(np.dtype(one.dtype), tuple(-1 if s is None else s for s in shape), None if alone else name)
        for one, (name, (shape, _)) in zip(examples, programs.input_specs(program).items(), strict=True)
    ]
    model_id = _logged_model(run_id, name)
    if model_id is None:
        with mlflow.start_run(run_id=run_id):
            model_id = mlflow.pytorch.log_model(
                module,
                name=name,
                step=step,
                input_example=examples[0] if alone else examples,
                signature=ModelSignature(inputs=Schema(inputs)),
                pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
            ).model_id
    with tempfile.TemporaryDirectory() as folder:
        exact = Path(folder) / "model.pt2"
        shutil.copy(path, exact)
        client().log_model_artifact(model_id, str(exact), "data")
    return str(model_id)


def _logged_model(run_id: str, name: str) -> str | None:
    """The model of this name that an earlier try of the step logged in the run."""
    mlflow = client()
    experiment = mlflow.get_run(run_id).info.experiment_id
    found = mlflow.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = '{name}'")
    return found[0].model_id if found else None


def describe(run_id: str, text: str) -> None:
    """Set the description that opens the run's page."""
    client().set_tag(run_id, "mlflow.note.content", text)


def description(run_id: str) -> str:
    """What opens the run's page; empty before anything is said."""
    return str(client().get_run(run_id).data.tags.get("mlflow.note.content", ""))


def page_of(run_id: str) -> str:
    """Where the run is in MLflow's UI, as a link from any other page of it, by whatever name the server is reached."""
    return f"#/experiments/{client().get_run(run_id).info.experiment_id}/runs/{run_id}"


def address() -> str:
    """Of the tracking server's UI, as far as this process knows it."""
    return f"{os.environ.get('MLFLOW_TRACKING_URI', '').rstrip('/')}/"


def finish(run_id: str) -> None:
    """Mark a run as finished."""
    client().set_terminated(run_id)


def put(run_id: str, local: Path, folder: str) -> File:
    """Store a file in a run."""
    client().log_artifact(run_id, str(local), folder)
    return File(f"{_OF_RUN}{run_id}/{folder}/{local.name}", sha256_of(local))


@contextmanager
def fetched(file: File) -> typing.Iterator[Path]:
    """The file in a temporary folder, its checksum verified."""
    from mlflow.artifacts import download_artifacts

    client()
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        if file.uri.startswith(_OF_RUN):
            run_id, _, place = file.uri.removeprefix(_OF_RUN).partition("/")
            path = Path(_artifacts(run_id).download_artifacts(place, folder))
        else:
            path = Path(download_artifacts(artifact_uri=file.uri, dst_path=folder))
        if sha256_of(path) != file.sha256:
            raise OSError(f"{file.uri}: expected SHA-256 {file.sha256[:12]}, got {sha256_of(path)[:12]}")
        yield path


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def put_json(run_id: str, path: str, value: Any) -> str:
    """Store a value as a JSON artifact; returns its digest."""
    client().log_text(run_id, json.dumps(value, indent=1, sort_keys=True, default=dataclasses.asdict), path)
    return digest(value)


def put_text(run_id: str, text: str, path: str) -> None:
    """Store a text as an artifact."""
    client().log_text(run_id, text, path)


def put_bytes(run_id: str, content: bytes, folder: str, name: str) -> None:
    """Store bytes as an artifact."""
    with tempfile.TemporaryDirectory() as local:
        path = Path(local) / name
        path.write_bytes(content)
        client().log_artifact(run_id, str(path), folder)


def get_bytes(run_id: str, path: str) -> bytes | None:
    """An artifact's bytes, or None when there is none yet."""
    client()
    folder, kept = str(Path(path).parent), _artifacts(run_id)
    if path not in {entry.path for entry in kept.list_artifacts(None if folder == "." else folder)}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        return Path(kept.download_artifacts(path, folder)).read_bytes()


def listed(run_id: str, folder: str) -> list[str]:
    """The paths of the artifacts in a folder of a run."""
    return [entry.path for entry in _artifacts(run_id).list_artifacts(folder)]


def _artifacts(run_id: str) -> ArtifactRepository:
    """What a run keeps. By the address `runs:/` MLflow would look up the run, and models that it may mean, at every read."""
    return _artifacts_at(os.environ.get("MLFLOW_TRACKING_URI", ""), run_id)


@functools.lru_cache(maxsize=64)
def _artifacts_at(uri: str, run_id: str) -> ArtifactRepository:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(client().get_run(run_id).info.artifact_uri, tracking_uri=uri or None)


def get_json(run_id: str, path: str) -> Any | None:
    """A JSON artifact, or None when there is none yet."""
    content = get_bytes(run_id, path)
    return None if content is None else json.loads(content)


def recalled(run_id: str, step: str, kind: type[Result]) -> Result | None:
    """What a step of another job returned, whatever its inputs were; None where it has not ended."""
    found = get_json(run_id, f"steps/{step}.json")
    return typing.cast(Result, references.read(kind, found["result"], f"steps/{step}.json")) if found else None


def remembered(step: Step) -> Step:
    """Run a step once per input: its result is kept in the parent run, written last, and found by its key.

    The key is the digest of every argument (the parent's key stands for the code and the recipe). A retry, a cleared
    task or a second run of the same job finds the result and returns it.
    """
    signature = inspect.signature(step)

    @functools.wraps(step)
    def once(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs).arguments
        pinned = typing.cast(Pinned, bound["pinned"])
        inputs = {name: value for name, value in bound.items() if name != "pinned"}
        name = step.__module__.rpartition(".")[2] + _suffix(inputs)
        key = digest([pinned.key, inputs])
        found = get_json(pinned.run_id, f"steps/{name}.json")
        if found and found["key"] == key:
            return references.read(typing.get_type_hints(step)["return"], found["result"], f"steps/{name}.json")
        started = time.monotonic()
        result = step(**bound)
        memo = {"key": key, "seconds": time.monotonic() - started, "result": dataclasses.asdict(result)}
        put_json(pinned.run_id, f"steps/{name}.json", memo)
        return result

    return typing.cast(Step, once)


def _suffix(inputs: Mapping[str, Any]) -> str:
    """`_2` for the steps inside cycle 2: those that are given a cycle's number or the previous step's result of it.

    A step that runs once for each of several targets ends in the target's name.
    """
    if "target" in inputs:
        return f"_{inputs['target']}"
    if "cycle" in inputs:
        return f"_{inputs['cycle']}"
    inside = [value.cycle for name, value in inputs.items() if name in ("cut", "recovered")]
    return f"_{inside[0]}" if inside else ""
