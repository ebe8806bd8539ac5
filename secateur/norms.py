"""Batch norms after a cut: what reaches them has changed, so their running statistics are measured again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import fx

from secateur.errors import InputError

_BATCH_NORM = torch.ops.aten.batch_norm.default


def reestimate_norms(module: fx.GraphModule, batches: Iterable[Sequence[torch.Tensor]]) -> int:
    """Replace the running statistics of batch norms by those of some inputs, in place, and say how many norms there are.

    A cut changes what reaches every norm behind it. As in training, each norm normalises by the batch it sees; what is
    kept is the plain average of the batches' means and (unbiased) variances, where training would let early batches
    fade. No gradient is taken and dropout stays as it was: only what evaluation will see is measured.

    Args:
        batches: the inputs of the module, in order. A larger batch estimates better; its size is not weighed.

    Raises:
        InputError: there is no batch.
    """
    norms = [n for n in module.graph.find_nodes(op="call_function", target=_BATCH_NORM) if n.args[3] is not None]
    if not norms:
        return 0
    names = sorted({str(buffer.target) for node in norms for buffer in node.args[3:5]})
    totals = {name: torch.zeros_like(module.get_buffer(name)) for name in names}
    count = 0
    with _normalising_by_batch(module, norms), torch.no_grad():
        for inputs in batches:
            module(*inputs)
            count += 1
            for name, total in totals.items():
                total += module.get_buffer(name)
    if not count:
        raise InputError(
            "batch norms: expected at least one batch of inputs to estimate their statistics from, got none"
        )
    for name, total in totals.items():
        module.get_buffer(name).copy_(total / count)
    return len(norms)


@contextlib.contextmanager
def _normalising_by_batch(module: fx.GraphModule, norms: Sequence[fx.Node]) -> Iterator[None]:
    """The norms use each batch's statistics, and their buffers hold those of the last batch alone."""
    before = [(node, node.args) for node in norms]
    for node in norms:
        node.args = (*node.args[:5], True, 1.0, *node.args[7:])  # training, momentum
    module.recompile()
    try:
        yield
    finally:
        for node, args in before:
            node.args = args
        module.recompile()
