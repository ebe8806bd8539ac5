"""Steps without their science: each sends MLflow the requests that it sent in a recorded run, and returns what it returned.

What differs between runs (ids of runs, experiments and logged models, the job's key, the model's name) is replaced wherever it
stands in a request or a result: what a step is given, and what MLflow answers, say what stands for what. Waiting, arithmetic
and the bucket are left out.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib
import inspect
import json
import os
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

RECORDING = "SECATEUR_CLUSTER_RECORDING"  # names the folder of the recorded steps
STEPS = (
    *("resolve", "baseline", "plan", "cut", "recover", "evaluate", "select", "export", "validate", "gate", "ask"),
    *("promote", "report"),
)
SHORTEST = 8  # characters of what is replaced: a shorter text also stands where it means something else
_ID = re.compile(r"(?:m-)?[0-9a-f]{32}|\b[0-9]{8}\b")


def install() -> None:
    """Let `run` of every step be its replay, for the DAG file that is read next."""
    for name in STEPS:
        module = importlib.import_module(f"tasks.{name}")
        vars(module)["run"] = replayed(module.run)


def replayed(step: Callable[..., Any]) -> Callable[..., Any]:
    """The step of the same name, signature and types that sends what was recorded."""

    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> Any:
        from pydantic import TypeAdapter

        from secateur.errors import NothingToDo

        given = plain(step, args, kwargs)
        entry = json.loads(Path(os.environ[RECORDING], f"{file_name(step, given)}.json").read_text())
        names = dict(differences(entry["given"], given))
        key = (entry["result"] or {}).get("key") if file_name(step, given) == "resolve" else None
        if key:
            names[key] = hashlib.sha256(f"{key}{given['dag_run_id']}".encode()).hexdigest()
        send(entry["requests"], os.environ["MLFLOW_TRACKING_URI"], names)
        if entry["skipped"]:
            raise NothingToDo(entry["skipped"])
        result = json.loads(replaced(json.dumps(entry["result"]), names))
        return TypeAdapter(typing.get_type_hints(step)["return"]).validate_python(result)

    return run


def plain(step: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call by name, as JSON."""
    from pydantic import TypeAdapter

    bound = inspect.signature(step).bind(*args, **kwargs).arguments
    return typing.cast(dict[str, Any], TypeAdapter(dict[str, Any]).dump_python(bound, mode="json"))


def file_name(step: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """Where a call of the step is recorded: under the step's name, inside a cycle with the cycle's number."""
    name = step.__module__.split(".")[1]
    if name not in ("cut", "recover", "evaluate"):
        return name
    inside = next((given[argument] for argument in ("cut", "recovered") if argument in given), given)
    return f"{name}_{inside['cycle']}"


def send(requests: list[dict[str, Any]], server: str, names: dict[str, str]) -> int:
    """Send the requests in their order, learning from the answers; returns how many had another status than recorded.

    Raises:
        ConnectionError: the server failed; worth a retry.
    """
    import httpx

    others = 0
    with httpx.Client(base_url=server, timeout=120, trust_env=False) as client:
        for request in requests:
            body = base64.b64decode(request["body"])
            if "json" in request["type"]:
                body = replaced(body.decode(), names).encode()
            answer = client.request(
                request["method"],
                replaced(request["path"], names),
                content=body,
                headers={"Content-Type": request["type"]} if request["type"] else {},
            )
            if answer.status_code >= 500:
                raise ConnectionError(f"{request['method']} {request['path']}: {answer.status_code}")
            others += answer.status_code != request["status"]
            if request["answer"] is not None and answer.is_success:
                for recorded, now in differences(request["answer"], answer.json()):
                    for one, other in zip(_ID.findall(recorded), _ID.findall(now), strict=False):
                        names.setdefault(one, other)
    if others:
        print(f"{others} of {len(requests)} answers had another status than recorded")
    return others


def differences(recorded: Any, now: Any) -> Iterator[tuple[str, str]]:
    """The texts of at least eight characters that differ, at the same place of two JSON values."""
    if isinstance(recorded, dict) and isinstance(now, dict):
        for name in recorded.keys() & now.keys():
            yield from differences(recorded[name], now[name])
    elif isinstance(recorded, list) and isinstance(now, list):
        for one, other in zip(recorded, now, strict=False):
            yield from differences(one, other)
    elif isinstance(recorded, str) and isinstance(now, str) and recorded != now and len(recorded) >= SHORTEST:
        yield recorded, now


def replaced(text: str, names: Mapping[str, str]) -> str:
    """The text with every recorded name replaced by the present one, the longest first."""
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(name, names[name])
    return text
