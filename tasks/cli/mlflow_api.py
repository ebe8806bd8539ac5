"""The two questions that the command line asks MLflow's REST API; importing `mlflow` for them would take seconds."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from tasks import certificates, tracking
from tasks.cli.settings import setting


class MlflowError(RuntimeError):
    """MLflow could not be reached, or refused."""


@dataclass(frozen=True)
class Run:
    """A run's metrics (their last values) and its page in MLflow's UI."""

    metrics: dict[str, float]
    url: str


def run(run_id: str) -> Run:
    """One run by its id."""
    found = _checked(_request("/api/2.0/mlflow/runs/get", {"run_id": run_id})).json()["run"]
    metrics = {metric["key"]: float(metric["value"]) for metric in found["data"].get("metrics", [])}
    experiment = found["info"]["experiment_id"]
    return Run(metrics, f"{_address()}/#/experiments/{quote(experiment)}/runs/{quote(run_id)}")


def artifact(run_id: str, path: str) -> Any | None:
    """A JSON artifact of a run; None when the run has none of that name."""
    response = _request("/get-artifact", {"run_uuid": run_id, "path": path})
    return response.json() if response.is_success else None


def is_registered(model: str) -> bool:
    """True when the registry has a model of this name."""
    response = _request("/api/2.0/mlflow/registered-models/get", {"name": model})
    return _checked(response).is_success if response.status_code != httpx.codes.NOT_FOUND else False


def _checked(response: httpx.Response) -> httpx.Response:
    if response.is_error:
        raise MlflowError(f"MLflow at {_address()} answered {response.status_code}: {response.text[:300]}")
    return response


def _request(path: str, query: Mapping[str, str]) -> httpx.Response:
    address = _address()
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    outside = urlsplit(address).hostname not in {"127.0.0.1", "localhost", "::1"}
    try:
        return httpx.get(
            f"{address}{path}",
            params=dict(query),
            auth=(user, password) if user and password else None,
            headers={"Authorization": f"Bearer {token}"} if token else None,
            timeout=20.0,
            trust_env=outside,
            verify=certificates.trusted(certificates.MLFLOW),
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise MlflowError(
            f"MLflow at {address} does not answer ({type(error).__name__}): check MLFLOW_TRACKING_URI."
        ) from error


def _address() -> str:
    address = setting("MLFLOW_TRACKING_URI").rstrip("/")
    tracking.check_address(address)
    return address
