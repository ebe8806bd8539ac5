"""Examples per second of recovery's training loop beside others; writes `recovery.json` and `recovery.md`.

    python -m benchmarks.recovery --data FOLDER [--rows resnet20 minilm] [--rounds 40]

Rows that are not asked for keep the numbers of their last run.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

from benchmarks import machine
from benchmarks.context import Context, Row, Skipped, say
from benchmarks.recovery import report
from benchmarks.recovery.race import race
from benchmarks.recovery.rows import FRESH, OPTIONS, PRECISIONS, TASKS, Task


def main() -> None:
    """Race the rows and write the files after each, so that a long run that is stopped keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with cifar10/, cifar_resnet/, sst2/")
    parser.add_argument("--rows", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rounds", type=int, default=40, help="over all processes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    if asked.rounds < FRESH:
        parser.error(f"--rounds: expected at least {FRESH}, one for each process, got {asked.rounds}")
    asked.out.mkdir(parents=True, exist_ok=True)
    context = Context(asked.data, asked.out, asked.seed)
    for task in (place for name in asked.rows for place in places(TASKS[name])):
        row = measured(task, asked.rounds, context)
        say(f"{task.name}, {task.where}: {row.get('per_second') or row['skipped']}")
        store(asked.out, row)


def places(task: Task) -> list[Task]:
    """On the CPU, and where there is a GPU on it as well, there also with half the digits."""
    import torch  # here: a process that is spawned imports what this module does

    gpu = [task.on("cuda", precision) for precision in PRECISIONS] if torch.cuda.is_available() else []
    return [task, *gpu]


def measured(task: Task, rounds: int, context: Context) -> Row:
    """A row with what it was measured with; or why it could not be."""
    row: Row = {"name": task.name, "where": task.where, "settings": settings(task), "batch": task.batch}
    row |= {"command": f"make bench-recovery ROWS={task.name} ROUNDS={rounds} DATA=<folder>", "rounds": rounds}
    row |= {"date": datetime.date.today().isoformat(), "seed": context.seed, "code": machine.commit()}
    row |= {"machine": machine.in_words(), "versions": machine.versions()}
    try:
        return report.compared(row | race(task, rounds, context))
    except Skipped as reason:
        return row | {"skipped": str(reason)}


def settings(task: Task) -> str:
    """In words."""
    options = ", ".join(f"{name} {value}" for name, value in OPTIONS[task.optimizer].items())
    augmented = f", {' and '.join(task.augment)}" if task.augment else ""
    return f"batch {task.batch}, {task.optimizer} ({options}){augmented}"


def store(folder: Path, row: Row) -> None:
    """Put a row beside the others; one that was skipped does not replace one that was measured."""
    path = folder / "recovery.json"
    rows = {place_of(stored): stored for stored in (json.loads(path.read_text("utf-8")) if path.exists() else [])}
    if "skipped" in row and "contenders" in rows.get(place_of(row), {}):
        return
    rows[place_of(row)] = row
    ordered = sorted(rows.values(), key=lambda row: list(TASKS).index(row["name"]))
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    (folder / "recovery.md").write_text(report.markdown(ordered), encoding="utf-8")


def place_of(row: Row) -> tuple[str, str]:
    """What one row stands for."""
    return row["name"], row["where"]


if __name__ == "__main__":
    main()
