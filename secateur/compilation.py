"""torch.compile where it pays: steps of the training itself are timed both ways, and what is faster is used."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

ROUNDS = 5  # of a step each way, by turns
_log = logging.getLogger(__name__)


def compiled(module: fx.GraphModule) -> Callable[..., Any]:
    """The module as inductor's code, one for all batch sizes; dropout draws what it draws without. Compiled when called."""
    return torch.compile(module, dynamic=True, options={"fallback_random": True})


def pays(plain: Callable[[], object], compiled: Callable[[], object]) -> bool:
    """Whether a compiled step is faster than a plain one, by the fastest of each; it does not where it fails. It is said."""
    try:
        compiled()  # compiles
    except Exception as error:  # a missing compiler, an operator that inductor cannot
        _log.warning(
            "compile: expected torch.compile to work here, got %s; training goes on without it; a C++ compiler such as g++ is "
            "needed on a CPU",
            _sentence(error),
        )
        return False
    plain()
    times = [(_seconds(plain), _seconds(compiled)) for _ in range(ROUNDS)]
    before, after = (min(column) for column in zip(*times, strict=True))
    _log.warning(
        "compile: a step takes %.4g s, compiled %.4g s; training goes on %s",
        before,
        after,
        "compiled" if after < before else "without it",
    )
    return after < before


def again(compiled: Callable[[], object]) -> None:
    """Compile for a run that goes on: its steps so far were compiled, and the rest must be too.

    Raises:
        RuntimeError: this machine cannot.
    """
    try:
        compiled()
    except Exception as error:
        raise RuntimeError(
            f"compile: expected torch.compile to work, as where the checkpoint was made, got {_sentence(error)}; go on there, "
            "or remove the checkpoint"
        ) from error


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _seconds(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    return time.perf_counter() - began
