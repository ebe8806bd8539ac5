"""Servers that others can reach: is the way to them encrypted, and do they ask who one is?"""

import os
from collections.abc import Iterator
from urllib.parse import parse_qs, quote, urlsplit

import httpx

from secateur.errors import InputError
from tasks import bucket, certificates
from tasks.cli.doctor import asking
from tasks.cli.doctor.finding import Finding

_ADDRESSES = (
    "MLFLOW_TRACKING_URI",
    "SECATEUR_AIRFLOW_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT_URL",
    "AIRFLOW__CELERY__BROKER_URL",
)
_DATABASES = ("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "MLFLOW_BACKEND_STORE_URI")
_ENFORCED = {"require", "verify-ca", "verify-full"}  # modes of Postgres' clients that use TLS or nothing
_PLAIN = {"http": "https", "redis": "rediss", "amqp": "amqps"}  # and the same with TLS


def check() -> Iterator[Finding]:
    """Addresses without TLS, databases that may be reached without, and what each server gives to nobody in particular."""
    for name in _ADDRESSES:
        url = asking.named(name)
        scheme = url.partition("://")[0]
        if scheme in _PLAIN and not asking.is_loopback(url):
            yield Finding(
                "warn",
                f"{name} goes to {asking.shown(url)} without TLS: who listens on the way reads data and passwords",
                f"give the server a certificate and use {_PLAIN[scheme]}:// (docs/security.md)",
            )
    for name in _DATABASES:
        yield from _of_database(name)
    for what, url, remedy, *trusting in _doors():
        try:
            answer = asking.get(url, *trusting)
        except (httpx.HTTPError, httpx.InvalidURL, InputError):  # another check says so
            continue
        if answer.response.is_success:
            yield Finding("warn", f"{what} to whoever reaches it", remedy)


def _of_database(name: str) -> Iterator[Finding]:
    url = asking.named(name)
    if not url.startswith("postgresql") or asking.is_loopback(url) or not urlsplit(url).hostname:
        return
    said = parse_qs(urlsplit(url).query).get("sslmode", [])
    mode = next(iter(said), os.environ.get("PGSSLMODE", "prefer"))
    if mode not in _ENFORCED:
        yield Finding(
            "warn",
            f"{name} goes to {asking.shown(url)} with sslmode {mode}: who listens on the way may read data and passwords",
            "give Postgres a certificate and set PGSSLMODE=verify-full (docs/security.md)",
        )
    if said and name == _DATABASES[0]:
        yield Finding(
            "warn",
            f"{name} has sslmode in its address: asyncpg, by which Airflow's API server asks too, refuses that word",
            f"leave it out and set PGSSLMODE={mode} on every part of Airflow",
        )


def _doors() -> Iterator[tuple[str, str, str, *tuple[str, ...]]]:
    """What only those may get who say who they are; on loopback the machine's own users are all that there are."""
    mlflow, airflow = asking.named("MLFLOW_TRACKING_URI"), asking.named("SECATEUR_AIRFLOW_URL")
    if mlflow.startswith("http") and not asking.is_loopback(mlflow):
        remedy = "start it with `--app-name basic-auth` (docs/security.md), or behind a proxy that asks"
        yield (
            "MLflow shows experiments",
            f"{mlflow}/api/2.0/mlflow/experiments/search?max_results=1",
            remedy,
            certificates.MLFLOW,
        )
    if airflow and not asking.is_loopback(airflow):
        remedy = "unset [core] simple_auth_manager_all_admins, or take FAB's auth manager"
        yield "Airflow gives an administrator's token", f"{airflow}/auth/token", remedy
    place = os.environ.get("SECATEUR_BUCKET", "")
    if place.startswith("s3://"):
        name = quote(place.removeprefix("s3://").partition("/")[0])
        listing = f"{bucket.endpoint().rstrip('/')}/{name}?list-type=2&max-keys=1"
        yield f"the bucket {name} shows its objects", listing, "block public access to it", certificates.S3
