"""Reads a model's log of some hours, and says what in it could not be used; nothing is silently left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from secateur.inference_log.schema import (
    HOUR,
    LABELS,
    REQUESTS,
    SCHEMAS,
    VERSION,
    VERSION_KEY,
    Label,
    Record,
    hours,
    label_of,
    partition,
    place,
    record_of,
)

CLOCKS = timedelta(minutes=5)  # that a request's time may lie outside its hour

_TOLD = ["time", "request_id", "model", "model_version"]  # of a row, without its tensors

T = TypeVar("T")


class _UnusableError(Exception):
    """A file that gives no row; the message says why, as a plural."""


@dataclass(frozen=True)
class Window:
    """What was read of a span of time.

    `requests` is how many there were, `records` those that were drawn of them. `problems` says how many rows or files were left out, by
    why; `gaps` are the hours without any between hours that have some.
    """

    since: datetime
    until: datetime
    records: tuple[Record, ...]
    requests: int = 0
    problems: Mapping[str, int] = field(default_factory=dict)
    gaps: tuple[datetime, ...] = ()


def read(
    root: str,
    model: str,
    since: datetime,
    until: datetime,
    *,
    version: str | None = None,
    only: Collection[str] | None = None,
    most: int | None = None,
) -> Window:
    """The requests of a model in [since, until), in the order of their time; a file at a time is in memory.

    Args:
        root: of the log.
        model: of the bucket, such as `digits-cnn-onnx`.
        since: the first moment.
        until: the moment after the last.
        version: that answered; requests that another one did are a problem.
        only: ids of requests, all others are passed over.
        most: how many are drawn, by their ids, of more.

    Raises:
        InputError: `root` is neither a folder nor an address.
        OSError: the store does not answer.
    """
    problems: dict[str, int] = {}
    drawn: list[tuple[int, Record]] = []
    seen: list[datetime] = []
    requests = 0
    for hour in hours(since, until):
        for table in _tables(root, REQUESTS, model, hour, problems):
            seen.append(hour)
            ids = [
                (place, str(row["request_id"]))
                for place, row in enumerate(table.select(_TOLD).to_pylist())
                if _belongs(row, model, hour, version, problems) and since <= row["time"] < until
            ]
            chosen = [(place, _rank(key)) for place, key in ids if only is None or key in only]
            requests += len(chosen)
            if most is not None:
                chosen = sorted(chosen, key=lambda one: one[1])[:most]
            rows = table.take(pa.array([place for place, _ in chosen], pa.int64())).to_pylist()
            made = [(rank, _made(record_of, row, problems)) for (_, rank), row in zip(chosen, rows, strict=True)]
            drawn += [(rank, record) for rank, record in made if record is not None]
            if most is not None:
                drawn = sorted(drawn, key=lambda one: one[0])[:most]
    between = hours(seen[0], seen[-1]) if seen else []
    gaps = tuple(hour for hour in between if hour not in seen)
    records = sorted((record for _, record in drawn), key=lambda one: one.time)
    return Window(since, until, tuple(records), requests, problems, gaps)


def _belongs(row: Mapping[str, Any], model: str, hour: datetime, version: str | None, problems: dict[str, int]) -> bool:
    if row["model"] != model:
        _add(problems, f"rows of another model, such as {row['model']}")
    elif row["time"] is None or not hour - CLOCKS <= row["time"] < hour + timedelta(hours=1) + CLOCKS:
        _add(problems, "rows whose time lies outside their hour: the clocks of writers disagree")
    elif version is not None and row["model_version"] != version:
        _add(problems, f"requests that another version than {version} answered")
    else:
        return True
    return False


def _rank(key: str) -> int:
    """Which requests are drawn first: as good as at random, and always the same."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8, person=b"drawn").digest(), "big")


def read_labels(root: str, model: str, since: datetime, until: datetime) -> tuple[list[Label], dict[str, int]]:
    """The labels that came in [since, until), and what could not be used."""
    problems: dict[str, int] = {}
    found = []
    for hour in hours(since, until):
        for table in _tables(root, LABELS, model, hour, problems):
            labels = [_made(label_of, row, problems) for row in table.to_pylist()]
            for one in filter(None, labels):
                if one.model != model:
                    _add(problems, f"labels of another model, such as {one.model}")
                elif since <= one.time < until:
                    found.append(one)
    return sorted(found, key=lambda one: one.time), problems


def expired(root: str, model: str, before: datetime) -> list[str]:
    """The files of whole hours that ended before a moment, of requests and of labels: paths, or s3:// addresses.

    Who deletes them does so one by one, and not by Arrow: in the place of a folder of S3 it would leave an empty object.
    """
    files, path = place(root)
    scheme = "" if isinstance(files, fs.LocalFileSystem) else "s3://"
    found = []
    for kind in (REQUESTS, LABELS):
        for hour in _hours_of(root, kind, model):
            if hour + timedelta(hours=1) <= before:
                folder = partition(path, kind, model, hour)
                entries = files.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True))
                found += [f"{scheme}{entry.path}" for entry in entries if entry.type == fs.FileType.File]
    return sorted(found)


def _hours_of(root: str, kind: str, model: str) -> list[datetime]:
    files, path = place(root)
    folder = f"{path}/{kind}/model={model}"
    found = []
    for entry in files.get_file_info(fs.FileSelector(folder, allow_not_found=True)):
        name = entry.base_name.removeprefix("hour=")
        try:
            found.append(datetime.strptime(name, HOUR).replace(tzinfo=UTC))
        except ValueError:
            continue  # a folder of somebody else's
    return found


def _tables(root: str, kind: str, model: str, hour: datetime, problems: dict[str, int]) -> Iterator[pa.Table]:
    """Every file of an hour that is one, and has a row."""
    files, path = place(root)
    entries = files.get_file_info(fs.FileSelector(partition(path, kind, model, hour), allow_not_found=True))
    for entry in sorted(entries, key=lambda one: one.path):
        if not entry.base_name.endswith(".parquet"):
            continue  # one that is being written
        try:
            table = _table(files, entry.path, SCHEMAS[kind])
        except _UnusableError as unusable:
            _add(problems, str(unusable))
            continue
        if table.num_rows:
            yield table


def _made(made: Callable[[Mapping[str, Any]], T], row: Mapping[str, Any], problems: dict[str, int]) -> T | None:
    try:
        return made(row)
    except (ValueError, KeyError, TypeError):
        _add(problems, "rows that are damaged")
        return None


def _table(files: fs.FileSystem, path: str, schema: pa.Schema) -> pa.Table:
    try:
        with files.open_input_stream(path) as source:
            content = source.read()
    except FileNotFoundError as gone:
        raise _UnusableError("files that were taken away while they were read") from gone
    try:
        table = pq.read_table(pa.BufferReader(content), partitioning=None)
    except (pa.ArrowException, OSError, EOFError) as damaged:  # bytes that are all there are what is wrong
        raise _UnusableError("files that are no Parquet, or cut short") from damaged
    found = (table.schema.metadata or {}).get(VERSION_KEY)
    if found != VERSION:
        said = found.decode(errors="replace") if found else "none"
        raise _UnusableError(f"files of another schema ({said}, expected {VERSION.decode()})")
    missing = [name for name in schema.names if name not in table.schema.names]
    if missing:
        raise _UnusableError(f"files without {', '.join(missing)}")
    try:
        return table.select(schema.names).cast(schema)
    except pa.ArrowException as others:
        raise _UnusableError("files whose columns are of other types") from others


def _add(problems: dict[str, int], why: str) -> None:
    problems[why] = problems.get(why, 0) + 1
