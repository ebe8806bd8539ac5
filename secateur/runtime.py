"""ONNX Runtime as the serving runtime: sessions on a target, and outputs in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from secateur.errors import InputError


@dataclass(frozen=True)
class Target:
    """The hardware and settings that will serve the model."""

    provider: str = "CPUExecutionProvider"
    threads: int = 1
    batch: int = 1


def check_provider(target: Target) -> None:
    """Raise InputError unless the target's provider is installed."""
    available = ort.get_available_providers()
    if target.provider not in available:
        raise InputError(f"target.provider: expected one of {', '.join(available)}, got {target.provider}")


def open_session(path: str | Path, target: Target) -> ort.InferenceSession:
    """Load a file on the target's provider.

    Raises:
        InputError: the provider is not installed, or fell back to another one.
    """
    check_provider(target)
    options = ort.SessionOptions()
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=[target.provider])
    if session.get_providers()[0] != target.provider:
        raise InputError(f"target.provider: {target.provider} fell back to {session.get_providers()[0]} for this model")
    return session


def run(session: ort.InferenceSession, *inputs: np.ndarray) -> np.ndarray:
    """The first output for one batch of the inputs, in the order that the program has them in."""
    names = (spec.name for spec in session.get_inputs())
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


def predict(session: ort.InferenceSession, columns: Sequence[np.ndarray], batch: int = 64) -> Iterator[np.ndarray]:
    """The first output batch by batch, of all examples in order; all together may be larger than memory.

    Args:
        session: of the file.
        columns: the inputs in the program's order, [N, ...] each.
        batch: examples at a time.
    """
    for start in range(0, len(columns[0]), batch):
        yield run(session, *(column[start : start + batch] for column in columns))
