"""TLS: whose certificates our clients trust, and with which one a server of ours shows itself."""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import InputError

if TYPE_CHECKING:
    import ssl

MLFLOW = "MLFLOW_TRACKING_SERVER_CERT_PATH"  # MLflow's own client reads it, for MLflow alone
_FOR_ALL = "REQUESTS_CA_BUNDLE"  # read by MLflow's client too; SSL_CERT_FILE and SSL_CERT_DIR come after it


@dataclass(frozen=True)
class Certificate:
    """A server's own: files of PEM, the certificate with those between it and its authority."""

    cert: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """What a listening socket is wrapped in; TLS 1.2 or later.

        Raises:
            InputError: a file is missing, is no PEM, or the key is another certificate's.
        """
        import ssl

        made = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        try:
            made.load_cert_chain(self.cert, self.key, password=_no_password)
        except (OSError, InputError) as error:  # ssl.SSLError is an OSError
            raise InputError(
                f"--tls-cert, --tls-key: expected a certificate and its key, as PEM without a password, got {self.cert} and {self.key} "
                f"({error}); `openssl x509 -noout -modulus` and `openssl rsa -noout -modulus` show whether they go together"
            ) from error
        return made


def _no_password() -> str:
    """A server that starts by itself has nobody to ask."""
    raise InputError("the key has a password")


def own(cert: Path | None, key: Path | None) -> Certificate | None:
    """A server's certificate, None where it has none.

    Raises:
        InputError: one of the two alone, or files that do not go together.
    """
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise InputError(
            f"--tls-cert, --tls-key: expected both or neither, got {cert or 'no certificate'} and {key or 'no key'}"
        )
    found = Certificate(cert, key)
    found.context()
    return found


def is_exposed(host: str) -> bool:
    """Whether a server that listens on this address can be reached from other machines."""
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


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
