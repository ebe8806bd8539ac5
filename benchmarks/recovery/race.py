"""The contenders of one row take turns: each in a process of its own, blocks of steps in random order, round after round.

Then the same with fresh processes, several times: where a process happens to lie in memory makes it faster or slower for as
long as it lives, and no number of rounds tells that from the loop.
"""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import tempfile
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.context import Context, Row, Skipped, say
from benchmarks.recovery.rows import BLOCK, CONTENDERS, FRESH, WARM_UP, Task
from benchmarks.recovery.turns import work

PEER = ("lightning", "lightning_utilities", "torchmetrics")
Pipes = dict[str, Connection]


def race(task: Task, rounds: int, context: Context) -> Row:
    """Seconds of every block and peak memory by contender; and what share of its time each waited for data.

    Raises:
        Skipped: data or a package is missing, or there are too few examples for the rounds.
    """
    if missing := [name for name in PEER if importlib.util.find_spec(name) is None]:
        raise Skipped(f"needs the package {missing[0]}, which the extra `bench` installs")
    from benchmarks.recovery.prepare import prepare  # here: a process that is spawned imports what this module does

    each = max(rounds // FRESH, 1)
    with tempfile.TemporaryDirectory() as made:
        prepare(task, WARM_UP + each * BLOCK, context, Path(made))
        draw = np.random.default_rng(context.seed)
        heats: list[Row] = []
        for number in range(FRESH):
            with _running(task, Path(made)) as pipes:
                heats.append(_heat(each, draw, pipes))
            say(f"{task.name}: processes {number + 1} of {FRESH}")
    return {"contenders": {name: _together([heat[name] for heat in heats]) for name in CONTENDERS}}


def _heat(rounds: int, draw: np.random.Generator, pipes: Pipes) -> Row:
    """What one process of each contender showed."""
    for pipe in pipes.values():
        _block(pipe, WARM_UP)
    blocks: dict[str, list[tuple[float, float]]] = {name: [] for name in pipes}
    for _ in range(rounds):
        for name in draw.permutation(list(pipes)):
            blocks[name].append(_block(pipes[name], BLOCK))
    said: Row = {}
    for name, pipe in pipes.items():
        pipe.send(0)
        seconds, waited = np.array(blocks[name]).T
        said[name] = {"seconds": [round(float(s), 5) for s in seconds], "waited": float(waited.sum()), **pipe.recv()}
    return said


def _together(heats: list[Row]) -> Row:
    """A contender's heats: the seconds of each, the share of all that was waiting, and the largest of its memory."""
    seconds = [heat["seconds"] for heat in heats]
    memory = {name: max(heat[name] for heat in heats) for name in heats[0] if name.endswith("_bytes")}
    return {
        "seconds": seconds,
        "waiting": round(sum(heat["waited"] for heat in heats) / float(np.sum(seconds)), 5),
        **memory,
    }


def _block(pipe: Connection, steps: int) -> tuple[float, float]:
    pipe.send(steps)
    return pipe.recv()


@contextlib.contextmanager
def _running(task: Task, folder: Path) -> Iterator[Pipes]:
    """A process for each contender, that waits."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    try:
        for name in CONTENDERS:
            pipes[name], theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, name, task, folder), daemon=True)
            process.start()
            processes.append(process)
            theirs.close()
        yield pipes
    finally:
        for process in processes:
            process.kill()
            process.join()
