"""One ONNX file in a fresh process of its own, pinned to its cores, that times requests in blocks when it is told to.

`python -m secateur.worker` is the process, `working` starts it; they speak JSON, a line each way.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import onnxruntime as ort

from secateur import noise
from secateur.errors import InputError
from secateur.noise import Counters
from secateur.runtime import Target, open_session, pass_on, run

STARTS_IN_S = 300
STOPS_IN_S = 10


@dataclass(frozen=True)
class Block:
    """Requests in a row: the seconds of each, what went on beside them, and the peak that the file added to the process."""

    seconds: np.ndarray
    counters: Counters
    peak_bytes: int


@dataclass(frozen=True)
class Worker:
    """The process, seen from outside."""

    process: subprocess.Popen[str]

    def block(self, requests: int, lead: int = 1) -> Block:
        """Time requests in a row, after some that refill the caches and are not timed."""
        said = exchange(self.process, {"requests": requests, "lead": lead})
        return Block(np.array(said["seconds"]), Counters(**said["counters"]), said["peak_bytes"])


@contextmanager
def working(
    paths: Sequence[str | Path], target: Target, request: Sequence[np.ndarray], times: int = 0
) -> Iterator[tuple[Worker, ...]]:
    """A worker for each file, that has loaded it and answered one request; `request` is one batch of every input.

    They run on the first cores that this process may use, as many as the target has threads: all on the same ones. With
    `times` a request is so many runs in a row, each of which goes on from what the one before cached (`pass_on`).

    Raises:
        InputError: a file cannot be loaded, its answer is not finite, or its process died, as it does without memory.
    """
    with stored(request) as folder, ExitStack() as stack:
        order = {"target": asdict(target), "inputs": folder, "cores": cores_of(target), "times": times}
        # all before the first answers: they load side by side
        processes = [stack.enter_context(started("secateur.worker")) for _ in paths]
        for path, process in zip(paths, processes, strict=True):
            exchange(process, order | {"path": str(path)})
        yield tuple(map(Worker, processes))


@contextmanager
def stored(columns: Sequence[np.ndarray]) -> Iterator[str]:
    """A folder with the columns, from which a process reads them with `inputs_in`; it goes with its context."""
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        for number, column in enumerate(columns):
            np.save(Path(folder) / f"{number}.npy", column, allow_pickle=False)
        yield folder


def inputs_in(folder: str) -> list[np.ndarray]:
    """What `stored` has put there, in its order."""
    places = sorted(Path(folder).glob("*.npy"), key=lambda place: int(place.stem))
    return [np.load(place, allow_pickle=False) for place in places]


@contextmanager
def started(module: str) -> Iterator[subprocess.Popen[str]]:
    """A module as a fresh process to `exchange` lines with; it ends with its context."""
    process = subprocess.Popen([sys.executable, "-m", module], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        _stop(process)


def cores_of(target: Target) -> list[int]:
    """The first cores that this process may use, one for each thread; none where the system pins no process."""
    return allowed_cores()[: target.threads]


def allowed_cores() -> list[int]:
    """All cores that this process may use; none where the system pins no process."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def exchange(process: subprocess.Popen[str], order: dict[str, Any]) -> dict[str, Any]:
    """Give an order, wait for what is said to it.

    Raises:
        InputError: the process says why it cannot do it, or it died.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = ""
    if not line:
        status = process.wait(STARTS_IN_S)
        raise InputError(
            f"target: expected the file and its requests to fit this machine, the process that runs them ended with status "
            f"{status}; was it killed for its memory? Ask for a smaller batch"
        )
    said: dict[str, Any] = json.loads(line)
    if "error" in said:
        raise InputError(said["error"])
    return said


def _stop(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.close()
        process.wait(STOPS_IN_S)
    except (BrokenPipeError, subprocess.TimeoutExpired):
        process.kill()
        process.wait()
    process.stdout.close()


def answering(path: str, target: Target, ask: Callable[[ort.InferenceSession], np.ndarray]) -> ort.InferenceSession:
    """A session of the file that has answered when it was asked once.

    Raises:
        InputError: the file cannot be loaded, or not asked like this, or its answer is not finite.
    """
    name = Path(path).name
    try:
        session = open_session(path, target)
        answer = ask(session)
    except InputError:
        raise
    except Exception as error:  # whatever the runtime has to say, as one sentence
        raise InputError(f"model {name}: {error}") from error
    check_finite(name, answer)
    return session


def check_finite(name: str, answer: np.ndarray) -> None:
    """Raise InputError where a file's answer is not finite."""
    if np.issubdtype(answer.dtype, np.floating) and not np.isfinite(answer).all():
        raise InputError(f"model {name}: expected finite outputs, got NaN or infinity; is the file damaged?")


def _work(orders: IO[str], answers: IO[str]) -> None:
    """The process: load, answer once, then a block for every order, until there are no more."""

    def say(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    order = json.loads(orders.readline())
    if order["cores"]:
        os.sched_setaffinity(0, order["cores"])
    inputs = inputs_in(order["inputs"])
    before = noise.peak_resident()

    try:
        session = answering(
            order["path"], Target(**order["target"]), lambda opened: _request(opened, inputs, order["times"])()
        )
    except InputError as error:
        say(error=str(error))
        return
    request = _request(session, inputs, order["times"])
    say(ready=True)
    gc.disable()  # a collection would fall into somebody's block
    for line in orders:
        wanted = json.loads(line)
        for _ in range(wanted["lead"]):
            request()
        stamps = np.empty(wanted["requests"] + 1)
        started = noise.snapshot(order["cores"])
        stamps[0] = time.perf_counter()
        for i in range(1, len(stamps)):
            request()
            stamps[i] = time.perf_counter()
        seen = noise.snapshot(order["cores"]).since(started)
        say(seconds=np.diff(stamps).tolist(), counters=asdict(seen), peak_bytes=noise.peak_resident() - before)


def _request(session: ort.InferenceSession, inputs: list[np.ndarray], times: int) -> Callable[[], np.ndarray]:
    if not times:
        return partial(run, session, *inputs)
    return partial(pass_on, session, [ort.OrtValue.ortvalue_from_numpy(one) for one in inputs], times)


if __name__ == "__main__":
    _work(sys.stdin, sys.stdout)
