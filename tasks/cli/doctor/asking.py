"""One question to a server, with what a check needs of the answer."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

from tasks import certificates

PATIENCE_S = 5.0
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True)
class Answer:
    """A server's answer, and the middle of the time that it took (epoch seconds, by our clock)."""

    response: httpx.Response
    moment: float


def get(url: str, *, params: Mapping[str, str] | None = None, auth: tuple[str, str] | None = None) -> Answer:
    """Ask once.

    Raises:
        httpx.HTTPError, httpx.InvalidURL: nothing answers, or nothing that is trusted.
        InputError: what is trusted cannot be read.
    """
    begun = time.time()
    response = httpx.get(
        url,
        params=dict(params or {}),
        auth=auth,
        timeout=PATIENCE_S,
        trust_env=not is_loopback(url),  # a proxy cannot reach our own loopback
        verify=certificates.trusted(certificates.MLFLOW),
    )
    return Answer(response, (begun + time.time()) / 2)


def is_loopback(url: str) -> bool:
    """Whether an address stays on this machine."""
    return urlsplit(url).hostname in _LOOPBACK


def s3_endpoint() -> str:
    """The address of S3."""
    from tasks import bucket

    return bucket.endpoint()


def named(variable: str) -> str:
    """What the environment says of a server's address; empty where it says nothing."""
    return os.environ.get(variable, "").rstrip("/")


def why(error: Exception) -> str:
    """A fault of the wire in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
