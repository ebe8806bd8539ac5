"""What the reference server costs beside bare ONNX Runtime, whether it grows, and whether a reload drops a request."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import psutil

from benchmarks.context import Row
from secateur.runtime import Target, open_session
from tasks import bucket
from tasks.serving.protocol import HEADER, arrays_of, request

BLOCKS, BLOCK_S, CLIENTS = 12, 4.0, 4
FULL_LOAD_S = 60.0
RELOADS = 100
READY_S = 90.0


@contextlib.contextmanager
def running(model: str, log: str, *options: str, threads: int = 1) -> Iterator[tuple[str, int]]:
    """`secateur serve` for one source model; its address and process id."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target.yaml"
        target.write_text(f"threads: {threads}\n")
        argv = [sys.executable, "-m", "tasks.cli.app", "serve", model, "--port", "0", "--target", str(target), *options]
        variables = {**os.environ, "SECATEUR_LOG": log, "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(argv, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            yield _ready(process), process.pid
        finally:
            process.terminate()
            process.wait(60)


def _ready(process: subprocess.Popen[str]) -> str:
    """The address of a server, once it serves."""
    assert process.stdout
    url = next((line for line in process.stdout if line.startswith("Serving")), "").split()[-1]
    threading.Thread(target=process.stdout.read, daemon=True).start()
    end = time.monotonic() + READY_S
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/v2/health/ready").status_code == 200:
                return url
        time.sleep(0.1)
    raise RuntimeError(f"expected a server that is ready within {READY_S:.0f} s at {url}")


def publish(name: str, version: str, path: Path) -> None:
    """A version of the bucket's model that serves from now on."""
    bucket.publish(name, version, path)
    bucket.point(name, version)


def overhead(url: str, name: str, path: Path, image: np.ndarray, threads: int) -> Row:
    """Requests of one example to the server and bare runs, block by block in turns: medians and 99th percentiles."""
    session = open_session(path, Target(threads=threads))
    only = session.get_inputs()[0].name
    bare: list[float] = []
    served: dict[str, list[float]] = {"binary": [], "JSON": []}
    with httpx.Client(timeout=60) as client:
        bodies = {kind: request({only: image}, binary=kind == "binary") for kind in served}
        for _ in range(BLOCKS):
            bare += _timed(lambda: session.run(None, {only: image}), BLOCK_S)
            for kind, (body, headers) in bodies.items():
                served[kind] += _timed(partial(_post, client, url, name, body, headers), BLOCK_S)
    row: Row = {"bare_ms": _median(bare), "bare_p99_ms": _p99(bare)}
    for kind, times in served.items():
        row |= {
            f"{kind}_ms": _median(times),
            f"{kind}_p99_ms": _p99(times),
            f"{kind}_overhead": _median(times) / _median(bare) - 1,
        }
    return row


def full_load(url: str, pid: int, name: str, only: str, image: np.ndarray) -> Row:
    """A minute of as many requests as it takes: requests a second, failures, and memory from its tenth second to its end."""
    process, done, failed, answered = psutil.Process(pid), threading.Event(), [0], [0] * CLIENTS
    body, headers = request({only: image})

    def client(number: int) -> None:
        with httpx.Client(timeout=60) as http:
            while not done.is_set():
                failed[0] += (
                    http.post(f"{url}/v2/models/{name}/infer", content=body, headers=headers).status_code != 200
                )
                answered[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    sizes = []
    for _ in range(int(FULL_LOAD_S)):
        time.sleep(1)
        sizes.append(process.memory_info().rss / 1e6)
    done.set()
    for thread in threads:
        thread.join()
    return {
        "requests_per_s": sum(answered) / FULL_LOAD_S,
        "failed": failed[0],
        "rss_mb_at_10_s": sizes[9],
        "rss_mb_at_60_s": sizes[-1],
        "rss_mb_most": max(sizes),
    }


def reloads(url: str, name: str, only: str, image: np.ndarray, versions: tuple[str, str]) -> Row:
    """Champions that change under load: how many, how many requests meanwhile, how many failed."""
    done, failed, count = threading.Event(), list[str](), [0] * CLIENTS
    body, headers = request({only: image})

    def client(number: int) -> None:
        with httpx.Client(timeout=60) as http:
            while not done.is_set():
                answer = http.post(f"{url}/v2/models/{name}/infer", content=body, headers=headers)
                count[number] += 1
                if answer.status_code != 200:
                    failed.append(answer.text)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    begun, changed = time.monotonic(), 0
    for number in range(RELOADS):
        wanted = versions[number % 2]
        bucket.point(name, wanted)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if httpx.get(f"{url}/v2/models/{name}", timeout=30).json()["versions"] == [wanted]:
                changed += 1
                break
            time.sleep(0.05)
    done.set()
    for thread in threads:
        thread.join()
    return {"reloads": changed, "requests": sum(count), "failed": len(failed), "seconds": time.monotonic() - begun}


def _post(client: httpx.Client, url: str, name: str, body: bytes, headers: dict[str, str]) -> None:
    answer = client.post(f"{url}/v2/models/{name}/infer", content=body, headers=headers)
    answer.raise_for_status()
    arrays_of(answer.content, answer.headers.get(HEADER))


def _timed(action: Callable[[], object], seconds: float) -> list[float]:
    """Milliseconds of each call, the first not counted."""
    action()
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - begun))
    return times


def _median(times: list[float]) -> float:
    return float(np.median(times))


def _p99(times: list[float]) -> float:
    return float(np.quantile(times, 0.99))
