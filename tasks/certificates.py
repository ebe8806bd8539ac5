"""TLS: whose certificates our HTTP clients trust."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING

from secateur.errors import InputError

if TYPE_CHECKING:
    import ssl

MLFLOW = "MLFLOW_TRACKING_SERVER_CERT_PATH"  # MLflow's own client reads it, for MLflow alone
_FOR_ALL = "REQUESTS_CA_BUNDLE"  # read by MLflow's client too; SSL_CERT_FILE and SSL_CERT_DIR come after it


def trusted(*before: str) -> ssl.SSLContext:
    """The certificate authorities that a client of ours trusts: those of a file that the environment names, else the public ones.

    Args:
        before: variables that are looked at before REQUESTS_CA_BUNDLE, SSL_CERT_FILE and SSL_CERT_DIR.

    Raises:
        InputError: the file is missing, or holds no certificates.
    """
    named = ((name, os.environ.get(name)) for name in (*before, _FOR_ALL, "SSL_CERT_FILE", "SSL_CERT_DIR"))
    return _context(*next(((name, path) for name, path in named if path), ("", "")))


@functools.cache
def _context(name: str, path: str) -> ssl.SSLContext:
    """Cached: to read the public authorities takes longer than a request."""
    import ssl

    if not path:
        import certifi

        return ssl.create_default_context(cafile=certifi.where())
    try:
        folder = os.path.isdir(path)
        return ssl.create_default_context(cafile=None if folder else path, capath=path if folder else None)
    except OSError as error:
        raise InputError(
            f"{name}: expected a file of PEM certificates, got {path} ({error}); mend it, or unset the variable"
        ) from error
