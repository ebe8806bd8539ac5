"""The environment, where it configures Airflow: are its secrets given?"""

import os
from collections.abc import Iterator, Mapping

import psutil

from tasks.cli.doctor.finding import Finding

_EVERYWHERE = {
    "AIRFLOW__CORE__FERNET_KEY": "connections and variables are kept unencrypted",
    "AIRFLOW__API__SECRET_KEY": "each API server makes its own, and sign-ins at one do not count at another",
}
_SIGNING = {"AIRFLOW__API_AUTH__JWT_SECRET": "each part makes its own, and tasks are not let in by the API server"}
_SIGNERS = {
    "api-server",
    "api_server",
    "scheduler",
}  # as processes call themselves; where steps run, who can sign could speak for every task


def check() -> Iterator[Finding]:
    """Of each secret, whether it is given at all: by value, command, file of secrets; nothing where Airflow is not configured."""
    if "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in os.environ:
        return
    yield from _missing(_EVERYWHERE, "set it to the same value on every part of Airflow")
    if _signs():
        yield from _missing(_SIGNING, "set it to the same value on API servers and schedulers, and nowhere else")


def _missing(secrets: Mapping[str, str], remedy: str) -> Iterator[Finding]:
    for name, without in secrets.items():
        if not any(os.environ.get(name + end) for end in ("", "_CMD", "_SECRET")):
            yield Finding("warn", f"{name} is not set: {without}", remedy)


def _signs() -> bool:
    """Whether an API server or a scheduler runs here, in this container."""
    lines = (" ".join(process.info["cmdline"] or []).split() for process in psutil.process_iter(["cmdline"]))
    return any("airflow" in " ".join(words[:3]) and _SIGNERS & set(words) for words in lines)
