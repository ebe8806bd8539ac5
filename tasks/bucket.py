"""The bucket that servers read: `<model>/<version>/model.onnx`, a manifest written last, a pointer to the champion.

Credentials and endpoint come from the environment, as boto3 reads them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3, ...).
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import InputError
from tasks import tracking

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


_ABSENT = ("NoSuchKey", "404")


def _s3() -> S3Client:
    import boto3
    from botocore.config import Config

    return boto3.client("s3", config=Config(retries={"mode": "standard", "total_max_attempts": 5}, connect_timeout=5))


def _place(uri: str) -> tuple[str, str]:
    """Bucket and key (or prefix) of an s3:// address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise InputError(f"SECATEUR_BUCKET: expected an address like s3://bucket/prefix, got {uri!r}")
    return bucket, key.rstrip("/")


def _key(*parts: str) -> tuple[str, str]:
    bucket, prefix = _place(os.environ.get("SECATEUR_BUCKET", ""))
    return bucket, "/".join(filter(None, [prefix, *parts]))


def download(uri: str, local: Path) -> None:
    """Fetch one object."""
    from botocore.exceptions import ClientError

    bucket, key = _place(uri)
    try:
        _s3().download_file(bucket, key, str(local))
    except ClientError as error:
        if error.response["Error"]["Code"] not in _ABSENT:
            raise
        raise FileNotFoundError(f"expected an object at {uri}, there is none") from error


def publish(model: str, version: str, local: Path) -> str:
    """Upload a file as a version of a model, manifest last, read it back and compare; a complete one is left alone.

    Returns:
        The s3:// address of the file.
    """
    s3, sha256 = _s3(), tracking.sha256_of(local)
    bucket, key = _key(model, version, "model.onnx")
    manifest = _read_json(model, version, "manifest.json")
    if manifest is None or manifest.get("sha256") != sha256 or _stored_sha256(bucket, key) != sha256:
        s3.upload_file(str(local), bucket, key)
        if _stored_sha256(bucket, key) != sha256:
            raise OSError(f"bucket: s3://{bucket}/{key} reads back as other bytes than were written")
        _write_json(
            {"file": "model.onnx", "sha256": sha256, "bytes": local.stat().st_size}, model, version, "manifest.json"
        )
    return f"s3://{bucket}/{key}"


def _stored_sha256(bucket: str, key: str) -> str | None:
    """SHA-256 of an object's bytes, or None when there is none."""
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        local = Path(folder) / "object"
        try:
            download(f"s3://{bucket}/{key}", local)
        except FileNotFoundError:
            return None
        return tracking.sha256_of(local)


def check_serves(model: str, version: str) -> None:
    """Fetch a published version from the bucket, verify its checksum, and let ONNX Runtime answer one request.

    Raises:
        OSError: the manifest is missing or the bytes are not the ones it names.
    """
    import numpy as np

    from secateur.runtime import Target, open_session, run

    manifest = _read_json(model, version, "manifest.json")
    if manifest is None:
        raise OSError(f"bucket: {model}/{version} has no manifest; it was not published completely")
    bucket, key = _key(model, version, "model.onnx")
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        local = Path(folder) / "model.onnx"
        download(f"s3://{bucket}/{key}", local)
        if tracking.sha256_of(local) != manifest["sha256"]:
            raise OSError(f"bucket: {model}/{version}/model.onnx is not the file that its manifest names")
        session = open_session(local, Target())
        # ones: a mask of zeros would leave nothing to attend to
        inputs = [np.ones(_shape(spec.shape), dtype=_dtype(spec.type)) for spec in session.get_inputs()]
        if not np.isfinite(run(session, *inputs)).all():
            raise OSError(f"bucket: {model}/{version} answers with values that are not finite")


def _shape(sizes: Sequence[int | str]) -> list[int]:
    """The sizes of an ONNX input, 1 where they are dynamic."""
    return [size if isinstance(size, int) else 1 for size in sizes]


def _dtype(type_: str) -> str:
    """NumPy's name of an ONNX input's type, such as `tensor(float)`."""
    element = type_.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(element, element)


def point(model: str, version: str) -> None:
    """Say which version serves."""
    bucket, key = _key(model, version, "model.onnx")
    _write_json({"version": version, "uri": f"s3://{bucket}/{key}"}, model, "champion.json")


def pointer(model: str) -> dict[str, Any] | None:
    """What the bucket says serves, or None before the first promotion."""
    return _read_json(model, "champion.json")


def _read_json(*parts: str) -> dict[str, Any] | None:
    from botocore.exceptions import ClientError

    bucket, key = _key(*parts)
    try:
        return json.loads(_s3().get_object(Bucket=bucket, Key=key)["Body"].read())
    except ClientError as error:
        if error.response["Error"]["Code"] in _ABSENT:
            return None
        raise


def _write_json(value: dict[str, Any], *parts: str) -> None:
    bucket, key = _key(*parts)
    _s3().put_object(
        Bucket=bucket, Key=key, Body=json.dumps(value, sort_keys=True).encode(), ContentType="application/json"
    )
