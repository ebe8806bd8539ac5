"""Secateur: prune exported programs, measure, and prove the result.

The names below load torch when they are first used, so that `secateur.errors` costs a scheduler nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.allocate import Macs, Parameters, Ratio
    from secateur.errors import InputError
    from secateur.pruning import Report, prune, replay

_HOME = {
    "InputError": "secateur.errors",
    "Macs": "secateur.allocate",
    "Parameters": "secateur.allocate",
    "Ratio": "secateur.allocate",
    "Report": "secateur.pruning",
    "prune": "secateur.pruning",
    "replay": "secateur.pruning",
}
__all__ = ["InputError", "Macs", "Parameters", "Ratio", "Report", "prune", "replay"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
