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
        said = _exchange(self.process, {"requests": requests, "lead": lead})
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
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder, ExitStack() as stack:
        for number, column in enumerate(request):
            np.save(Path(folder) / f"{number}.npy", column, allow_pickle=False)
        order = {"target": asdict(target), "inputs": folder, "cores": cores_of(target), "times": times}
        processes = []
        for _ in paths:  # all before the first answers: they load side by side
            process = subprocess.Popen(
                [sys.executable, "-m", "secateur.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            stack.callback(_stop, process)
            processes.append(process)
        for path, process in zip(paths, processes, strict=True):
            _exchange(process, order | {"path": str(path)})
        yield tuple(map(Worker, processes))


def cores_of(target: Target) -> list[int]:
    """The first cores that this process may use, one for each thread; none where the system pins no process."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    return sorted(os.sched_getaffinity(0))[: target.threads]


def _exchange(process: subprocess.Popen[str], order: dict[str, Any]) -> dict[str, Any]:
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


def _work(orders: IO[str], answers: IO[str]) -> None:
    """The process: load, answer once, then a block for every order, until there are no more."""

    def say(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    order = json.loads(orders.readline())
    if order["cores"]:
        os.sched_setaffinity(0, order["cores"])
    places = sorted(Path(order["inputs"]).glob("*.npy"), key=lambda place: int(place.stem))
    inputs = [np.load(place, allow_pickle=False) for place in places]
    before = noise.peak_resident()

    try:
        session = open_session(order["path"], Target(**order["target"]))
        request = _request(session, inputs, order["times"])
        answer = request()
    except Exception as error:  # whatever the runtime has to say, as one sentence
        say(error=str(error) if isinstance(error, InputError) else f"model {Path(order['path']).name}: {error}")
        return
    if np.issubdtype(answer.dtype, np.floating) and not np.isfinite(answer).all():
        say(
            error=f"model {Path(order['path']).name}: expected finite outputs, got NaN or infinity; is the file damaged?"
        )
        return
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
