"""One run of LoadGen in a fresh process: its queries go through a queue to threads that each run an ONNX session.

`python -m secateur.load.process` is the process, `secateur.load.scenario` starts it. LoadGen asks from the main thread and
may not be kept waiting; whoever answers is one of `parallel` threads, each with a session of its own on its own share of
the cores. LoadGen itself runs on the cores that are left, where there are any, as a client would on another machine.
"""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from secateur import noise
from secateur.errors import InputError
from secateur.measure import request_of
from secateur.runtime import Target, run
from secateur.worker import answering, inputs_in

WARM_UP_S = 0.3
WARM_UP_REQUESTS = 5  # at least
MODES = {"performance": "PerformanceOnly", "accuracy": "AccuracyOnly"}
SCENARIOS = {
    "single_stream": "SingleStream",
    "multi_stream": "MultiStream",
    "server": "Server",
    "offline": "Offline",
}
SAMPLES_PER_QUERY = 8  # of MultiStream, as MLPerf Inference has it since version 2
HANDING_S = 5e-6  # of an example from LoadGen to a thread and back, at least
FASTER = 1.5  # than the warm-up a run may turn out to be: LoadGen must have samples for all of its duration

Samples = tuple[list[int], list[int]]  # LoadGen's numbers of some, and which examples they are


@dataclass
class Server:
    """Threads that answer what is put into the queue, at most `batch` examples at once.

    What goes wrong in a thread is kept and its samples are answered with nothing, or LoadGen would wait for ever.
    """

    columns: Sequence[np.ndarray]
    batch: int
    gathers: bool  # a thread takes along what else is waiting: the samples come one by one
    answer: Callable[[list[int], np.ndarray], None]  # to samples by LoadGen's numbers, a row for each
    waiting: queue.SimpleQueue[Samples] = field(default_factory=queue.SimpleQueue)
    problems: list[str] = field(default_factory=list)
    row: tuple[str, tuple[int, ...]] | None = None  # type and shape of an answer

    def serve(self, session: ort.InferenceSession) -> None:
        """The body of a thread."""
        while True:
            numbers, indices = self._next()
            try:
                rows = compute(session, self.columns, indices, self.batch)
            except Exception as error:  # whatever the runtime has to say
                self.problems.append(str(error))
                rows = np.zeros((len(numbers), 1), np.uint8)
            self.row = (rows.dtype.str, rows.shape[1:])
            self.answer(numbers, np.ascontiguousarray(rows))

    def _next(self) -> Samples:
        numbers, indices = self.waiting.get()
        while self.gathers and len(numbers) < self.batch:
            try:
                others = self.waiting.get_nowait()
            except queue.Empty:
                break
            numbers, indices = numbers + others[0], indices + others[1]
        return numbers, indices


def compute(session: ort.InferenceSession, columns: Sequence[np.ndarray], indices: list[int], batch: int) -> np.ndarray:
    """The first output for some of the examples [N, ...]; a file with a fixed batch gets a full one, its last example repeated.

    Raises:
        InputError: the output has not a row for each example.
    """
    fixed = isinstance(session.get_inputs()[0].shape[0], int)
    filled = indices + indices[-1:] * (batch - len(indices)) if fixed else indices
    rows = run(session, *(column[filled] for column in columns))
    if rows.shape[:1] != (len(filled),):  # LoadGen would read beyond its end
        raise InputError(
            f"expected a first output with a row for each of {len(filled)} examples, got shape {rows.shape}"
        )
    return rows[: len(indices)]


def warm_up(session: ort.InferenceSession, columns: Sequence[np.ndarray], size: int, batch: int) -> float:
    """Seconds of a request of `size` examples, the median of some."""
    indices = (np.arange(size) % len(columns[0])).tolist()
    times: list[float] = []
    while len(times) < WARM_UP_REQUESTS or sum(times) < WARM_UP_S:
        began = time.perf_counter()
        compute(session, columns, indices, batch)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def settings_of(order: dict[str, Any], seconds: float, size: int) -> Any:
    """LoadGen's settings for a run, where a request of `size` examples takes some seconds."""
    import mlperf_loadgen as lg

    made = lg.TestSettings()
    made.scenario = getattr(lg.TestScenario, SCENARIOS[order["scenario"]])
    made.mode = getattr(lg.TestMode, MODES[order["mode"]])
    made.min_duration_ms = math.ceil(order["seconds"] * 1e3)
    made.min_query_count = order["queries"]
    made.qsl_rng_seed = made.sample_index_rng_seed = made.schedule_rng_seed = order["seed"]
    capacity = order["parallel"] / (seconds / size + HANDING_S)  # examples a second
    # LoadGen makes its queries beforehand, as many as these expectations ask for
    made.single_stream_expected_latency_ns = max(1, round(seconds * 1e9 / FASTER))
    made.multi_stream_samples_per_query = SAMPLES_PER_QUERY
    made.multi_stream_expected_latency_ns = max(1, round(SAMPLES_PER_QUERY / capacity * 1e9 / FASTER))
    made.offline_expected_qps = capacity * FASTER
    if order["scenario"] == "server":
        limit_s, rate = order["p99_ms"] / 1e3, order["rate"]
        made.server_target_qps = rate
        made.server_target_latency_ns = round(limit_s * 1e9)
        made.server_target_latency_percentile = 0.99
        # More than this waiting, and more than the one in a hundred that may be late cannot be in time even on a machine
        # twice as fast: the run is lost, and ends.
        lost = 2 * capacity * limit_s + 0.01 * max(order["queries"], rate * order["seconds"])
        made.server_max_async_queries = math.ceil(lost) + order["parallel"] * order["target"]["batch"]
    return made


def drive(order: dict[str, Any]) -> dict[str, Any]:
    """Run LoadGen as ordered; its logs go into the order's folder.

    Raises:
        InputError: the file cannot be loaded or run, or its outputs are not finite.
    """
    import mlperf_loadgen as lg

    target, columns, name = Target(**order["target"]), inputs_in(order["inputs"]), f"model {Path(order['path']).name}"
    size = {"single_stream": 1, "multi_stream": min(target.batch, SAMPLES_PER_QUERY)}.get(
        order["scenario"], target.batch
    )

    def answer(numbers: list[int], rows: np.ndarray) -> None:
        first, step = rows.ctypes.data, rows.nbytes // len(rows)
        lg.QuerySamplesComplete([lg.QuerySampleResponse(n, first + i * step, step) for i, n in enumerate(numbers)])

    def issue(numbers: list[int], indices: list[int]) -> None:
        for start in range(0, len(numbers), size):
            server.waiting.put((numbers[start : start + size], indices[start : start + size]))

    server = Server(columns, target.batch, order["scenario"] == "server", answer)
    seconds = 0.0
    for share in order["cores"]:  # a session's threads inherit the cores of the thread that makes them
        _pin(share)
        session = answering(order["path"], target, lambda opened: run(opened, *request_of(columns, target)))
        try:
            seconds = [warm_up(session, columns, some, target.batch) for some in sorted({1, size})][-1]
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        threading.Thread(target=server.serve, args=(session,), daemon=True).start()
    _pin(order["generator"])
    log = lg.LogSettings()
    log.enable_trace = False
    log.log_output.outdir = order["folder"]
    count = len(columns[0])
    asked = lg.ConstructFastSUT(issue, lambda: None)
    library = lg.ConstructQSL(count, count, lambda _: None, lambda _: None)  # all examples are in memory
    cores = sorted({core for share in [*order["cores"], order["generator"]] for core in share})
    began = noise.snapshot(cores)
    lg.StartTestWithLogSettings(asked, library, settings_of(order, seconds, size), log, "")
    seen = noise.snapshot(cores).since(began)
    lg.DestroyQSL(library)
    lg.DestroyFastSUT(asked)
    if server.problems:
        raise InputError(f"{name}: {server.problems[0]}")
    assert server.row is not None
    return {"dtype": server.row[0], "shape": server.row[1], "seconds": seconds, "counters": asdict(seen)}


def _pin(cores: list[int]) -> None:
    if cores:
        os.sched_setaffinity(0, cores)


def main() -> None:
    """The process: one order, one answer."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # LoadGen never comes back to Python to be interrupted
    order = json.loads(sys.stdin.readline())
    try:
        said = drive(order)
    except InputError as error:
        said = {"error": str(error)}
    print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
