"""Several processes that train as one: gradients, batch norms and answers are those of the whole batch.

Plain torch.distributed. Whoever starts the processes (torchrun, on one machine or several) sets the environment that
`joined` reads; a process that was started alone is a group of one, and nothing here costs it anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import distributed, fx

from secateur.errors import InputError

_BATCH_NORM = torch.ops.aten.batch_norm.default


def size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 alone writes and reports."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def device() -> torch.device:
    """Where this process computes: a GPU of its own where the machine has one, else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


@contextlib.contextmanager
def joined(meeting: str = "env://") -> Iterator[None]:
    """Within the group that torchrun's environment names; `meeting` is where its processes find each other.

    Raises:
        InputError: this machine has GPUs, but fewer than processes.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield
        return
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    gpus = torch.cuda.device_count()
    if 0 < gpus < here:
        raise InputError(
            f"processes: expected at most one for each of the {gpus} GPUs of this machine, got {here}; start fewer"
        )
    distributed.init_process_group(
        "nccl" if gpus else "gloo", init_method=meeting, rank=int(os.environ["RANK"]), world_size=count
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def partner_gone(error: BaseException) -> bool:
    """Whether an error says no more than that another process of the group has ended; that one knows why."""
    told_by_gloo = isinstance(error, RuntimeError) and "gloo/transport" in str(error)  # torch gives it no class
    return told_by_gloo or isinstance(error, distributed.DistError)


def own(examples: torch.Tensor) -> torch.Tensor:
    """This process's share of some examples: every so-manieth."""
    return examples[rank() :: size()]


def summed(value: torch.Tensor) -> torch.Tensor:
    """The sum of all processes' values; gradients flow back to all of them."""
    return _Sum.apply(value) if size() > 1 else value


def sum_gradients(parameters: Iterable[torch.Tensor]) -> None:
    """Every process gets the sum of all gradients, in one message for each type of number."""
    if size() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    for dtype in dict.fromkeys(g.dtype for g in gradients):
        alike = [g for g in gradients if g.dtype == dtype]
        flat = torch.cat([g.flatten() for g in alike])
        distributed.all_reduce(flat)
        for gradient, part in zip(alike, flat.split([g.numel() for g in alike]), strict=True):
            gradient.copy_(part.view_as(gradient))


def gathered(value: torch.Tensor) -> torch.Tensor:
    """All processes' tensors [n, ...], that may differ in n, one after the other."""
    if size() == 1:
        return value
    here = value.to(device())
    lengths = [torch.zeros(1, dtype=torch.long, device=here.device) for _ in range(size())]
    distributed.all_gather(lengths, torch.tensor([len(here)], device=here.device))
    longest = max(int(n) for n in lengths)
    padded = torch.cat([here, here.new_zeros(longest - len(here), *here.shape[1:])])
    parts = [torch.empty_like(padded) for _ in range(size())]
    distributed.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, lengths, strict=True)]).to(value.device)


def from_first(value: torch.Tensor) -> torch.Tensor:
    """The tensor [n] that the first process has, of the type of the others'."""
    if size() == 1:
        return value
    length = torch.tensor([len(value)], device=device())
    distributed.broadcast(length, 0)
    sent = value.to(device()) if rank() == 0 else value.new_empty(int(length), device=device())
    distributed.broadcast(sent, 0)
    return sent.to(value.device)


def agree(tensors: Iterable[torch.Tensor]) -> None:
    """Everybody's tensors become the first process's, in place."""
    for tensor in tensors if size() > 1 else ():
        distributed.broadcast(tensor, 0)


@contextlib.contextmanager
def synchronised_norms(module: fx.GraphModule) -> Iterator[None]:
    """Batch norms that train normalise by the examples of all processes (Ioffe and Szegedy 2015, over the whole batch)."""
    if size() == 1:
        yield
        return
    norms = list(module.graph.find_nodes(op="call_function", target=_BATCH_NORM))
    for node in norms:
        node.target = batch_norm
    module.recompile()
    try:
        yield
    finally:
        for node in norms:
            node.target = _BATCH_NORM
        module.recompile()


def batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor | None,
    running_variance: torch.Tensor | None,
    training: bool,
    momentum: float,
    epsilon: float,
    cudnn: bool,
) -> torch.Tensor:
    """The operator of the same name, with sums over all processes."""
    if not training:
        return _BATCH_NORM(x, weight, bias, running_mean, running_variance, False, momentum, epsilon, cudnn)
    others = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1, *[1] * (x.dim() - 2)]
    count = summed(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
    mean = summed(x.sum(others)) / count
    centred = x - mean.view(shape)
    variance = summed(centred.square().sum(others)) / count
    if running_mean is not None and running_variance is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_variance.lerp_(variance * count / (count - 1), momentum)
    y = centred * (variance + epsilon).rsqrt().view(shape)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


class _Sum(torch.autograd.Function):
    """An all-reduce; what each process's loss owes to the sum comes back to all that added to it."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total
