"""Tells people: in the log always, and where the installation says so through a webhook that takes Slack's form."""

from __future__ import annotations

import logging
import os
from urllib.parse import urlsplit

from secateur.errors import InputError
from tasks import certificates

log = logging.getLogger("secateur.monitor")

WEBHOOK = "SECATEUR_NOTIFY_WEBHOOK"  # in the environment: an address that takes {"text": ...}; it is a secret
EMAIL = "SECATEUR_NOTIFY_EMAIL"  # addresses by comma, sent to by Airflow's connection `smtp_default`
PATIENCE_S = 10.0


def say(text: str) -> None:
    """Write it into the log, and post it.

    Raises:
        InputError: the address is none.
        OSError: nothing takes it there.
    """
    log.warning("%s", text)
    address = os.environ.get(WEBHOOK, "")
    if address:
        post(address, text)


def post(address: str, text: str) -> None:
    """Post a text in the form that Slack, Mattermost, Rocket.Chat and Discord's `/slack` take."""
    import httpx

    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(f"{WEBHOOK}: expected an address of http or https, got something else")
    try:
        httpx.post(address, json={"text": text}, timeout=PATIENCE_S, verify=certificates.trusted()).raise_for_status()
    except httpx.HTTPStatusError as error:  # its own sentence would show the address, which is a secret
        raise OSError(f"{WEBHOOK}: {parts.hostname} answered {error.response.status_code}") from None
    except httpx.HTTPError as error:
        raise OSError(f"{WEBHOOK}: {parts.hostname} does not answer: {type(error).__name__}") from None


def recipients() -> list[str]:
    """Who is written to."""
    return [one.strip() for one in os.environ.get(EMAIL, "").split(",") if one.strip()]
