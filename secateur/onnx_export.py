"""ONNX from an exported program, with proof that nothing was lost: parameters counted, outputs compared."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch.export import ExportedProgram

from secateur import program as programs
from secateur.objectives import logits_of

OPSET = 20
_aten = torch.ops.aten
EXPORTER = f"torch {torch.__version__} dynamo, opset {OPSET}"


def export(program: ExportedProgram, path: str | Path) -> None:
    """Write the program as ONNX, in evaluation mode, weights inside the file.

    Raises:
        RuntimeError: the file does not hold the weights of the program.
    """
    module = programs.graph_module(program)
    inference = programs.reexport(module, program)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports every optional package that is absent
    # without gradients as in `reexport`: with them attention takes another kernel, whose result lies otherwise in memory
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", FutureWarning)  # torch's own, from copying its tree specs
        onnx_program = torch.onnx.export(inference, dynamo=True, opset_version=OPSET, verbose=False)
    assert onnx_program is not None
    onnx_program.save(str(path))
    _check_parameters(inference, onnx.load(path))


def _check_parameters(program: ExportedProgram, model: onnx.ModelProto) -> None:
    """Every weight is in the file, under its name or, transposed for a MatMul or spread for a broadcast, under one that the
    exporter made up.

    Left out are the scales of batch norms, which the exporter folds into the weights before them, the weights of
    recurrent layers, which it packs gate by gate, and weights that meet nothing but constants (a table looked up at fixed
    positions, a direction times a length), of which it stores the result.
    """
    stored = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    parameters = {name: tuple(parameter.shape) for name, parameter in program.named_parameters()}
    renamed = Counter(_sizes(shape) for name, shape in stored.items() if name not in parameters)
    missing = []
    for name in _used_parameters(program) - _repacked_parameters(program):
        shape = parameters[name]
        if stored.get(name) in (shape, shape[::-1]):
            continue
        renamed.subtract([_sizes(shape)])
        absent = name in stored or renamed[_sizes(shape)] < 0
        if absent and not _needs_no_place(program.state_dict[name], model):
            missing.append(f"{name} {shape} (file: {stored.get(name)})")
    if missing:
        raise RuntimeError(f"the ONNX file does not hold the program's weights: {'; '.join(sorted(missing)[:3])}")


def _needs_no_place(parameter: torch.Tensor, model: onnx.ModelProto) -> bool:
    """Whether the exporter may leave a parameter out: zeros that would be added, or what equals another that is stored."""
    if parameter.dim() == 1 and not parameter.any():
        return True
    values = parameter.detach().numpy()
    alike = (tensor for tensor in model.graph.initializer if tuple(tensor.dims) == values.shape)
    return any(np.array_equal(numpy_helper.to_array(tensor), values) for tensor in alike)


def _sizes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """What a shape has in common with its transpositions and with what a broadcast makes of it."""
    return tuple(sorted(size for size in shape if size != 1))


_REPACKED = (_aten.batch_norm.default, _aten.lstm.input, _aten.gru.input)


def _repacked_parameters(program: ExportedProgram) -> set[str]:
    nodes = program.module(check_guards=False).graph.nodes
    live: set[torch.fx.Node] = set()
    for node in nodes:
        if node.op == "placeholder" or any(source in live for source in node.all_input_nodes):
            live.add(node)
    return {
        str(node.target)
        for user in nodes
        if user.target in _REPACKED or user not in live
        for node in user.all_input_nodes
        if node.op == "get_attr"
    }


def _used_parameters(program: ExportedProgram) -> set[str]:
    used = _used_inputs(program)
    inputs = program.graph_signature.input_specs
    parameters = {name for name, _ in program.named_parameters()}
    return {str(spec.target) for spec in inputs if spec.arg.name in used and spec.target in parameters}


def _used_inputs(program: ExportedProgram) -> set[str]:
    return {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}


@dataclass(frozen=True)
class Parity:
    """Largest difference of the ONNX file's outputs from torch's, relative to the largest output, per batch size."""

    errors: dict[int, float]

    @property
    def worst(self) -> float:
        """The largest of them; NaN when any output is NaN."""
        return float(np.max(list(self.errors.values())))


def parity(
    program: ExportedProgram, path: str | Path, columns: Sequence[np.ndarray], batches: tuple[int, ...] = (1, 8)
) -> Parity:
    """Run both on real inputs [N, ...], in the program's order, on the CPU and in one thread order each."""
    from secateur.runtime import Target, open_session, run

    session = open_session(path, Target())
    module = programs.graph_module(program)
    errors = {}
    with programs.evaluating(module):
        for batch in batches:
            inputs = [np.array(column[:batch]) for column in columns]
            expected = logits_of(module(*map(torch.from_numpy, inputs))).numpy()
            seen = run(session, *inputs)
            errors[batch] = float(np.abs(seen - expected).max() / max(np.abs(expected).max(), 1e-30))
    return Parity(errors)
