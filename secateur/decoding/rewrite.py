"""Writes the graph of a causal language model again for the last position alone, its keys and values from a cache.

What depends on the ids is position by position, but for attention: of all of it only the last position is computed, and keys
and values of the positions before come from outside. What depends on sizes alone (positions, rotary tables, masks) is what
it is for the whole length, of which rows are taken.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch
from torch import fx

from secateur.axes.normalise import is_read_after
from secateur.axes.terms import Size
from secateur.axes.trace import node_shape
from secateur.decoding import rules
from secateur.decoding.rules import WHOLE, Hand, Last, Unexplained, has
from secateur.errors import InputError

_aten = torch.ops.aten
PASSED = "past_"  # what the inputs for keys and values are called, by their number


@dataclass(frozen=True)
class Model:
    """A graph that is normalised, and what is known of it before it is written again."""

    module: fx.GraphModule
    ids: fx.Node  # [batch, length]
    logits: fx.Node  # [batch, length, words]
    batch: sympy.Symbol
    length: sympy.Symbol
    computed: frozenset[fx.Node]  # what depends on the ids' values


@dataclass(frozen=True)
class Plan:
    """How each node is made, for each way that it is wanted in: `by rule`, `narrowed`, `grown` or `copied`."""

    ways: dict[fx.Node, dict[Last, str]] = field(default_factory=dict)
    caches: dict[fx.Node, int] = field(default_factory=dict)  # keys and values, with the dimension of their positions
    passing: set[fx.Node] = field(default_factory=set)  # copies of what is in the cache


def plan_of_step(model: Model) -> Plan:
    """How the logits of the last position follow from its id and a cache; finds what is in that.

    Raises:
        InputError: an operator that no rule explains, with its node.
    """
    plan = _planned(model, Plan(), {model.logits: {_along(model, model.logits): None}}, growing=True)
    return replace(plan, caches={node: plan.caches[node] for node in model.module.graph.nodes if node in plan.caches})


def plan_of_prompt(model: Model, caches: dict[fx.Node, int]) -> Plan:
    """How the logits of the last position, and what the cache holds of all, follow from all ids."""
    wanted: dict[fx.Node, dict[Last, None]] = {node: {WHOLE: None} for node in (model.ids, *caches)}
    wanted.setdefault(model.logits, {})[_along(model, model.logits)] = None
    return _planned(model, Plan(caches=dict(caches)), wanted, growing=False)


def _along(model: Model, node: fx.Node) -> Last:
    return frozenset(i for i, size in enumerate(rules.shape_of_first(node)) if has(size, model.length))


def _planned(model: Model, plan: Plan, wanted: dict[fx.Node, dict[Last, None]], *, growing: bool) -> Plan:
    """From the end to the start: when a node's turn comes, all that is wanted of it is known."""
    for node in reversed(model.module.graph.nodes):
        pending = list(wanted.get(node, ()))
        for last in pending:
            way, takes = _way(model, plan, node, last, WHOLE in pending, growing)
            plan.ways.setdefault(node, {})[last] = way
            for source, of_it in takes:
                if source is node and of_it not in pending:
                    pending.append(of_it)
                wanted.setdefault(source, {})[of_it] = None
    return plan


def _way(
    model: Model, plan: Plan, node: fx.Node, last: Last, whole_too: bool, growing: bool
) -> tuple[str, list[tuple[fx.Node, Last]]]:
    """How a node is made, and what of others that takes."""
    if node.op in ("placeholder", "get_attr") and not (last and whole_too):
        return _source(model, node, last, growing), []
    cached = growing and node in model.computed
    if last and whole_too and not cached and _is_narrowable(model, node, last):
        return "narrowed", [(node, WHOLE)]
    if not last and cached and node in plan.caches:
        return "grown", [(node, frozenset({plan.caches[node]}))]
    passes = not cached or node in plan.passing
    if not last and not passes and _along(model, node):
        raise _refusal(node, "is wanted at all positions, which no cache holds")
    try:
        return _copied(model, node) if not last and passes and not _is_filled(node) else _ruled(model, plan, node, last)
    except Unexplained as reason:
        if node not in model.computed and _is_narrowable(model, node, last):
            return "narrowed", [(node, WHOLE)]
        raise _refusal(node, str(reason)) from reason


def _source(model: Model, node: fx.Node, last: Last, growing: bool) -> str:
    if growing and node is model.ids and not last:
        raise _refusal(node, "is wanted at all positions, which no cache holds")
    return "given"


def _refusal(node: fx.Node, reason: str) -> InputError:
    path = next(reversed(node.meta.get("nn_module_stack", {}).values()), ("",))[0]
    where = f" in {path}" if path else ""
    return InputError(
        f"program: expected a causal language model whose operators, but for attention, take each position alone; {node.name} "
        f"({node.target}){where} {reason}; write it otherwise, or add its rule to secateur/decoding/rules.py"
    )


def _is_filled(node: fx.Node) -> bool:
    return rules.rule_of(node) is rules.filled


def _is_narrowable(model: Model, node: fx.Node, last: Last) -> bool:
    """Whether the last position can be taken from what is there as a whole."""
    sizes = rules.shape_of_first(node)
    return bool(last) and isinstance(node.meta["val"], torch.Tensor) and all(sizes[i] == model.length for i in last)


def _ruled(model: Model, plan: Plan, node: fx.Node, last: Last) -> tuple[str, list[tuple[fx.Node, Last]]]:
    apply = rules.rule_of(node)
    if apply is None:
        raise Unexplained("has no rule")
    _check_write(model, node)
    takes: list[tuple[fx.Node, Last]] = []
    held: list[fx.Node] = []

    def hold(source: fx.Node) -> None:
        held.append(source)
        takes.append((source, WHOLE))

    hand = Hand(
        model.length,
        lambda *taken: takes.append(taken),
        hold,
        lambda size, _: _known(model, size),
        lambda *_, **__: None,
    )
    apply(hand, node, rules.bound(node), last)
    for source in held:
        if source in model.computed:
            _put_in_cache(model, plan, source)
    return "by rule", takes


def _copied(model: Model, node: fx.Node) -> tuple[str, list[tuple[fx.Node, Last]]]:
    """The node as it is, sizes and all."""
    _check_write(model, node)
    for source in node.all_input_nodes:
        if not rules.has_tensor(source):
            _known(model, rules.number(source))
    return "copied", [(source, WHOLE) for source in node.all_input_nodes if rules.has_tensor(source)]


def _check_write(model: Model, node: fx.Node) -> None:
    """What is written in place may be read by nobody else: the operator that gives a new tensor then says the same."""
    schema = getattr(node.target, "_schema", None)
    if schema is not None and schema.is_mutable:
        order = {one: position for position, one in enumerate(model.module.graph.nodes)}
        if is_read_after(node, order):
            raise Unexplained("writes in place what is read later")


def _known(model: Model, size: Size) -> int:
    """A size that follows from batch and length; when planning any number will do."""
    _value(size, {model.batch: 1, model.length: 1}, lambda function, *numbers: function(*numbers))
    return 1


def _value(size: Size, symbols: dict[sympy.Symbol, Any], compute: Callable[..., Any]) -> Any:
    """A size from its symbols, by sums and products."""
    if not isinstance(size, sympy.Expr) or size.is_Integer:
        return int(size)
    if size in symbols:
        return symbols[size]
    functions = {sympy.Add: operator.add, sympy.Mul: operator.mul}
    if size.func not in functions:
        raise Unexplained(f"has a size of {size}, which is no sum or product of batch and length")
    parts = [_value(part, symbols, compute) for part in size.args]
    return functools.reduce(lambda a, b: compute(functions[size.func], a, b), parts)


def _put_in_cache(model: Model, plan: Plan, held: fx.Node) -> None:
    """Of keys or values, and what they are copies of (groups repeated, dimensions exchanged), the smallest is kept."""
    chain = [held]
    while (source := rules.copied_from(chain[-1])) is not None and source in model.computed:
        chain.append(source)
    fit = [node for node in chain if _fits(model, node)]
    if not fit:
        sizes = node_shape(held)
        raise Unexplained(
            f"has keys or values of sizes {sizes}, expected batch, one dimension of positions and known ones"
        )
    kept = min(fit, key=lambda node: (rules.elements(node_shape(node)), *_unlike(model, chain, node)))
    plan.caches.setdefault(kept, node_shape(kept).index(model.length))
    plan.passing.update(chain[: chain.index(kept)])


def _unlike(model: Model, chain: list[fx.Node], node: fx.Node) -> tuple[int, int, int]:
    """What speaks against a tensor among equals: its positions are next to each other in memory one by one, the whole cache
    would be turned at each step, dimensions of one."""
    turned = sum(rules.rule_of(one) is rules.permuted for one in chain[: chain.index(node)])
    return int(node_shape(node)[-1] == model.length), turned, node_shape(node).count(1)


def _fits(model: Model, node: fx.Node) -> bool:
    batch, *others = node_shape(node)
    known = sum(isinstance(size, int) for size in others)
    return batch == model.batch and others.count(model.length) == 1 and known == len(others) - 1


def step(model: Model, plan: Plan) -> fx.GraphModule:
    """ids [batch, 1] and what is cached [.., past, ..] -> logits [batch, 1, words] and what is cached of one position more."""
    graph = fx.Graph()
    ids = graph.placeholder("ids")
    past = {node: graph.placeholder(f"{PASSED}{number}") for number, node in enumerate(plan.caches)}
    first, axis = next(iter(past.values())), next(iter(plan.caches.values()))
    before = graph.call_function(_aten.sym_size.int, (first, axis))
    length = graph.call_function(operator.add, (before, 1))
    return _written(model, plan, graph, ids, length, past)


def prompt(model: Model, plan: Plan) -> fx.GraphModule:
    """ids [batch, length] -> logits of the last position [batch, 1, words] and what is cached [.., length, ..]."""
    graph = fx.Graph()
    ids = graph.placeholder("ids")
    length = graph.call_function(_aten.sym_size.int, (ids, 1))
    return _written(model, plan, graph, ids, length, {})


def _written(
    model: Model, plan: Plan, graph: fx.Graph, ids: fx.Node, length: fx.Node, past: dict[fx.Node, fx.Node]
) -> fx.GraphModule:
    symbols = {model.batch: graph.call_function(_aten.sym_size.int, (ids, 0)), model.length: length}
    made: dict[tuple[fx.Node, Last], fx.Node] = {}
    compute = functools.cache(lambda function, *numbers: graph.call_function(function, numbers))

    def size(of: Size, last: bool) -> Any:
        return _value(of, symbols | ({model.length: 1} if last else {}), compute)

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return graph.call_function(target, args, {name: value for name, value in kwargs.items() if value is not None})

    hand = Hand(model.length, lambda node, last: made[node, last], lambda node: made[node, WHOLE], size, call)

    def narrow(node: fx.Node, last: Last) -> fx.Node:
        narrowed = made[node, WHOLE]
        for dim in sorted(last):
            narrowed = call(_aten.slice.Tensor, narrowed, dim, size(model.length - 1, False), size(model.length, False))
        return narrowed

    def copy(node: fx.Node, last: Last) -> fx.Node:
        args, kwargs = hand.given((node.args, dict(node.kwargs)), lambda source: made[source, WHOLE])
        return graph.call_function(rules.pure(node.target), args, kwargs)

    ways: dict[str, Callable[[fx.Node, Last], fx.Node]] = {
        "given": lambda node, last: ids if node is model.ids else graph.get_attr(str(node.target)),
        "by rule": lambda node, last: rules.rule_of(node)(hand, node, rules.bound(node), last),  # type: ignore[misc]
        "narrowed": narrow,
        "copied": copy,
        "grown": lambda node, last: call(
            _aten.cat.default, [past[node], made[node, frozenset({plan.caches[node]})]], plan.caches[node]
        ),
    }
    for node in model.module.graph.nodes:
        # what is made of another way of the same node, behind that
        for last, way in sorted(plan.ways.get(node, {}).items(), key=lambda one: one[1] in ("narrowed", "grown")):
            made[node, last] = ways[way](node, last)
    answer = made[model.logits, _along(model, model.logits)]
    graph.output((answer, *(made[node, WHOLE] for node in plan.caches)))
    return fx.GraphModule(model.module, graph)
