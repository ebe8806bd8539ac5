"""Where the servers are: from the environment, else from the local stack that runs here."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

from secateur.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[2]
STATE_VARIABLE = "SECATEUR_STACK_DIR"


def state_folder() -> Path:
    """The folder that holds everything of the local stack: `.stack` in the repository, or `$SECATEUR_STACK_DIR`."""
    return Path(os.environ.get(STATE_VARIABLE) or REPOSITORY / ".stack").resolve()


def setting(name: str) -> str:
    """The value of one setting, such as `MLFLOW_TRACKING_URI`; one sentence of error when nothing gives it."""
    value = os.environ.get(name) or stack_environment().get(name)
    if not value:
        raise InputError(
            f"{name} is not set and no local stack runs here: set {name}, or start the stack with `make up`."
        )
    return value


def export_settings() -> None:
    """Put what the local stack gives into this process's environment; what is set there already wins."""
    for name, value in stack_environment().items():
        os.environ.setdefault(name, value)


def stack_environment() -> Mapping[str, str]:
    """The environment that the local stack gives to its clients; empty when it was never started."""
    for folder in (state_folder(), Path.cwd() / ".stack"):
        path = folder / "env.json"
        if path.is_file():
            return dict(json.loads(path.read_text()))
    return {}
