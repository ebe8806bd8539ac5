"""The results as one page of Markdown: for each part what it was measured with, its tables, and what is behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.context import Row

Part = dict[str, Any]
TITLES = {
    "coverage": "Coverage: half of every axis of a kind",
    "resnet20": "ResNet-20, CIFAR-10 test, right after a one-shot cut",
    "resnet56": "ResNet-56, CIFAR-10 test, right after a one-shot cut",
    "minilm": "MiniLM (6 layers, 12 heads) fine-tuned on SST-2: dev accuracy right after a one-shot cut",
    "stories": "stories260k (Llama, grouped queries): nats per token right after a one-shot cut",
}
WHY = (
    "By the same allocation both tools rank by the same formula: where they cut the same units they are level, and where they do "
    "not, they rounded differently: Torch-Pruning each layer by itself, so that narrow layers lose more than their share, "
    "Secateur to shares as even as whole units allow. `sensitivity` takes the same criterion's units, and how many from where by "
    "curves of how far the answers to the calibration images move; it is compared with that of Torch-Pruning's two cuts which "
    "is more accurate with its norms again, at the fewer MACs of the two."
)


def markdown(parts: dict[str, Part]) -> str:
    """The page."""
    pieces = ["# The engine's benchmarks", "Written by `make bench-engine`; the numbers are in `engine.json`."]
    for name, part in parts.items():
        pieces += [f"## {TITLES[name]}", _measured_with(part)]
        pieces += [f"Skipped: {part['skipped']}."] if "skipped" in part else _BODIES[name](part["rows"])
    return "\n\n".join(pieces) + "\n"


def _measured_with(part: Part) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    took = f", {part['seconds'] / 60:.0f} minutes" if "seconds" in part else ""
    took += ", stopped before its end" if "unfinished" in part else ""
    return f"`{part['command']}` on {part['date']}, code {part['code']}, seed {part['seed']}{took}. {part['machine']}; {versions}."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def coverage(rows: Sequence[Row]) -> list[str]:
    """Sums per kind, then a line per architecture, then the errors."""
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    outcomes = ("worked", "partly", "silent no-op", "error", "hang")

    def sums(tool: str, kind: str | None) -> str:
        counted = Counter(row[tool] for row in rows if kind in (None, row["kind"]))
        return ", ".join(f"{counted[outcome]} {outcome}" for outcome in outcomes if counted[outcome])

    lines = [[kind, sums("ours", kind), sums("peer", kind)] for kind in kinds]
    pieces = [table(["kind", "Secateur", "Torch-Pruning"], [*lines, ["all", sums("ours", None), sums("peer", None)]])]
    names = list(dict.fromkeys(row["architecture"] for row in rows))
    by_place = {(row["architecture"], row["kind"]): row for row in rows}

    def cell(name: str, kind: str) -> str:
        row = by_place.get((name, kind))
        return f"{row['ours']} / {row['peer']}" if row else ""

    pieces.append("Each cell: Secateur / Torch-Pruning; empty where the architecture has no such axis.")
    pieces.append(table(["architecture", *kinds], [[name, *(cell(name, kind) for kind in kinds)] for name in names]))
    notes = Counter(
        (tool, row[tool], row[f"{tool}_note"]) for row in rows for tool in ("ours", "peer") if row[tool] != "worked"
    )
    told = [[tool, outcome, note, str(count)] for (tool, outcome, note), count in notes.most_common()]
    return [*pieces, table(["tool", "outcome", "note", "rows"], told)] if told else pieces


def resnet(rows: Sequence[Row]) -> list[str]:
    """A line per cut, then the rows in which the peer is ahead."""
    dense = rows[0]
    everywhere = [row["outcome"] for row in rows if "outcome" in row]
    cuts = [row for row in rows if "accuracy_normed" in row]
    lines = [
        [
            row["criterion"],
            row["allocation"],
            f"{row['faster']:.2f}x",
            {"ours": "Secateur", "peer": "Torch-Pruning"}[row["tool"]],
            row["scope"],
            f"{row['macs_ratio']:.3f}x",
            f"{row['accuracy']:.2%}",
            f"{row['accuracy_normed']:.2%}",
            *(_ahead(row.get(key)) for key in ("ahead", "ahead_normed")),
        ]
        for row in cuts
    ]
    head = ["criterion", "allocation", "asked", "tool", "scope", "fewer MACs", "accuracy", "norms again"]
    pieces = [
        f"Dense: {dense['accuracy']:.2%}, {dense['macs']:,} MACs. Torch-Pruning asked for all channels: "
        f"{'; '.join(everywhere)}. `inside`: the channels inside the blocks; `all`: every channel. `norms again`: "
        "batch-norm statistics estimated again on training images. The last two columns: points ahead of Torch-Pruning "
        "at its MACs, with the standard error of the paired difference.",
        table([*head, "ahead", "ahead, norms again"], lines),
    ]
    return [*pieces, _behind(cuts), WHY]


def _ahead(difference: list[float] | None) -> str:
    return "" if difference is None else f"{100 * difference[0]:+.2f} ± {100 * difference[1]:.2f}"


def _behind(cuts: Sequence[Row]) -> str:
    """How often Secateur is ahead, level (within two standard errors) and behind."""
    counted: Counter[str] = Counter()
    for row in cuts:
        for key in ("ahead", "ahead_normed"):
            if key in row:
                mean, error = row[key]
                counted[
                    "level within two standard errors"
                    if abs(mean) <= 2 * error
                    else f"{'ahead' if mean > 0 else 'behind'} by more"
                ] += 1
    return "Secateur at equal MACs: " + ", ".join(f"{count} {what}" for what, count in counted.most_common()) + "."


def language(rows: Sequence[Row], tell: Callable[[float], str], better: Callable[..., float | None]) -> list[str]:
    """A line per criterion that applies, a column per cut; the best of each column is in bold."""
    dense = rows[0]
    pieces = [f"Dense: {tell(dense['value'])}."]
    for depth in (False, True):
        part = [row for row in rows if row["what"] != "dense" and ("layers" in row) == depth]
        columns = list(dict.fromkeys(_column(row) for row in part))
        best = {
            c: better((r["value"] for r in part if _column(r) == c and "value" in r), default=None) for c in columns
        }
        criteria = list(dict.fromkeys(row["criterion"] for row in part if "value" in row))
        values = {(row["criterion"], _column(row)): row["value"] for row in part if "value" in row}

        def cell(criterion: str, column: str, values: dict = values, best: dict = best) -> str:
            if (criterion, column) not in values:
                return ""
            text = tell(values[criterion, column])
            return f"**{text}**" if values[criterion, column] == best[column] else text

        if criteria:
            pieces.append(
                table(["criterion", *columns], [[c, *(cell(c, column) for column in columns)] for c in criteria])
            )
    return pieces


def _column(row: Row) -> str:
    return f"{row['layers']} layers" if "layers" in row else f"{row['what']} -{row['share']:.0%}"


_BODIES: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "coverage": coverage,
    "resnet20": resnet,
    "resnet56": resnet,
    "minilm": lambda rows: language(rows, lambda v: f"{v:.2%}", max),
    "stories": lambda rows: language(rows, lambda v: f"{v:.4f}", min),
}
