"""Puts operators that `run_decompositions` took apart together again: modules are exported as the wholes, and so are rules."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from secateur.axes.trace import arguments, node_shape

_aten = torch.ops.aten
_CONVOLUTIONS: dict[int, Any] = {1: _aten.conv1d.default, 2: _aten.conv2d.default, 3: _aten.conv3d.default}
_TRANSPOSED: dict[int, Any] = {
    1: _aten.conv_transpose1d.default,
    2: _aten.conv_transpose2d.input,
    3: _aten.conv_transpose3d.input,
}
_POOLS: dict[Any, Any] = {
    _aten.max_pool2d_with_indices.default: _aten.max_pool2d.default,
    _aten.max_pool3d_with_indices.default: _aten.max_pool3d.default,
}
_VIEWS = (_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default)
Call = tuple[Any, tuple[Any, ...]]  # an operator and its arguments


def recompose(module: fx.GraphModule) -> None:
    """Rewrite a graph module in place; it computes the same."""
    for node in list(module.graph.nodes):
        whole = _WHOLES.get(node.target, _nothing)(module, node)
        if whole is not None:
            _replace(module.graph, node, *whole)
    for node in list(module.graph.find_nodes(op="call_function", target=_aten.linear.default)):
        _keep_dimensions(module.graph, node)


def _nothing(module: fx.GraphModule, node: fx.Node) -> Call | None:
    return None


def _replace(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    """Of an operator that gave several results only the first is used."""
    several = isinstance(node.meta["val"], (tuple, list))
    with graph.inserting_before(node):
        whole = graph.call_function(target, args)
    whole.meta.update(node.meta)
    if several:
        whole.meta["val"] = node.meta["val"][0]
        for part in list(node.users):
            part.replace_all_uses_with(whole)
            graph.erase_node(part)
    else:
        node.replace_all_uses_with(whole)
    graph.erase_node(node)


def _convolution(module: fx.GraphModule, node: fx.Node) -> Call | None:
    a: Any = arguments(node)
    places = len(node_shape(a.weight)) - 2
    if a.transposed:
        args = (a.input, a.weight, a.bias, a.stride, a.padding, a.output_padding, a.groups, a.dilation)
        return _TRANSPOSED[places], args
    return _CONVOLUTIONS[places], (a.input, a.weight, a.bias, a.stride, a.padding, a.dilation, a.groups)


def _first_alone(node: fx.Node) -> bool:
    return all(user.target is operator.getitem and user.args[1] == 0 for user in node.users)


def _batch_norm(module: fx.GraphModule, node: fx.Node) -> Call | None:
    a: Any = arguments(node)
    if not _first_alone(node):
        return None
    args = (a.input, a.weight, a.bias, a.running_mean, a.running_var, False, a.momentum, a.eps, True)
    return _aten.batch_norm.default, args


def _layer_norm(module: fx.GraphModule, node: fx.Node) -> Call | None:
    a: Any = arguments(node)
    return (
        (_aten.layer_norm.default, (a.input, a.normalized_shape, a.weight, a.bias, a.eps))
        if _first_alone(node)
        else None
    )


def _group_norm(module: fx.GraphModule, node: fx.Node) -> Call | None:
    a: Any = arguments(node)
    return (_aten.group_norm.default, (a.input, a.group, a.weight, a.bias, a.eps)) if _first_alone(node) else None


def _max_pool(module: fx.GraphModule, node: fx.Node) -> Call | None:
    return (_POOLS[node.target], node.args) if _first_alone(node) else None


def _linear(module: fx.GraphModule, node: fx.Node) -> Call | None:
    """`mm` or `addmm` with a stored matrix, turned: x W^T (+ b)."""
    a: Any = arguments(node)
    if node.target is _aten.mm.default:
        weight = _turned(module, a.mat2)
        return None if weight is None else (_aten.linear.default, (a.self, weight))
    weight = _turned(module, a.mat2) if a.alpha == a.beta == 1 and len(node_shape(a.self)) == 1 else None
    return None if weight is None else (_aten.linear.default, (a.mat1, weight, a.self))


def _product(module: fx.GraphModule, node: fx.Node) -> Call | None:
    """`bmm` of operands that were repeated over the batch: a stored matrix that was is that of a linear layer."""
    a: Any = arguments(node)
    stored = a.mat2
    while stored.target in (*_VIEWS, _aten.expand.default):
        if node_shape(stored)[-2:] != node_shape(stored.args[0])[-2:]:
            return None
        stored = stored.args[0]
    weight = _turned(module, stored)
    return None if weight is None else (_aten.linear.default, (a.self, weight))


def _turned(module: fx.GraphModule, node: Any) -> fx.Node | None:
    """The stored matrix that a node is the transpose of."""
    if node.target is _aten.permute.default:
        turned = list(node.args[1]) in ([1, 0], [-1, -2])
    elif node.target is _aten.transpose.int:
        turned = len(node_shape(node.args[0])) == 2 and {d % 2 for d in node.args[1:]} == {0, 1}
    else:
        turned = node.target is _aten.t.default
    source = node.args[0] if turned else None
    return source if source is not None and source.op == "get_attr" else None


def _keep_dimensions(graph: fx.Graph, linear: fx.Node) -> None:
    """A linear layer between two views that flatten the dimensions before the features and restore them needs neither."""
    flat: Any = linear.args[0]
    if flat.target not in _VIEWS or not all(user.target in _VIEWS for user in linear.users):
        return
    source = flat.args[0]
    before, features = node_shape(source)[:-1], node_shape(source)[-1]
    restored = [*before, node_shape(linear)[-1]]
    if node_shape(flat)[-1] != features or any(list(node_shape(user)) != restored for user in linear.users):
        return
    value = next(iter(linear.users)).meta["val"]
    for user in list(linear.users):
        user.replace_all_uses_with(linear)
        graph.erase_node(user)
    linear.replace_input_with(flat, source)
    linear.meta["val"] = value


_WHOLES: dict[Any, Callable[[fx.GraphModule, fx.Node], Call | None]] = {
    _aten.convolution.default: _convolution,
    _aten._native_batch_norm_legit_no_training.default: _batch_norm,
    _aten.native_layer_norm.default: _layer_norm,
    _aten.native_group_norm.default: _group_norm,
    **dict.fromkeys(_POOLS, _max_pool),
    _aten.mm.default: _linear,
    _aten.addmm.default: _linear,
    _aten.bmm.default: _product,
}
