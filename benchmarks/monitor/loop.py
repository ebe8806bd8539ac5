"""The whole loop on the running stack: traffic, looks, a shift, a verdict, the way back, and not one request that failed."""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import httpx
import numpy as np

from benchmarks.context import Row, say
from benchmarks.monitor import server
from benchmarks.monitor.pairs import DIGITS, Pair, pruned_version
from tasks import champion, registry, rollback, tracking
from tasks.monitoring import look, observe
from tasks.serving.protocol import HEADER, request

CLIENTS, PAUSE_S = 2, 0.01  # of the traffic
LOOK_S = 8.0  # between looks, in the place of an hour
CLEAN, SHIFTED = 6, 25  # looks, at most
SERVES_WITHIN_S = 60.0


@dataclass
class Traffic:
    """Requests without end, each followed by its label; what they are drawn from can be exchanged."""

    url: str
    name: str
    only: str
    images: np.ndarray
    labels: np.ndarray
    sent: int = 0
    failed: list[str] = field(default_factory=list)
    versions: dict[str, float] = field(default_factory=dict)  # when each was first seen to answer
    done: threading.Event = field(default_factory=threading.Event)

    def run(self, seed: int) -> None:
        """One client."""
        rng = np.random.default_rng(seed)
        with httpx.Client(timeout=30) as http:
            while not self.done.is_set():
                at = int(rng.integers(len(self.labels)))
                key = uuid.uuid4().hex
                body, headers = request({self.only: self.images[at : at + 1]}, key)
                answer = http.post(f"{self.url}/v2/models/{self.name}/infer", content=body, headers=headers)
                self.sent += 1
                if answer.status_code != 200:
                    self.failed.append(answer.text)
                else:
                    said = json.loads(answer.content[: int(answer.headers[HEADER])])
                    self.versions.setdefault(said["model_version"], time.monotonic())
                    told = {"labels": [{"id": key, "label": int(self.labels[at])}]}
                    http.post(f"{self.url}/v2/models/{self.name}/labels", json=told)
                time.sleep(PAUSE_S)


def run(pair: Pair, shift: str, folder: Path, seed: int) -> Row:
    """Serve the pruned digits, look at clean traffic, shift it, and go back to dense where the looks say so."""
    name = registry.onnx_name(DIGITS)
    version = pruned_version(DIGITS)
    dense = registry.dense(DIGITS, version)
    begun = uuid.uuid4().hex
    if registry.champion(DIGITS) != version:
        champion.move(
            DIGITS, version, action="promote", reason="bench-monitor begins", who="bench", evidence="", request=begun
        )
    # every loop is a fresh life of the version, and its looks come within seconds
    run_id = tracking.find_or_create_run(
        tracking.experiment_of(DIGITS), f"bench {begun}", f"bench-monitor {begun[:8]}", {}
    )
    look._run = lambda *_: run_id
    look._entry = lambda *_: None
    look.SETTLES = timedelta(seconds=2)
    log = str(folder / "log")
    with server.running(DIGITS, log, "--flush-s", "0.5", threads=1) as (url, _), tracking.impatient():
        import os

        os.environ[observe.ROOT] = log
        only = httpx.get(f"{url}/v2/models/{name}").json()["inputs"][0]["name"]
        traffic = Traffic(url, name, only, pair.inputs["clean"], pair.labels)
        clients = [threading.Thread(target=traffic.run, args=(seed + i,)) for i in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            row = _looked(traffic, pair, shift, dense)
        finally:
            traffic.done.set()
            for client in clients:
                client.join()
    return row | {"requests": traffic.sent, "failed": len(traffic.failed), "page_run": run_id}


def _looked(traffic: Traffic, pair: Pair, shift: str, dense: str) -> Row:
    alarms = 0
    for _ in range(CLEAN):
        time.sleep(LOOK_S)
        seen = look.run(DIGITS)
        say(f"clean, look {seen.number}: {seen.outcome} {seen.cause}: {seen.reason[:150]}")
        alarms += seen.outcome in ("watch", "breach")
    traffic.images = pair.inputs[shift]
    shifted = time.monotonic()
    for _ in range(SHIFTED):
        time.sleep(LOOK_S)
        seen = look.run(DIGITS)
        say(f"{shift}, look {seen.number}: {seen.outcome} {seen.cause}: {seen.reason[:150]}")
        if seen.ours:
            break
    row: Row = {
        "shift": shift,
        "clean looks": CLEAN,
        "false alarms": alarms,
        "looks until the verdict": seen.number - CLEAN,
    }
    row |= {
        "verdict": f"{seen.outcome} {seen.cause}".strip(),
        "reason": seen.reason,
        "s until the verdict": time.monotonic() - shifted,
    }
    if not seen.ours:
        return row
    verdict = time.monotonic()
    rollback.run(DIGITS, "dense", seen.reason[:800], "monitor_model", f"bench {uuid.uuid4().hex}")
    moved = time.monotonic() - verdict
    while dense not in traffic.versions and time.monotonic() < verdict + SERVES_WITHIN_S:
        time.sleep(0.05)
    served = traffic.versions.get(dense)
    time.sleep(2)  # of traffic on the dense model
    return row | {"s until rolled back": moved, "s until dense answers": None if served is None else served - verdict}
