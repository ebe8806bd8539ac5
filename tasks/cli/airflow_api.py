"""A small client of Airflow's REST API (v2): trigger a DAG run, follow it, read what its tasks returned."""

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from tasks import certificates
from tasks.cli.settings import setting

FINISHED = frozenset({"success", "failed"})
_ATTEMPTS = 3


class AirflowError(RuntimeError):
    """Airflow could not be reached, refused us, or does not know what was asked for."""


class UnansweredError(AirflowError):
    """No answer, or one that tells of a fault of the server: what was asked for may have been done."""


@dataclass(frozen=True)
class Task:
    """One task instance of a run, at its latest try. Times are seconds since the epoch; None before they exist."""

    name: str
    index: int  # of a mapped task, from 0; else -1
    state: str | None
    tries: int
    queued: float | None
    started: float | None
    ended: float | None
    scheduled: float | None


def connect(*, timeout: float = 20.0, attempts: int = _ATTEMPTS) -> httpx.Client:
    """A client with a fresh token, from `SECATEUR_AIRFLOW_URL`, `_USERNAME` and `_PASSWORD`."""
    url = setting("SECATEUR_AIRFLOW_URL").rstrip("/")
    credentials = {"username": setting("SECATEUR_AIRFLOW_USERNAME"), "password": setting("SECATEUR_AIRFLOW_PASSWORD")}
    return open_client(url, credentials, timeout=timeout, attempts=attempts)


def open_client(
    url: str, credentials: Mapping[str, str], *, timeout: float = 20.0, attempts: int = _ATTEMPTS
) -> httpx.Client:
    """A client of the Airflow at `url`, signed in; `attempts` of signing in."""
    # A proxy that the environment names is for the world outside; it cannot reach our own loopback.
    outside = urlsplit(url).hostname not in {"127.0.0.1", "localhost", "::1"}
    verify = certificates.trusted()
    with httpx.Client(base_url=url, timeout=timeout, trust_env=outside, verify=verify) as door:
        answer = _send(door, "POST", "/auth/token", body=dict(credentials), attempts=attempts)
    headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    return httpx.Client(base_url=url, timeout=timeout, trust_env=outside, verify=verify, headers=headers)


def trigger(client: httpx.Client, dag: str, conf: Mapping[str, object]) -> str:
    """Start a run of `dag` with these params; returns the run's id."""
    # The id is ours, so that an answer that got lost is asked for again without a second run. The servers fail
    # now and then: on SQLite, Airflow's audit log and a task's result can wait for each other until one gives up.
    run = f"manual__{datetime.now(UTC).isoformat()}_{secrets.token_hex(4)}"
    body = {"dag_run_id": run, "logical_date": None, "conf": dict(conf)}
    try:
        _send(client, "POST", f"/api/v2/dags/{quote(dag)}/dagRuns", body=body, what=f"DAG {dag!r}", made_is_fine=True)
    except UnansweredError as error:
        raise AirflowError(
            f"{error} Run {run} may have been started all the same: look before you start another."
        ) from error
    return run


def run_state(client: httpx.Client, dag: str, run: str) -> str:
    """The state of a run: queued, running, success or failed."""
    return str(_get(client, _run_path(dag, run), what=f"run {run!r} of DAG {dag!r}")["state"])


def runs(client: httpx.Client, dag: str, *, state: str | None = None, limit: int = 20) -> list[str]:
    """The ids of the latest runs of `dag`, newest first."""
    query: dict[str, str | int] = {"limit": limit, "order_by": "-run_after"}
    if state:
        query["state"] = state
    found = _get(client, f"/api/v2/dags/{quote(dag)}/dagRuns", params=query, what=f"DAG {dag!r}")
    return [str(run["dag_run_id"]) for run in found["dag_runs"]]


def tasks(client: httpx.Client, dag: str, run: str) -> list[Task]:
    """The task instances of a run, in the order in which they started; those that wait come last."""
    found = _get(client, f"{_run_path(dag, run)}/taskInstances", params={"limit": 100}, what=f"run {run!r}")
    items = [_task(item) for item in found["task_instances"]]
    return sorted(items, key=lambda task: (task.started is None, task.started or 0.0))


def xcom(
    client: httpx.Client, dag: str, run: str, task: str, map_index: int = -1, key: str = "return_value"
) -> Any | None:
    """What a task returned, or left under a key; None when there is nothing (it failed, was skipped, or has not run yet)."""
    path = f"{_run_path(dag, run)}/taskInstances/{quote(task)}/xcomEntries/{quote(key)}"
    query: dict[str, str | int] = {"deserialize": "false", "map_index": map_index}
    response = _send(client, "GET", path, params=query, missing_is_fine=True)
    if response.status_code == httpx.codes.NOT_FOUND:
        return None
    return _plain(response.json()["value"])


def logs(client: httpx.Client, dag: str, run: str, task: Task) -> list[dict[str, Any]]:
    """The structured log lines of a task's latest try."""
    path = f"{_run_path(dag, run)}/taskInstances/{quote(task.name)}/logs/{max(task.tries, 1)}"
    query: dict[str, str | int] = {"map_index": task.index, "full_content": "true"}
    content = _get(client, path, params=query, what=f"the log of {task.name}")["content"]
    return [line if isinstance(line, dict) else {"event": str(line)} for line in content]


def ring(client: httpx.Client, asset: str) -> None:
    """Tell the DAGs that are scheduled on this asset that there is something for them."""
    found = _get(client, "/api/v2/assets", params={"name_pattern": asset, "limit": 100}, what=f"asset {asset!r}")
    ids = [item["id"] for item in found["assets"] if item["name"] == asset]
    if not ids:
        raise AirflowError(
            f"Airflow at {client.base_url} does not know asset {asset!r}: is its DAG there, and not paused?"
        )
    _send(client, "POST", "/api/v2/assets/events", body={"asset_id": ids[0], "extra": {}}, what=f"asset {asset!r}")


def ensure_pool(client: httpx.Client, name: str, *, slots: int, description: str) -> None:
    """Make a pool unless it exists."""
    body = {"name": name, "slots": slots, "description": description, "include_deferred": False}
    if not _send(client, "GET", f"/api/v2/pools/{quote(name)}", missing_is_fine=True).is_success:
        _send(client, "POST", "/api/v2/pools", body=body, what=f"pool {name!r}", made_is_fine=True)


def dags(client: httpx.Client) -> list[str]:
    """The names of the DAGs that Airflow has read."""
    return sorted(dag["dag_id"] for dag in _get(client, "/api/v2/dags", what="its DAGs")["dags"])


def paused(client: httpx.Client) -> dict[str, bool]:
    """The DAGs that Airflow has read, and whether each is paused."""
    found = _get(client, "/api/v2/dags", params={"limit": 100, "tags": "secateur"}, what="its DAGs")["dags"]
    return {dag["dag_id"]: bool(dag["is_paused"]) for dag in found}


def pools(client: httpx.Client) -> dict[str, int]:
    """The slots of every pool."""
    found = _get(client, "/api/v2/pools", params={"limit": 100}, what="its pools")["pools"]
    return {pool["name"]: int(pool["slots"]) for pool in found}


def health(client: httpx.Client) -> dict[str, Any]:
    """What Airflow says of its parts: of each `status`, and when it was last seen."""
    return _get(client, "/api/v2/monitor/health", what="its health")


def release(client: httpx.Client) -> str:
    """Airflow's version."""
    return str(_get(client, "/api/v2/version", what="its version")["version"])


def import_errors(client: httpx.Client) -> dict[str, str]:
    """The DAG files that Airflow could not import, each with its traceback."""
    found = _get(client, "/api/v2/importErrors", what="its import errors")["import_errors"]
    return {error["filename"]: error["stack_trace"] for error in found}


def run_url(url: str, dag: str, run: str) -> str:
    """The page of a run in Airflow's UI."""
    return f"{url.rstrip('/')}/dags/{quote(dag)}/runs/{quote(run)}"


def _run_path(dag: str, run: str) -> str:
    return f"/api/v2/dags/{quote(dag)}/dagRuns/{quote(run)}"


def _task(item: Mapping[str, Any]) -> Task:
    return Task(
        name=item["task_id"],
        index=item["map_index"],
        state=item["state"],
        tries=item["try_number"] or 0,
        scheduled=_seconds(item.get("scheduled_when")),
        queued=_seconds(item.get("queued_when")),
        started=_seconds(item.get("start_date")),
        ended=_seconds(item.get("end_date")),
    )


def _seconds(moment: str | None) -> float | None:
    return datetime.fromisoformat(moment).timestamp() if moment else None


def _plain(value: Any) -> Any:
    # The server hands out what the task stored, which may be JSON in a string.
    if isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _get(
    client: httpx.Client, path: str, *, what: str, params: Mapping[str, str | int] | None = None
) -> dict[str, Any]:
    return dict(_send(client, "GET", path, params=params, what=what).json())


def _send(
    client: httpx.Client,
    method: str,
    path: str,
    *,
    what: str = "the page",
    attempts: int = _ATTEMPTS,
    missing_is_fine: bool = False,
    made_is_fine: bool = False,
    params: Mapping[str, str | int] | None = None,
    body: object = None,
) -> httpx.Response:
    response = _reach(client, method, path, attempts, params, body)
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise AirflowError(
            f"Airflow at {client.base_url} refused the sign-in: check SECATEUR_AIRFLOW_USERNAME and SECATEUR_AIRFLOW_PASSWORD."
        )
    if response.status_code == httpx.codes.FORBIDDEN:
        raise AirflowError(
            f"Airflow at {client.base_url} knows this user and refuses {method} of {what}: it takes a higher role there."
        )
    if response.status_code == httpx.codes.NOT_FOUND and not missing_is_fine:
        raise AirflowError(f"Airflow at {client.base_url} does not know {what}: {_detail(response)}")
    if response.status_code == httpx.codes.BAD_REQUEST:
        # The first line is the sentence; what follows is the JSON schema that refused.
        raise AirflowError(_detail(response).partition("\n")[0])
    # A conflict is the second answer to what an earlier attempt made.
    fine = {httpx.codes.NOT_FOUND, *({httpx.codes.CONFLICT} if made_is_fine else ())}
    if response.is_error and response.status_code not in fine:
        kind = UnansweredError if response.is_server_error else AirflowError
        said = _detail(response).rstrip(".")
        raise kind(f"Airflow at {client.base_url} answered {response.status_code} to {what}: {said}.")
    return response


def _reach(
    client: httpx.Client, method: str, path: str, attempts: int, params: Mapping[str, str | int] | None, body: object
) -> httpx.Response:
    for attempt in range(1, attempts + 1):
        try:
            response = client.request(method, path, params=params, json=body)
            if attempt == attempts or not response.is_server_error:
                return response
        except httpx.HTTPError as error:
            if attempt == attempts:
                raise UnansweredError(
                    f"Airflow at {client.base_url} does not answer ({type(error).__name__}); `make up` starts a local one."
                ) from error
        time.sleep(0.5 * attempt)
    raise AssertionError("unreachable")


def _detail(response: httpx.Response) -> str:
    try:
        return str(response.json().get("detail", response.text))
    except ValueError:
        return response.text[:200]
