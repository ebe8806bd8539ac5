"""The one schema of the log, and where its files lie: `<root>/<kind>/model=<name>/hour=<2026-01-31T23>/<writer>.parquet`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
from pyarrow import fs

from secateur.errors import InputError

VERSION_KEY, VERSION = b"secateur.log", b"1"
REQUESTS, LABELS = "requests", "labels"
HOUR = "%Y-%m-%dT%H"

_TENSOR = pa.struct(
    [("name", pa.string()), ("dtype", pa.string()), ("shape", pa.list_(pa.int64())), ("data", pa.binary())]
)
_TIME = pa.timestamp("us", tz="UTC")
REQUEST_SCHEMA = pa.schema(
    [
        ("time", _TIME),
        ("request_id", pa.string()),
        ("model", pa.string()),
        ("model_version", pa.string()),
        ("inputs", pa.list_(_TENSOR)),
        ("reference", pa.string()),  # where the inputs are, in their place
        ("outputs", pa.list_(_TENSOR)),
        ("latency_ms", pa.float64()),
        ("label", _TENSOR),  # where it was known at once
        ("metadata", pa.map_(pa.string(), pa.string())),
    ],
    metadata={VERSION_KEY: VERSION},
)
LABEL_SCHEMA = pa.schema(
    [("time", _TIME), ("request_id", pa.string()), ("model", pa.string()), ("label", _TENSOR)],
    metadata={VERSION_KEY: VERSION},
)
SCHEMAS = {REQUESTS: REQUEST_SCHEMA, LABELS: LABEL_SCHEMA}

Tensors = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Record:
    """One request: arrays [B, ...] by name, of as many examples as it has; `time` is when it came, with its zone."""

    time: datetime
    request_id: str
    model: str
    model_version: str
    inputs: Tensors
    outputs: Tensors
    latency_ms: float
    reference: str | None = None
    label: np.ndarray | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    """The truth of a request [B, ...], which came at `time`."""

    time: datetime
    request_id: str
    model: str
    label: np.ndarray


def place(root: str) -> tuple[fs.FileSystem, str]:
    """The file system and the path of a log's root: a folder, or s3://bucket/prefix with credentials from the environment.

    Raises:
        InputError: neither.
    """
    if "://" not in root:
        if not root:
            raise InputError("log: expected a folder or an address like s3://bucket/prefix, got nothing")
        return fs.LocalFileSystem(), str(Path(root).resolve())
    parts = urlsplit(root)
    if parts.scheme != "s3" or not parts.netloc:
        raise InputError(f"log: expected a folder or an address like s3://bucket/prefix, got {root!r}")
    options = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        where = urlsplit(endpoint)
        options = {"endpoint_override": where.netloc, "scheme": where.scheme}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    # else uploads are signed in a way that S3 itself and few other stores take
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    found = fs.S3FileSystem(region=region, connect_timeout=5, request_timeout=20, **options)
    return found, f"{parts.netloc}{parts.path}".rstrip("/")


def partition(path: str, kind: str, model: str, hour: datetime) -> str:
    """The folder of a model's hour."""
    return f"{path}/{kind}/model={model}/hour={hour.astimezone(UTC):{HOUR}}"


def hours(since: datetime, until: datetime) -> list[datetime]:
    """Every hour that has a moment in [since, until), by its beginning."""
    first = since.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    count = -((first - until) // timedelta(hours=1))
    return [first + timedelta(hours=i) for i in range(max(count, 0))]


def as_rows(records: list[Record]) -> pa.Table:
    """Requests as a table of the schema."""
    rows = [
        {
            "time": one.time,
            "request_id": one.request_id,
            "model": one.model,
            "model_version": one.model_version,
            "inputs": [_packed(name, array) for name, array in one.inputs.items()],
            "reference": one.reference,
            "outputs": [_packed(name, array) for name, array in one.outputs.items()],
            "latency_ms": one.latency_ms,
            "label": None if one.label is None else _packed("label", one.label),
            "metadata": list(one.metadata.items()),
        }
        for one in records
    ]
    return pa.Table.from_pylist(rows, schema=REQUEST_SCHEMA)


def as_labels(labels: list[Label]) -> pa.Table:
    """Labels as a table of the schema."""
    rows = [
        {"time": one.time, "request_id": one.request_id, "model": one.model, "label": _packed("label", one.label)}
        for one in labels
    ]
    return pa.Table.from_pylist(rows, schema=LABEL_SCHEMA)


def record_of(row: Mapping[str, object]) -> Record:
    """A request from a row of a table.

    Raises:
        ValueError: a tensor in it is not one.
    """
    found: dict = dict(row)
    label = found.get("label")
    return Record(
        time=found["time"],
        request_id=found["request_id"],
        model=found["model"],
        model_version=found["model_version"],
        inputs={one["name"]: _unpacked(one) for one in found["inputs"] or ()},
        outputs={one["name"]: _unpacked(one) for one in found["outputs"] or ()},
        latency_ms=math.nan if found["latency_ms"] is None else found["latency_ms"],
        reference=found.get("reference"),
        label=None if label is None else _unpacked(label),
        metadata=dict(found.get("metadata") or ()),
    )


def label_of(row: Mapping[str, object]) -> Label:
    """A label from a row of a table; ValueError where it is none."""
    found: dict = dict(row)
    return Label(found["time"], found["request_id"], found["model"], _unpacked(found["label"]))


def _packed(name: str, array: np.ndarray) -> dict[str, object]:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return {"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "data": little.tobytes()}


def _unpacked(stored: Mapping[str, object]) -> np.ndarray:
    found: dict = dict(stored)
    try:
        dtype = np.dtype(found["dtype"])
    except TypeError as error:
        raise ValueError(f"no type of numbers is called {found['dtype']!r}") from error
    if dtype.kind not in "biuf":
        raise ValueError(f"expected numbers, got {dtype}")
    return np.frombuffer(found["data"], dtype.newbyteorder("<")).astype(dtype).reshape(found["shape"])
