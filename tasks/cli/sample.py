"""The sample model that `make run` prunes: trained and registered once, by the script that a user copies for their own."""

import subprocess
import sys

from tasks.cli import mlflow_api
from tasks.cli.settings import REPOSITORY

MODEL = "digits-cnn"
RECIPE = "digits"
SCRIPT = REPOSITORY / "examples" / "digits_cnn.py"


class SampleError(RuntimeError):
    """The sample model could not be trained or registered; its script has said why."""


def ensure_registered() -> None:
    """Train and register the sample model unless the registry has it."""
    if mlflow_api.is_registered(MODEL):
        return
    name = SCRIPT.relative_to(REPOSITORY)
    print(f"Training and registering {MODEL} ({name}).", flush=True)
    status = subprocess.run([sys.executable, str(SCRIPT)], check=False).returncode
    if status:
        raise SampleError(f"{name} ended with status {status}; its output above says why.")
