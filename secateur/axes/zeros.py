"""Whether units whose weights are all zero still count in what a node computes: a cut is then not the same as a mask."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from torch import fx

from secateur.axes.shape import ELEMENTWISE
from secateur.axes.trace import is_tensor, node_shape

# functions that are not zero at zero
_NOT_ZERO = {
    *(
        "acos",
        "cos",
        "cosh",
        "eq",
        "erfc",
        "exp",
        "exp2",
        "ge",
        "hardsigmoid",
        "le",
        "log",
        "log_sigmoid",
        "logical_not",
    ),
    *("logit", "ones_like", "reciprocal", "rsqrt", "rsub", "sigmoid", "sinc", "softplus", "softmax", "_softmax"),
}
_SUMS = {"add", "sub"}
_PRODUCTS = {"mul", "div"}
# what else is zero where its input is, or has a unit in another place
_CARRIES = set(ELEMENTWISE) | {
    *(
        "bmm",
        "cat",
        "einsum",
        "expand",
        "flatten",
        "matmul",
        "mean",
        "permute",
        "reshape",
        "select",
        "slice",
        "squeeze",
    ),
    *(
        "split_with_sizes",
        "stack",
        "sum",
        "t",
        "transpose",
        "unsqueeze",
        "unflatten",
        "view",
        "_unsafe_view",
        "getitem",
    ),
}


def lingers(node: fx.Node, lingering: Collection[fx.Node]) -> bool:
    """Whether a node has other values than zero for units that have none but zero weights, given which nodes before do."""
    name = getattr(getattr(node.target, "_overloadpacket", node.target), "__name__", "").removesuffix("_")
    sources = [source for source in node.all_input_nodes if source in lingering]
    if name in _NOT_ZERO or (name in _SUMS and any(_is_number(given) for given in node.args)):
        return True
    if name in _PRODUCTS:
        factors = [source for source in node.all_input_nodes if is_tensor(source)]
        wide = [factor for factor in factors if node_shape(factor) == node_shape(node)]
        return bool(sources) and all(factor in lingering for factor in wide)
    return bool(sources) and name in _CARRIES


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float) and given != 0
