"""The MLflow model registry: dense versions in, ONNX versions out, the champion's alias."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from secateur.errors import InputError
from tasks import tracking
from tasks.references import File

MODEL_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
CHAMPION = "champion"
DIGEST = "secateur.sha256"
SOURCE = "secateur.source"  # of what the pipeline made: the model that it was made from


def onnx_name(model: str) -> str:
    """The registered model that holds the deployable files of `model`."""
    return f"{model}-onnx"


def source(model: str, version: str) -> tuple[str, File]:
    """A registered version's number and its exported program. `latest` is the highest number.

    Raises:
        InputError: no such model or version, or a version that was not logged as pt2.
    """
    import mlflow.artifacts

    found = number(model, version)
    uri = f"models:/{model}/{found}/data/model.pt2"
    files = {entry.path for entry in mlflow.artifacts.list_artifacts(f"models:/{model}/{found}/data")}
    if not any(path.endswith("model.pt2") for path in files):
        raise InputError(
            f"version: expected {model} version {found} to hold data/model.pt2, found {', '.join(sorted(files)) or 'nothing'}; "
            "log it with mlflow.pytorch.log_model in its default pt2 format, with an input example of batch size two or more"
        )
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=folder))
        return found, File(uri, tracking.sha256_of(path))


def number(model: str, version: str) -> str:
    """The number of a registered version; `latest` is the highest.

    Raises:
        InputError: no such model or version.
    """
    if not MODEL_NAME.match(model):
        raise InputError(
            f"model: expected a registered model's name (letters, digits, dot, dash, underscore), got {model[:100]!r}"
        )
    client = tracking.client()
    versions = sorted(int(v.version) for v in client.search_model_versions(f"name = '{model}'"))
    if not versions:
        known = ", ".join(sorted(m.name for m in client.search_registered_models(max_results=20))) or "none"
        raise InputError(f"model: expected a registered model with a version, got {model!r}; registered: {known}")
    wanted = str(versions[-1]) if version == "latest" else version.strip()
    if not wanted.isdecimal() or int(wanted) not in versions:
        known = ", ".join(map(str, versions))
        raise InputError(f"version: expected one of {known} of {model}, or latest, got {version[:100]!r}")
    return str(int(wanted))


def register_onnx(model: str, run_id: str, file: File, description: str, tags: dict[str, str]) -> str:
    """Register an ONNX file as a version of `<model>-onnx`, once per content; returns the version's number."""
    import mlflow
    import onnx
    import onnxruntime
    from mlflow.exceptions import MlflowException

    client, name = tracking.client(), onnx_name(model)
    try:
        client.get_registered_model(name)
    except MlflowException:
        client.create_registered_model(name, tags={SOURCE: model})
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.tags.get(DIGEST) == file.sha256:
            return str(known.version)
    with tracking.fetched(file) as path, mlflow.start_run(run_id=run_id):
        logged = mlflow.onnx.log_model(
            onnx.load(path),
            name=f"{name}-{file.sha256[:8]}",
            pip_requirements=[f"onnxruntime=={onnxruntime.__version__}"],
        )
    version = client.create_model_version(
        name,
        logged.model_uri,
        run_id,
        tags={**tags, DIGEST: file.sha256, "secateur.file": file.uri},
        description=description,
        model_id=logged.model_id,
    )
    return str(version.version)


def onnx_file(model: str, version: str) -> File:
    """The ONNX file that a version of `<model>-onnx` was registered from.

    Raises:
        InputError: no such version, or one that Secateur did not register.
    """
    name = onnx_name(model)
    found = number(name, version)
    tags = tracking.client().get_model_version(name, found).tags
    if DIGEST not in tags:
        raise InputError(f"version: {name} version {found} was not registered by Secateur (no tag {DIGEST})")
    return File(tags["secateur.file"], tags[DIGEST])


def champion(model: str) -> str | None:
    """The version of `<model>-onnx` that serves, or None before the first promotion."""
    from mlflow.exceptions import MlflowException

    try:
        return str(tracking.client().get_model_version_by_alias(onnx_name(model), CHAMPION).version)
    except MlflowException:
        return None


def set_champion(model: str, version: str) -> None:
    """Move the alias."""
    tracking.client().set_registered_model_alias(onnx_name(model), CHAMPION, version)
