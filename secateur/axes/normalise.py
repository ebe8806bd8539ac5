"""Brings an exported graph into the form that the rules read: no regions, no computed constants, every split spelt out."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from secateur.axes.decompose import decompose_unknown
from secateur.axes.recompose import recompose
from secateur.axes.trace import arguments, node_shape, shape_of

_aten = torch.ops.aten
_RANDOM = torch.Tag.nondeterministic_seeded
_FOLDED = "_folded_"


def normalise(module: fx.GraphModule) -> None:
    """Rewrite a graph module in place; it computes the same."""
    inline_regions(module)
    drop_assertions(module)
    drop_idle_dropout(module)
    decompose_unknown(module)
    recompose(module)
    slice_constant_indices(module)
    fold_constants(module)
    copy_shared_fills(module)
    spell_out_splits(module)
    put_streams_first(module)
    module.recompile()


def inline_regions(module: fx.GraphModule) -> None:
    """Put the body of every no-grad and autocast region in its place, detached where it ran without gradients."""
    regions = {
        torch.ops.higher_order.wrap_with_set_grad_enabled: 1,
        torch.ops.higher_order.wrap_with_autocast: 4,
    }
    for node in list(module.graph.nodes):
        position = regions.get(node.target)
        if position is None:
            continue
        body: Any = node.args[position]
        inner: Any = module.get_submodule(str(body.target))
        places: Any = dict(zip(inner.graph.find_nodes(op="placeholder"), node.args[position + 1 :], strict=True))
        without_gradients = position == 1 and node.args[0] is False
        with module.graph.inserting_before(node):
            results: Any = module.graph.graph_copy(inner.graph, places)
            if without_gradients:
                results = [_detached(module.graph, result) for result in results]
        for user in list(node.users):  # the parts of the region's tuple
            user.replace_all_uses_with(results[user.args[1]])
            module.graph.erase_node(user)
        module.graph.erase_node(node)
        module.graph.erase_node(body)


def _detached(graph: fx.Graph, source: fx.Node) -> fx.Node:
    node = graph.call_function(_aten.detach.default, (source,))
    node.meta.update(source.meta)
    return node


_SPELT_OUT = {
    _aten.chunk.default: _aten.split_with_sizes.default,
    _aten.split.Tensor: _aten.split_with_sizes.default,
    _aten.unsafe_split.Tensor: _aten.unsafe_split_with_sizes.default,  # its parts may be changed in place
}


def spell_out_splits(module: fx.GraphModule) -> None:
    """Replace `chunk` and `split` by `split_with_sizes`, so that every part has a size of its own to rewrite."""
    for node in list(module.graph.nodes):
        if node.target not in _SPELT_OUT:
            continue
        bound = arguments(node)
        axis = bound.dim % len(node_shape(node.args[0]))
        sizes = [shape_of(part)[axis] for part in node.meta["val"]]
        if all(isinstance(size, int) for size in sizes):
            node.target = _SPELT_OUT[node.target]
            node.args = (bound.self, sizes, axis)
            node.kwargs = {}


def slice_constant_indices(module: fx.GraphModule) -> None:
    """Replace `x[..., [3, 4], :]` by the slice that it is, so that what is not taken stays free."""
    for node in list(module.graph.find_nodes(op="call_function", target=_aten.index.Tensor)):
        source, indices = node.args
        given = [(axis, index) for axis, index in enumerate(indices) if index is not None]
        run = _constant_run(module, given[0][1]) if len(given) == 1 else None
        if run is None:
            continue
        axis = given[0][0]
        size = shape_of(source.meta["val"])[axis]
        start, stop = (run.start + size, run.stop + size) if run.start < 0 else (run.start, run.stop)
        node.target, node.args = _aten.slice.Tensor, (source, axis, start, stop)


def _constant_run(module: fx.GraphModule, index: Any) -> range | None:
    """The positions that a list in the source names, where they follow each other."""
    while index.target in (_aten.lift_fresh_copy.default, _aten.detach_.default, _aten.detach.default):
        index = index.args[0]
    if index.op != "get_attr" or "lifted_tensor" not in str(index.target):
        return None
    positions = operator.attrgetter(str(index.target))(module)
    if positions.dim() != 1 or not positions.numel() or positions.dtype == torch.bool:
        return None
    first = int(positions[0])
    run = range(first, first + len(positions))
    return run if positions.tolist() == list(run) and (run.start < 0) == (run.stop <= 0) else None


_FILLS = (_aten.zeros.default, _aten.ones.default, _aten.full.default)


def copy_shared_fills(module: fx.GraphModule) -> None:
    """Give every user of a tensor of one value its own: sharing it says nothing about their sizes."""
    written = _written(module)
    for node in list(module.graph.nodes):
        if node.target in _FILLS and node not in written:
            for user in list(node.users)[1:]:
                with module.graph.inserting_before(node):
                    copied = module.graph.node_copy(node)
                user.replace_input_with(node, copied)


def put_streams_first(module: fx.GraphModule) -> None:
    """Write x + (f(x) + g(x)) as (x + f(x)) + g(x), so that each branch of a parallel block is a residual of its own."""
    adds = (_aten.add.Tensor, _aten.add_.Tensor)
    order = {node: position for position, node in enumerate(module.graph.nodes)}
    for node in [n for n in module.graph.nodes if n.target in adds]:
        for inner, stream in (node.args, node.args[::-1]):
            if not isinstance(inner, fx.Node) or inner.target not in adds or inner.kwargs or node.kwargs:
                continue
            terms = [*inner.args, stream]
            plain = all(isinstance(term, fx.Node) for term in terms) and len(inner.users) == 1
            shapes = {tuple(shape_of(n.meta["val"])) for n in terms} if plain else set()
            if len(shapes) == 1 and all(_depends(term, stream, order) for term in inner.args):
                first, second = inner.args
                with module.graph.inserting_before(node):
                    begun = module.graph.call_function(_aten.add.Tensor, (stream, first))
                    begun.meta.update(inner.meta)
                node.target, node.args = _aten.add.Tensor, (begun, second)
                module.graph.erase_node(inner)
                break


def _depends(node: Any, source: Any, order: dict[fx.Node, int]) -> bool:
    """Whether a node is computed from another."""
    stack, seen = [node], set()
    while stack:
        current = stack.pop()
        if current is source:
            return True
        if current not in seen and order.get(current, 0) > order[source]:
            seen.add(current)
            stack.extend(current.all_input_nodes)
    return False


def drop_assertions(module: fx.GraphModule) -> None:
    """Remove checks of shapes and types: exporting again makes new ones, and they would keep dead code alive."""
    for node in list(module.graph.nodes):
        if node.target in (_aten._assert_tensor_metadata.default, _aten._assert_scalar.default) and not node.users:
            module.graph.erase_node(node)


def drop_idle_dropout(module: fx.GraphModule) -> None:
    """Remove dropout of nothing, which would stand between the terms of a sum."""
    for node in list(module.graph.nodes):
        if node.target in (_aten.dropout.default, _aten.dropout_.default) and node.args[1] == 0:
            node.replace_all_uses_with(node.args[0])
            module.graph.erase_node(node)


def remove_dead_code(graph: fx.Graph) -> None:
    """Remove nodes whose result nobody uses, dropout included, but for those that write what is read after them."""
    order = {node: position for position, node in enumerate(graph.nodes)}

    def kept(node: fx.Node) -> bool:
        return node.op in ("placeholder", "output") or (_writes(node) and is_read_after(node, order))

    graph.eliminate_dead_code(kept)


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _root(node: Any) -> fx.Node:
    """The node whose memory a node shows, as a view of it or of one part of it."""
    while node.target is operator.getitem or _is_view(node):
        node = node.args[0]
    return node


def _is_view(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return False
    returned = node.target._schema.returns
    return bool(returned) and returned[0].alias_info is not None and isinstance(node.args[0], fx.Node)


def is_read_after(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    """Whether what a node writes to is stored in the module, or read later by another name."""
    root = _root(node.args[0])
    stack = [root]
    while stack:
        for user in stack.pop().users:
            if user is not node and order[user] > order[node]:
                return True
            if user.target is operator.getitem or _is_view(user):
                stack.append(user)
    return root.op == "get_attr"


def _written(module: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose memory is written to later."""
    return {_root(node.args[0]) for node in module.graph.nodes if _writes(node)}


def fold_constants(module: fx.GraphModule) -> None:
    """Turn what the graph computes from nothing but constants (attention slopes, tables) into buffers.

    A buffer has a layout like any weight and can be cut; a chain of `arange` and `pow` cannot. Only floating-point
    results of static size are stored: positions and masks stay computed.
    """
    constant: set[fx.Node] = set()
    written = _written(module)
    for node in module.graph.nodes:
        if node.op != "output" and _root(node) in written:
            continue
        if node.op == "get_attr":
            tensor = operator.attrgetter(str(node.target))(module)
            plain = isinstance(tensor, torch.Tensor) and not isinstance(tensor, torch.nn.Parameter)
            if plain and "lifted_tensor" in str(node.target):
                constant.add(node)
        elif _is_foldable(node) and all(source in constant for source in node.all_input_nodes):
            constant.add(node)
    values = _evaluate(module, constant)
    for count, node in enumerate(n for n in values if any(user not in constant for user in n.users)):
        name = f"{_FOLDED}{count}"
        module.register_buffer(name, values[node])
        with module.graph.inserting_before(node):
            stored = module.graph.get_attr(name)
        stored.meta.update(node.meta)
        node.replace_all_uses_with(stored)
    remove_dead_code(module.graph)


def _is_foldable(node: fx.Node) -> bool:
    value = node.meta.get("val")
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return False
    fixed = isinstance(value, torch.Tensor) and all(isinstance(size, int) for size in value.shape)
    return fixed and not node.target._schema.is_mutable and _RANDOM not in node.target.tags


def _evaluate(module: fx.GraphModule, constant: set[fx.Node]) -> dict[fx.Node, torch.Tensor]:
    """The values of constant floating-point nodes that have at least one dimension."""
    everything: dict[fx.Node, torch.Tensor] = {}
    for node in module.graph.nodes:
        if node not in constant:
            continue
        if node.op == "get_attr":
            everything[node] = operator.attrgetter(str(node.target))(module)
        else:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: everything[n])
            everything[node] = node.target(*args, **kwargs)
    return {n: v for n, v in everything.items() if n.op != "get_attr" and v.is_floating_point() and v.dim()}
