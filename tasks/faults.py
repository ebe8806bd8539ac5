"""Tells a fault of the wire, which another try can mend, from everything else."""

from collections.abc import Iterator

from secateur.errors import InputError

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
# OSErrors that speak of the input: a second try sees the same.
_PERMANENT = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def is_io_fault(exception: BaseException) -> bool:
    """True for a fault of the network or of a server, in whatever it is wrapped; never for an `InputError`."""
    if isinstance(exception, InputError):
        return False
    return any(_is_transient(wrapped) for wrapped in _chain(exception))


def _chain(exception: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = exception
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__


def _is_transient(exception: BaseException) -> bool:
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(exception).__mro__}
    return not isinstance(exception, _PERMANENT) and bool(names & _TRANSIENT)
