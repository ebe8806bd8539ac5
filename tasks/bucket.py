"""The bucket that servers read, laid out as Triton and others expect it, every version sealed by a manifest.

`<model>/<version>/model.onnx` beside a `config.pbtxt` and, written last, `manifest.json` with the checksums of both; in
`<model>/` itself `config.pbtxt`, by which Triton serves the champion alone, and `champion.json`, which says the same to others.

Credentials and endpoint come from the environment, as boto3 reads them (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL_S3, ...);
SECATEUR_BUCKET is the place, SECATEUR_BUCKET_OPTIONS what every object is stored with, such as
`{"ServerSideEncryption": "aws:kms", "ACL": "bucket-owner-full-control"}`. A server that knows no checksums of S3's takes
AWS_REQUEST_CHECKSUM_CALCULATION=when_required; what is published is read back and compared all the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import InputError
from tasks import tracking
from tasks.faults import is_io_fault

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from secateur.runtime import Target


class IncompleteError(OSError):
    """A version is not in the bucket as it was published: publishing it again mends that."""


_ABSENT = ("NoSuchKey", "404")
_PROBE = ".secateur-probe"  # an object that says nothing; it stays, where all of them write the same
_REFUSALS = {  # S3's own codes, as what was expected and what to do next
    "NoSuchBucket": ("a bucket that exists", "create it, or correct the variable"),
    "InvalidBucketName": ("a bucket's name", "correct it"),
    "AccessDenied": ("to read and write there", "give our key s3:GetObject, s3:PutObject and s3:ListBucket"),
    "InvalidAccessKeyId": ("a key that S3 knows", "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    "SignatureDoesNotMatch": ("the secret of our key", "set AWS_SECRET_ACCESS_KEY to that of AWS_ACCESS_KEY_ID"),
    "RequestTimeTooSkewed": ("a clock that goes with S3's", "let NTP set this machine's"),
    "AuthorizationHeaderMalformed": ("the bucket's region", "set AWS_DEFAULT_REGION to it"),
    "PermanentRedirect": ("the bucket's region", "set AWS_DEFAULT_REGION to it"),
    "MissingContentLength": (
        "a server that takes checksums after the content",
        "set AWS_REQUEST_CHECKSUM_CALCULATION=when_required for one that does not",
    ),
}
_OPTIONS = ("ACL", "BucketKeyEnabled", "SSEKMSEncryptionContext", "SSEKMSKeyId", "ServerSideEncryption", "StorageClass")
_TRITON_TYPES = {
    **{"float16": "FP16", "float": "FP32", "double": "FP64", "bfloat16": "BF16", "bool": "BOOL", "string": "STRING"},
    **{f"{sign}int{bits}": f"{sign}int{bits}".upper() for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


def _s3() -> S3Client:
    """For files: a stalled read ends after 20 s, and is tried again."""
    return _client(5, 20, _settings())


def _s3_small() -> S3Client:
    """For small objects: an answer takes milliseconds, and a change of what serves has seconds for all of them."""
    return _client(2, 5, _settings())


def _settings() -> tuple[tuple[str, str], ...]:
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))


@functools.cache
def _client(attempts: int, read_timeout_s: int, settings: tuple[tuple[str, str], ...]) -> S3Client:
    """One per process and environment: making one costs more than a request. Retries with back-off and full jitter."""
    import boto3
    from botocore.config import Config

    del settings  # boto3 reads them itself
    retries: Any = {"mode": "standard", "total_max_attempts": attempts}
    config = Config(
        retries=retries,
        connect_timeout=5,
        read_timeout=read_timeout_s,
        # What is read here has a digest of its own; and where the server's error carries a checksum, botocore would raise an
        # AttributeError instead of it (boto3 issue 4754).
        response_checksum_validation="when_required",
    )
    return boto3.client("s3", config=config)


def _place(uri: str) -> tuple[str, str]:
    """Bucket and key (or prefix) of an s3:// address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    if not uri.startswith("s3://") or not bucket:
        raise InputError(f"SECATEUR_BUCKET: expected an address like s3://bucket/prefix, got {uri!r}")
    return bucket, key.rstrip("/")


def _key(*parts: str) -> tuple[str, str]:
    bucket, prefix = _place(os.environ.get("SECATEUR_BUCKET", ""))
    return bucket, "/".join(filter(None, [prefix, *parts]))


def _stored_with() -> dict[str, Any]:
    """What objects are stored with, as boto3 names it."""
    text = os.environ.get("SECATEUR_BUCKET_OPTIONS", "") or "{}"
    try:
        options = json.loads(text)
    except ValueError:
        options = None
    if not isinstance(options, dict) or not set(options) <= set(_OPTIONS):
        raise InputError(
            f"SECATEUR_BUCKET_OPTIONS: expected JSON with some of {', '.join(_OPTIONS)}, got {text[:200]!r}; "
            'write for example {"ServerSideEncryption": "AES256"}'
        )
    return options


def check() -> None:
    """Write a small object as versions are written, and read it back.

    Raises:
        InputError: there is no such bucket, it refuses us, or gives back other bytes than were written.
        OSError: S3 does not answer; worth a retry.
    """
    from botocore.exceptions import ClientError, NoCredentialsError, ParamValidationError, PartialCredentialsError

    bucket, key = _key(_PROBE)
    place = f"SECATEUR_BUCKET: s3://{bucket}/{key.removesuffix(_PROBE)}".rstrip("/")
    try:
        _s3_small().put_object(Bucket=bucket, Key=key, Body=_PROBE.encode(), **_stored_with(), **_checked())
        found = _read(_PROBE)
    except (NoCredentialsError, PartialCredentialsError) as error:
        raise InputError(
            "AWS_ACCESS_KEY_ID: expected credentials for the bucket, found none; set it and AWS_SECRET_ACCESS_KEY"
        ) from error
    except ParamValidationError as error:
        raise InputError(f"{place}: expected a bucket's name; correct it") from error
    except ClientError as error:
        if is_io_fault(error):
            raise
        code = error.response["Error"]["Code"]
        said = error.response["Error"].get("Message", "")
        expected, next_ = _REFUSALS.get(code, ("to read and write there", "S3's documentation explains the code"))
        raise InputError(f"{place}: expected {expected}, S3 answered {code} ({said[:200]}); {next_}") from error
    if found != _PROBE.encode():
        raise InputError(f"{place}: expected to read what was written, got something else; see what rewrites it there")


def deletes() -> bool:
    """Whether we may delete in the bucket, tried on an object of no use."""
    from botocore.exceptions import ClientError

    bucket, key = _key(f"{_PROBE}-deleted")
    try:
        _s3_small().put_object(Bucket=bucket, Key=key, Body=b"", **_stored_with())
        _s3_small().delete_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if is_io_fault(error):
            raise
        return False
    return True


def endpoint() -> str:
    """The address that S3 is asked at."""
    return str(_s3_small().meta.endpoint_url)


def uri_of(model: str, version: str) -> str:
    """The s3:// address of a version's file."""
    return "s3://{}/{}".format(*_key(model, version, "model.onnx"))


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


def remove(place: str) -> None:
    """Delete one object, or a file where it is no s3:// address."""
    if place.startswith("s3://"):
        bucket, key = _place(place)
        _s3_small().delete_object(Bucket=bucket, Key=key)
    else:
        Path(place).unlink(missing_ok=True)


def publish(model: str, version: str, local: Path) -> str:
    """Upload a file as a version of a model, manifest last, read it back and compare; a complete one is left alone.

    A large file goes in parts, each with a checksum that the server compares; the whole is compared by its SHA-256.

    Returns:
        The s3:// address of the file.
    """
    sha256, uri = tracking.sha256_of(local), uri_of(model, version)
    if published(model, version) != sha256 or _stored_sha256(uri) != sha256:
        _upload(local, uri)
        if _stored_sha256(uri) != sha256:
            raise OSError(f"bucket: {uri} reads back as other bytes than were written")
        config = _triton_config(model, version, local)
        _write(config.encode(), "text/plain", model, version, "config.pbtxt")
        sums = {"sha256": sha256, "bytes": local.stat().st_size, "config": _sha256(config.encode())}
        write_json({"file": "model.onnx", **sums}, model, version, "manifest.json")
    return uri


def upload(local: Path, *parts: str) -> str:
    """Store a file under a name of its own; returns its s3:// address."""
    uri = "s3://{}/{}".format(*_key(*parts))
    _upload(local, uri)
    return uri


def _upload(local: Path, uri: str) -> None:
    bucket, key = _place(uri)
    _s3().upload_file(str(local), bucket, key, ExtraArgs={**_stored_with(), **_checked()})


def _checked() -> dict[str, Any]:
    """By what S3 checks that it got a file right; nothing where the environment says that this server cannot."""
    plain = os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "").lower() == "when_required"
    return {} if plain else {"ChecksumAlgorithm": "SHA256"}


def published(model: str, version: str) -> str | None:
    """The SHA-256 of a version's file by its manifest, or None when the version is not complete."""
    manifest = read_json(model, version, "manifest.json") or {}
    return manifest.get("sha256") if "config" in manifest else None


def _stored_sha256(uri: str) -> str | None:
    """SHA-256 of an object's bytes, or None when there is none."""
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        local = Path(folder) / "object"
        try:
            download(uri, local)
        except FileNotFoundError:
            return None
        return tracking.sha256_of(local)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def verified(model: str, version: str) -> Iterator[Path]:
    """A published version's file in a temporary folder.

    Raises:
        IncompleteError: the manifest is missing or the bytes are not the ones it names.
    """
    manifest = read_json(model, version, "manifest.json")
    if manifest is None:
        raise IncompleteError(f"bucket: {model}/{version} has no manifest; it was not published completely")
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        local = Path(folder) / "model.onnx"
        try:
            download(uri_of(model, version), local)
        except FileNotFoundError as error:
            raise IncompleteError(f"bucket: {model}/{version} has a manifest and no file") from error
        if tracking.sha256_of(local) != manifest["sha256"]:
            raise IncompleteError(f"bucket: {model}/{version}/model.onnx is not the file that its manifest names")
        yield local


def check_serves(model: str, version: str, target: Target | None = None) -> None:
    """Fetch a published version from the bucket, verify its checksum, and let ONNX Runtime answer one request.

    Args:
        target: that the version is for; the CPU when it is not given.

    Raises:
        IncompleteError: the manifest is missing or the bytes are not the ones it names.
        OSError: the file cannot be loaded, or its answer is not finite.
        InputError: the target's provider does not work here.
    """
    import numpy as np

    from secateur.runtime import Target, open_session, run

    with verified(model, version) as local:
        try:
            session = open_session(local, target or Target())
            # ones: a mask of zeros would leave nothing to attend to
            inputs = [np.ones(_shape(spec.shape), dtype=_dtype(spec.type)) for spec in session.get_inputs()]
            answer = run(session, *inputs)
        except InputError:
            raise
        except Exception as error:  # whatever the runtime has to say, as one sentence
            raise OSError(f"bucket: {model}/{version} does not answer: {' '.join(str(error).split())}") from error
        if not np.isfinite(answer).all():
            raise OSError(f"bucket: {model}/{version} answers with values that are not finite")


def _shape(sizes: Sequence[int | str]) -> list[int]:
    """The sizes of an ONNX input, 1 where they are dynamic."""
    return [size if isinstance(size, int) else 1 for size in sizes]


def _dtype(type_: str) -> str:
    """NumPy's name of an ONNX input's type, such as `tensor(float)`."""
    element = type_.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(element, element)


def _triton_config(model: str, version: str, local: Path) -> str:
    """Triton's model configuration that serves this one version; sizes as the file has them, -1 where they are dynamic."""
    import onnx

    graph = onnx.load(str(local), load_external_data=False).graph
    constant = {tensor.name for tensor in graph.initializer}
    lines = [f"name: {_quoted(model)}", 'backend: "onnxruntime"', "max_batch_size: 0"]
    for end, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if value.name in constant:
                continue
            tensor = value.type.tensor_type
            kind = _TRITON_TYPES[onnx.TensorProto.DataType.Name(tensor.elem_type).lower()]
            sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
            lines.append(f"{end} {{ name: {_quoted(value.name)} data_type: TYPE_{kind} dims: {sizes} }}")
    lines.append(f"version_policy {{ specific {{ versions: [{version}] }} }}")
    return "\n".join([*lines, ""])


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def point(model: str, version: str) -> None:
    """Say which version serves: Triton's configuration first, then the pointer.

    Raises:
        IncompleteError: the version was not published completely.
    """
    config, manifest = _read(model, version, "config.pbtxt"), read_json(model, version, "manifest.json")
    if config is None or manifest is None or manifest.get("config") != _sha256(config):
        raise IncompleteError(f"bucket: {model}/{version} lacks the config.pbtxt that its manifest names")
    _write(config, "text/plain", model, "config.pbtxt")
    write_json({"version": version, "uri": uri_of(model, version)}, model, "champion.json")


def unpoint(model: str) -> None:
    """Say that nothing serves, as before the first promotion."""
    for name in ("champion.json", "config.pbtxt"):
        bucket, key = _key(model, name)
        _s3_small().delete_object(Bucket=bucket, Key=key)


def pointer(model: str) -> dict[str, Any] | None:
    """What the bucket says serves, or None before the first promotion."""
    return read_json(model, "champion.json")


def serving() -> list[str]:
    """The models of which something serves: those with a pointer, whatever it says."""
    bucket, key = _key()
    prefix = f"{key}/" if key else ""
    pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
    found = [one["Prefix"].removeprefix(prefix).rstrip("/") for page in pages for one in page.get("CommonPrefixes", [])]
    return [model for model in found if _read(model, "champion.json") is not None]


def names(*parts: str) -> list[str]:
    """The names of the objects right below a prefix."""
    bucket, key = _key(*parts)
    pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{key}/", Delimiter="/")
    return [one["Key"].removeprefix(f"{key}/") for page in pages for one in page.get("Contents", [])]


def read_json(*parts: str) -> dict[str, Any] | None:
    """An object of JSON, or None when there is none.

    Raises:
        InputError: what is there is no JSON.
    """
    content = _read(*parts)
    if content is None:
        return None
    try:
        return dict(json.loads(content))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"bucket: expected JSON at s3://{'/'.join(_key(*parts))}, got {content[:60]!r}; someone else wrote it, move it away"
        ) from error


def write_json(value: dict[str, Any], *parts: str) -> None:
    """Store an object of JSON."""
    _write(json.dumps(value, sort_keys=True).encode(), "application/json", *parts)


def _read(*parts: str) -> bytes | None:
    from botocore.exceptions import ClientError

    bucket, key = _key(*parts)
    try:
        return _s3_small().get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] in _ABSENT:
            return None
        raise


def _write(content: bytes, kind: str, *parts: str) -> None:
    bucket, key = _key(*parts)
    _s3_small().put_object(Bucket=bucket, Key=key, Body=content, ContentType=kind, **_stored_with())
