"""Distillation from hidden states: which of a student's its teacher has too, and how far apart they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import torch
from torch import fx
from torch.nn import functional

from secateur.errors import InputError

Shape = tuple[int | None, ...]  # None where dynamic


def shared_nodes(student: fx.GraphModule, teacher: fx.GraphModule) -> dict[str, str]:
    """The student's hidden states that the teacher has in the same shape: names of nodes, the student's to the teacher's.

    A hidden state is what a layer gives, or where branches meet: not a view or an activation of one, nor an output of the
    program. Two are the same when the same operator reads the same parameters or, where it reads none, is fed by the
    same layers. Node names are not compared: they count operators, and one branch less shifts them all.
    """
    ours, theirs = _hidden_states(student), _hidden_states(teacher)
    return {
        node.name: theirs[key].name
        for key, node in ours.items()
        if key in theirs and _shape(node) == _shape(theirs[key])
    }


def tapped(module: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """A module with the same tensors that takes the inputs in order and gives (outputs, values of the named nodes)."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    outputs = graph.graph_copy(module.graph, copies)
    by_name = {node.name: copy for node, copy in copies.items()}
    graph.output((outputs, tuple(by_name[name] for name in names)))
    return fx.GraphModule(module, graph)


def hidden_state_loss(students: Sequence[torch.Tensor], teachers: Sequence[torch.Tensor]) -> torch.Tensor:
    """mean over states and examples of |h_s / |h_s| - h_t / |h_t||^2 (Sun et al., "Patient Knowledge Distillation", 2019).

    Each example's state [N, ...] is divided by its own L2 norm, so that wide states weigh no more than narrow ones. The
    loss lies between 0 and 4.

    Raises:
        InputError: there is no pair of states.
    """
    if not students or len(students) != len(teachers):
        raise InputError(
            f"hidden states: expected as many of the student as of the teacher and at least one, got {len(students)} and "
            f"{len(teachers)}; do the two programs share any?"
        )
    distances = [
        (functional.normalize(ours.flatten(1)) - functional.normalize(theirs.flatten(1))).square().sum(1).mean()
        for ours, theirs in zip(students, teachers, strict=True)
    ]
    return torch.stack(distances).mean()


def _hidden_states(module: fx.GraphModule) -> dict[Hashable, fx.Node]:
    """The hidden states by what makes them: the operator, the layers that feed it, and how often that came before."""
    layers: dict[fx.Node, frozenset[str]] = {}
    seen: Counter[Hashable] = Counter()
    found: dict[Hashable, fx.Node] = {}
    (output,) = module.graph.find_nodes(op="output")
    for node in module.graph.nodes:
        stored = frozenset(str(source.target) for source in node.all_input_nodes if source.op == "get_attr")
        feeding = [source for source in node.all_input_nodes if source.op != "get_attr"]
        layers[node] = stored or frozenset().union(*(layers[source] for source in feeding))
        if node.op != "call_function" or not (stored or len(feeding) > 1) or _shape(node) is None:
            continue
        key = (str(node.target), layers[node])
        if node not in output.all_input_nodes:
            found[(*key, seen[key])] = node
        seen[key] += 1
    return found


def _shape(node: fx.Node) -> Shape | None:
    """The shape of a floating-point result of at least two dimensions; None of anything else."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dim() < 2:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)
