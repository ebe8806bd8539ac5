"""Runs the parts and writes `engine.json` and `engine.md`.

    python -m benchmarks.engine [--data FOLDER] [--parts coverage resnet20 ...]

Parts that are not asked for keep the rows of their last run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.context import Context, Row, Skipped, say
from benchmarks.engine import cifar, coverage, language, report

PARTS: dict[str, Callable[[Context], Iterable[Row]]] = {
    "coverage": coverage.run,
    "resnet20": lambda context: cifar.run(context, 20),
    "resnet56": lambda context: cifar.run(context, 56),
    "minilm": language.run_minilm,
    "stories": language.run_stories,
}


def main() -> None:
    """Run each part and write the files after each row, so that a long run that is stopped keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with cifar10/, cifar_resnet/, sst2/, stories260k/")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cache", type=Path, default=Path(".bench"), help="keeps the fine-tuned model")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.cache.mkdir(exist_ok=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    context = Context(asked.data, asked.cache, asked.seed)
    for name in asked.parts:
        for part in measured(name, context):
            store(asked.out, name, part)


def measured(name: str, context: Context) -> Iterator[dict[str, Any]]:
    """A part after each of its rows, marked unfinished but for the last; or why there are no rows."""
    said: dict[str, Any] = {"command": f"make bench-engine PARTS={name}" + (" DATA=<folder>" if context.data else "")}
    said |= {"date": datetime.date.today().isoformat(), "seed": context.seed, "code": machine.commit()}
    said |= {"machine": machine.in_words(), "versions": machine.versions()}
    started, rows = time.monotonic(), []
    try:
        for row in PARTS[name](context):
            rows.append(row)
            yield said | {"rows": rows, "seconds": round(time.monotonic() - started), "unfinished": True}
        yield said | {"rows": rows, "seconds": round(time.monotonic() - started)}
    except Skipped as reason:
        say(f"{name}: skipped: {reason}")
        yield said | {"rows": [], "skipped": str(reason)}


def store(folder: Path, name: str, part: dict[str, Any]) -> None:
    """Put a part beside the others; one that was skipped does not replace rows that were measured."""
    path = folder / "engine.json"
    parts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "skipped" in part and parts.get(name, {}).get("rows"):
        return
    parts = {key: {**parts, name: part}[key] for key in PARTS if key in {**parts, name: part}}
    path.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    (folder / "engine.md").write_text(report.markdown(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
