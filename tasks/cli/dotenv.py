"""The secrets of docker/compose.yaml, written once to the file `.env` beside it."""

import secrets
from pathlib import Path

from secateur.errors import InputError
from tasks.cli import pieces

_HEAD = """\
# Written by `make env`: the secrets of docker/compose.yaml, and what its images are built from. Who can read it can read everything.
# The databases keep the passwords that they were made with: a new file over old volumes locks everybody out.
"""
_BUILD = "# The index of torch's builds for processors; empty: the build with GPU libraries.\nTORCH_INDEX=\n"


def write(path: Path) -> bool:
    """Write fresh random secrets that only the file's owner can read; False where the file is there already.

    Raises:
        InputError: the folder is missing.
    """
    if path.exists():
        return False
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}; make it, or give another path.")
    pieces.write_private(path, _HEAD + "".join(f"{name}={value}\n" for name, value in _fresh().items()) + _BUILD)
    return True


def _fresh() -> dict[str, str]:
    made = pieces.new_credentials()
    hexadecimal = ("POSTGRES", "AIRFLOW_DATABASE", "MLFLOW_DATABASE", "REDIS", "MLFLOW")  # they stand in addresses too
    return {
        "AIRFLOW_ADMIN_PASSWORD": made.airflow_password,
        "AIRFLOW_SECRET_KEY": made.airflow_secret_key,
        "AIRFLOW_JWT_SECRET": made.airflow_jwt_secret,
        "AIRFLOW_FERNET_KEY": made.airflow_fernet_key,
        "S3_KEY": made.s3_key,
        "S3_SECRET": made.s3_secret,
        "MLFLOW_SECRET_KEY": secrets.token_hex(32),
        "SERVE_TOKEN": secrets.token_urlsafe(32),
        **{f"{name}_PASSWORD": secrets.token_hex(24) for name in hexadecimal},
    }
