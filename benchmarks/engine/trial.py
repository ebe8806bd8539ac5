"""One architecture of the zoo, tried in a process of its own: can a tool halve each kind of axis?"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from torch.export import ExportedProgram

import secateur
from benchmarks.engine import peer
from secateur import program as programs
from secateur.axes.infer import KINDS, AxisInfo, Structure, infer
from secateur.axes.terms import leaves

TESTS = Path(__file__).parents[2] / "tests"
HEADS = ("head", "kv_group", "q_per_group")
HEAD_WIDTHS = ("qk_width", "v_width")
WORKED, PARTLY, NOTHING, ERROR, HANG = "worked", "partly", "silent no-op", "error", "hang"
# what an attention module may call its number of heads, the width of one and the width of all
ATTRIBUTES = {
    "heads": ("num_heads", "num_attention_heads", "n_heads", "n_head"),
    "width": ("head_dim", "attention_head_size", "head_size", "key_value_proj_dim"),
    "all": ("all_head_size", "inner_dim", "embed_dim"),
}
Outcome = tuple[str, str]  # which, and a note
Tell = Callable[[dict[str, Any]], None]


def zoo() -> Any:
    """The tests' table of architectures; it needs no pytest."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    return importlib.import_module("zoo")


def attempt_all(tell: Tell, tool: str, name: str, kinds: list[str]) -> None:
    """Try each kind and tell what came of it.

    First told is that the model is exported; then, once the tool has its graph, that it is built; then an outcome per kind.
    """
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    program = zoo().exported(name)
    structure = infer(programs.graph_module(program))
    tell({"exported": True})
    try:
        attempt = ours(name, program) if tool == "ours" else theirs(name, structure)
    except Exception as error:
        tell({"failed": _complaint(error)})
        return
    tell({"built": True})
    for kind in kinds:
        try:
            outcome, note = attempt(kind)
        except Exception as error:
            outcome, note = ERROR, _complaint(error)
        tell({"kind": kind, "outcome": outcome, "note": note})


def kinds_of(name: str) -> list[str]:
    """The kinds of which the architecture has an axis with a unit to lose, by the zoo's table."""
    table = zoo().ARCHITECTURES[name].axes
    return [kind for kind in KINDS if any(size > 1 for size in table.get(kind, ()))]


def axes_of(structure: Structure, kind: str) -> list[AxisInfo]:
    """The axes of a kind that have a unit to lose."""
    return [info for info in structure.prunable if info.kind == kind and info.size > 1]


def ours(name: str, program: ExportedProgram) -> Callable[[str], Outcome]:
    """Secateur on the exported program; how many axes there are is the table's word."""
    args, kwargs = programs.example(program)

    def attempt(kind: str) -> Outcome:
        pruned, report = secateur.prune(program, goal=secateur.Ratio(0.5), kinds=[kind])
        with torch.no_grad():
            shapes = [[t.shape for t in _tensors(p.module()(*args, **kwargs))] for p in (program, pruned)]
        if shapes[0] != shapes[1]:
            return ERROR, "the output has another shape"
        expected = sum(size > 1 for size in zoo().ARCHITECTURES[name].axes[kind])
        cut = sum(axis.after < axis.before for axis in report.axes)
        return _judged(report.parameters_after < report.parameters_before, cut, expected)

    return attempt


def theirs(name: str, structure: Structure) -> Callable[[str], Outcome]:
    """The peer on the eager module, its roots and numbers of heads looked up for it in our axes."""
    entry = zoo().ARCHITECTURES[name]
    torch.manual_seed(0)
    model = entry.make().eval()
    inputs = entry.inputs(2, entry.lengths[0])
    weights = dict(model.named_parameters(remove_duplicate=False))
    heads = _heads(model, structure)
    for _ in peer.torch_pruning.DependencyGraph().build_dependency(model, example_inputs=inputs).get_all_groups():
        pass  # every use of the graph begins with all its groups

    def attempt(kind: str) -> Outcome:
        roots = {m for info in axes_of(structure, kind) for m in _producers(model, info.members)}
        if kind in HEAD_WIDTHS:  # it narrows queries, keys and values together
            roots |= set(heads)
        options = options_for(kind, heads)
        pruned = peer.cut(model, inputs, peer.Request(roots=roots, options=options, after=tell_heads), 0.5)
        with torch.no_grad():
            shapes = [[t.shape for t in _tensors(m(*inputs))] for m in (model, pruned)]
        if shapes[0] != shapes[1]:
            return ERROR, "the output has another shape"
        left = dict(pruned.named_parameters(remove_duplicate=False))
        cut = sum(_shrunk(info, weights, left) for info in axes_of(structure, kind))
        fewer = sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
        return _judged(fewer, cut, len(axes_of(structure, kind)))

    return attempt


def _complaint(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:200]


def _judged(fewer: bool, cut: int, expected: int) -> Outcome:
    """What came of a cut that ran; `partly` and `silent no-op` are what a user is not told of."""
    if fewer and cut == expected:
        return WORKED, ""
    return PARTLY if fewer and cut else NOTHING, f"{cut} of {expected} axes got smaller"


def _tensors(output: Any) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def _shrunk(info: AxisInfo, before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> bool:
    known = [(name, dim) for name, dim in info.members if name in before]
    return all(after[name].shape[dim] < before[name].shape[dim] for name, dim in known)


def _producers(model: nn.Module, members: Iterable[tuple[str, int]]) -> list[str]:
    """The modules whose outputs are the given (parameter, dimension) pairs."""
    modules = dict(model.named_modules())
    found = []
    for parameter, dim in members:
        owner = parameter.rpartition(".")[0]
        output = 1 if isinstance(modules.get(owner), nn.Embedding) else 0
        if isinstance(modules.get(owner), peer.WEIGHTED) and dim == output and parameter.endswith("weight"):
            found.append(owner)
    return found


def _heads(model: nn.Module, structure: Structure) -> dict[str, int]:
    """How many heads each projection into heads has, by module name."""
    sizes = {info.axis: info.size for info in structure.prunable if info.kind in HEADS}
    counts = {}
    for info in structure.prunable:
        producers = _producers(model, info.members if info.kind in HEADS else ())
        for name in (name for name in producers if isinstance(model.get_submodule(name), nn.Linear)):
            count = 1
            for axis in dict.fromkeys(leaves(structure.tensors[f"{name}.weight"][0])):
                count *= sizes.get(axis, 1)
            counts[name] = count
    return counts


def options_for(kind: str, heads: Mapping[str, int]) -> dict[str, Any]:
    """The documented options for attention: whole heads, widths of heads, or neither."""
    return {
        "num_heads": lambda model: {model.get_submodule(name): count for name, count in heads.items()},
        "prune_num_heads": kind in HEADS,
        "prune_head_dims": kind in HEAD_WIDTHS,
        "head_pruning_ratio": 0.5 if kind in HEADS else 0.0,
    }


def tell_heads(model: nn.Module, heads: Mapping[nn.Module, int]) -> None:
    """Write the new numbers of heads into the attention modules, which the peer leaves to its user."""
    for module in model.modules():
        projections = [child for child in module.children() if child in heads]
        if not projections:
            continue
        count, outputs = heads[projections[0]], int(projections[0].out_features)  # type: ignore[arg-type]
        fused = 3 if len(projections) == 1 else 1
        values = {"heads": count, "width": outputs // fused // max(1, count), "all": outputs // fused}
        for what, names in ATTRIBUTES.items():
            for name in names:
                if isinstance(getattr(module, name, None), int):
                    setattr(module, name, values[what])
        if isinstance(getattr(module, "num_key_value_groups", None), int):
            groups = max(1, min(heads[child] for child in projections))
            setattr(module, "num_key_value_groups", count // groups)  # noqa: B010  (a module's attributes are typed)
