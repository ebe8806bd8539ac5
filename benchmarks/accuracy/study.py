"""What a row of the benchmark is: its parts, what each is asked, and what they are put beside."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.accuracy.scales import Scale
from benchmarks.context import Context, Row


@dataclass(frozen=True)
class Ask:
    """An accuracy of at least `value`, a drop of at most it, or at least that share of the dense accuracy."""

    what: str
    value: float

    def met(self, dense: float, recovered: float) -> bool:
        """Whether an accuracy after recovery is what was asked; half of a last digit shown is let pass."""
        wanted = {"accuracy": self.value, "drop": dense - self.value, "share": dense * self.value}[self.what]
        return recovered >= wanted - 5e-5

    def __str__(self) -> str:
        words = {
            "accuracy": "at least {:.1%}",
            "drop": "drop at most {:.1f} points",
            "share": "at least {:.0%} of dense",
        }
        return words[self.what].format(100 * self.value if self.what == "drop" else self.value)


@dataclass(frozen=True)
class Trial:
    """One part of a row: `settings` hold everything that its result depends on beside data and code."""

    label: str
    seed: int
    settings: Row
    run: Callable[[Context], Row]
    ask: Ask | None = None
    published: str = ""


@dataclass(frozen=True)
class Study:
    """One row. `minutes` is a guess of what it takes at scale cpu on two cores."""

    title: str
    about: str
    trials: Callable[[Scale], list[Trial]]
    minutes: int
    metric: str = "accuracy"  # or log_likelihood
    published: tuple[str, ...] = ()
    remark: Callable[[Sequence[Row]], str] | None = None  # a sentence that follows from the results
    curves: bool = False  # whether the results are drawn too
