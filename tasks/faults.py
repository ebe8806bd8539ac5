"""Tells a fault of the wire, which another try can mend, from everything else; and tries again."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from secateur.errors import InputError

T = TypeVar("T")

_SHORTEST_S, _LONGEST_S = 0.1, 2.0
# Not seeded: what two processes do at once they shall not do at once again.
_JITTER = random.SystemRandom()

# By name, so that nothing heavy is imported to recognise them. What `requests` raises is an OSError, and MLflow wraps that.
_TRANSIENT = frozenset(
    {
        "builtins.OSError",
        "botocore.exceptions.ConnectionError",
        "botocore.exceptions.HTTPClientError",
        "httpx.TransportError",
        "urllib3.exceptions.HTTPError",
    }
)
_BUSY = (408, 429)  # a server asks to come again; from 500 on the fault is its own
_SERVER_FAULT = 500
_NO_ANSWER = 599
_REFUSED = 400


def _of_s3(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", _REFUSED))


def _of_airflow(error: Any) -> int:
    """Of what a task asked of Airflow by way of its supervisor; that has tried for a while itself."""
    if error.error.error.value != "API_SERVER_ERROR":
        return _REFUSED
    return int((error.error.detail or {}).get("status_code") or _NO_ANSWER)


# What says itself how a server answered, as a status of HTTP.
_ANSWERED: dict[str, Callable[[Any], int]] = {
    "botocore.exceptions.ClientError": _of_s3,
    "airflow.sdk.exceptions.AirflowRuntimeError": _of_airflow,
    "kubernetes.client.exceptions.ApiException": lambda error: int(error.status or _NO_ANSWER),
}
# OSErrors that speak of the input: a second try sees the same.
_PERMANENT = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def is_io_fault(exception: BaseException) -> bool:
    """True for a fault of the network or of a server, in whatever it is wrapped; never for an `InputError`."""
    if isinstance(exception, InputError):
        return False
    return any(_is_transient(wrapped) for wrapped in _chain(exception))


def persist(action: Callable[[], T], until: float) -> T:
    """Do something, and again after a fault of the wire, until it works or `until` (of `time.monotonic`) is passed."""
    longest = _SHORTEST_S
    while True:
        try:
            return action()
        except Exception as error:
            if not is_io_fault(error) or time.monotonic() + longest > until:
                raise
        rest(longest)
        longest = min(2 * longest, _LONGEST_S)


def rest(longest: float) -> None:
    """Sleep for `longest` seconds at most and half of that at least, by chance."""
    time.sleep(_JITTER.uniform(longest / 2, longest))


def _chain(exception: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = exception
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_transient(exception: BaseException) -> bool:
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(exception).__mro__}
    if names & _ANSWERED.keys():
        status = next(_ANSWERED[name](exception) for name in _ANSWERED if name in names)
        return status in _BUSY or status >= _SERVER_FAULT
    return not isinstance(exception, _PERMANENT) and bool(names & _TRANSIENT)
