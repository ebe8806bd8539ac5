"""What every benchmark is given, and how it says what it does."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_STARTED = time.monotonic()


class Skipped(Exception):  # noqa: N818  (it is no error)
    """A part cannot run here; the message says what is missing."""


@dataclass(frozen=True)
class Context:
    """Where the data is, where what takes long to make is kept, and the seed of everything drawn."""

    data: Path | None
    cache: Path
    seed: int = 0

    def folder(self, name: str) -> Path:
        """A folder of the data.

        Raises:
            Skipped: it is not there.
        """
        if self.data is None:
            raise Skipped(f"needs {name}/ in the data folder, and no data folder was given")
        if not (self.data / name).is_dir():
            raise Skipped(f"needs {name}/ in the data folder, and it is not there")
        return self.data / name


def say(text: str) -> None:
    """A progress line with the minutes since the start."""
    print(f"[{(time.monotonic() - _STARTED) / 60:6.1f} min] {text}", flush=True)
