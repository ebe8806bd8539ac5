"""Which kinds of axes each tool can halve, for every architecture of the zoo."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import psutil

from benchmarks.context import Context, Row, say
from benchmarks.engine.trial import ERROR, HANG, Outcome, attempt_all, kinds_of, zoo

LIMIT = 120.0  # seconds of computing for the graph, and again for each kind: a busy machine is no hang
STUCK = 900.0  # seconds without an answer, computing or not


def run(context: Context) -> Iterator[Row]:
    """A row per architecture and kind: what came of it with either tool."""
    names = list(zoo().ARCHITECTURES)
    for number, name in enumerate(names, start=1):
        kinds = kinds_of(name)
        outcomes = {tool: tried(tool, name, kinds) for tool in ("ours", "peer")}
        for kind in kinds:
            row = {"architecture": name, "kind": kind}
            for tool, seen in outcomes.items():
                row[tool], row[f"{tool}_note"] = seen[kind]
            yield row
        told = "; ".join(f"{tool} {dict(Counter(o for o, _ in seen.values()))}" for tool, seen in outcomes.items())
        say(f"coverage: {number} of {len(names)}, {name}: {told}")


def tried(tool: str, name: str, kinds: list[str]) -> dict[str, Outcome]:
    """The outcome by kind. After a hang the kinds that are left get a process of their own, unless the graph hung."""
    outcomes: dict[str, Outcome] = {}
    while left := [kind for kind in kinds if kind not in outcomes]:
        lines, stopped = answers(tool, name, left)
        outcomes |= {line["kind"]: (line["outcome"], line["note"]) for line in lines if "kind" in line}
        left = [kind for kind in left if kind not in outcomes]
        built = any("built" in line for line in lines)
        failure = (HANG, f"stopped after {LIMIT:.0f} s") if stopped else (ERROR, _last_word(lines))
        outcomes |= dict.fromkeys(left[:1] if built else left, failure)
    return outcomes


def _last_word(lines: list[dict[str, Any]]) -> str:
    return next((line["failed"] for line in lines if "failed" in line), "the process died")


def answers(tool: str, name: str, kinds: list[str]) -> tuple[list[dict[str, Any]], bool]:
    """What one process told, and whether it had to be stopped."""
    context = multiprocessing.get_context("fork")  # the libraries are imported once
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=attempt_all, args=(theirs.send, tool, name, kinds), daemon=True)
    process.start()
    theirs.close()
    lines: list[dict[str, Any]] = []
    try:
        while _answered(ours, psutil.Process(process.pid)):
            lines.append(ours.recv())
        return lines, True
    except EOFError:  # it ended by itself
        return lines, False
    finally:
        process.kill()
        process.join()


def _answered(connection: Connection, process: psutil.Process) -> bool:
    """Wait for the next line; False when it is overdue by the time that the process itself has used."""
    used, since = process.cpu_times().user, time.monotonic()
    while not connection.poll(1.0):
        if process.cpu_times().user - used > LIMIT or time.monotonic() - since > STUCK:
            return False
    return True
