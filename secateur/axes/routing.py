"""Rules of mixtures of experts: a router scores the experts, the best few take each row, rows are sorted by expert."""

from __future__ import annotations

import operator
from types import SimpleNamespace
from typing import Any

from torch import fx

from secateur.axes.shape import MADE
from secateur.axes.terms import Term, freeze, fresh, size_of, unify
from secateur.axes.trace import Dims, Trace, freeze_inputs, frozen_dims, rule, shape_of

# operators that hand integers on as they are
_PASSES_ON = {"reshape", "view", "_unsafe_view", "flatten", "unsqueeze", "squeeze", "to", "_to_copy", "clone", "detach"}
_EXPLAINED = {"sort", "histc"}


def carry_positions(trace: Trace, node: fx.Node) -> None:
    """Let a node that only reshapes or picks integers point at what its input points at.

    Whatever else reads such integers (a comparison with an expert's number, a graph output) would go wrong when the units
    are counted anew: what they point at is frozen.
    """
    for source in node.all_input_nodes:
        pointed = trace.positions.get(source)
        name = getattr(getattr(node.target, "_overloadpacket", None), "__name__", str(node.target))
        if node.target is operator.getitem and isinstance(pointed, list):
            trace.positions[node] = pointed[node.args[1]]  # type: ignore[index]
        elif pointed is not None and name in _PASSES_ON:
            trace.positions[node] = pointed
        elif pointed is not None and name not in _EXPLAINED:
            freeze(pointed, f"is numbered, and {name} reads the numbers")


@rule("topk")
def topk(trace: Trace, node: fx.Node, a: SimpleNamespace) -> list[Dims]:
    """The values and the positions of the k best along a dimension."""
    dims = list(trace.dims(a.self))
    contested = dims[a.dim]
    trace.compete(node, contested, minimum=a.k)
    trace.positions[node] = [None, contested]
    dims[a.dim] = fresh(a.k, MADE)
    return [tuple(dims)] * 2


@rule("sort")
def sort(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Any:
    """Rows sorted by the expert that they go to; what else is sorted is frozen."""
    if trace.positions.get(a.self) is None:
        return freeze_inputs(trace, node, "meets sort, which no rule explains")
    trace.positions[node] = [trace.positions[a.self], None]
    return [frozen_dims(shape_of(value), MADE) for value in node.meta["val"]]


@rule("histc")
def histc(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Any:
    """How many rows each expert gets: a bin for each."""
    experts: Term | None = trace.positions.get(a.self)
    if experts is None or (a.bins, a.min, a.max) != (size_of(experts), 0, size_of(experts) - 1):
        return freeze_inputs(trace, node, "meets histc, which no rule explains")
    trace.rewrite(node, "bins", experts)
    trace.rewrite(node, "max", experts, offset=-1)
    return (experts,)


@rule("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_matmul(trace: Trace, node: fx.Node, a: SimpleNamespace) -> Dims:
    """Rows sorted by expert, each multiplied with its expert's matrix; the experts' inner widths are shared."""
    rows, experts, offsets = (trace.dims(n) for n in node.args[:3])  # type: ignore[arg-type]
    unify(experts[0], offsets[0])
    unify(rows[-1], experts[-2])
    trace.role("expert", experts[0])
    trace.role("width", rows[-1], experts[-1])
    trace.contract(node, (*rows[:-1], rows[-1], experts[-1]))
    return (*rows[:-1], experts[-1])
