"""The environment, where it configures Airflow: are its secrets given?"""

import os
from collections.abc import Iterator

from tasks.cli.doctor.finding import Finding

_SECRETS = {
    "AIRFLOW__CORE__FERNET_KEY": "connections and variables are kept unencrypted",
    "AIRFLOW__API__SECRET_KEY": "each API server makes its own, and sign-ins at one do not count at another",
    "AIRFLOW__API_AUTH__JWT_SECRET": "each part makes its own, and tasks are not let in by the API server",
}


def check() -> Iterator[Finding]:
    """Of each secret, whether it is given at all: by value, command, file of secrets; nothing where Airflow is not configured."""
    if "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN" not in os.environ:
        return
    for name, without in _SECRETS.items():
        if not any(os.environ.get(name + end) for end in ("", "_CMD", "_SECRET")):
            yield Finding("warn", f"{name} is not set: {without}", "set it to the same value on every part of Airflow")
