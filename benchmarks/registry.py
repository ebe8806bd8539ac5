"""Many processes that promote and roll back one model at random: at every instant one champion, and a journal that verifies.
And how long the way back of a large model takes.

`make bench-registry` runs it on the running stack, or wherever the environment leads; PROCESSES=<n>, SECONDS=<n>.
"""

from __future__ import annotations

import argparse
import collections
import multiprocessing
import os
import random
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from benchmarks import machine
from benchmarks.context import say
from secateur.errors import InputError
from tasks import bucket, champion, journal, registry, rollback, tracking
from tasks.cli.settings import export_settings

VERSIONS = 4
LARGE_MB = 100
PRELOADED = ["boto3", "mlflow", "onnxruntime", "tasks.champion", "tasks.rollback"]


@dataclass
class Seen:
    """What one process did, or saw."""

    done: int = 0
    refused: collections.Counter[str] = field(default_factory=collections.Counter)
    failed: list[str] = field(default_factory=list)
    longest_s: float = 0.0
    looks: int = 0  # of the watcher: how often alias, pointer and journal were read with no change between
    wrong: list[str] = field(default_factory=list)


def main() -> int:
    """Run it and print what came of it; the exit status is 1 when anything was not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    export_settings()
    if not os.environ.get("SECATEUR_BUCKET"):
        parser.error(
            "expected a running stack, or SECATEUR_BUCKET and MLflow's address in the environment; try make up"
        )
    model = f"contended-{uuid.uuid4().hex[:8]}"
    say(f"{asked.processes} processes promote and roll back {model} for {asked.seconds:.0f} s")
    seen, watched = compete(model, asked.processes, asked.seconds, asked.seed)
    book = journal.read(model)
    findings = champion.findings(book)
    print(told(book, seen, watched, findings))
    print(f"Rollback of a model of {LARGE_MB} MB: {way_back(f'large-{uuid.uuid4().hex[:8]}', LARGE_MB):.1f} s")
    return 1 if findings or watched.wrong or any(one.failed for one in (*seen, watched)) else 0


def compete(model: str, processes: int, seconds: float, seed: int) -> tuple[list[Seen], Seen]:
    """Let processes change what serves at random, and one watch; what each of them saw."""
    for shift in range(1, VERSIONS + 1):
        register(model, float(shift))
    champion.move(model, "1", action="promote", reason="the first", who="bench", evidence="", request="first")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    answers, start = context.Queue(), context.Event()
    works = [(change, number) for number in range(processes)] + [(watch, processes)]
    workers = [context.Process(target=run, args=(work, model, seed + n, seconds, start, answers)) for work, n in works]
    for worker in workers:
        worker.start()
    for _ in workers:
        answers.get()  # it is ready
    start.set()
    seen = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    return [one for kind, one in seen if kind == "change"], next(one for kind, one in seen if kind == "watch")


def way_back(model: str, megabytes: int) -> float:
    """Seconds that a rollback to the version before takes, from the command's first question to the journal's copy."""
    for version in ("1", "2"):
        register(model, float(version), megabytes)
        champion.move(model, version, action="promote", reason="large", who="bench", evidence="", request=version)
    began = time.monotonic()
    assert rollback.run(model, "previous", "a drill", "bench").version == "1"
    return time.monotonic() - began


def run(work: Any, model: str, seed: int, seconds: float, start: Any, answers: Any) -> None:
    """The body of a process."""
    bucket.check_serves(registry.onnx_name(model), "1")  # whatever is slow the first time
    answers.put("ready")
    start.wait()
    answers.put((work.__name__, work(model, random.Random(seed), time.monotonic() + seconds)))  # noqa: S311 (no secret)


def change(model: str, draw: random.Random, until: float) -> Seen:
    """Promote and roll back at random."""
    seen = Seen()
    while time.monotonic() < until:
        began = time.monotonic()
        version = str(draw.randint(1, VERSIONS))
        request = f"bench {uuid.uuid4().hex}"
        words: dict[str, Any] = {"reason": "by chance", "who": "bench", "request": request}
        try:
            if draw.random() < 0.5:
                champion.move(model, version, action="promote", evidence="", **words)
            else:
                rollback.run(model, draw.choice([version, "previous"]), **words)
            seen.done += 1
        except InputError as refusal:
            seen.refused[reason_of(str(refusal))] += 1
        except Exception as error:
            seen.failed.append(f"{type(error).__name__}: {error}")
        seen.longest_s = max(seen.longest_s, time.monotonic() - began)
    return seen


def reason_of(refusal: str) -> str:
    """The kind of a refusal that is right when others change the same model; anything else as it is."""
    kinds = ("serves already", "followed from what served", "that served before", "expected a version before")
    return next((kind for kind in kinds if kind in refusal), refusal)


def watch(model: str, draw: random.Random, until: float) -> Seen:
    """Look all the time."""
    del draw
    seen = Seen()
    while time.monotonic() < until:
        try:
            look(model, seen)
        except Exception as error:
            seen.failed.append(f"{type(error).__name__}: {error}")
    return seen


def look(model: str, seen: Seen) -> None:
    """Read alias, pointer and journal together: with no change under way they are one, in a change one of its two."""
    before = journal.read(model)
    alias = registry.champion(model)
    pointer = (bucket.pointer(registry.onnx_name(model)) or {}).get("version")
    after = journal.again(before)
    if (before.length, before.steps) != (after.length, after.steps):
        return
    assert before.head is not None
    allowed = {before.head.to_version} | ({before.pending.to_version} if before.pending else set())
    seen.looks += 1
    if before.findings or not {alias, pointer} <= allowed:
        seen.wrong.append(f"entry {before.length}: {sorted(allowed)}, alias {alias}, pointer {pointer}")


def register(model: str, shift: float, megabytes: int = 0) -> None:
    """A version of `<model>-onnx` that adds a number to its input, the first of so many megabytes of them."""
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, ["batch", 2]) for end in ("x", "y")]
    kept = [
        numpy_helper.from_array(np.full(max(1, megabytes * 250_000), shift, np.float32), "shifts"),
        numpy_helper.from_array(np.array([0]), "first"),
    ]
    nodes = [helper.make_node("Gather", ["shifts", "first"], ["shift"]), helper.make_node("Add", ["x", "shift"], ["y"])]
    graph = helper.make_graph(nodes, "adds", ends[:1], ends[1:], kept)
    run_id = tracking.find_or_create_run(tracking.experiment_of(model), f"{model} files", "files", {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"adds-{shift}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
        file = tracking.put(run_id, path, "onnx")
    registry.register_onnx(model, run_id, file, f"Adds {shift}.", {})


def told(book: journal.Journal, seen: Sequence[Seen], watched: Seen, findings: Sequence[str]) -> str:
    """The result in words."""
    outcomes = collections.Counter(entry.outcome or "not ended" for entry in book.entries)
    refused: Mapping[str, int] = sum((one.refused for one in seen), collections.Counter())
    failed = [failure for one in (*seen, watched) for failure in one.failed]
    lines = [
        f"{len(seen)} processes: {sum(one.done for one in seen)} changes and repeats done, {sum(refused.values())} refused, "
        f"{len(failed)} failed; the longest took {max(one.longest_s for one in seen):.1f} s",
        *(f"  refused: {count} x {reason}" for reason, count in sorted(refused.items())),
        *(f"  failed: {failure}" for failure in failed[:5]),
        f"Journal: {book.length} entries, {', '.join(f'{count} {name}' for name, count in sorted(outcomes.items()))}",
        f"Watched: {watched.looks} looks at alias, pointer and journal together, {len(watched.wrong)} of them wrong",
        *(f"  wrong: {one}" for one in watched.wrong[:5]),
        f"In the end: {'; '.join(findings) or 'the chain verifies, alias, pointer, journal and its copy agree'}",
        f"{machine.in_words()}; code {machine.commit()}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
