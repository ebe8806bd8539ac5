"""Torch-Pruning 1.6.1 as its documentation uses it: a pruner on the eager module, one step, the classifier left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch_pruning
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from secateur.calibration import Batch

IMPORTANCE = {
    "l2": lambda: torch_pruning.importance.GroupMagnitudeImportance(p=2),
    "taylor": torch_pruning.importance.GroupTaylorImportance,
}
WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)
HALVINGS = 14  # of the interval in which a ratio is sought


@dataclass(frozen=True)
class Request:
    """What is asked of the peer: `roots` are the names of the modules that may lose outputs, None stands for all."""

    criterion: str = "l2"
    everywhere: bool = False  # one ranking over all layers instead of the same ratio in each
    roots: Collection[str] | None = None
    spared: Collection[str] = ()
    options: dict[str, Any] = field(default_factory=dict)  # of the pruner; a function is called with the copy to be cut
    after: Callable[[nn.Module, Mapping[nn.Module, int]], None] = lambda model, heads: None  # what is left to the user


def cut(model: nn.Module, example: tuple[torch.Tensor, ...], request: Request, ratio: float) -> nn.Module:
    """A copy of the module with this share of channels removed; gradients go along for Taylor."""
    pruned = copy.deepcopy(model)
    for old, new in zip(model.parameters(), pruned.parameters(), strict=True):
        new.grad = None if old.grad is None else old.grad.clone()
    ignored = [m for name, m in pruned.named_modules() if _is_ignored(name, m, request)]
    pruner = torch_pruning.pruner.BasePruner(
        pruned,
        example,
        importance=IMPORTANCE[request.criterion](),
        global_pruning=request.everywhere,
        pruning_ratio=ratio,
        ignored_layers=ignored,
        **{name: value(pruned) if callable(value) else value for name, value in request.options.items()},
    )
    pruner.step()
    request.after(pruned, pruner.num_heads)
    for parameter in pruned.parameters():
        parameter.grad = None
    return pruned


def _is_ignored(name: str, module: nn.Module, request: Request) -> bool:
    if request.roots is None:
        return name in request.spared
    return isinstance(module, WEIGHTED) and name not in request.roots


def cut_to_macs(model: nn.Module, example: tuple[torch.Tensor, ...], request: Request, share: float) -> nn.Module:
    """The cut whose share of MACs removed is nearest to `share`, found by halving the interval of ratios."""
    dense = macs(model, example)
    low, high = 0.0, 0.95
    best, distance = model, float("inf")
    for _ in range(HALVINGS):
        ratio = (low + high) / 2
        pruned = cut(model, example, request, ratio)
        removed = 1 - macs(pruned, example) / dense
        if abs(removed - share) < distance:
            best, distance = pruned, abs(removed - share)
        low, high = (ratio, high) if removed < share else (low, ratio)
    return best


def macs(model: nn.Module, example: tuple[torch.Tensor, ...]) -> int:
    """Multiply-accumulates of one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*example)
    return counter.get_total_flops() // 2


def collect_gradients(model: nn.Module, batches: Sequence[Batch]) -> None:
    """The gradient of the mean loss on all batches, in evaluation mode, left in the parameters."""
    model.zero_grad()
    for *inputs, target in batches:
        (functional.cross_entropy(model(*inputs), target) / len(batches)).backward()
