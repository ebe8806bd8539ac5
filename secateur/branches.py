"""Depth: residual branches and repeated layers that can be removed whole, found from the graph alone, and what goes with them."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import fx

from secateur.axes.infer import AxisInfo, Structure
from secateur.axes.normalise import remove_dead_code
from secateur.axes.terms import Axis, resolve
from secateur.errors import InputError

KINDS = ("attention", "mlp", "block", "layer")

_ADD = {torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor}
_PRODUCTS = {"matmul", "bmm", "baddbmm"}
_CONVOLVES = ("conv", "convolution")


@dataclass(frozen=True)
class Branch:
    """Everything between `entry` and `exit`; removing it lets `exit` be `entry`. `kind`: attention, mlp, block, layer."""

    name: str
    kind: str
    entry: fx.Node
    exit: fx.Node
    tensors: tuple[str, ...]  # parameters and buffers that nothing else uses
    parameters: int


@dataclass(frozen=True)
class Droppable:
    """A branch as an allocation weighs it: `info` is an axis of one unit, at width 0 the branch is gone.

    `nodes` go with it, and every unit of the axes `inside`: those that can be cut and that no other tensor carries.
    """

    info: AxisInfo
    branch: Branch
    nodes: frozenset[fx.Node]
    inside: tuple[AxisInfo, ...]


def find(module: fx.GraphModule, structure: Structure) -> tuple[Branch, ...]:
    """The residual branches y = x + f(x), and the repeated layers whose input and output have the same layout.

    A branch sees earlier computation through x alone, except for what does not come from x (masks, position tables);
    what it shares with the rest of the graph stays.
    """
    order = {node: position for position, node in enumerate(module.graph.nodes)}
    residuals = _residuals(module, structure, order)
    single = {branch.tensors for branch in residuals}  # a layer of one branch is that branch
    found = [*residuals, *(layer for layer in _layers(module, structure, order) if layer.tensors not in single)]
    return _distinct(sorted(found, key=lambda branch: (order[branch.exit], branch.kind == "layer")))


def _distinct(found: Iterable[Branch]) -> tuple[Branch, ...]:
    """The branches, those of one kind at one path numbered: self-attention and cross-attention of a decoder layer."""
    seen: Counter[tuple[str, str]] = Counter()
    named = []
    for branch in found:
        seen[branch.kind, branch.name] += 1
        count = seen[branch.kind, branch.name]
        named.append(replace(branch, name=f"{branch.name}:{count}") if count > 1 else branch)
    return tuple(named)


def innermost(found: Sequence[Branch]) -> list[Branch]:
    """Of branches of one kind those that hold no other: a stage of blocks gives way to its blocks."""
    return [b for b in found if not any(o is not b and o.name.startswith(b.name + ".") for o in found)]


def droppable(module: fx.GraphModule, structure: Structure, kinds: Collection[str]) -> list[Droppable]:
    """The branches of these kinds that can be weighed against units: those with axes of their own, by which they score.

    Raises:
        InputError: a branch of one kind holds one of another.
    """
    found = find(module, structure)
    made = []
    for branch in (b for kind in KINDS if kind in kinds for b in innermost([b for b in found if b.kind == kind])):
        nodes = gone(module, [branch])
        rest = without(structure, nodes)
        inside = held_by(structure, rest)
        if inside and not set(branch.tensors) & _read(rest):
            name = f"{branch.name}:{branch.kind}"
            info = AxisInfo(name, branch.kind, Axis(1), 1, (), normalised=False, frozen=None, minimum=0)
            made.append(Droppable(info, branch, nodes, inside))
    for one, other in combinations(made, 2):
        if one.nodes & other.nodes:
            outer, inner = sorted((one, other), key=lambda each: -len(each.nodes))
            raise InputError(
                f"kinds: expected branches that lie beside each other, {outer.info.name} holds {inner.info.name}; ask for "
                f"{outer.info.kind} or for {inner.info.kind}"
            )
    return made


def without(structure: Structure, nodes: Collection[fx.Node]) -> Structure:
    """What is left of a structure, its counts among it, when these nodes go and the tensors that only they read."""
    trace = structure.trace
    layouts = {node: layout for node, layout in trace.layouts.items() if node not in nodes}
    contractions = [contraction for contraction in trace.contractions if contraction.node not in nodes]
    left = replace(structure, trace=replace(trace, layouts=layouts, contractions=contractions))
    read = _read(left)
    tensors = {
        name: dims
        for name, dims in structure.tensors.items()
        if not read.isdisjoint((name, *structure.aliases.get(name, ())))
    }
    axes = tuple(info for info in structure.axes if any(name in tensors for name, _ in info.members))
    return replace(left, axes=axes, tensors=tensors, parameters=structure.parameters & tensors.keys())


def held_by(whole: Structure, left: Structure) -> tuple[AxisInfo, ...]:
    """The axes that can be cut and that are gone from what is left of a structure."""
    stays = {info.axis for info in left.axes}
    return tuple(info for info in whole.prunable if info.axis not in stays)


def _read(structure: Structure) -> set[str]:
    """The names under which a graph reads its tensors."""
    return {str(node.target) for node in structure.trace.layouts if node.op == "get_attr"}


def gone(module: fx.GraphModule, branches: Iterable[Branch]) -> frozenset[fx.Node]:
    """The nodes that dropping branches together would remove: what several share goes with the last of them."""
    bridges = [(branch.entry, branch.exit) for branch in branches]
    return frozenset(_left(module.graph, ()) - _left(module.graph, bridges))


def _left(graph: fx.Graph, bridges: Sequence[tuple[fx.Node, fx.Node]]) -> set[fx.Node]:
    """The nodes of a graph that would be left, seen on a copy."""
    copy = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    copy.output(copy.graph_copy(graph, copied))
    _bridge(copy, [(copied[entry], copied[exit_]) for entry, exit_ in bridges])
    still = set(copy.nodes)
    return {node for node, twin in copied.items() if twin in still}


def _bridge(graph: fx.Graph, bridges: Sequence[tuple[fx.Node, fx.Node]]) -> None:
    """Let each exit be its entry, in place, and remove what nothing reads any more."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    # the last first: the entry of a branch may be the exit of the one before, which has to go as well
    for entry, exit_ in sorted(bridges, key=lambda bridge: order[bridge[1]], reverse=True):
        exit_.replace_all_uses_with(entry)
        graph.erase_node(exit_)  # a sum that is written into its entry would count as read
    remove_dead_code(graph)


def drop(module: fx.GraphModule, branches: Iterable[Branch]) -> None:
    """Remove branches in place, with the parameters and buffers that only they used."""
    before = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    _bridge(module.graph, [(branch.entry, branch.exit) for branch in branches])
    after = {str(node.target) for node in module.graph.find_nodes(op="get_attr")}
    for name in before - after:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner), attribute)
    module.recompile()


def _residuals(module: fx.GraphModule, structure: Structure, order: dict[fx.Node, int]) -> list[Branch]:
    found = []
    streams: dict[fx.Node, fx.Node] = {}
    shared: dict[fx.Node, set[fx.Node]] = {}  # by sum, the branch in it that something else looks into
    for node in module.graph.nodes:
        if node.target not in _ADD or not all(isinstance(a, fx.Node) for a in node.args[:2]):
            continue
        first, second = node.args[0], node.args[1]
        for entry, inner in ((first, second), (second, first)):
            region = _branch(entry, inner, streams, order)
            if not region or not _same_shape(structure, entry, node):
                continue
            streams[node] = entry
            regions, inside = [region], set(region)
            while _leaks(inside, node) and entry in shared:  # what shares a norm or a router goes together
                regions.append(shared[entry])
                inside |= {entry, *shared[entry]}
                entry = streams[entry]
            if _leaks(inside, node):
                shared[node] = region
            elif branch := _describe(module, structure, regions, entry, node):
                found.append(branch)
            break
    return found


def _branch(entry: fx.Node, inner: fx.Node, streams: dict[fx.Node, fx.Node], order: dict[fx.Node, int]) -> set[fx.Node]:
    """The nodes of f in entry + f; a parallel branch reads the stream as it was before the ones added just before."""
    region = _between(entry, inner, order)
    while not region and entry in streams:
        entry = streams[entry]
        region = _between(entry, inner, order)
    return region


def _leaks(inside: set[fx.Node], exit_: fx.Node) -> bool:
    """Whether something else uses what a branch computes on its way, so that removing it would not remove that."""
    tensors = (node for node in inside if isinstance(node.meta.get("val"), torch.Tensor))
    return any(user is not exit_ and user not in inside for node in tensors for user in node.users)


def _between(entry: fx.Node, inner: fx.Node, order: dict[fx.Node, int]) -> set[fx.Node]:
    """The nodes on paths from `entry` to `inner`; empty when there is none."""
    reached = {entry}
    for node in list(order)[order[entry] + 1 : order[inner] + 1]:
        if any(source in reached for source in node.all_input_nodes):
            reached.add(node)
    if inner not in reached or inner is entry:
        return set()
    region: set[fx.Node] = set()
    stack = [inner]
    while stack:
        node = stack.pop()
        if node in reached and node is not entry and node not in region:
            region.add(node)
            stack.extend(node.all_input_nodes)
    return region


def _same_shape(structure: Structure, entry: fx.Node, exit_: fx.Node) -> bool:
    """Whether both carry the same layout, so that one can stand for the other after every cut."""
    layouts = structure.trace.layouts
    before, after = layouts.get(entry), layouts.get(exit_)
    if not isinstance(before, tuple) or not isinstance(after, tuple) or len(before) != len(after):
        return False
    shapes = [node.meta["val"].shape for node in (entry, exit_)]
    # a size that is fixed or computed has an axis of its own in every tensor: there the sizes decide
    return all(resolve(a) == resolve(b) or x == y for a, b, x, y in zip(before, after, *shapes, strict=True))


def _describe(
    module: fx.GraphModule, structure: Structure, regions: Sequence[set[fx.Node]], entry: fx.Node, exit_: fx.Node
) -> Branch | None:
    region: set[fx.Node] = set().union(*regions)
    inside = region | {exit_}
    own = sorted(
        {
            str(source.target)
            for node in inside
            for source in node.all_input_nodes
            if source.op == "get_attr" and all(user in inside for user in source.users)
        }
    )
    count = sum(operator.attrgetter(name)(module).numel() for name in own if name in structure.parameters)
    if not count:
        return None
    kinds = {_kind(part, structure) for part in regions}
    kind = kinds.pop() if len(kinds) == 1 else "layer"
    return Branch(_common_path(region), kind, entry, exit_, tuple(own), count)


def _kind(region: set[fx.Node], structure: Structure) -> str:
    if any(_attends(node, structure) for node in region):
        return "attention"
    return "block" if any(_operator(node).startswith(_CONVOLVES) for node in region) else "mlp"


def _attends(node: fx.Node, structure: Structure) -> bool:
    """Whether a node multiplies what is computed with what is computed: scores or values."""
    name = _operator(node)
    factors = node.args[1:3] if name == "baddbmm" else node.args[:2]
    computed = all(factor in structure.trace.computed for factor in factors)
    return name == "scaled_dot_product_attention" or (name in _PRODUCTS and computed)


def _operator(node: fx.Node) -> str:
    return getattr(getattr(node.target, "_overloadpacket", None), "__name__", "")


def _path(node: fx.Node) -> str:
    """The module path that a node was traced in."""
    stack = node.meta.get("nn_module_stack") or {}
    return next((str(path) for path, _ in reversed(list(stack.values()))), "")


def _common_path(region: Iterable[fx.Node]) -> str:
    paths = [_path(node).split(".") for node in region if _path(node)]
    common = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common) or "graph"


def _layers(module: fx.GraphModule, structure: Structure, order: dict[fx.Node, int]) -> list[Branch]:
    """Members of a numbered series of modules (`encoder.layer.3`) with one way in and one way out of equal layout."""
    members: dict[str, list[fx.Node]] = {}
    for node in order:
        for match in re.finditer(r"\.\d+(?=\.|$)", _path(node)):
            members.setdefault(_path(node)[: match.end()], []).append(node)
    found: list[Branch] = []
    for path, nodes in members.items():
        inside = set(nodes)
        outs = [n for n in nodes if any(user not in inside for user in n.users) and n in structure.trace.computed]
        outs = [n for n in outs if isinstance(n.meta.get("val"), torch.Tensor)]
        if not outs:
            continue
        exit_ = outs[-1]
        entry = _entry(inside, exit_, structure, order)
        region = _between(entry, exit_, order) if entry else set()
        if entry is None or not region or not region <= inside:
            continue
        branch = _describe(module, structure, [region - {exit_}], entry, exit_)
        if branch and branch.kind == "attention" and not any(branch.tensors == other.tensors for other in found):
            found.append(Branch(path, "layer", entry, exit_, branch.tensors, branch.parameters))
    return found


def _entry(inside: set[fx.Node], exit_: fx.Node, structure: Structure, order: dict[fx.Node, int]) -> fx.Node | None:
    """The latest tensor from outside that has the layout of the exit."""
    outside = {
        source
        for node in inside
        for source in node.all_input_nodes
        if source not in inside
        and source in structure.trace.computed
        and isinstance(source.meta.get("val"), torch.Tensor)
    }
    fitting = [node for node in outside if _same_shape(structure, node, exit_)]
    return max(fitting, key=order.__getitem__) if fitting else None
