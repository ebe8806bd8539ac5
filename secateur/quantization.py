"""INT8 from an ONNX file: post-training static quantisation in the QDQ form, per channel, calibrated on examples.

Weights are symmetric, one scale for each output channel; activations have one scale and one zero point for each tensor
(Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference", CVPR 2018;
Nagel et al., "A white paper on neural network quantization", 2021). What is quantised where follows what ONNX Runtime's
integer kernels take.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from secateur import machine, requests
from secateur.errors import InputError
from secateur.gains import VNNI
from secateur.machine import Machine
from secateur.runtime import Target

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
OLDEST_OPSET = 13  # the first whose DequantizeLinear has an axis, without which there are no channels
MULTIPLY = ("Conv", "Gemm", "MatMul")  # with a weight that is constant; two activations stay in floating point
FLOAT_OUTPUT = (
    "Gemm",
    "MatMul",
)  # what they give is not rounded: their kernels sum into floats at no cost, logits need them
# these have a kernel for integers, and take integers only where all that they read are
CARRY = (
    *("Add", "Mul", "Concat", "Relu", "Clip", "LeakyRelu", "Sigmoid", "MaxPool", "AveragePool", "GlobalAveragePool"),
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
)


@dataclass(frozen=True)
class Scheme:
    """The integers that a processor multiplies best and without overflow."""

    signed: bool  # activations as int8; else as uint8
    reduced: bool  # weights in 7 of the 8 bits

    @property
    def largest(self) -> int:
        """Integer of a weight."""
        return 64 if self.reduced else 127

    def __str__(self) -> str:
        return f"{'int8' if self.signed else 'uint8'} activations, {'7-bit' if self.reduced else 'int8'} weights"


@dataclass(frozen=True)
class Quantised:
    """A quantised file: how many nodes of each operator are between integers, and what the ranges were taken from."""

    path: Path
    nodes: Mapping[str, int]
    scheme: Scheme
    method: str  # one of METHODS
    examples: int  # of calibration

    def __str__(self) -> str:
        nodes = ", ".join(f"{count} {name}" for name, count in self.nodes.items())
        return f"INT8 ({self.scheme}): {nodes}; {self.method} ranges of {self.examples} examples"


def scheme_of(here: Machine) -> Scheme:
    """What a machine's CPU takes.

    ARM multiplies signed by signed. x86 multiplies unsigned by signed; without VNNI it sums two products in 16 bits, which
    saturate unless weights keep to 7 bits (ONNX Runtime, "Quantize ONNX models").
    """
    vnni = any(name in here.instruction_sets for name in VNNI)
    signed = "NEON" in here.instruction_sets
    return Scheme(signed, reduced=not signed and not vnni)


def quantise(
    model: str | Path,
    output: str | Path,
    columns: Sequence[np.ndarray],
    target: Target,
    *,
    method: str = "minmax",
    scheme: Scheme | None = None,
) -> Quantised:
    """Write the INT8 form of an ONNX file; the same file and examples give the same bytes.

    Batch norms are folded into the convolutions before them. Convolutions and products with a constant weight compute in
    integers, and what lies between two of them where it can. The rest stays in floating
    point: attention scores, softmax, norms, embeddings, the residual stream of a transformer.

    Args:
        model: the file, opset 13 or later, its inputs in the order of `columns`.
        output: where the new one goes; only one that the target loads and that answers finite numbers is put there.
        columns: the inputs of examples like those that will be served, [N, ...] each.
        target: what will serve it.
        method: how the range of an activation follows from the examples: all of it, by entropy, or the 99.999th percentile.
        scheme: by default that of this machine.

    Raises:
        InputError: no such file or method, examples that do not fit, nothing in it to quantise, or a result that the target
            does not load or whose outputs are not finite.
    """
    if method not in METHODS:
        raise InputError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")
    inputs = requests.inputs_of(model, target)
    batches = requests.batches(columns, inputs)
    requests.check_answers(Path(model), target, batches[0], Path(model).name)
    scheme = scheme or scheme_of(machine.here())
    with tempfile.TemporaryDirectory(prefix="secateur-") as name:
        folder = Path(name)
        prepared = _prepared(model, folder / "prepared.onnx")
        chosen = _chosen(prepared)
        if not any(op in MULTIPLY for op in chosen.values()):
            found = ", ".join(sorted({node.op_type for node in prepared.graph.node})) or "none"
            raise InputError(
                f"model: expected an operator of {', '.join(MULTIPLY)} with a constant weight in {Path(model).name}, found "
                f"{found}; there is nothing to quantise, leave INT8 out"
            )
        made = folder / "int8.onnx"
        _round(folder / "prepared.onnx", made, batches, chosen, method, scheme)
        quantised = onnx.load(made)
        _leave_floats(quantised.graph, prepared.graph, chosen)
        onnx.save(quantised, made)
        nodes = _between_integers(quantised.graph, chosen)
        if not any(op in MULTIPLY for op in nodes):
            raise RuntimeError(f"{Path(model).name}: {len(chosen)} nodes were chosen, none of them was quantised")
        requests.check_answers(made, target, batches[0], "its INT8 form")
        shutil.copyfile(made, output)
    return Quantised(Path(output), nodes, scheme, method, sum(len(batch[inputs[0].name]) for batch in batches))


class _Reader:
    """Batches as ONNX Runtime's calibration asks for them."""

    def __init__(self, batches: Sequence[requests.Batch]) -> None:
        self.batches = batches
        self.set_range(0, len(batches))

    def __len__(self) -> int:
        return len(self.batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self.rest = iter(self.batches[start_index:end_index])

    def get_next(self) -> requests.Batch | None:
        return next(self.rest, None)


def _prepared(model: str | Path, path: Path) -> onnx.ModelProto:
    """The file with norms folded, shapes inferred and every node named, as it is then quantised from `path`."""
    opset = next((one.version for one in onnx.load(model).opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise InputError(
            f"model: expected opset {OLDEST_OPSET} or later in {Path(model).name}, got {opset}; export it again"
        )
    # the exporter wrote every shape that symbolic inference would find
    quant_pre_process(str(model), str(path), skip_symbolic_shape=True)
    prepared = onnx.load(path)
    for number, node in enumerate(prepared.graph.node):
        node.name = f"{node.name or node.op_type}_{number}"  # chosen by name, so no two may be alike
    onnx.save(prepared, path)
    return prepared


def _chosen(model: onnx.ModelProto) -> dict[str, str]:
    """The operators of the nodes that are to compute in integers, by the nodes' names."""
    constant = {tensor.name for tensor in model.graph.initializer}
    chosen: dict[str, str] = {}
    integers: set[str] = set()
    for node in model.graph.node:  # in an order in which they can be computed
        if node.op_type in MULTIPLY:
            takes = node.input[0] not in constant and constant.issuperset(node.input[1:])
        else:
            read = set(node.input) - constant - {""}
            takes = node.op_type in CARRY and bool(read) and integers.issuperset(read)
        if takes:
            chosen[node.name] = node.op_type
            if node.op_type not in FLOAT_OUTPUT:
                integers.update(node.output)
    return chosen


def _round(
    model: Path, output: Path, batches: Sequence[requests.Batch], chosen: Mapping[str, str], method: str, scheme: Scheme
) -> None:
    """Let ONNX Runtime find the ranges and write the chosen nodes between integers."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the histograms' progress
            quantize_static(
                model,
                output,
                _Reader(batches),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=sorted(set(chosen.values())),
                nodes_to_quantize=sorted(chosen),
                per_channel=True,
                reduce_range=scheme.reduced,
                activation_type=QuantType.QInt8 if scheme.signed else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=METHODS[method],
                extra_options={
                    "CalibStridedMinMax": 1,  # whatever the method: a batch's activations go before the next one's come
                    "OpTypesToExcludeOutputQuantization": list(FLOAT_OUTPUT),
                },
            )
    except Exception as error:  # whatever it has to say: of a model that runs, and of examples that it runs with
        raise InputError(
            f"model: expected a model that ONNX Runtime can quantise, {type(error).__name__}: {' '.join(str(error).split())}; leave INT8 out"
        ) from error


def _leave_floats(graph: onnx.GraphProto, before: onnx.GraphProto, chosen: Mapping[str, str]) -> None:
    """Let nodes that compute in floating point read floats, as before, where there are any.

    ONNX Runtime gives every reader of a tensor what was rounded for one of them: in a transformer the residual stream would
    go through 8 bits at each layer, and a table of embeddings that is tied to the head would be dequantised at each request.
    """
    inside = [node for node in before.node if node.name in chosen and node.op_type not in FLOAT_OUTPUT]
    integers = {output for node in inside for output in node.output}
    constants = {tensor.name: tensor for tensor in before.initializer}
    kept = {tensor.name for tensor in graph.initializer}
    originals = {node.name: node for node in before.node if node.name not in chosen}
    for node in graph.node:
        for position, name in enumerate(originals[node.name].input if node.name in originals else ()):
            if name not in integers:
                node.input[position] = name
                if name in constants and name not in kept:
                    graph.initializer.append(constants[name])
                    kept.add(name)


def _between_integers(graph: onnx.GraphProto, chosen: Mapping[str, str]) -> dict[str, int]:
    """How many of the chosen nodes of each operator read integers; activations that became the end of a range are gone."""
    dequantised = {output for node in graph.node if node.op_type == "DequantizeLinear" for output in node.output}
    found = Counter(node.op_type for node in graph.node if node.name in chosen and node.input[0] in dequantised)
    return dict(sorted(found.items()))
