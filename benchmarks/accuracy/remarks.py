"""Sentences that follow from a row's results, written only where all that they compare is there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from statistics import fmean

from benchmarks.context import Row

LLAMA_ORDER = "wanda and sparsegpt close together, magnitude far behind"


def mean_by(rows: Sequence[Row], name: str, what: str) -> dict[str, float]:
    """The mean over seeds of a number, by another field, in the order of the rows."""
    keys = dict.fromkeys(row[name] for row in rows)
    return {key: fmean(row[what] for row in rows if row[name] == key) for key in keys}


def boundary(rows: Sequence[Row]) -> str:
    """Which way is ahead at each share."""
    told = []
    for share in sorted({row["share"] for row in rows}):
        ways = mean_by([row for row in rows if row["share"] == share], "way", "recovered")
        if len(ways) == 2:
            told.append(f"{100 * (ways['iterative'] - ways['oneshot']):+.2f} points at {share:.0%}")
    return f"Iterative less one-shot: {', '.join(told)}." if told else ""


def ranking(rows: Sequence[Row]) -> str:
    """How many pairs of criteria change places between the cut and the recovery."""
    before, after = (mean_by(rows, "label", what) for what in ("cut", "recovered"))
    if len(before) < 2:
        return ""
    pairs = list(combinations(before, 2))
    flipped = [pair for pair in pairs if (before[pair[0]] - before[pair[1]]) * (after[pair[0]] - after[pair[1]]) < 0]
    orders = (" > ".join(sorted(scores, key=scores.__getitem__, reverse=True)) for scores in (before, after))
    spread = 100 * (max(after.values()) - min(after.values()))
    return (
        "Right after the cut {}; after recovery {}: {} of {} pairs change places, the best and the worst are {:.2f} points "
        "apart.".format(*orders, len(flipped), len(pairs), spread)
    )


def order_of_criteria(rows: Sequence[Row]) -> str:
    """The order of the weight criteria, from the lowest perplexity, before and after recovery."""
    told = []
    for pattern in dict.fromkeys(row["pattern"] for row in rows):
        of_pattern = [row for row in rows if row["pattern"] == pattern]
        if len({row["criterion"] for row in of_pattern}) > 1:
            orders = []
            for what in ("cut", "recovered"):
                scores = mean_by(of_pattern, "criterion", what)
                orders.append(" < ".join(sorted(scores, key=scores.__getitem__, reverse=True)))
            told.append(f"{pattern}: {orders[0]} right after the cut, {orders[1]} after recovery")
    return f"{'; '.join(told)}. The literature's order: {LLAMA_ORDER}." if told else ""
