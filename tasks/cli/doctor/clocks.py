"""The clocks of the servers against ours, by the Date of their answers."""

import email.utils
from collections.abc import Iterator

import httpx

from secateur.errors import InputError
from tasks import bucket, certificates
from tasks.cli.doctor import asking
from tasks.cli.doctor.finding import Finding

WARN_S = 5.0
FAIL_S = 300.0  # S3 refuses requests that are 15 minutes off, Airflow tokens and the receiver webhooks that are less


def check() -> Iterator[Finding]:
    """Ask each server what time it is."""
    agreed = []
    for server, url, *trusting in _servers():
        try:
            answer = asking.get(url, *trusting)
        except (httpx.HTTPError, httpx.InvalidURL, InputError):  # another check says so
            continue
        date = answer.response.headers.get("Date")
        try:
            theirs = email.utils.parsedate_to_datetime(date or "").timestamp() + 0.5  # it is told in whole seconds
        except ValueError:
            yield Finding("warn", f"{server} does not tell its time", "compare its clock with this machine's by hand")
            continue
        off = theirs - answer.moment
        if abs(off) < WARN_S:
            agreed.append(server)
            continue
        yield Finding(
            "fail" if abs(off) >= FAIL_S else "warn",
            f"the clock of {server} is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} this machine's",
            "let NTP set both: signatures and tokens carry the time, and are refused when it is off",
        )
    if agreed:
        yield Finding("ok", f"the clocks of {', '.join(agreed)} and of this machine agree within {WARN_S:g} s")


def _servers() -> Iterator[tuple[str, str, *tuple[str, ...]]]:
    """An address of each that answers whoever asks, and what names its authority."""
    if mlflow := asking.named("MLFLOW_TRACKING_URI"):
        yield "MLflow", f"{mlflow}/health", certificates.MLFLOW
    if airflow := asking.named("SECATEUR_AIRFLOW_URL"):
        yield "Airflow", f"{airflow}/api/v2/version"
    yield "S3", bucket.endpoint(), certificates.S3
