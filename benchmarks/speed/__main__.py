"""What pruning buys on this machine; writes `speed.json` and `speed.md`, each row as it is measured.

python -m benchmarks.speed [--rows resnet-half ...] [--threads 1]
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import onnxruntime as ort

from benchmarks import machine
from benchmarks.context import Row, say
from benchmarks.engine.report import table
from benchmarks.speed.rows import ROWS, UNTIL, Bench
from secateur.runtime import Target

HEAD = ("what", "dense, ms", "pruned, ms", "ratio", "95 % interval", "asked", "held", "more")


def main() -> None:
    """Measure the rows that are asked for; the others keep the numbers of their last run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cache", type=Path, default=Path(".bench/speed"))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.cache.mkdir(parents=True, exist_ok=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(Target(threads=asked.threads), asked.cache, asked.seed)
    for name in asked.rows:
        say(name)
        store(asked.out, name, [row | made_with(name, bench) for row in ROWS[name](bench)])
    print((asked.out / "speed.md").read_text(encoding="utf-8"))


def made_with(name: str, bench: Bench) -> Row:
    """What a row was measured with."""
    threads = f" THREADS={bench.target.threads}" if bench.target.threads > 1 else ""
    return {
        "command": f"make bench-speed ROWS={name}{threads}",
        "date": datetime.date.today().isoformat(),
        "code": machine.commit(),
        "seed": bench.seed,
        "machine": machine.in_words(),
        "target": vars(bench.target),
        "versions": machine.versions() | {"onnxruntime": ort.__version__},
    }


def store(out: Path, name: str, rows: list[Row]) -> None:
    """Put the rows of a name beside the others and write the page."""
    path = out / "speed.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    stored = {**stored, name: rows}
    stored = {key: stored[key] for key in ROWS if key in stored}
    path.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    (out / "speed.md").write_text(markdown([row for rows in stored.values() for row in rows]), encoding="utf-8")


def markdown(rows: list[Row]) -> str:
    """The page."""
    commands = "\n".join(f"- {told}" for told in dict.fromkeys(map(_command, rows)))
    pieces = [
        "# What pruning buys",
        "Written by `make bench-speed`; the numbers are in `speed.json`.",
        "Models of these shapes with random weights in ONNX Runtime on this machine. Dense and pruned are timed in turns, each in fresh "
        f"processes, as `secateur compare` does, until the interval is ±{UNTIL:.0%} or two minutes are over; an interval that stayed "
        "wider is said to be inconclusive.",
        table(HEAD, [_cells(row) for row in rows]),
        commands,
    ]
    return "\n\n".join(pieces) + "\n"


def _cells(row: Row) -> list[str]:
    times = [f"{row[key]:.2f}" if key in row else "" for key in ("dense_ms", "pruned_ms")]
    ratio = [f"{row['ratio']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}"] if "ratio" in row else ["unknown", ""]
    held = {True: "yes", False: "no", None: ""}[row["held"]]
    more = [*([row["note"]] if "note" in row else []), *(["inconclusive"] if row.get("inconclusive") else [])]
    return [row["what"], *times, *ratio, row["asked"], held, "; ".join(more)]


def _command(row: Row) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    return (
        f"`{row['command']}` on {row['date']}, code {row['code']}, seed {row['seed']}, {row['target']['threads']} thread(s). "
        f"{row['machine']}; {versions}."
    )


if __name__ == "__main__":
    main()
