"""Training that feels INT8: weights and activations are rounded in the forward pass where the INT8 file will round them.

The backward pass goes straight through the rounding (Bengio et al., "Estimating or propagating gradients through stochastic
neurons", 2013; Jacob et al., CVPR 2018). A weight is rounded before the batch norm behind it is folded in: with one scale
for each output channel that is the same.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from secateur.errors import InputError

_aten = torch.ops.aten
_CONVOLUTIONS = (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
_MULTIPLY = (*_CONVOLUTIONS, _aten.linear.default)
_SUMS = (_aten.add.Tensor, _aten.add_.Tensor)
# between a convolution and a sum these are folded into it, or carry its integers on
_CARRY = (
    *(
        _aten.batch_norm.default,
        _aten.relu.default,
        _aten.relu_.default,
        _aten.hardtanh.default,
        _aten.hardtanh_.default,
    ),
    *(_aten.max_pool2d.default, _aten.avg_pool2d.default, _aten.dropout.default),
)
TINY = 1e-12  # of a range: a tensor of zeros is rounded to zeros


def round_weight(weight: torch.Tensor, largest: int) -> torch.Tensor:
    """A weight [out, ...] as whole multiples, up to `largest`, of a scale for each output channel."""
    with torch.no_grad():
        scale = weight.abs().flatten(1).amax(1).clamp_min(TINY) / largest
    zero = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -largest, largest)


def round_activation(x: torch.Tensor) -> torch.Tensor:
    """An activation in 256 steps over the range of this batch, zero among them. Signed or not, the steps are the same."""
    with torch.no_grad():
        low, high = torch.aminmax(x)
        low, high = low.clamp_max(0), high.clamp_min(0)
        scale = ((high - low) / 255).clamp_min(TINY)
        zero = (-low / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero, 0, 255)


def insert(module: fx.GraphModule, largest: int) -> None:
    """Round, in place, the weights and inputs of convolutions and linear layers, and what sums of convolutions add up.

    `largest` is the largest integer of a weight. Ranges are of the batch that is seen, so that there is no state beside the weights; the INT8 file has those of its
    calibration, which is done again after the training.

    Raises:
        InputError: there is no such layer.
    """
    integers: set[fx.Node] = set()
    rounded: dict[fx.Node, fx.Node] = {}
    found = 0
    for node in list(module.graph.nodes):
        if node.target in _MULTIPLY and node.args[1].op == "get_attr":
            found += 1
            _round(module.graph, node, node.args[:1], rounded)
            weight = node.args[1]
            with module.graph.inserting_before(node):
                node.replace_input_with(weight, module.graph.call_function(round_weight, (weight, largest)))
            if node.target in _CONVOLUTIONS:
                integers.add(node)
        elif node.target in _SUMS and len(node.all_input_nodes) == 2 and integers.issuperset(node.all_input_nodes):
            integers.add(node)
            _round(module.graph, node, node.all_input_nodes, rounded)
        elif node.target in _CARRY and node.args[0] in integers:
            integers.add(node)
    if not found:
        raise InputError("program: expected a convolution or a linear layer, found none; leave quantization-aware out")
    module.recompile()


def _round(graph: fx.Graph, node: fx.Node, inputs: Iterable[fx.Node], rounded: dict[fx.Node, fx.Node]) -> None:
    """Let a node read these inputs rounded; whoever else does reads the same."""
    for source in inputs:
        if source not in rounded:
            with graph.inserting_before(node):
                rounded[source] = graph.call_function(round_activation, (source,))
        node.replace_input_with(source, rounded[source])


def remove(module: fx.GraphModule) -> None:
    """Take out, in place, what `insert` put in: the weights stay as they are, unrounded."""
    for node in list(module.graph.nodes):
        if node.target in (round_weight, round_activation):
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)
    module.recompile()
