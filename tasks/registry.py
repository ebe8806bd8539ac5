"""The MLflow model registry: dense versions in, ONNX versions out, the aliases of what serves and of what waits."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks import tracking
from tasks.references import File

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

    from secateur.runtime import Target
    from tasks.journal import Entry

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
CHAMPION, CHALLENGER = "champion", "challenger"
DIGEST = "secateur.sha256"
KIND, SOURCE, TARGET, DENSE = "secateur.kind", "secateur.source", "secateur.target", "secateur.dense"
ARCHIVED = "secateur.archived"
KEPT_ENTRIES = 10  # versions that the last so many entries of the journal name are never archived


def check_name(model: str) -> None:
    """Raise InputError unless this can be a registered model's name: it becomes part of paths, keys and queries."""
    if not MODEL_NAME.fullmatch(model):
        raise InputError(
            f"model: expected a registered model's name (letters, digits, dot, dash, underscore), got {model[:100]!r}"
        )


def onnx_name(model: str) -> str:
    """The registered model that holds the deployable files of `model`."""
    return f"{model}-onnx"


def source(model: str, version: str) -> tuple[str, File]:
    """A registered version's number and its exported program. `latest` is the highest number.

    Raises:
        InputError: no such model or version, or a version that was not logged as pt2.
    """
    import mlflow.artifacts

    check_name(onnx_name(model))  # where the result will be registered
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
    check_name(model)
    client = tracking.client()
    versions = sorted(int(v.version) for v in client.search_model_versions(f"name = '{model}'"))
    if not versions:
        known = ", ".join(sorted(m.name for m in client.search_registered_models(max_results=20))) or "none"
        raise InputError(
            f"model: expected a registered model with a version, got {model!r}; registered and readable: {known}"
        )
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
        client.create_registered_model(name, tags={SOURCE: model})
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if known := _of_content(name, file.sha256):
        return known
    with tracking.fetched(file) as path, mlflow.start_run(run_id=run_id):
        logged = mlflow.onnx.log_model(
            onnx.load(path),
            name=f"{name}-{file.sha256[:8]}",
            pip_requirements=[f"onnxruntime=={onnxruntime.__version__}"],
        )
    client.create_model_version(
        name,
        logged.model_uri,
        run_id,
        tags={**tags, DIGEST: file.sha256, "secateur.file": file.uri},
        description=description,
        model_id=logged.model_id,
    )
    # Of two that were registered at once, the first is everybody's.
    version = _of_content(name, file.sha256)
    assert version is not None
    return version


def describe(model: str, version: str, description: str, tags: dict[str, str]) -> None:
    """Let a version of `<model>-onnx` say what it was last let through by."""
    client, name = tracking.client(), onnx_name(model)
    client.update_model_version(name, version, description)
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)


def _of_content(name: str, sha256: str) -> str | None:
    """The first version that holds these bytes."""
    found = [int(v.version) for v in _versions(name) if v.tags.get(DIGEST) == sha256]
    return str(min(found)) if found else None


def _versions(name: str) -> Sequence[ModelVersion]:
    return tracking.client().search_model_versions(f"name = '{name}'")


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


def target(model: str, version: str) -> Target | None:
    """The target that a version of `<model>-onnx` was measured on, or None where that is not known."""
    from secateur.runtime import Target

    tags = tracking.client().get_model_version(onnx_name(model), version).tags
    return Target(**json.loads(tags[TARGET])) if TARGET in tags else None


def dense(model: str, version: str) -> str:
    """The dense version of `<model>-onnx` that another version was pruned from, or itself.

    Raises:
        InputError: no such version, or it does not say.
    """
    name = onnx_name(model)
    tags = tracking.client().get_model_version(name, version).tags
    # The INT8 form of a dense model is of kind dense too, and names the one that it was made from.
    found = tags.get(DENSE) or (version if tags.get(KIND) == "dense" else None)
    if found is None:
        raise InputError(
            f"to: expected a version of {name} that says in its tag {DENSE} what it was pruned from, version {version} does "
            "not; name a version by its number"
        )
    return found


def alias(model: str, name: str) -> str | None:
    """The number that an alias of `<model>-onnx` names, or None without the alias or the model."""
    from mlflow.exceptions import MlflowException

    try:
        found = tracking.client().get_registered_model(onnx_name(model)).aliases.get(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return None if found is None else str(found)


def champion(model: str) -> str | None:
    """The version of `<model>-onnx` that serves by its alias, or None before the first promotion.

    Raises:
        InputError: the alias points to a version that does not exist.
    """
    from mlflow.exceptions import MlflowException

    found = alias(model, CHAMPION)
    if found is None:
        return None
    try:
        return str(tracking.client().get_model_version(onnx_name(model), found).version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(
            f"alias: expected {CHAMPION} of {onnx_name(model)} to name a version that exists, it names {found}, which is "
            f"gone; `secateur history {model} --repair --reason ...` puts back what served before"
        ) from error


def set_alias(model: str, name: str, version: str | None) -> None:
    """Move an alias of `<model>-onnx`, or remove it."""
    if version is None:
        tracking.client().delete_registered_model_alias(onnx_name(model), name)
    else:
        tracking.client().set_registered_model_alias(onnx_name(model), name, version)


def archive(model: str, entries: Sequence[Entry]) -> None:
    """Mark the versions that served once and have not for long; nothing is ever deleted.

    Never touched: a version that one of the last KEPT_ENTRIES entries names, a dense one, one that an alias names, and one that
    the journal does not know. A version that serves again loses the mark.
    """
    client, name = tracking.client(), onnx_name(model)
    aliased = {str(version) for version in client.get_registered_model(name).aliases.values()}
    recent = _named(entries[-KEPT_ENTRIES:]) | aliased
    old = _named(entries) - recent
    for version in _versions(name):
        number = str(version.version)
        if number in recent and ARCHIVED in version.tags:
            client.delete_model_version_tag(name, number, ARCHIVED)
        elif number in old and ARCHIVED not in version.tags and version.tags.get(KIND) != "dense":
            client.set_model_version_tag(name, number, ARCHIVED, datetime.now(UTC).date().isoformat())


def _named(entries: Sequence[Entry]) -> set[str]:
    return {version for entry in entries for version in (entry.from_version, entry.to_version) if version is not None}
