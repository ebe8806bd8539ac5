"""What the `secateur` command prints: the progress of a run, its result, a model's history."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from secateur import planner
from tasks import precisions
from tasks.cli.airflow_api import Task
from tasks.cli.follow import Outcome

if TYPE_CHECKING:
    from tasks.journal import Entry

Report = Callable[[str, list[Task]], None]

_SETTLED = frozenset({"success", "failed", "skipped", "upstream_failed"})
_STYLE = {
    "success": "green",
    "failed": "bold red",
    "skipped": "dim",
    "upstream_failed": "dim",
    "running": "cyan",
    "awaiting_input": "yellow",
}
_WORDS = {
    None: "-",
    "success": "done",
    "upstream_failed": "not reached",
    "awaiting_input": "waits for a person to answer in Airflow",
}
_STYLE_OF_VERDICT = {"pass": "green", "fail": "red", "inconclusive": "yellow", "reported": "dim"}


@dataclass(frozen=True)
class Row:
    """One line of the result table: the metric's name in MLflow, its title, and how a value is written."""

    metric: str
    title: str
    write: Callable[[float], str]


ROWS = (
    Row("latency_p50_ms", "latency p50", lambda value: f"{value:.3f} ms"),
    Row("latency_p99_ms", "latency p99", lambda value: f"{value:.3f} ms"),
    Row("size_bytes", "size", lambda value: f"{value / 1024:,.0f} KiB"),
    Row("params", "parameters", lambda value: f"{value:,.0f}"),
    Row("macs", "MACs", lambda value: f"{value:,.0f}"),
)
ZEROS = Row("zeros", "zeros", lambda value: f"{value:,.0f}")  # where a method makes some


@contextmanager
def progress(console: Console) -> Iterator[Report]:
    """A reporter for `follow`: a live picture on a terminal, else one line for every step that ends or is retried."""
    if console.is_terminal:
        with Live(console=console, refresh_per_second=8) as live:
            yield lambda state, tasks: live.update(picture(state, tasks))
    else:
        yield _line_reporter(console)


def picture(state: str, tasks: list[Task]) -> RenderableType:
    """The run as it stands: a row per step, and per cycle one row with its three steps."""
    if state == "queued":
        return Text("waiting for a free slot: one run of a DAG at a time", style="dim")
    table = Table.grid(padding=(0, 3))
    for title, members in _rows(tasks).items():
        table.add_row(title, *[_cell(task, with_name=len(members) > 1) for task in members])
    return table


def result(outcome: Outcome) -> list[RenderableType]:
    """The end of a run: the reason first where there is one to know, then the numbers, the verdict, the addresses."""
    parts: list[RenderableType] = []
    if outcome.error:
        parts.append(Text.assemble(("Error: ", "bold red"), outcome.error))
    if outcome.sweep:
        parts += side_by_side(outcome.sweep)
    not_pruned = outcome.ending == "refused" and (outcome.plan or {}).get("method") == planner.NONE
    if outcome.plan and not_pruned:
        rows = [planner.Row(**row) for row in outcome.plan["reasons"]]
        parts += [Text.assemble(("Not pruned: ", "bold yellow"), rows[0].because), Text(planner.table(rows).rstrip())]
    elif outcome.ending == "refused" and not outcome.sweep:
        reason = outcome.approval or (outcome.verdict or {}).get("reason", "the gate gave no verdict")
        parts.append(Text.assemble(("Not promoted: ", "bold red"), reason))
    if outcome.metrics and not outcome.error and not not_pruned:
        ships = (outcome.verdict or {}).get("ships", "pruned")
        if outcome.plan:
            parts.append(Text(plan_sentence(outcome.plan)))
        parts.append(comparison(outcome.metrics, outcome.metric, ships))
        parts.append(Text(speedup_sentence(outcome.metrics)))
    if outcome.verdict:
        parts += _verdict(outcome.verdict)
    if outcome.promotion:
        parts += [Text(outcome.approval)] if outcome.approval else []
        parts.append(Text(promotion_sentence(outcome.promotion)))
    addresses = {"Report": outcome.report_url, "MLflow": outcome.mlflow_url, "Airflow": outcome.airflow_url}
    parts += [Text(f"{name:8} {url}") for name, url in addresses.items() if url]
    return parts


def comparison(metrics: Mapping[str, float], metric: str = "accuracy", ships: str = "pruned") -> Table:
    """Dense against what ships, the objective's metric first; what is missing shows as a dash."""
    table = Table()
    table.add_column("")
    for title in ("dense", precisions.spoken(ships, ", "), "change"):
        table.add_column(title, justify="right")
    zeros = (ZEROS,) if f"{ships}.{ZEROS.metric}" in metrics else ()
    for row in (_metric_row(metric), *ROWS, *zeros):
        dense, shipped = metrics.get(f"dense.{row.metric}"), metrics.get(f"{ships}.{row.metric}")
        table.add_row(row.title, _value(row, dense), _value(row, shipped), _change(row, dense, shipped))
    return table


def side_by_side(swept: Mapping[str, Any]) -> list[RenderableType]:
    """What came of a sweep: every candidate on a line, and who won."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))  # nine columns, also in a terminal of 80
    accuracy = swept["metric"] == "accuracy"
    table.add_column(
        "candidate", overflow="fold", min_width=min(max(len(one["name"]) for one in swept["candidates"]), 24)
    )
    change_in = "points" if accuracy else "change"
    for title in ("removed", f"{swept['metric']}\n{change_in}", "speedup", "size\nKiB", "p50\nms", "rung"):
        table.add_column(title, justify="right")
    for title in ("validation", "test"):
        table.add_column(title, overflow="fold")
    for one in swept["candidates"]:
        name = Text(one["name"], style="bold green" if one["name"] == swept["winner"] else "")
        if one["state"] != "measured":
            table.add_row(name, *["-"] * 5, str(one["rung"]), one["state"], "-")
            continue
        low, high = (f"{value:.2f}" for value in one["speedup"][1:])
        change = f"{100 * one['change'][0]:+.2f}" if accuracy else f"{one['change'][0]:+.4f}"
        verdict = (swept["judged"].get(one["name"]) or {}).get("outcome", "-")
        table.add_row(
            name,
            f"{one['sparsity']:.0%}",
            change,
            f"{one['speedup'][0]:.2f}x ({low} to {high})",
            f"{one['size_bytes'] / 1024:,.0f}",
            f"{one['p50_ms']:.3f}",
            str(one["rung"]),
            *(Text(said, style=_STYLE_OF_VERDICT.get(said, "dim")) for said in (one["outcome"], verdict)),
        )
    others = [
        Text.assemble((f"{one['name']} {one['state']}: ", "bold"), one["reason"])
        for one in swept["candidates"]
        if one["state"] != "measured"
    ]
    won = ("Winner: ", "bold green") if swept["winner"] else ("No winner: ", "bold red")
    told = f"{swept['winner']}, {swept['reason']}" if swept["winner"] else swept["reason"]
    return [table, *others, Text.assemble(won, told)]


def plan_sentence(plan: Mapping[str, Any]) -> str:
    """The method and why it is that one."""
    method = plan["reasons"][0]
    return f"Method {method['chosen']}: {method['because']}."


def speedup_sentence(metrics: Mapping[str, float]) -> str:
    """The measured speedup with its interval, next to what the multiply-accumulates alone would promise."""
    names = ("speedup", "speedup_low", "speedup_high", "theoretical_speedup")
    measured, low, high, theory = (f"{metrics[name]:.2f}x" if name in metrics else "unknown" for name in names)
    return f"Speedup {measured} (interval {low} to {high}); by MACs it would be {theory}."


def promotion_sentence(promotion: Mapping[str, Any]) -> str:
    """What now serves, and what did before."""
    version, before = promotion["version"], promotion.get("previous")
    if before == version:
        return f"Champion stays version {version}."
    return f"Champion is version {version}" + (f" (before: {before})." if before else ".")


def history(model: str, entries: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The promotion journal, oldest first."""
    if not entries:
        return Text(f"Nothing was ever promoted for {model!r}.")
    table = Table(title=f"Promotions of {model}", title_justify="left")
    for title in ("#", "when", "action", "version"):
        table.add_column(title, no_wrap=True)
    for title in ("who", "reason"):
        table.add_column(title, overflow="fold")
    for entry in entries:
        when = str(entry["when"])[:16].replace("T", " ")
        version = f"{entry['from_version'] or '-'} -> {entry['to_version']}"
        action = entry["action"] + {"done": "", "undone": " (undone)"}.get(entry["outcome"], " (not ended)")
        cells = (entry["number"], when, action, version, entry["who"], entry["reason"])
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table


def verified(model: str, entries: Sequence["Entry"], findings: Sequence[str]) -> RenderableType:
    """What verifying a journal found."""
    if findings:
        return Text(
            "\n".join([f"The journal of {model} does not verify:", *(f"  {one}" for one in findings)]), style="red"
        )
    return Text(
        f"The journal of {model} verifies: {len(entries)} entries, each bound to the one before, the same in MLflow and in the "
        "bucket; alias and pointer agree with it.",
        style="green",
    )


def _rows(tasks: list[Task]) -> dict[str, list[Task]]:
    rows: dict[str, list[Task]] = {}
    for task in sorted(tasks, key=_place):
        rows.setdefault(task.name.rpartition(".")[0].replace("_", " ") or task.name, []).append(task)
    return rows


_ORDER = (
    "resolve",
    "baseline",
    "plan",
    "cycle",
    "select",
    "export",
    "validate",
    "gate",
    "ask",
    "approve",
    "promote",
    "report",
)
_ORDER_IN_CYCLE = ("cut", "recover", "evaluate")


def _place(task: Task) -> tuple[int, str, int]:
    group, _, name = task.name.rpartition(".")
    first = group.partition("_")[0] or name
    return (
        _ORDER.index(first) if first in _ORDER else len(_ORDER),
        group,
        _ORDER_IN_CYCLE.index(name) if name in _ORDER_IN_CYCLE else 0,
    )


def _cell(task: Task, *, with_name: bool) -> Text:
    words = [task.name.rpartition(".")[2]] if with_name else []
    words.append(_WORDS.get(task.state, task.state or "-"))
    if task.state in ("success", "failed", "running"):
        words.append(_duration(task))
    if task.tries > 1:
        words.append(f"(try {task.tries})")
    return Text(" ".join(words), style=_STYLE.get(task.state or "", "dim"))


def _duration(task: Task) -> str:
    if task.started is None:
        return ""
    return f"{max((task.ended or time.time()) - task.started, 0.0):.1f} s"


def _line_reporter(console: Console) -> Report:
    seen: set[tuple[str, str | None, int]] = set()

    def report(state: str, tasks: list[Task]) -> None:
        if state == "queued" and not seen:
            seen.add(("", state, 0))
            console.print("waiting: one run of a DAG at a time", style="dim")
        for task in tasks:
            key = (task.name, task.state, task.tries)
            if key in seen or task.state not in _SETTLED | {"up_for_retry", "awaiting_input"}:
                continue
            seen.add(key)
            if task.state not in ("skipped", "upstream_failed"):
                console.print(Text.assemble(f"{task.name:18} ", _cell(task, with_name=False)))

    return report


def _verdict(verdict: Mapping[str, Any]) -> list[RenderableType]:
    outcome, rules = str(verdict.get("outcome")), verdict.get("rules") or []
    head = Text.assemble("Verdict: ", (outcome, f"bold {_STYLE_OF_VERDICT.get(outcome, 'red')}"))
    if not rules:
        head.append(f" - {verdict.get('reason')}")
    return [head, *(_rule(rule) for rule in rules)]


def _rule(rule: Mapping[str, Any]) -> Text:
    style = _STYLE_OF_VERDICT.get(rule["outcome"], "red")
    return Text.assemble("  ", (f"{rule['outcome']:12} ", style), rule["sentence"])


def _metric_row(metric: str) -> Row:
    return Row(metric, f"{metric} (test)", lambda value: f"{value:.2%}" if metric == "accuracy" else f"{value:.4f}")


def _value(row: Row, value: float | None) -> str:
    return "-" if value is None else row.write(value)


def _change(row: Row, dense: float | None, pruned: float | None) -> str:
    if dense is None or pruned is None:
        return "-"
    if row.metric == "accuracy":
        return f"{(pruned - dense) * 100:+.2f} points"
    if row not in ROWS:
        return f"{pruned - dense:+.4f}"
    return f"{pruned / dense - 1:+.0%}" if dense else "-"
