"""The page of the benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.context import Row

Part = Mapping[str, Any]


def markdown(results: Mapping[str, Part]) -> str:
    """All parts that there are."""
    lines = ["# Watching what serves", "", "Written by `make bench-monitor`; the numbers are in `monitor.json`."]
    for name, write in WRITERS.items():
        if name in results:
            part = results[name]
            lines += ["", *write(part["rows"]), "", f"{part['date']}, code {part['code']}. {part['machine']}."]
    return "\n".join([*lines, ""])


def _shifts(rows: Sequence[Row]) -> list[str]:
    clean, drift = (next(row for row in rows if row["kind"] == kind) for kind in ("clean", "drift"))
    lines = [
        f"## {clean['pair']}: false alarms and time to detect",
        "",
        "The test set is the world. A sample of it, half as large, gives the levels, anew every 1,000 looks at clean traffic; a look is 200 examples of it; a shift comes after 24 clean looks.",
        "",
        f"Clean traffic: {clean['watch']} watches and {clean['breach']} breaches in {clean['looks']:,} looks (asked: 1 in 1,000 at most); the data "
        f"were said to have drifted in {drift['drifted']} of {drift['looks']:,}.",
        "",
        "| shift | dense | pruned | labels | looks until watch | until breach | whose |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row["kind"] == "shift":
            labels = "yes" if row["labels"] else "no"
            lines.append(
                f"| {row['shift']} | {row['dense']:.2%} | {row['pruned']:.2%} | {labels} | {_or_never(row['watch'])} | "
                f"{_or_never(row['breach'])} | {row['cause'] or '–'} |"
            )
    return lines


def _loop(rows: Sequence[Row]) -> list[str]:
    lines = ["## The whole loop: server, log, `monitor_model` and `rollback_model` in Airflow", ""]
    names = {name: None for row in rows for name in row if name != "reason"}
    lines += [f"| | {' | '.join(row['shift'] for row in rows)} |", f"| --- {'| --- ' * len(rows)}|"]
    shown = [name for name in names if name != "shift"]
    lines += [f"| {name} | {' | '.join(_number(row.get(name, '–')) for row in rows)} |" for name in shown]
    return [*lines, *(line for row in rows for line in ("", f"{row['shift']}: {row['reason']}."))]


def _server(rows: Sequence[Row]) -> list[str]:
    (row,) = rows
    head = ["## The reference server beside bare ONNX Runtime, ResNet-50, one example, one thread", ""]
    lines = ["| | median, ms | p99, ms | more than bare |", "| --- | --- | --- | --- |"]
    lines.append(f"| bare | {row['bare_ms']:.2f} | {row['bare_p99_ms']:.2f} | |")
    for kind in ("binary", "JSON"):
        lines.append(
            f"| {kind} | {row[f'{kind}_ms']:.2f} | {row[f'{kind}_p99_ms']:.2f} | {row[f'{kind}_overhead']:+.1%} |"
        )
    return [
        *head,
        *lines,
        "",
        f"A minute at full load: {row['requests_per_s']:.1f} requests a second; memory {row['rss_mb_at_10_s']:.0f} MB after 10 s, "
        f"{row['rss_mb_at_60_s']:.0f} MB after 60 s, {row['rss_mb_most']:.0f} MB at most.",
        "",
        f"{row['reloads']} champions in {row['seconds']:.0f} s under load: {row['requests']:,} requests, {row['failed']} failed.",
    ]


def _scale(rows: Sequence[Row]) -> list[str]:
    (row,) = rows
    head = [
        "## 10,000 requests a second over 100 models",
        "",
        "One model's hour is written and read for real, and counted a hundred times.",
        "",
    ]
    return [*head, *(f"- {name}: {_number(value)}" for name, value in row.items())]


def _or_never(value: int | None) -> str:
    return "never" if value is None else str(value)


def _number(value: Any) -> str:
    return f"{value:,.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


WRITERS: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "shifts": _shifts,
    "jpeg": _shifts,
    "loop": _loop,
    "server": _server,
    "scale": _scale,
}
