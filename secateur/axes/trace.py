"""What the rules of the operators write down while they walk an exported graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import fx

from secateur.axes.terms import Size, Term, freeze, fresh

Dims = tuple[Term, ...]


class Rewrite(NamedTuple):
    """An integer that the graph holds as a constant and follows a layout: `node.argument[position] = size(term) + offset`."""

    node: fx.Node
    argument: str
    position: int | None
    term: Term
    offset: int = 0


class Contraction(NamedTuple):
    """Multiply-accumulates of a node: the product of the sizes of its terms."""

    node: fx.Node
    terms: Dims


class Contest(NamedTuple):
    """An operator that lets the units of a dimension compete, of which it needs at least `minimum`."""

    term: Term
    reason: str
    minimum: int


class Role(NamedTuple):
    """What an operator uses a dimension as."""

    term: Term
    name: str


@dataclass
class Trace:
    """Layouts found so far, and the notes that the cut and the report need later."""

    layouts: dict[fx.Node, Any] = field(default_factory=dict)  # Dims, or a list of Dims for a node with several outputs
    rewrites: list[Rewrite] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)
    normalised: list[Term] = field(default_factory=list)
    contests: list[Contest] = field(default_factory=list)
    positions: dict[fx.Node, Any] = field(default_factory=dict)  # what integers point at: a term, or a list of them
    computed: set[fx.Node] = field(default_factory=set)  # nodes that depend on an input, not on parameters alone
    lingering: set[fx.Node] = field(default_factory=set)  # nodes in which units without weights still count

    def dims(self, node: fx.Node) -> Dims:
        """The layout of a node with one tensor output."""
        return self.layouts[node]

    def rewrite(self, node: fx.Node, argument: str, term: Term, index: int | None = None, offset: int = 0) -> None:
        """Note that an integer argument is the size of `term`, plus an offset."""
        self.rewrites.append(Rewrite(node, argument, index, term, offset))

    def compete(self, node: fx.Node, term: Term, minimum: int = 1) -> None:
        """Note that removing a unit changes what the others get: right for experts, who take over, for nothing else."""
        name = node.target._overloadpacket.__name__.lstrip("_")  # type: ignore[union-attr]
        self.contests.append(Contest(term, f"{name} runs over it", minimum))

    def contract(self, node: fx.Node, terms: Sequence[Term]) -> None:
        """Note the multiply-accumulates of a node."""
        self.contractions.append(Contraction(node, tuple(terms)))

    def role(self, name: str, *terms: Term) -> None:
        """Note what dimensions are used as."""
        self.roles.extend(Role(term, name) for term in terms)


Rule = Callable[[Trace, fx.Node, SimpleNamespace], Any]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by name without overload: ATen's plain, others as `library::operator`.

    `add` also covers the in-place `add_`.
    """

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def shape_of(value: Any) -> list[Size]:
    """The sizes of a tensor in the graph: integers, or symbolic expressions for dynamic dimensions."""
    sizes: list[Size] = []
    for size in value.shape:
        expression = size.node.expr if isinstance(size, torch.SymInt) else size
        sizes.append(int(expression) if getattr(expression, "is_Integer", True) else expression)
    return sizes


def node_shape(node: fx.Node) -> list[Size]:
    """The sizes of the tensor that a node makes."""
    return shape_of(node.meta["val"])


def is_tensor(argument: Any) -> bool:
    """Whether an argument of a node is another node that makes one tensor."""
    return isinstance(argument, fx.Node) and isinstance(argument.meta.get("val"), torch.Tensor)


def arguments(node: fx.Node) -> SimpleNamespace:
    """The arguments of an ATen call by the names of its schema, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    bound = {}
    for position, argument in enumerate(schema.arguments):
        given = (
            node.args[position] if position < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        )
        bound[argument.name] = given
    return SimpleNamespace(**bound)


def frozen_dims(sizes: Sequence[Size], reason: str) -> Dims:
    """New axes that are never cut."""
    return tuple(fresh(size, reason) for size in sizes)


def freeze_inputs(trace: Trace, node: fx.Node, reason: str) -> Any:
    """The rule of last resort: nothing that goes into the node is ever cut, what comes out is frozen too."""
    for source in node.all_input_nodes:
        layouts = trace.layouts.get(source, ())
        for dims in layouts if isinstance(layouts, list) else [layouts]:
            for term in dims:
                freeze(term, reason)
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        return frozen_dims(shape_of(value), reason)
    if isinstance(value, list | tuple):
        return [frozen_dims(shape_of(v), reason) if isinstance(v, torch.Tensor) else () for v in value]
    return ()
