"""Exported programs (`torch.export`, `.pt2`): load without pickle, train, export again, save with lineage, identify."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import operator
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from secateur.errors import InputError

LINEAGE = "secateur.json"
LINEAGE_SCHEMA = 1  # of that record; one more whenever an older release would read one wrongly
# what torch.export.save writes; anything else (compiled code, custom objects) is refused before torch opens the file
_RECORD = re.compile(
    r"models/[^/]+\.json|extra/.+|archive_format|archive_version|byteorder|\.data/\w+|\.format_version"
    r"|data/sample_inputs/[^/]+\.pt|data/weights/(weight_\d+|[^/]+_config\.json)"
    r"|data/constants/(tensor_\d+|[^/]+_config\.json)"
)
_TABLE = re.compile(r"data/(?P<kind>weights|constants)/(?P<model>[^/]+)_(?P=kind)_config\.json")
_RAW = re.compile(r"/(weight|tensor)_\d+$")
_aten = torch.ops.aten
# position of the `training` argument of the operators that behave differently in training
_TRAINING_ARGUMENT = {
    _aten.batch_norm.default: 5,
    _aten.dropout.default: 2,
    _aten.dropout_.default: 2,
    _aten.feature_dropout.default: 2,
    _aten.instance_norm.default: 5,
    _aten.lstm.input: 6,
    _aten.gru.input: 6,
    _aten.rnn_tanh.input: 6,
    _aten.rnn_relu.input: 6,
}
# what `run_decompositions` makes of batch norms and dropout in training
_DROPS = {_aten.dropout.default, _aten.dropout_.default, _aten.feature_dropout.default}
_TRAINS_ALWAYS = {
    _aten._native_batch_norm_legit.default,
    _aten._native_batch_norm_legit_functional.default,
    _aten.native_dropout.default,
}
REGIONS = {torch.ops.higher_order.wrap_with_set_grad_enabled, torch.ops.higher_order.wrap_with_autocast}


def load(path: str | Path) -> ExportedProgram:
    """Read a `.pt2` file; refuses one that only unpickling could read.

    Raises:
        InputError: the file is missing, is not a `torch.export` archive, or holds pickled objects.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(
            f"program: expected a .pt2 file, {path} does not exist; export the model with torch.export.save"
        )
    _refuse_pickles(path)
    try:
        return torch.export.load(path)
    except Exception as error:
        raise InputError(
            f"program: {path.name} is not a torch.export archive that this torch reads: {error}"
        ) from error


def _refuse_pickles(path: Path) -> None:
    """Let only records pass that torch reads as JSON, text or tensors, so that nothing in the file can be executed."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [info.filename for info in archive.infolist()]
            if not any(name.endswith(("/archive_format", "/data.pkl")) for name in names):
                raise InputError(f"program: {path.name} is not a torch.export archive; save it with torch.export.save")
            raw = _raw_tensors(archive)
            for name in names:
                harmless = names.count(name) == 1 and _RECORD.fullmatch(name.partition("/")[2]) is not None
                content = archive.read(name) if harmless else b""
                if not harmless or not (name in raw or _is_text(content) or _is_plain_tensors(content)):
                    raise InputError(
                        f"program: {path.name} holds a pickled object, or a record that no program needs ({name}); "
                        "only plain tensors are read"
                    )
    except zipfile.BadZipFile as error:
        raise InputError(f"program: {path.name} is not a .pt2 archive; save it with torch.export.save") from error


def _raw_tensors(archive: zipfile.ZipFile) -> set[str]:
    """The weights that the tables which torch reads (one per model) declare to be raw bytes, and nowhere pickled."""
    declared: dict[bool, set[str]] = {True: set(), False: set()}
    for name in archive.namelist():
        root, _, record = name.partition("/")
        table = _TABLE.fullmatch(record)
        if table and f"{root}/models/{table['model']}.json" in archive.namelist():
            for entry in json.loads(archive.read(name)).get("config", {}).values():
                place = f"{root}/data/{table['kind']}/{entry['path_name']}"
                declared[bool(entry.get("use_pickle", True))].add(place)
    return {name for name in declared[False] - declared[True] if _RAW.search(name)}


def _is_text(content: bytes) -> bool:
    """Printable ASCII on one line, or JSON: neither carries pickle opcodes."""
    try:
        json.loads(content)
        return True
    except ValueError:
        return len(content) <= 64 and content.strip().isascii() and b"\n" not in content.strip()


def _is_plain_tensors(content: bytes) -> bool:
    try:
        torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception:
        return False
    return True


def save(program: ExportedProgram, path: str | Path, lineage: Mapping[str, Any] | None = None) -> None:
    """Write a program, with where it came from as a JSON record inside the file."""
    record = {"schema": LINEAGE_SCHEMA, **lineage} if lineage else {}
    extra = {LINEAGE: json.dumps(record, sort_keys=True)}
    torch.export.save(program, path, extra_files=extra)


def lineage(path: str | Path) -> dict[str, Any]:
    """The lineage record of a file that `save` wrote; empty for others.

    Raises:
        InputError: a later release wrote it.
    """
    with zipfile.ZipFile(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith(f"/extra/{LINEAGE}")), None)
        record = json.loads(archive.read(name)) if name else {}
    schema = record.pop("schema", LINEAGE_SCHEMA)
    if schema > LINEAGE_SCHEMA:
        raise InputError(
            f"{Path(path).name}: expected a lineage of schema {LINEAGE_SCHEMA} at most, got {schema}; a later release of Secateur cut "
            "this program: upgrade this one"
        )
    return record


def descend(lineage: Mapping[str, Any], parent: str, cut: Mapping[str, Any]) -> dict[str, Any]:
    """The lineage of a program made by one more cut: `origin` and `parent` are digests, `cuts` what `replay` repeats.

    Args:
        lineage: the parent's own record, empty for a dense program.
        parent: the parent's digest.
        cut: what was done: criterion, goal, seed, and the units kept, the branches dropped or the pattern of zeros.
    """
    cuts = [*lineage.get("cuts", []), dict(cut)]
    return {**lineage, "origin": lineage.get("origin", parent), "parent": parent, "cuts": cuts}


def digest(program: ExportedProgram) -> str:
    """SHA-256 over the operators and every weight: equal for programs that compute the same thing in the same way."""
    sha = hashlib.sha256(program.graph_module.code.encode())
    for name, tensor in sorted({**program.state_dict, **program.constants}.items()):
        if isinstance(tensor, torch.Tensor):
            sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            sha.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def check_supported(program: ExportedProgram) -> None:
    """Raise InputError for a program that was exported in training mode or that has control flow.

    A fixed batch is fine: a cut needs none. Custom operators, quantised and complex weights are too: what they touch is
    left alone.
    """
    for graph in (m.graph for m in program.graph_module.modules() if isinstance(m, fx.GraphModule)):
        for node in graph.nodes:
            if isinstance(node.target, torch._ops.HigherOrderOperator) and node.target not in REGIONS:
                raise InputError(
                    f"program: expected a graph without control flow, found {node.target.name()}; export a model whose "
                    "path does not depend on its data"
                )
            if _trains(node):
                raise InputError(
                    f"program: expected an export in evaluation mode, found {node.target} in training mode "
                    f"({node.name}); call model.eval() before torch.export.export"
                )


def _trains(node: fx.Node) -> bool:
    if node.target in _DROPS and node.args[1] == 0:
        return False  # dropout of nothing
    if node.target in _TRAINING_ARGUMENT:
        return node.args[_TRAINING_ARGUMENT[node.target]] is True and not _has_no_running_statistics(node)
    return node.target in _TRAINS_ALWAYS


def graph_module(program: ExportedProgram, *, shared: bool = False) -> fx.GraphModule:
    """An independent, trainable copy of the program, tied weights tied again (loading a file unties them).

    `shared` copies the graph alone: its tensors are the program's own, so it may be read and cut, but never trained.
    """
    original = program.module(check_guards=False)
    tensors = [*original.parameters(), *original.buffers()] if shared else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, from copying its tree specs
        module = copy.deepcopy(original, {id(tensor): tensor for tensor in tensors})
    for part in original.modules():  # a graph refers to itself, and would hold the weights until it is collected
        part._parameters.clear()
        part._buffers.clear()
    owners: dict[tuple[object, ...], nn.Parameter] = {}
    for name, tensor in program.state_dict.items():
        if isinstance(tensor, nn.Parameter):
            path, _, attribute = name.rpartition(".")
            owner = owners.setdefault(identity(tensor), operator.attrgetter(name)(module))
            setattr(module.get_submodule(path), attribute, owner)
    return module


def move(module: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """The module, in place, with its tensors and whatever its graph creates on a device."""
    for node in module.graph.nodes:
        given = (node.args, node.kwargs)
        node.args, node.kwargs = torch.utils._pytree.tree_map_only(torch.device, lambda _: device, given)
    module.recompile()
    return module.to(device)


def identity(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for tied tensors only; those without memory (empty ones, meta tensors) are tied to nothing but themselves."""
    if not tensor.numel() or tensor.device.type == "meta":
        return (id(tensor),)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())


def set_training(module: fx.GraphModule, training: bool) -> None:
    """Switch batch normalisation and dropout, which exported graphs hold as a constant argument."""
    for node in module.graph.nodes:
        position = _TRAINING_ARGUMENT.get(node.target)
        if position is not None and not _has_no_running_statistics(node):
            node.args = (*node.args[:position], training, *node.args[position + 1 :])
    module.recompile()


def _has_no_running_statistics(node: fx.Node) -> bool:
    """Whether a norm can only use the statistics of its input, in evaluation too."""
    return node.target in (_aten.batch_norm.default, _aten.instance_norm.default) and node.args[3] is None


@contextlib.contextmanager
def evaluating(module: fx.GraphModule) -> Iterator[fx.GraphModule]:
    """The module in evaluation mode and without gradients; its mode before is restored."""
    before = [(n, n.args) for n in module.graph.nodes if n.target in _TRAINING_ARGUMENT]
    set_training(module, False)
    try:
        with torch.no_grad():
            yield module
    finally:
        for node, args in before:
            node.args = args
        module.recompile()


def reexport(module: fx.GraphModule, like: ExportedProgram) -> ExportedProgram:
    """Export a graph module again, in evaluation mode, with the inputs and dynamic dimensions of `like`."""
    args, kwargs = example(like)
    with evaluating(module):
        return torch.export.export(module, args, kwargs, dynamic_shapes=_dynamic_shapes(like))


def example(program: ExportedProgram) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs kept in the program, a dynamic batch of at least two."""
    if program.example_inputs is None:
        raise InputError(
            "program: expected example inputs inside the .pt2 file, found none; export it with torch.export.save"
        )
    return program.example_inputs


def _dynamic_shapes(program: ExportedProgram) -> dict[str, Any]:
    """For each input by name, which dimensions are dynamic; `AUTO` lets inputs that share a size go on sharing it."""
    names = program.module_call_graph[0].signature.forward_arg_names
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    inputs = iter(program.graph_signature.user_inputs)

    def spec(leaf: Any) -> Any:
        value = values[str(next(inputs))]
        if not isinstance(leaf, torch.Tensor):
            return None
        return {i: Dim.AUTO for i, size in enumerate(value.shape) if _is_dynamic(size)}

    args, kwargs = example(program)
    given = dict(zip(names or [], args, strict=False)) | dict(kwargs)
    return {name: torch.utils._pytree.tree_map(spec, value) for name, value in given.items()}


def input_specs(program: ExportedProgram) -> dict[str, tuple[list[int | None], torch.dtype]]:
    """Per input tensor its sizes, None where dynamic, and its type."""
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    specs: dict[str, tuple[list[int | None], torch.dtype]] = {}
    for name in map(str, program.graph_signature.user_inputs):
        value = values.get(name)
        if isinstance(value, torch.Tensor):
            specs[name] = ([None if _is_dynamic(s) else int(s) for s in value.shape], value.dtype)
    return specs


def _is_dynamic(size: Any) -> bool:
    """Whether a size may change: one that the export found to be fixed after all can still look like a symbol."""
    return isinstance(size, torch.SymInt) and not size.node.expr.is_number


def per_example_symbols(program: ExportedProgram, batch: int = 1) -> dict[Any, int]:
    """Values for the dynamic sizes: one example (or `batch`) for the batch, for the rest what they are for the example inputs."""
    leaves = torch.utils._pytree.tree_leaves(example(program))
    of_batch = _batch_symbols(program)
    symbols: dict[Any, int] = {}
    for shape, leaf in zip(_input_shapes(program), leaves, strict=True):
        for position, size in enumerate(shape):
            if _is_dynamic(size):
                symbols.setdefault(size.node.expr, batch if size.node.expr in of_batch else int(leaf.shape[position]))
    return _computed_sizes(program) | symbols


def _computed_sizes(program: ExportedProgram) -> dict[Any, int]:
    """Sizes that the graph reads from values (the span of relative positions), as they are for the example inputs."""
    module = program.module(check_guards=False)
    values = {n: n.meta.get("val") for n in module.graph.nodes}
    wanted = {n: v.node.expr for n, v in values.items() if isinstance(v, torch.SymInt) and v.node.expr.is_Symbol}
    if not any(free_unbacked_symbols(symbol) for symbol in wanted.values()):
        return {}
    found: dict[Any, int] = {}

    class Reading(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if n in wanted:
                found.setdefault(wanted[n], int(value))
            return value

    args, kwargs = example(program)
    with torch.no_grad():
        Reading(module).run(*torch.utils._pytree.tree_leaves((args, kwargs)), enable_io_processing=True)
    return found


def has_dynamic_batch(program: ExportedProgram) -> bool:
    """Whether the first dimension of an input tensor is dynamic."""
    return any(shape and shape[0] is None for shape, _ in input_specs(program).values())


def batch_of_example(program: ExportedProgram, size: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example inputs repeated or cut to a batch of `size`, along whichever dimension each of them has it."""
    batch, shapes = _batch_symbols(program), iter(_input_shapes(program))

    def resized(leaf: Any) -> Any:
        for position, length in enumerate(next(shapes)):
            if _is_dynamic(length) and length.node.expr in batch:
                leaf = leaf.index_select(position, torch.arange(size, device=leaf.device) % leaf.shape[position])
        return leaf

    return torch.utils._pytree.tree_map(resized, example(program))


def _input_shapes(program: ExportedProgram) -> list[Sequence[Any]]:
    """The sizes of each input in the graph; those of a number are none."""
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    return [getattr(values.get(str(name)), "shape", ()) for name in program.graph_signature.user_inputs]


def _batch_symbols(program: ExportedProgram) -> set[Any]:
    """The dynamic sizes that some input begins with. Another input may have them elsewhere: a cache, behind its layers."""
    firsts = [shape[0] for shape in _input_shapes(program) if shape]
    return {size.node.expr for size in firsts if _is_dynamic(size)}
