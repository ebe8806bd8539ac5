"""Chooses how to prune, or not to: evidence in, decision and reasons out.

The boundaries are the published ones. Structured where the target runs dense kernels, zeros only where it has sparse ones
(Mishra et al. 2021; Hoefler et al., "Sparsity in deep learning", JMLR 2021); one cut where little goes and there is little time
to recover, several with recovery in between where much goes or every cut costs much (Han et al., NeurIPS 2015; Renda et al.,
ICLR 2020); recovery for 10 to 20 % of the original training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from secateur.errors import InputError
from secateur.tables import as_text

PREFERRED = (
    "structured",
    "depth",
    "n_m",
    "unstructured",
)  # of those that serve: the finest cut that needs no sparse kernel
QUANTIZE, NONE = "quantize", "none"
ONE_SHOT_UP_TO = 0.3  # of what the goal counts
ITERATIVE_ABOVE = 0.5
TIGHT = 4  # epochs: shared by two cycles they recover little in either
RECOVERY = (
    0.1,
    0.15,
    0.2,
)  # of the original training: where the cut alone is good enough, usually, where it is not and much goes


@dataclass(frozen=True)
class Cost:
    """What a cut costs of the metric before any recovery, on examples that are not of the test split."""

    share: float  # of what the goal counts, that goes
    drop: float  # of the metric, from the dense model's
    low: float
    high: float
    examples: int

    def __str__(self) -> str:
        return f"{self.drop:.4f} ({self.low:.4f} to {self.high:.4f}, {self.examples} examples) at {self.share:.0%}"


@dataclass(frozen=True)
class Option:
    """What is known of a method that removes something."""

    method: str  # one of PREFERRED
    buys: str  # on the target: time, memory, disk, nothing or unknown
    why: str  # it buys that
    reach: float | None = None  # the dense model over what is left, of what the goal counts, at the most; if looked at
    misfit: str = ""  # why it cannot serve the goal at all
    costs: tuple[Cost, ...] = ()  # of one-shot cuts, the share that is wanted last


@dataclass(frozen=True)
class Alone:
    """What the dense model's INT8 form gives by itself."""

    drop: float  # of the metric on validation
    reached: float  # the ratio of the goal; of a speedup the low end of its interval
    speedup: float
    speedup_low: float
    speedup_high: float

    def __str__(self) -> str:
        return (
            f"{self.speedup:.2f}x ({self.speedup_low:.2f}x to {self.speedup_high:.2f}x), {self.drop:.4f} of the metric lost on "
            "validation"
        )


@dataclass(frozen=True)
class Evidence:
    """What a decision rests on."""

    goal: str  # as it was asked
    counted: bool  # what is asked is what comes; else it is measured, and cuts go as far as they can
    wanted: float  # the dense model over what shall be left; at most 1: it is there already
    allowed_drop: float  # of the metric
    options: tuple[Option, ...]
    int8: Alone | None = None
    trained_epochs: float | None = None  # that the dense model was trained for, where it is told

    @property
    def share(self) -> float:
        """Of what the goal counts, what shall go; free of what the way over the ratio rounds off, since boundaries are round."""
        return round(1 - 1 / self.wanted, 9)


@dataclass(frozen=True)
class Overrules:
    """What is not for the planner to choose; None is."""

    method: str | None = None
    by: str = ""  # the setting that says so
    cycles: int | None = None
    epochs: int | None = None
    recovery: float | None = None  # share of `trained_epochs`


@dataclass(frozen=True)
class Row:
    """One choice, and the numbers that it was made by."""

    choice: str
    chosen: str
    because: str
    numbers: str = ""


@dataclass(frozen=True)
class Decision:
    """The method, the number of cycles and the epochs of recovery over all of them, with a row for each choice."""

    method: str
    cycles: int
    epochs: int
    rows: tuple[Row, ...]


def decide(seen: Evidence, overrules: Overrules = Overrules()) -> Decision:
    """Choose, and say why. A cycle needs an epoch of recovery at least.

    Raises:
        InputError: a method that is asked for cannot serve the goal.
    """
    method = _method(seen, overrules)
    others = _others(seen, method.chosen, overruled=overrules.method is not None)
    if method.chosen in (NONE, QUANTIZE):
        return Decision(method.chosen, 0, 0, (method, *others))
    option = _option(seen, method.chosen)
    epochs, recovery = _epochs(seen, overrules, option)
    count, cycles = _cycles(seen, overrules, option, epochs)
    return Decision(method.chosen, count, epochs, (method, *others, cycles, recovery))


def serves(option: Option) -> bool:
    """Whether the target gains by it, as far as is documented."""
    return not option.misfit and option.buys == "time"


def table(rows: Sequence[Row]) -> str:
    """The reasons as text."""
    shown = Table("choice", "chosen", "because", "numbers", title="plan")
    for row in rows:
        shown.add_row(row.choice, row.chosen, row.because, row.numbers)
    return as_text(shown)


def _method(seen: Evidence, overrules: Overrules) -> Row:
    if overrules.method is not None:
        return _asked(seen, overrules)
    if seen.wanted <= 1:
        return Row("method", NONE, "the dense model is within the goal as it is", f"{seen.goal}: {seen.wanted:.2f}x")
    if seen.int8 and not seen.counted and _within(seen, seen.int8.drop) and seen.int8.reached >= seen.wanted:
        because = "INT8 of the dense model reaches the goal within the accuracy budget: nothing has to leave"
        return Row("method", QUANTIZE, because, f"{seen.wanted:.2f}x wanted; {seen.int8}")
    by_name = {option.method: option for option in seen.options if serves(option) and _reached(option) > 1}
    serving = [by_name[name] for name in PREFERRED if name in by_name]
    reaching = [option for option in serving if _reached(option) >= seen.wanted]
    if not reaching and (seen.counted or not serving):
        return Row("method", NONE, "no method that this target gains by reaches the goal", _reaches(seen, seen.options))
    if not reaching:
        furthest = max(serving, key=_reached)
        because = "the goal is out of reach, and this goes furthest: the cycles go as far as they can"
        return Row("method", furthest.method, because, _reaches(seen, serving))
    harmless = [option for option in reaching if _harmless(seen, option)]
    chosen = (harmless or reaching)[0]
    if harmless and chosen is not reaching[0]:
        first = reaching[0]
        because = f"its cut alone keeps the accuracy budget, that of {first.method} does not"
        return Row("method", chosen.method, because, _costs(seen, (chosen, first)))
    because = f"on this target it buys {chosen.buys} ({chosen.why})"
    return Row("method", chosen.method, because, _joined(_reaches(seen, [chosen]), _costs(seen, [chosen])))


def _asked(seen: Evidence, overrules: Overrules) -> Row:
    """What the recipe asks for, where that can be done."""
    asked, by = str(overrules.method), f"set in the recipe ({overrules.by})"
    if asked == NONE:
        return Row("method", NONE, by)
    if seen.wanted <= 1:
        because = f"the dense model is within the goal as it is; {asked} was {by}"
        return Row("method", NONE, because, f"{seen.goal}: {seen.wanted:.2f}x")
    if asked == QUANTIZE:
        if seen.int8 is None:
            return Row("method", NONE, f"{QUANTIZE} was {by}, and this target gains no time by INT8 or cannot run it")
        return Row("method", QUANTIZE, by, str(seen.int8))
    option = _option(seen, asked)
    if option.misfit:
        raise InputError(f"{overrules.by}: {asked} cannot serve the goal {seen.goal}: {option.misfit}")
    return Row("method", asked, by, _joined(_reaches(seen, [option]), _costs(seen, [option])))


def _others(seen: Evidence, chosen: str, *, overruled: bool) -> list[Row]:
    """Why not the other methods."""
    rows = []
    for option in seen.options:
        if option.method == chosen:
            continue
        first = f"{chosen} is asked for" if overruled else f"{chosen} comes first where both serve"
        numbers = _joined(_reaches(seen, [option]), _costs(seen, [option]))
        rows.append(Row("not", option.method, _why_not(seen, option, first), numbers))
    if seen.int8 and chosen != QUANTIZE:
        because = "INT8 removes nothing that the goal counts" if seen.counted else "INT8 alone is not enough"
        rows.append(Row("not", f"{QUANTIZE} alone", because, str(seen.int8)))
    return rows


def _why_not(seen: Evidence, option: Option, otherwise: str) -> str:
    if option.misfit:
        return option.misfit
    if not serves(option):
        return f"it would buy {option.buys} ({option.why})"
    return otherwise if option.reach is None or option.reach >= seen.wanted else "it does not reach as far"


def _reached(option: Option) -> float:
    """How far an option goes that may be chosen."""
    assert option.reach is not None, f"{option.method} serves, so how far it goes was looked at"
    return option.reach


def _cycles(seen: Evidence, overrules: Overrules, option: Option, epochs: int) -> tuple[int, Row]:
    """The number of cycles of cut and recovery."""
    share, cost = seen.share, "".join(map(str, option.costs[-1:]))

    def row(count: int, because: str) -> tuple[int, Row]:
        lost = cost and f"one-shot loses {cost}, allowed is {seen.allowed_drop:g}"
        return count, Row("cycles", str(count), because, _joined(f"{share:.0%} goes, {epochs} epochs", lost))

    if option.method == "n_m":
        return row(1, "a pattern is cut at once")
    if overrules.cycles:
        return row(overrules.cycles, "set in the recipe")
    critical = bool(option.costs) and not _harmless(seen, option)
    if share <= ONE_SHOT_UP_TO and critical and epochs >= TIGHT:
        return row(2, f"accuracy is critical: a one-shot cut breaks its budget of {seen.allowed_drop:g}")
    if share <= ONE_SHOT_UP_TO:
        return row(1, f"one-shot: at most {ONE_SHOT_UP_TO:.0%} goes" + (", and few epochs" if critical else ""))
    wanted = 2 if share <= ITERATIVE_ABOVE else 3
    why = (
        f"between {ONE_SHOT_UP_TO:.0%} and {ITERATIVE_ABOVE:.0%} goes"
        if wanted == 2
        else f"more than {ITERATIVE_ABOVE:.0%} goes, where recovery in between pays"
    )
    if epochs < wanted:
        return row(epochs, f"{why}, and every cycle needs an epoch")
    return row(wanted, why)


def _epochs(seen: Evidence, overrules: Overrules, option: Option) -> tuple[int, Row]:
    """The epochs of recovery over all cycles."""
    if overrules.epochs:
        return overrules.epochs, Row("recovery", f"{overrules.epochs} epochs", "set in the recipe")
    assert seen.trained_epochs
    if overrules.recovery is not None:
        share, because = overrules.recovery, "its share is set in the recipe"
        if not RECOVERY[0] <= share <= RECOVERY[-1]:
            because += f", outside the published {RECOVERY[0]:.0%} to {RECOVERY[-1]:.0%}"
    elif option.costs and _harmless(seen, option):
        share, because = RECOVERY[0], "the cut alone keeps the accuracy budget"
    elif option.costs and seen.share > ITERATIVE_ABOVE:
        share, because = RECOVERY[-1], "much goes, and the cut alone breaks the accuracy budget"
    else:
        share, because = RECOVERY[1], "the middle of the published range"
    total = max(1, round(share * seen.trained_epochs))
    return total, Row("recovery", f"{total} epochs", because, f"{share:.0%} of the {seen.trained_epochs:g} of training")


def _option(seen: Evidence, method: str) -> Option:
    return next(option for option in seen.options if option.method == method)


def _harmless(seen: Evidence, option: Option) -> bool:
    """Whether a cut of all that is wanted keeps the accuracy budget before any recovery."""
    return bool(option.costs) and _within(seen, option.costs[-1].drop)


def _within(seen: Evidence, drop: float) -> bool:
    return drop <= seen.allowed_drop


def _reaches(seen: Evidence, options: Sequence[Option]) -> str:
    able = [f"{option.method} at most {option.reach:.2f}x" for option in options if option.reach is not None]
    return f"{seen.wanted:.2f}x wanted, {', '.join(able)}" if able else ""


def _costs(seen: Evidence, options: Sequence[Option]) -> str:
    told = {option.method: "; ".join(map(str, option.costs)) for option in options if option.costs}
    if not told:
        return ""
    return "one-shot cuts lose " + ", ".join(
        costs if len(told) == 1 else f"{method} {costs}" for method, costs in told.items()
    )


def _joined(*numbers: str) -> str:
    return "; ".join(filter(None, numbers))
