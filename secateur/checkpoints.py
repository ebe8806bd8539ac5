"""Training states that survive a kill at any instant: checksummed, tied to their run, the last two kept."""

from __future__ import annotations

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.errors import InputError

_LENGTH = 64  # of a SHA-256 in hexadecimal
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps its states; `load` gives what there is, the newest first. Saved at most every `seconds`."""

    save: Callable[[bytes], None]
    load: Callable[[], Iterable[bytes]]
    seconds: float = 60.0


def in_folder(folder: str | Path, seconds: float = 60.0) -> Checkpoint:
    """A checkpoint in two files that are written in turn, each only ever replaced as a whole.

    A disk that is full costs the checkpoint, not the training: the state before stays, and a warning says so.
    """
    folder = Path(folder)
    places = [folder / "even.ckpt", folder / "odd.ckpt"]

    def newest_first() -> list[Path]:
        return sorted((p for p in places if p.exists()), key=lambda p: p.stat().st_mtime_ns, reverse=True)

    def save(content: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        last = newest_first()
        place = next(p for p in places if not last or p != last[0])
        try:
            _write(place, content)
        except OSError as error:
            _log.warning("checkpoint not written (%s); training goes on, the one before stays", error)

    return Checkpoint(save, lambda: [path.read_bytes() for path in newest_first()], seconds)


def _write(place: Path, content: bytes) -> None:
    beside = place.with_suffix(".new")
    try:
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, place)
    finally:
        beside.unlink(missing_ok=True)


def pack(key: str, state: dict[str, Any]) -> bytes:
    """A state of tensors and plain values as bytes, with the run's key (a SHA-256) and a checksum in front."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = key.encode() + buffer.getvalue()
    return hashlib.sha256(content).hexdigest().encode() + content


def newest(candidates: Iterable[bytes]) -> bytes:
    """The newest state that is whole, as it is stored; nothing when there is none. A damaged one is said and passed over."""
    for stored in candidates:
        checksum, content = stored[:_LENGTH], stored[_LENGTH:]
        if hashlib.sha256(content).hexdigest().encode() == checksum:
            return stored
        _log.warning("checkpoint damaged (checksum differs); falling back to the one before")
    return b""


def unpack(key: str, stored: bytes) -> dict[str, Any]:
    """The state in what `newest` gave, its tensors on the CPU.

    Raises:
        InputError: the state is of another run: another program, other data or other settings.
    """
    content = stored[_LENGTH:]
    if content[:_LENGTH] != key.encode():
        raise InputError(
            "checkpoint: belongs to another program, other data or other settings; remove it or name another place"
        )
    return torch.load(io.BytesIO(content[_LENGTH:]), map_location="cpu", weights_only=True)
