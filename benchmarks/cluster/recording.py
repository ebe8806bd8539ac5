"""Records which requests each step sends to MLflow: a proxy before the server, and one real run through it."""

from __future__ import annotations

import base64
import contextlib
import functools
import importlib
import json
import os
import threading
import typing
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from benchmarks.cluster import replay
from tests import services

MODEL = "model-of-the-recording"  # long enough to be replaced
RECIPE = "recipe-of-the-recording"
DAG_RUN = "run-of-the-recording"
_DROPPED = {"transfer-encoding", "content-encoding", "content-length", "connection", "host", "accept-encoding"}
Request = dict[str, Any]


@contextlib.contextmanager
def proxy(server: str) -> Iterator[tuple[str, list[Request]]]:
    """An address that leads to the server, and the list of all that went through it."""
    seen: list[Request] = []
    client = httpx.Client(base_url=server, timeout=120, trust_env=False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            kept = {name: value for name, value in self.headers.items() if name.lower() not in _DROPPED}
            answer = client.request(self.command, self.path, content=body, headers=kept)
            seen.append(_noted(self.command, self.path, self.headers.get("Content-Type") or "", body, answer))
            self.send_response(answer.status_code)
            for name, value in answer.headers.items():
                if name.lower() not in _DROPPED:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = forward  # noqa: N815  (the base class's names)

        def handle(self) -> None:
            with contextlib.suppress(ConnectionResetError):  # a client need not say goodbye
                super().handle()

        def log_message(self, format: str, *args: Any) -> None:
            """Every request is noted already."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening, client:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}", seen
        finally:
            listening.shutdown()


def _noted(method: str, path: str, kind: str, body: bytes, answer: httpx.Response) -> Request:
    try:
        content = answer.json()
    except ValueError:
        content = None
    return {
        "method": method,
        "path": path,
        "type": kind,
        "body": base64.b64encode(body).decode(),
        "status": answer.status_code,
        "answer": content,
    }


def record(server: str, folder: Path) -> None:
    """Prune a tiny model for real, through the proxy; leave a file for every step.

    The environment leads to MLflow, where the model is registered, to an S3 server and to a folder of recipes.
    """
    from tasks import tracking

    tracking.experiment_of(MODEL)  # as for a model that was pruned before
    with proxy(server) as (address, seen):
        os.environ["MLFLOW_TRACKING_URI"] = address
        for name in replay.STEPS:
            module = importlib.import_module(f"tasks.{name}")
            vars(module)["run"] = _recorded(module.run, seen, folder)
        job = services.walk(MODEL, RECIPE, dag_run_id=DAG_RUN)
        importlib.import_module("tasks.ask").run(job.pinned, job.verdict)
        os.environ["MLFLOW_TRACKING_URI"] = server


def counted(folder: Path) -> dict[str, Any]:
    """Of a recorded run: the requests of each step, of all of them, how many of those write, and the bytes that they carry."""
    steps = {path.stem: json.loads(path.read_text())["requests"] for path in sorted(folder.glob("*.json"))}
    requests = [request for step in steps.values() for request in step]
    return {
        "steps": {name: len(step) for name, step in steps.items()},
        "requests": len(requests),
        "writes": sum(writes(request["method"], request["path"]) for request in requests),
        "health": sum(request["path"] == "/health" for request in requests),
        "bytes": sum(len(base64.b64decode(request["body"])) for request in requests),
    }


def writes(method: str, path: str) -> bool:
    """Whether a request changes anything: MLflow's searches are POSTs too."""
    return method != "GET" and not path.partition("?")[0].endswith("/search")


def register(folder: Path) -> str:
    """Train the tiny network and register it as MODEL, with its recipe and its examples; returns the version's source."""
    import mlflow
    import numpy as np
    import torch
    import yaml

    inputs, labels = services.examples()
    np.savez(folder / "examples.npz", inputs=inputs, labels=labels)
    budget = {"accuracy_drop": 0.2, "recovery_epochs": 3, "measuring_s": 0.5}
    gate = {"speedup": 0.01}  # whatever was measured in so short a time, the run ends with a promotion
    recipe = services.recipe_for(folder / "examples.npz", MODEL, budget=budget, gate=gate)
    Path(os.environ["SECATEUR_RECIPES"], f"{RECIPE}.yaml").write_text(yaml.safe_dump(recipe))
    with mlflow.start_run(experiment_id=mlflow.create_experiment("models of the benchmark")):
        logged = mlflow.pytorch.log_model(
            services.trained(inputs, labels),
            name="model",
            input_example=inputs[:2],
            registered_model_name=MODEL,
            pip_requirements=[f"torch=={torch.__version__.partition('+')[0]}"],
        )
    return f"models:/{logged.model_id}"


def _recorded(step: Callable[..., Any], seen: list[Request], folder: Path) -> Callable[..., Any]:
    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> Any:
        from pydantic import TypeAdapter

        from secateur.errors import NothingToDo

        given, first, result, skipped = replay.plain(step, args, kwargs), len(seen), None, ""
        try:
            result = step(*args, **kwargs)
            return result
        except NothingToDo as reason:
            skipped = str(reason)
            raise
        finally:
            value = TypeAdapter(typing.get_type_hints(step)["return"]).dump_python(result, mode="json", warnings=False)
            entry = {"given": given, "requests": seen[first:], "result": value, "skipped": skipped}
            (folder / f"{replay.file_name(step, given)}.json").write_text(json.dumps(entry))

    return run
