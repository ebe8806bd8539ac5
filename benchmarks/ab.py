"""Whether comparisons hold what they claim: A against A, quiet and beside a busy process, and a planted slowdown of 3 %.

`make bench-ab` runs it and writes `benchmarks/results/ab.json` and `ab.md`; RUNS=<n> for fewer, JOBS=<n> for several at a time,
ROWS="..." for some.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
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
from secateur.worker import allowed_cores, cores_of

Run = dict[str, float]

SIDE, ROWS = 128, 32
MATRICES = 100  # and three more: 3 % more work
SLOWER = 3
UNTIL = 0.01
TARGET = Target(threads=1)
# matrices of the second file more than of the first, whether a process is busy beside, share asked, seconds at most: an interval must
# hold the truth however wide it is, and be narrow only where something is to be found
SCENARIOS = {
    "A against A": (0, False, 0.93, 5.0),
    "A against A, a busy process beside": (0, True, 0.93, 5.0),
    "3% slower": (SLOWER, False, 0.8, 20.0),
}


def main() -> None:
    """Run what is missing of the scenarios and write what they gave after each run: what is stopped goes on."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, each on a core of its own")
    parser.add_argument("--rows", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    asked = parser.parse_args()
    cores = allowed_cores()
    if not 1 <= asked.jobs <= max(len(cores), 1):
        parser.error(f"--jobs: expected 1 to {len(cores)}, the cores that there are, got {asked.jobs}")
    asked.out.mkdir(parents=True, exist_ok=True)
    results = stored(asked.out)
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for more in (0, SLOWER):
            chain(Path(folder) / f"{more}.onnx", MATRICES + more)
        free = spawn.Queue()
        for core in cores[: asked.jobs]:
            free.put(core)
        with concurrent.futures.ProcessPoolExecutor(asked.jobs, spawn, initializer=pin, initargs=(free,)) as pool:
            for name in asked.rows:
                done = of_this_code(results.get(name))
                missing = [seed for seed in range(asked.runs) if seed not in done]
                running = {pool.submit(once, Path(folder), name, seed): seed for seed in missing}
                finished = concurrent.futures.as_completed(running)
                for future in track(finished, name, total=len(missing), console=Console(stderr=True)):
                    done[running[future]] = future.result()
                    results[name] = about(name, asked.jobs) | {"runs": done}
                    store(asked.out, results)
    print((asked.out / "ab.md").read_text(encoding="utf-8"))


def pin(free: Any) -> None:
    """Keep a process, and the workers that it starts, to the next free core."""
    os.sched_setaffinity(0, {free.get()})


def chain(path: Path, matrices: int) -> Path:
    """A file whose work is so many products with one orthogonal matrix: it stays in the cache, so that 3 % more of them is 3 % more time."""
    orthogonal, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(SIDE, SIDE)))
    weight = numpy_helper.from_array(orthogonal.astype(np.float32), "w")
    nodes = [helper.make_node("MatMul", [f"x{i}", "w"], [f"x{i + 1}"]) for i in range(matrices)]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", SIDE]) for name in ("x0", f"x{matrices}")
    ]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def once(folder: Path, scenario: str, seed: int) -> Run:
    """One short comparison."""
    more, busy, _, budget_s = SCENARIOS[scenario]
    request = np.random.default_rng(seed).normal(size=(ROWS, SIDE)).astype(np.float32)
    with busy_process() if busy else nullcontext():
        seen = compare(
            folder / "0.onnx", folder / f"{more}.onnx", TARGET, [request], until=UNTIL, budget_s=budget_s, seed=seed
        )
    return as_run(seen)


def as_run(seen: Comparison) -> Run:
    """What is kept of a comparison."""
    said = {name: round(float(getattr(seen, name)), 5) for name in ("speedup", "low", "high", "half_width", "seconds")}
    return said | {"others": round(seen.noise.others, 4), "inconclusive": float(bool(seen.inconclusive))}


@contextmanager
def busy_process() -> Iterator[None]:
    """A process that computes on the same core for as long as the context lasts."""
    spin = f"import os\nos.sched_setaffinity(0, {cores_of(TARGET)})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spin]) as process:
        try:
            yield
        finally:
            process.kill()


def row(name: str, runs: Sequence[Run]) -> dict[str, Any]:
    """How often the interval held 1, or lay below it where the second file does more."""
    more, _, asked, _ = SCENARIOS[name]
    right = [run["high"] < 1 if more else run["low"] <= 1 <= run["high"] for run in runs]
    medians = {
        key: float(np.median([run[key] for run in runs])) for key in ("speedup", "half_width", "seconds", "others")
    }
    return {
        "what": "interval below 1.0" if more else "interval holds 1.0",
        "runs": len(runs),
        "share": sum(right) / len(right),
        "asked": asked,
        "inconclusive": int(sum(run["inconclusive"] for run in runs)),
        **medians,
    }


def about(name: str, jobs: int) -> dict[str, Any]:
    """When, of which code and where a row was measured."""
    today, place = datetime.date.today().isoformat(), machine.in_words()
    return {"date": today, "code": machine.commit(), "machine": place, "jobs": jobs, "at_most_s": SCENARIOS[name][-1]}


def of_this_code(said: Mapping[str, Any] | None) -> dict[int, Run]:
    """The runs of a row that are there, by seed; those of other code prove nothing of it."""
    return dict(said["runs"]) if said and said["code"] == machine.commit() else {}


def stored(folder: Path) -> dict[str, dict[str, Any]]:
    """What is known of each row."""
    path = folder / "ab.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {
        name: said | {"runs": {int(seed): run for seed, run in said["runs"].items()}} for name, said in rows.items()
    }


def store(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the numbers and the page."""
    (folder / "ab.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    (folder / "ab.md").write_text(markdown(results), encoding="utf-8")


def markdown(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The page."""
    head = "| | runs | | share | asked | speedup | half-width | seconds | others on the core | wider than asked |"
    measured = {name: row(name, list(results[name]["runs"].values())) for name in SCENARIOS if name in results}
    lines = [
        f"| {name} | {r['runs']} | {r['what']} | {r['share']:.1%} | {r['asked']:.0%} | {r['speedup']:.4f} | "
        f"±{r['half_width']:.2%} | {r['seconds']:.1f} | {r['others']:.0%} | {r['inconclusive']} |"
        for name, r in measured.items()
    ]
    what = (
        f"Two files of {MATRICES} (and {MATRICES + SLOWER}) matrix products, compared by 95 % intervals until they are "
        f"±{UNTIL:.0%} wide or the time is over. Medians over runs."
    )
    made = [f"- {name}: {_made(results[name])}" for name in measured]
    top = ["# Comparisons", "", "Written by `make bench-ab`; the numbers are in `ab.json`.", "", what, "", head]
    return "\n".join([*top, "| --- " * 10 + "|", *lines, "", *made, ""])


def _made(said: Mapping[str, Any]) -> str:
    at_a_time = f"; {said['jobs']} runs at a time, each on a core of its own" if said["jobs"] > 1 else ""
    return f"{said['at_most_s']:.0f} s at most; {said['date']}, code {said['code']}. {said['machine']}{at_a_time}."


if __name__ == "__main__":
    main()
