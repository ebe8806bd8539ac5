"""Servers that others can reach: is the way to them encrypted, and do they ask who one is?"""

import os
from collections.abc import Iterator
from urllib.parse import quote

import httpx

from secateur.errors import InputError
from tasks.cli.doctor import asking
from tasks.cli.doctor.finding import Finding

_ADDRESSES = ("MLFLOW_TRACKING_URI", "SECATEUR_AIRFLOW_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")


def check() -> Iterator[Finding]:
    """Addresses without TLS, and what each server gives to nobody in particular."""
    for name in _ADDRESSES:
        url = asking.named(name)
        if url.startswith("http://") and not asking.is_loopback(url):
            yield Finding(
                "warn",
                f"{name} goes to {url} without TLS: who listens on the way reads data and passwords",
                "give the server a certificate and use https:// (docs/security.md)",
            )
    for what, url, remedy in _doors():
        try:
            answer = asking.get(url)
        except (httpx.HTTPError, httpx.InvalidURL, InputError):  # another check says so
            continue
        if answer.response.is_success:
            yield Finding("warn", f"{what} to whoever reaches it", remedy)


def _doors() -> Iterator[tuple[str, str, str]]:
    """What only those may get who say who they are; on loopback the machine's own users are all that there are."""
    mlflow, airflow = asking.named("MLFLOW_TRACKING_URI"), asking.named("SECATEUR_AIRFLOW_URL")
    if mlflow.startswith("http") and not asking.is_loopback(mlflow):
        remedy = "start it with `--app-name basic-auth` (docs/security.md), or behind a proxy that asks"
        yield "MLflow shows experiments", f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1", remedy
    if airflow and not asking.is_loopback(airflow):
        remedy = "unset [core] simple_auth_manager_all_admins, or take FAB's auth manager"
        yield "Airflow gives an administrator's token", f"{airflow}/auth/token", remedy
    place = os.environ.get("SECATEUR_BUCKET", "")
    if place.startswith("s3://"):
        name = quote(place.removeprefix("s3://").partition("/")[0])
        listing = f"{asking.s3_endpoint().rstrip('/')}/{name}?list-type=2&max-keys=1"
        yield f"the bucket {name} shows its objects", listing, "block public access to it"
