"""What a check of a deployment finds."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: `fail` where something cannot work, `warn` where it works and should not stay so."""

    level: Level
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.level:4}  {self.what}" + (f": {self.remedy}" if self.remedy else "")


Check = Callable[[], Iterator[Finding]]
