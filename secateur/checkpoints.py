"""Training states that survive a kill at any instant: checksummed, tied to their run, the last two kept."""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from secateur.errors import InputError

_LENGTH = 64  # of a SHA-256 in hexadecimal
_DIGITS = 16  # of the step
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """Where a run keeps its states; `load` gives what there is, in any order. Saved at most every `seconds`."""

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
        last = newest_first()
        place = next(p for p in places if not last or p != last[0])
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write(place, content)
        except OSError as error:
            _log.warning(
                "checkpoint not written to %s (%s); training goes on, the one before stays; make room there",
                folder,
                error,
            )

    return Checkpoint(save, lambda: [path.read_bytes() for path in newest_first()], seconds)


def also(near: Checkpoint, far: Checkpoint) -> Checkpoint:
    """Every state in the near place, and at most every `far.seconds` in the far one; the newest of either is gone on from."""
    last = -math.inf

    def save(content: bytes) -> None:
        nonlocal last
        near.save(content)
        if time.monotonic() - last >= far.seconds:
            far.save(content)
            last = time.monotonic()

    return Checkpoint(save, lambda: [*near.load(), *far.load()], near.seconds)


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


def pack(key: str, step: int, state: dict[str, Any]) -> bytes:
    """A state of tensors and plain values as bytes; in front a checksum, the run's key (a SHA-256) and the step."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = f"{key}{step:0{_DIGITS}}".encode() + buffer.getvalue()
    return hashlib.sha256(content).hexdigest().encode() + content


def newest(candidates: Iterable[bytes]) -> bytes:
    """Of the states that are whole the one of the latest step, as it is stored; nothing when there is none. Damage is said."""
    stored = list(candidates)
    whole = [each for each in stored if _is_whole(each)]
    if len(whole) < len(stored):
        left = "going on from another that is whole" if whole else "none is whole, training begins again"
        _log.warning("%d of %d checkpoints damaged (checksum differs); %s", len(stored) - len(whole), len(stored), left)
    return max(whole, key=_step, default=b"")


def _is_whole(stored: bytes) -> bool:
    checksum = hashlib.sha256(stored[_LENGTH:]).hexdigest().encode()
    return checksum == stored[:_LENGTH] and stored[2 * _LENGTH :][:_DIGITS].isdigit()


def _step(stored: bytes) -> int:
    return int(stored[2 * _LENGTH :][:_DIGITS])


def unpack(key: str, stored: bytes) -> dict[str, Any]:
    """The state in what `newest` gave, its tensors on the CPU.

    Raises:
        InputError: the state is of another run: another program, other data or other settings.
    """
    content = stored[_LENGTH:]
    if content[:_LENGTH] != key.encode():
        raise InputError(
            "checkpoint: expected one of this program, these data and these settings, got one of others; remove it or name "
            "another place"
        )
    return torch.load(io.BytesIO(content[_LENGTH + _DIGITS :]), map_location="cpu", weights_only=True)
