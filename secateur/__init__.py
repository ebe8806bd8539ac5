"""Secateur: prune exported programs, measure, and prove the result.

The names below load torch when they are first used, so that `secateur.errors` costs a scheduler nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.allocate import KvCache, Macs, Parameters, Ratio, Speedup
    from secateur.curves import sensitivity
    from secateur.depth import drop_branches
    from secateur.errors import InputError
    from secateur.inspection import inspect
    from secateur.pruning import Report, prune, replay
    from secateur.recovery import recover
    from secateur.sparse_learning import learn_sparsity
    from secateur.sparsity import NM, Blocks, Unstructured, sparsify

_HOME = {
    "Blocks": "secateur.sparsity",
    "NM": "secateur.sparsity",
    "Unstructured": "secateur.sparsity",
    "drop_branches": "secateur.depth",
    "sparsify": "secateur.sparsity",
    "InputError": "secateur.errors",
    "inspect": "secateur.inspection",
    "learn_sparsity": "secateur.sparse_learning",
    "KvCache": "secateur.allocate",
    "Macs": "secateur.allocate",
    "Parameters": "secateur.allocate",
    "Ratio": "secateur.allocate",
    "Speedup": "secateur.allocate",
    "Report": "secateur.pruning",
    "prune": "secateur.pruning",
    "recover": "secateur.recovery",
    "replay": "secateur.pruning",
    "sensitivity": "secateur.curves",
}
__all__ = [
    "NM",
    "Blocks",
    "InputError",
    "KvCache",
    "Macs",
    "Parameters",
    "Ratio",
    "Report",
    "Speedup",
    "Unstructured",
    "drop_branches",
    "inspect",
    "learn_sparsity",
    "prune",
    "recover",
    "replay",
    "sensitivity",
    "sparsify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'secateur' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
