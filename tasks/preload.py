"""Imports once, in a process whose children run the steps, what every step would import again: seconds of each.

A LocalExecutor's scheduler and a Celery worker fork a process for each step; it finds imported what they have. They do it where
`SECATEUR_PRELOAD` is set, as the local stack, Compose and the chart do for them.
"""

import importlib
import os

VARIABLE = "SECATEUR_PRELOAD"
MODULES = (
    "airflow.sdk.execution_time.task_runner",
    "boto3",
    "mlflow",
    "mlflow.pytorch",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pydantic",
    "scipy.stats",
    "sklearn.datasets",
    "torch",
    "torch.export",
    "torch.onnx",
)


def preload() -> None:
    """Import them, where it is asked for."""
    if os.environ.get(VARIABLE):
        for name in MODULES:
            importlib.import_module(name)
