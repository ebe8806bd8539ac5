"""Writes the log from any Python server, beside it: never waits, never raises, never grows; what it cannot keep it counts."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import secrets
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from secateur.errors import InputError
from secateur.inference_log.schema import (
    LABELS,
    REQUESTS,
    Label,
    Record,
    as_labels,
    as_rows,
    partition,
    place,
)

log = logging.getLogger("secateur.inference_log")

_LONGEST_PAUSE_S = 60.0
_ROW_BYTES = 512  # of a request beside its arrays
MOST_ROWS = 4096  # of a file


@dataclass(frozen=True)
class Settings:
    """How much is kept.

    `sample` is the share of the requests; which ones follows from their ids, so that a label that comes later is kept if its request
    was. `drop` names inputs and metadata that are never written, such as personal data.
    """

    sample: float = 1.0
    drop: tuple[str, ...] = ()
    flush_s: float = 10.0
    buffer_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if not 0 <= self.sample <= 1:
            raise InputError(f"log.sample: expected a share of the requests in 0..1, got {self.sample}")
        if self.flush_s <= 0 or self.buffer_bytes <= 0:
            raise InputError(
                f"log: expected seconds and bytes above 0, got flush_s {self.flush_s} and buffer_bytes {self.buffer_bytes}"
            )


@dataclass(frozen=True)
class Counts:
    """What became of all that was handed over."""

    written: int = 0
    not_sampled: int = 0
    dropped: int = 0  # for want of room, while the store was away or too slow
    refused: int = 0  # for being no record: arrays that are no numbers, a time without its zone


class Writer:
    """A buffer and the thread that empties it; `write` may be called by any thread, `close` by one."""

    def __init__(self, root: str, settings: Settings = Settings()) -> None:
        self._files, self._path = place(root)
        self._settings = settings
        self._name = secrets.token_hex(6)
        self._waiting: deque[tuple[Record | Label, int]] = deque()
        self._unwritten: deque[_File] = deque()
        self._bytes = 0
        self._number = 0
        self._counts = Counts()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="inference-log", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Counts:
        """What became of everything up to now."""
        return self._counts

    def write(self, one: Record | Label) -> None:
        """Hand over a request or a label; returns at once whatever the store does, and raises nothing whatever is handed over."""
        try:
            wanted, size = sampled(one.request_id, self._settings.sample), _checked_size(one)
        except Exception as error:
            log.warning("Not kept: %s: %s", type(error).__name__, error)
            return self._count(refused=1)
        if not wanted:
            return self._count(not_sampled=1)
        with self._lock:
            fits = self._bytes + size <= self._settings.buffer_bytes and not self._closing
            if fits:
                self._waiting.append((one, size))
                self._bytes += size
        return None if fits else self._count(dropped=1)

    def close(self, patience_s: float = 10.0) -> Counts:
        """Write what waits and end; what could not be written in that time is dropped, and counted."""
        with self._lock:
            self._closing = True
        self._wake.set()
        self._thread.join(patience_s)
        self._count(dropped=len(self._waiting) + sum(file.rows for file in self._unwritten))
        self._waiting.clear()
        self._unwritten.clear()
        return self._counts

    def _run(self) -> None:
        pause = self._settings.flush_s
        while True:
            self._wake.wait(pause)
            try:
                self._flush()
                pause = self._settings.flush_s
            except Exception as error:  # whatever the store has to say, serving goes on
                pause = min(2 * pause, max(_LONGEST_PAUSE_S, self._settings.flush_s))
                log.warning("The log is not written, next try in %.0f s: %s: %s", pause, type(error).__name__, error)
                if self._closing:
                    return
            if self._closing and not self._waiting and not self._unwritten:
                return

    def _flush(self) -> None:
        """Write all that waits now; a file that could not be written is tried again under its name, so that nothing is there twice."""
        while self._waiting or self._unwritten:
            if not self._unwritten:
                self._unwritten.extend(self._taken())
            file = self._unwritten[0]
            write_file(self._files, file.folder, file.name, file.table)
            self._unwritten.popleft()
            with self._lock:
                self._bytes -= file.size
            self._count(written=file.rows)

    def _taken(self) -> list[_File]:
        """What waits, as files."""
        with self._lock:
            taken = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_ROWS))]
        sizes = {id(one): size for one, size in taken}
        made = []
        for (kind, model, hour), group in _grouped([one for one, _ in taken]).items():
            self._number += 1
            folder, name = partition(self._path, kind, model, hour), f"{self._name}-{self._number:06d}.parquet"
            size = sum(sizes[id(one)] for one in group)
            try:
                made.append(_File(folder, name, _table(group, self._settings.drop), len(group), size))
            except (ValueError, TypeError, pa.ArrowException) as error:
                log.warning("Not kept: %s", error)
                with self._lock:
                    self._bytes -= size
                self._count(refused=len(group))
        return made

    def _count(self, **more: int) -> None:
        with self._lock:
            now = self._counts
            self._counts = dataclasses.replace(
                now, **{name: getattr(now, name) + count for name, count in more.items()}
            )


@dataclass(frozen=True)
class _File:
    folder: str
    name: str
    table: pa.Table
    rows: int
    size: int


def keep(root: str, records: Sequence[Record], name: str) -> int:
    """Write requests that are all there already, into files of this name: the same again change nothing. Returns how many."""
    files, path = place(root)
    for (kind, model, hour), group in _grouped(records).items():
        write_file(files, partition(path, kind, model, hour), f"{name}.parquet", _table(group, ()))
    return len(records)


def write_file(files: fs.FileSystem, folder: str, name: str, table: pa.Table) -> None:
    """A Parquet file that is there whole or not at all."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    local = isinstance(files, fs.LocalFileSystem)
    if local:
        files.create_dir(folder, recursive=True)
    path = f"{folder}/.{name}.part" if local else f"{folder}/{name}"
    with files.open_output_stream(path) as stream:
        stream.write(sink.getvalue())
    if local:
        files.move(path, f"{folder}/{name}")


def sampled(request_id: str, share: float) -> bool:
    """Whether a request is among those that are kept; of one id always the same."""
    if share >= 1:
        return True
    number = int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "big")
    return number < share * 2**64


def _checked_size(one: Record | Label) -> int:
    """The bytes that it takes in memory; ValueError where it could not be written later."""
    arrays = [one.label] if isinstance(one, Label) else [*one.inputs.values(), *one.outputs.values()]
    if isinstance(one, Record) and one.label is not None:
        arrays.append(one.label)
    if bad := [array.dtype for array in arrays if array.dtype.kind not in "biuf"]:
        raise ValueError(f"expected arrays of numbers, got {bad[0]}")
    if one.time.tzinfo is None or not isinstance(one.request_id, str):
        raise ValueError("expected a time with its zone, and a text as the request's id")
    return _ROW_BYTES + sum(array.nbytes for array in arrays)


def _grouped(waiting: Sequence[Record | Label]) -> dict[tuple[str, str, datetime], list[Record | Label]]:
    """What goes into one file together."""
    groups: dict[tuple[str, str, datetime], list[Record | Label]] = {}
    for one in waiting:
        hour = one.time.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        groups.setdefault((LABELS if isinstance(one, Label) else REQUESTS, one.model, hour), []).append(one)
    return groups


def _table(group: Sequence[Record | Label], drop: tuple[str, ...]) -> pa.Table:
    labels = [one for one in group if isinstance(one, Label)]
    if labels:
        return as_labels(labels)
    return as_rows([_without(one, drop) for one in group if isinstance(one, Record)])


def _without(record: Record, drop: tuple[str, ...]) -> Record:
    if not drop:
        return record
    inputs = {name: array for name, array in record.inputs.items() if name not in drop}
    metadata = {name: text for name, text in record.metadata.items() if name not in drop}
    return dataclasses.replace(record, inputs=inputs, metadata=metadata)
