"""Writes operators that no rule knows by the ones that torch itself makes them of."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._guards import detect_fake_mode
from torch.fx.experimental.proxy_tensor import make_fx

from secateur.axes.trace import RULES


def decompose_unknown(module: fx.GraphModule) -> None:
    """Rewrite a graph module in place; it computes the same."""
    for node in list(module.graph.nodes):
        if _is_unknown_composite(node):
            written = _written_out(node)
            if written is not None:
                _inline(module.graph, node, written)


def _is_unknown_composite(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.namespace != "aten":
        return False
    name = node.target._overloadpacket.__name__
    known = name in RULES or name.removesuffix("_") in RULES
    return not known and torch._C._dispatch_has_kernel_for_dispatch_key(node.target.name(), "CompositeImplicitAutograd")


def _written_out(node: fx.Node) -> fx.GraphModule | None:
    """The operator as a graph of its own, whose inputs are the node's; None where torch cannot trace it or it stores tensors."""
    sources = node.all_input_nodes
    target: Any = node.target

    def call(*values: Any) -> Any:
        given = dict(zip(sources, values, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), given.__getitem__)
        return target(*args, **kwargs)

    values = [source.meta["val"] for source in sources]
    mode = detect_fake_mode(values)
    if mode is None:
        return None
    with mode, torch.no_grad():
        try:
            written = make_fx(call)(*values)
        except Exception:  # whatever torch raises: the operator then stays one without a rule
            return None
        for inner in written.graph.nodes:
            if inner.op == "call_function" and "val" not in inner.meta:  # one that gives several results
                args, kwargs = fx.node.map_arg((inner.args, inner.kwargs), lambda n: n.meta["val"])
                inner.meta["val"] = inner.target(*args, **kwargs)
    return None if written.graph.find_nodes(op="get_attr") else written


def _inline(graph: fx.Graph, node: fx.Node, written: fx.GraphModule) -> None:
    copies = dict(zip(written.graph.find_nodes(op="placeholder"), node.all_input_nodes, strict=True))
    with graph.inserting_before(node):
        for inner in written.graph.nodes:
            if inner.op == "call_function":
                copies[inner] = graph.node_copy(inner, copies.__getitem__)
                copies[inner].meta = node.meta | {"val": inner.meta["val"]}
    (output,) = written.graph.find_nodes(op="output")
    results: Any = fx.node.map_arg(output.args[0], copies.__getitem__)
    if isinstance(results, fx.Node):
        node.replace_all_uses_with(results)
    for user in list(node.users):  # the parts of several results
        user.replace_all_uses_with(results[user.args[1]])
        graph.erase_node(user)
    graph.erase_node(node)
