"""How the contenders compare, with intervals, as numbers and as one page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.context import Row
from benchmarks.engine.report import table
from benchmarks.recovery.rows import BLOCK, FRESH, LENGTH
from secateur.compare import interval

NAMES = {"ours": "`recover`", "plain": "plain loop", "lightning": "Lightning"}
CONFIDENCE = 0.95
PLAIN_AT_LEAST, LIGHTNING_AT_LEAST, MEMORY_AT_MOST = 0.98, 1.0, 1.1

EXPLAINED = (
    "The same network, batch, optimiser and precision for all, from the same weights, each contender in a process of its "
    f"own, {FRESH} of them one after the other; blocks of {BLOCK} steps in random order, round after round. The plain loop and Lightning train the eager model "
    f"and copy each batch out of arrays in memory at once; every sentence is {LENGTH} tokens. Speeds: `recover`'s over "
    "theirs, the median over processes with its 95 % interval. Waiting: the share of a step that goes into fetching, augmenting and "
    "placing its batch (`recover` / plain loop / Lightning; of the last two without placing). Memory: peak of the process "
    f"without the teacher's weights, on a GPU of the device. Asked: at least {PLAIN_AT_LEAST} of the plain loop's speed and {LIGHTNING_AT_LEAST:g} of "
    f"Lightning's, at most {MEMORY_AT_MOST} of the plain loop's memory; `open` where the interval holds both."
)


def ratio(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """How many times faster we are: the median over processes of their seconds over ours, of each the geometric mean of its
    rounds, and the 95 % interval of that median."""
    logs = np.array([np.log(np.asarray(b) / np.asarray(a)).mean() for a, b in zip(ours, theirs, strict=True)])
    low, high = interval(logs, CONFIDENCE)
    return float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high))


def compared(row: Row) -> Row:
    """The row with examples per second and the ratios that are asked about."""
    seen = row["contenders"]
    ours = seen["ours"]
    told: Row = {"per_second": {}, "speed": {}, "memory": {}}
    for name, theirs in seen.items():
        told["per_second"][name] = round(row["batch"] * BLOCK / float(np.median(np.concatenate(theirs["seconds"]))), 1)
        if name != "ours":
            told["speed"][name] = [round(x, 4) for x in ratio(ours["seconds"], theirs["seconds"])]
            told["memory"][name] = round(_memory(ours) / _memory(theirs), 4)
    return row | told


def _memory(contender: Row) -> int:
    """Peak bytes of the device, or of the process without the program that the training is handed (the teacher)."""
    return contender.get("device_peak_bytes") or contender["peak_bytes"] - contender["aside_bytes"]


def verdict(row: Row) -> str:
    """What of the asked is held; a speed that the interval leaves open is said to be open."""
    bounds = {"plain": PLAIN_AT_LEAST, "lightning": LIGHTNING_AT_LEAST}
    held = [f"{NAMES[name]}: {_judged(row['speed'][name], least)}" for name, least in bounds.items()]
    within = row["memory"]["plain"] <= MEMORY_AT_MOST
    return "; ".join([*held, f"memory: {'held' if within else 'missed'}"])


def _judged(speed: Sequence[float], least: float) -> str:
    _, low, high = speed
    return "held" if low >= least else "missed" if high < least else "open"


def markdown(rows: Sequence[Row]) -> str:
    """The page."""
    head = ["what", "where", *(f"{name}, examples/s" for name in NAMES.values())]
    head += [f"speed / {NAMES[name]}" for name in ("plain", "lightning")]
    head += ["waiting for data", "memory / plain loop", "asked"]
    pieces = [
        "# Recovery's training loop",
        "Written by `make bench-recovery`; the numbers are in `recovery.json`.",
        EXPLAINED,
    ]
    if measured := [row for row in rows if "contenders" in row]:
        pieces.append(table(head, [_line(row) for row in measured]))
    pieces += [_measured_with(row) for row in rows]
    return "\n\n".join(pieces) + "\n"


def _measured_with(row: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    what = f"skipped: {row['skipped']}" if "skipped" in row else f"{row['settings']}; {row['rounds']} rounds"
    return (
        f"{row['name']}, {row['where']}: {what}. `{row['command']}` on {row['date']}, code {row['code']}, "
        f"seed {row['seed']}. {row['machine']}; {versions}."
    )


def _line(row: Row) -> list[str]:
    speeds = (row["speed"][name] for name in ("plain", "lightning"))
    waiting = " / ".join(f"{row['contenders'][name]['waiting']:.2%}" for name in NAMES)
    return [
        row["name"],
        row["where"],
        *(f"{row['per_second'][name]:,.0f}" for name in NAMES),
        *(f"{point:.3f} ({low:.3f} to {high:.3f})" for point, low, high in speeds),
        waiting,
        f"{row['memory']['plain']:.3f}",
        verdict(row),
    ]
