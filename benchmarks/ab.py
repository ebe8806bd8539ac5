"""Whether comparisons hold what they claim: A against A, quiet and beside a busy process, and a planted slowdown of 3 %.

`make bench-ab` runs it and writes `benchmarks/results/ab.json` and `ab.md`; RUNS=<n> for fewer.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.progress import track

from benchmarks import machine
from secateur.compare import Comparison, compare
from secateur.runtime import Target
from secateur.worker import cores_of

SIDE = 256
MATRICES = 100  # and three more: 3 % more work
SLOWER = 3
UNTIL, BUDGET_S = 0.01, 40.0
TARGET = Target(threads=1)
SCENARIOS = {  # matrices of the second file more than of the first, whether a process is busy beside, share asked
    "A against A": (0, False, 0.93),
    "A against A, a busy process beside": (0, True, 0.93),
    "3% slower": (SLOWER, False, 0.8),
}


def main() -> None:
    """Run the scenarios and write what they gave after each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files = {more: chain(Path(folder) / f"{more}.onnx", MATRICES + more) for more in (0, SLOWER)}
        for name, (more, busy, share) in SCENARIOS.items():
            with busy_process() if busy else nullcontext():
                seen = [
                    once(files[0], files[more], seed)
                    for seed in track(range(asked.runs), name, console=Console(stderr=True))
                ]
            rows.append(row(name, seen, share, slower=more > 0))
            store(asked.out, rows)
    print((asked.out / "ab.md").read_text(encoding="utf-8"))


def chain(path: Path, matrices: int) -> Path:
    """A file whose work is so many equal matrix products."""
    draw = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(draw.normal(0, 1 / 16, (SIDE, SIDE)).astype(np.float32), f"w{i}")
        for i in range(matrices)
    ]
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"]) for i in range(matrices)]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", SIDE]) for name in ("x0", f"x{matrices}")
    ]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def once(first: Path, second: Path, seed: int) -> Comparison:
    """One short comparison."""
    request = np.random.default_rng(seed).normal(size=(1, SIDE)).astype(np.float32)
    return compare(first, second, TARGET, [request], until=UNTIL, budget_s=BUDGET_S, seed=seed)


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that computes on the same core for as long as the context lasts."""
    spin = f"import os\nos.sched_setaffinity(0, {cores_of(TARGET)})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as process:
        try:
            yield
        finally:
            process.kill()


def row(name: str, seen: list[Comparison], asked: float, *, slower: bool) -> dict[str, Any]:
    """How often the interval held 1, or lay below it where the second file does more."""
    right = [one.high < 1 if slower else one.low <= 1 <= one.high for one in seen]
    return {
        "name": name,
        "what": "interval below 1.0" if slower else "interval holds 1.0",
        "runs": len(seen),
        "share": sum(right) / len(right),
        "asked": asked,
        "speedup": float(np.median([one.speedup for one in seen])),
        "half_width": float(np.median([one.half_width for one in seen])),
        "seconds": float(np.median([one.seconds for one in seen])),
        "others": float(np.median([one.noise.others for one in seen])),
        "inconclusive": sum(bool(one.inconclusive) for one in seen),
        "results": [[round(x, 5) for x in (one.speedup, one.low, one.high)] for one in seen],
        "date": datetime.date.today().isoformat(),
        "code": machine.commit(),
        "machine": machine.in_words(),
        "load": os.getloadavg()[0],
    }


def store(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the numbers and the page."""
    (folder / "ab.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (folder / "ab.md").write_text(markdown(rows), encoding="utf-8")


def markdown(rows: list[dict[str, Any]]) -> str:
    """The page."""
    head = "| | runs | | share | asked | speedup | half-width | seconds | others on the core | wider than asked |"
    lines = [
        f"| {r['name']} | {r['runs']} | {r['what']} | {r['share']:.1%} | {r['asked']:.0%} | {r['speedup']:.4f} | "
        f"±{r['half_width']:.2%} | {r['seconds']:.1f} | {r['others']:.0%} | {r['inconclusive']} |"
        for r in rows
    ]
    about = (
        f"Two files of {MATRICES} (and {MATRICES + SLOWER}) matrix products, compared by 95 % intervals until they are "
        f"±{UNTIL:.0%} wide, {BUDGET_S:.0f} s at most. Medians over runs."
    )
    made = f"{rows[-1]['date']}, code {rows[-1]['code']}. {rows[-1]['machine']}; load of the machine {rows[-1]['load']:.1f}."
    top = ["# Comparisons", "", "Written by `make bench-ab`; the numbers are in `ab.json`.", "", about, "", head]
    return "\n".join([*top, "| --- " * 10 + "|", *lines, "", made, ""])


if __name__ == "__main__":
    main()
