"""Rules of operators that look positions up, or write to them: embeddings, indices, gathering and scattering."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import fx

from secateur.axes.shape import MADE, SPATIAL, broadcast
from secateur.axes.terms import (
    freeze,
    fresh,
    product,
    size_of,
    unify,
)
from secateur.axes.trace import (
    Dims,
    Trace,
    freeze_inputs,
    frozen_dims,
    is_tensor,
    node_shape,
    rule,
    shape_of,
)


@rule("embedding")
def embedding(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    vocabulary, width = trace.dims(a.weight)
    freeze(vocabulary, "is looked up by index")
    trace.role("embedding", width)
    return (*trace.dims(a.indices), width)


@rule("embedding_bag")
def embedding_bag(trace: Trace, node: fx.Node, a: SimpleNamespace) -> list[Dims]:
    """A sum, mean or maximum of embeddings for each bag, and what only its gradient needs."""
    vocabulary, width = trace.dims(a.weight)
    freeze(vocabulary, "is looked up by index")
    trace.role("embedding", width)
    bags, *others = (shape_of(value) for value in node.meta["val"])
    return [(*frozen_dims(bags[:-1], MADE), width), *(frozen_dims(sizes, MADE) for sizes in others)]


@rule("index_select")
def index_select(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    dims = list(trace.dims(a.self))
    freeze(dims[a.dim], "is looked up by index")
    dims[a.dim] = fresh(node_shape(node)[a.dim], MADE)
    return tuple(dims)


@rule("index")
def index(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    """Advanced indexing: indexed dimensions are replaced by the broadcast index, in place if adjacent, else in front."""
    dims, sizes = list(trace.dims(a.self)), node_shape(node)
    indexed = [i for i, x in enumerate(a.indices) if x is not None]
    for i in indexed:
        freeze(dims[i], "is looked up by index")
    if any("bool" in str(a.indices[i].meta["val"].dtype) for i in indexed):
        return freeze_inputs(trace, node, "is looked up by a mask")
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    before = [d for i, d in enumerate(dims) if i not in indexed and adjacent and i < indexed[0]]
    after = [d for i, d in enumerate(dims) if i not in indexed and not (adjacent and i < indexed[0])]
    width = len(sizes) - len(before) - len(after)
    return (*before, *frozen_dims(sizes[len(before) : len(before) + width], MADE), *after)


@rule("gather")
def gather(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    """Positions of one dimension are looked up; along every other one, input and index go side by side."""
    dims, index = trace.dims(a.self), trace.dims(a.index)
    for position, (term, other) in enumerate(zip(dims, index, strict=True)):
        if position == a.dim % len(dims):
            freeze(term, "is looked up by index")
        else:  # an index that is shorter takes the first positions: unifying other sizes freezes both
            unify(term, other)
    return index


@rule("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy")
def scatter(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims | Any:
    """Positions of one dimension are written; along every other one, all tensors go side by side."""
    dims = trace.dims(a.self)
    axis = a.dim % max(len(dims), 1)
    freeze(dims[axis], "is written by index")
    others = [trace.dims(n) for n in node.all_input_nodes if is_tensor(n) and n is not a.self]
    for other in others:
        if len(other) == len(dims):  # those of `index_add` and `index_copy` have one dimension
            freeze(other[axis], "is written by index")
            for position, (term, given) in enumerate(zip(dims, other, strict=True)):
                if position != axis:  # shorter ones take the first positions: unifying other sizes freezes both
                    unify(term, given)
    return dims


@rule("index_put")
def index_put(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims | Any:
    """Rows named by one index, or chosen by a mask, are replaced or added to; what lies in a row goes side by side."""
    dims, values = trace.dims(a.self), trace.dims(a.values)
    given = [position for position, index in enumerate(a.indices) if index is not None]
    if given != [0]:
        return freeze_inputs(trace, node, "is written by index")
    covered = len(node_shape(a.indices[0])) if "bool" in str(a.indices[0].meta["val"].dtype) else 1
    for term in (*dims[:covered], *trace.dims(a.indices[0])):
        freeze(term, "is written by index")
    inner = dims[covered:]
    if size_of(product(values)) != 1:
        broadcast([inner, values[max(len(values) - len(inner), 0) :]], len(inner))
        for term in values[: max(len(values) - len(inner), 0)]:
            freeze(term, "is written by index")
    return dims


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    """Each channel is sampled at the same computed positions."""
    dims, sizes = trace.dims(a.input), node_shape(node)
    for term in (*dims[2:], *trace.dims(a.grid)[1:]):
        freeze(term, SPATIAL)
    unify(dims[0], trace.dims(a.grid)[0])
    return (*dims[:2], *frozen_dims(sizes[2:], SPATIAL))
