"""The contender's side: it waits for its turn, trains a block of steps, says how long that took, and waits again."""

from __future__ import annotations

import importlib
import os
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ParamSpec, TypeVar

from benchmarks.context import Row
from benchmarks.recovery.rows import Task

P = ParamSpec("P")
R = TypeVar("R")


class Turns:
    """Called after every step; `waited` sums the seconds in which the loop waited for what `watched` functions gave."""

    def __init__(self, connection: Connection, synchronise: Callable[[], None]) -> None:
        self.connection, self.synchronise = connection, synchronise
        self.left, self.waited = connection.recv(), 0.0
        self.began = time.perf_counter()

    def __call__(self) -> None:
        """After the last step of a block, tell its seconds and those of waiting for data; go on when told to."""
        self.left -= 1
        if self.left == 0:
            self.synchronise()
            self.connection.send((time.perf_counter() - self.began, self.waited))
            self.left, self.waited = self.connection.recv(), 0.0
            self.began = time.perf_counter()

    def watched(self, function: Callable[P, R]) -> Callable[P, R]:
        """The function, its time counted."""

        def timed(*args: P.args, **kwargs: P.kwargs) -> R:
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.waited += time.perf_counter() - began

        return timed


def work(connection: Connection, contender: str, task: Task, folder: Path) -> None:
    """A contender's process: what it imports is its own. At the end it tells its memory."""
    if task.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch looks
    import torch

    on_gpu = task.device == "cuda"
    turns = Turns(connection, torch.cuda.synchronize if on_gpu else lambda: None)
    train: Callable[[Task, Path, Turns], int] = importlib.import_module(f"benchmarks.recovery.{contender}").train
    memory: Row = {"aside_bytes": train(task, folder, turns)}
    memory["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if on_gpu:
        memory["device_peak_bytes"] = torch.cuda.max_memory_allocated()
    connection.send(memory)
