"""The clocks of the servers against ours, by the Date of their answers."""

import email.utils
from collections.abc import Iterator

import httpx

from secateur.errors import InputError
from tasks.cli.doctor import asking
from tasks.cli.doctor.finding import Finding

WARN_S = 5.0
FAIL_S = 300.0  # S3 refuses requests that are 15 minutes off, Airflow tokens and the receiver webhooks that are less


def check() -> Iterator[Finding]:
    """Ask each server what time it is."""
    agreed = []
    for server, url in _servers().items():
        try:
            answer = asking.get(url)
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


def _servers() -> dict[str, str]:
    """An address of each that answers whoever asks."""
    pages = {"MLFLOW_TRACKING_URI": ("MLflow", "/health"), "SECATEUR_AIRFLOW_URL": ("Airflow", "/api/v2/version")}
    found = {server: asking.named(name) + page for name, (server, page) in pages.items() if asking.named(name)}
    try:
        return {**found, "S3": asking.s3_endpoint()}
    except InputError:  # another check says so
        return found
