"""The whole loop on the running stack: traffic, looks, a shift, a verdict, the way back, and not one request that failed."""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from benchmarks.context import Row, say
from benchmarks.monitor import server
from benchmarks.monitor.pairs import DIGITS, Pair, pruned_version
from tasks import champion, registry
from tasks.cli import airflow_api
from tasks.monitoring import observe
from tasks.serving.protocol import HEADER, request

CLIENTS, PAUSE_S = 2, 0.02  # of the traffic
BETWEEN_S = 40.0  # looks, in the place of an hour
CLEAN, SHIFTED = 4, 15  # looks; those after the shift at most
SERVES_WITHIN_S = 60.0
ENDS_WITHIN_S = 300.0  # a run of a DAG


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
    versions: dict[str, float] = field(
        default_factory=dict
    )  # when each was first seen to answer, in seconds since the epoch
    done: threading.Event = field(default_factory=threading.Event)

    def run(self, seed: int) -> None:
        """One client."""
        rng = np.random.default_rng(seed)
        with httpx.Client(timeout=30) as http:
            while not self.done.is_set():
                at = int(rng.integers(len(self.labels)))
                try:
                    self._ask(http, at)
                except httpx.HTTPError as error:
                    self.failed.append(repr(error))
                time.sleep(PAUSE_S)

    def _ask(self, http: httpx.Client, at: int) -> None:
        key = uuid.uuid4().hex
        body, headers = request({self.only: self.images[at : at + 1]}, key)
        self.sent += 1
        answer = http.post(f"{self.url}/v2/models/{self.name}/infer", content=body, headers=headers)
        if answer.status_code != 200:
            self.failed.append(answer.text)
            return
        said = json.loads(answer.content[: int(answer.headers[HEADER])])
        self.versions.setdefault(said["model_version"], time.time())
        told = {"labels": [{"id": key, "label": int(self.labels[at])}]}
        http.post(f"{self.url}/v2/models/{self.name}/labels", json=told).raise_for_status()


def run(pair: Pair, shift: str, seed: int) -> Row:
    """Serve the pruned digits, let Airflow look at clean traffic and then at shifted, and go back to dense where it says so.

    Nothing is shortened: `monitor_model` reads the bucket's log, judges, and starts `rollback_model` itself.
    """
    name, version = registry.onnx_name(DIGITS), pruned_version(DIGITS)
    dense = registry.dense(DIGITS, version)
    # there and back: with the change of the journal the looks begin anew
    for to, action in ((dense, "rollback"), (version, "promote")):
        request_id, reason = uuid.uuid4().hex, "bench-monitor begins"
        champion.move(DIGITS, to, action=action, reason=reason, who="bench", evidence="", request=request_id)
    with server.running(DIGITS, observe.log_root(), threads=1) as (url, _), airflow_api.connect() as airflow:
        only = httpx.get(f"{url}/v2/models/{name}").json()["inputs"][0]["name"]
        traffic = Traffic(url, name, only, pair.inputs["clean"], pair.labels)
        clients = [threading.Thread(target=traffic.run, args=(seed + i,)) for i in range(CLIENTS)]
        for client in clients:
            client.start()
        try:
            row = _looked(airflow, traffic, pair, shift, dense)
        finally:
            traffic.done.set()
            for client in clients:
                client.join()
    return row | {"requests": traffic.sent, "failed requests": len(traffic.failed)}


def _looked(airflow: httpx.Client, traffic: Traffic, pair: Pair, shift: str, dense: str) -> Row:
    time.sleep(BETWEEN_S)  # what is younger than a minute is left to the next look
    alarms, known = 0, 0
    for _ in range(CLEAN):
        seen = _look(airflow, "clean")
        alarms += seen["outcome"] in ("watch", "breach")
        known += seen["outcome"] != "unknown"
    traffic.images, shifted = pair.inputs[shift], time.time()
    looks = 0
    while looks < SHIFTED and (not looks or seen["outcome"] != "breach"):
        seen = _look(airflow, shift)
        looks += 1
    row: Row = {
        "shift": shift,
        "clean looks": known,
        "false alarms": alarms,
        "looks after the shift": looks,
        "verdict": f"{seen['outcome']} {seen['cause']}".strip(),
        "reason": seen["reason"],
        "s from the shift to the verdict": seen["at"] - shifted,
    }
    if (seen["outcome"], seen["cause"]) != ("breach", "ours"):
        return row | {"serves after it": registry.champion(DIGITS)}
    while dense not in traffic.versions and time.time() < seen["at"] + SERVES_WITHIN_S:
        time.sleep(0.05)
    served = traffic.versions.get(dense)
    time.sleep(5)  # of traffic on the dense model
    return row | {
        "s from the verdict to the dense model's first answer": None if served is None else served - seen["at"],
        "serves after it": registry.champion(DIGITS),
    }


def _look(airflow: httpx.Client, traffic: str) -> dict[str, Any]:
    """One run of `monitor_model`: what its look said, and when."""
    time.sleep(BETWEEN_S)
    run = airflow_api.trigger(airflow, "monitor_model", {"model": DIGITS})
    end = time.monotonic() + ENDS_WITHIN_S
    while (seen := airflow_api.xcom(airflow, "monitor_model", run, "look", 0)) is None:
        state = airflow_api.run_state(airflow, "monitor_model", run)
        if state in airflow_api.FINISHED or time.monotonic() > end:
            raise RuntimeError(
                f"expected a look by run {run} of monitor_model, which is {state}; see its log in Airflow"
            )
        time.sleep(0.2)
    look = next(task for task in airflow_api.tasks(airflow, "monitor_model", run) if task.name == "look")
    found = {**seen, "at": look.ended or time.time()}
    say(f"{traffic}, look {seen['number']}: {seen['outcome']} {seen['cause']}: {seen['reason'][:150]}")
    return found
