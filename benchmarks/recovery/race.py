"""The contenders of one row take turns: each in a process of its own, blocks of steps in random order, round after round."""

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
from benchmarks.recovery.rows import BLOCK, CONTENDERS, WARM_UP, Task
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

    with tempfile.TemporaryDirectory() as made:
        prepare(task, WARM_UP + rounds * BLOCK, context, Path(made))
        with _running(task, Path(made)) as pipes:
            return _rounds(task, rounds, context.seed, pipes)


def _rounds(task: Task, rounds: int, seed: int, pipes: Pipes) -> Row:
    for pipe in pipes.values():
        _block(pipe, WARM_UP)
    draw = np.random.default_rng(seed)
    blocks: dict[str, list[tuple[float, float]]] = {name: [] for name in pipes}
    for number in range(rounds):
        for name in draw.permutation(list(pipes)):
            blocks[name].append(_block(pipes[name], BLOCK))
        if (number + 1) % 10 == 0:
            say(f"{task.name}: round {number + 1} of {rounds}")
    row: Row = {"contenders": {}}
    for name, pipe in pipes.items():
        pipe.send(0)
        seconds, waited = np.array(blocks[name]).T
        row["contenders"][name] = {
            "seconds": [round(float(s), 5) for s in seconds],
            "waiting": round(float(waited.sum() / seconds.sum()), 5),
            **pipe.recv(),
        }
    return row


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
