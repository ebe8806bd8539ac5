"""FP16 from an ONNX file: weights and what is computed between them in half precision, inputs and outputs as they were.

Half precision has 11 bits of significand and ends at 65504 (IEEE 754 binary16); what is smaller than its smallest number is
raised to it, but zeros stay zeros (Micikevicius et al., "Mixed precision training", ICLR 2018, on what that does to a network).
Operators that have no half form stay in float32 between casts. A provider without half kernels computes in float32 all the
same, and gains only the smaller file.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from secateur import requests
from secateur.errors import InputError
from secateur.runtime import Target

LARGEST = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Halved:
    """A file in half precision, and how many bytes of weights are in it and in the one that it was made from."""

    path: Path
    weight_bytes: int
    weight_bytes_before: int

    def __str__(self) -> str:
        return f"FP16: weights of {self.weight_bytes:,} bytes, before {self.weight_bytes_before:,}"


def halve(model: str | Path, output: str | Path, columns: Sequence[np.ndarray], target: Target) -> Halved:
    """Write the FP16 form of an ONNX file; the same file gives the same bytes.

    Args:
        model: the file, its inputs in the order of `columns`.
        output: where the new one goes; only one that the target loads and that answers finite numbers is put there.
        columns: the inputs of examples like those that will be served, [N, ...] each; one batch of them is answered.
        target: what will serve it.

    Raises:
        InputError: no such file, examples that do not fit, no float32 weights in it or some beyond half precision, or a result
            that the target does not load or whose outputs are not finite.
    """
    batch = requests.batches(columns, requests.inputs_of(model, target))[0]
    requests.check_answers(Path(model), target, batch, Path(model).name)
    loaded = onnx.load(model)
    before = _weight_bytes(loaded)
    _check_weights(loaded, Path(model).name)
    with warnings.catch_warnings():  # of what a mask is filled with: it counts as less than everything there too
        warnings.filterwarnings("ignore", message="the float32 number .* will be truncated")
        try:
            converted = OnnxModel(convert_float_to_float16(loaded, keep_io_types=True))
        except Exception as error:  # whatever it has to say, of a model that runs
            raise InputError(
                f"model: expected a model in float32 throughout, {type(error).__name__}: {' '.join(str(error).split())}; "
                "leave FP16 out"
            ) from error
    converted.topological_sort()
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        made = Path(folder) / "fp16.onnx"
        onnx.save(converted.model, made)
        requests.check_answers(made, target, batch, "its FP16 form")
        shutil.copyfile(made, output)
    return Halved(Path(output), _weight_bytes(converted.model), before)


def _check_weights(model: onnx.ModelProto, name: str) -> None:
    """Raise InputError unless there are float32 weights and half precision holds them; a mask is filled with one number."""
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT]
    if not floats:
        raise InputError(f"model: expected float32 weights in {name}, found none; leave FP16 out")
    for tensor in floats:
        weight = onnx.numpy_helper.to_array(tensor)
        beyond = np.unique(weight[np.abs(weight) > LARGEST])
        if len(beyond) > 1:
            raise InputError(
                f"model: expected weights up to {LARGEST:g}, which is all that half precision holds, got "
                f"{np.abs(beyond).max():.3g} in {tensor.name}; leave FP16 out"
            )


def _weight_bytes(model: onnx.ModelProto) -> int:
    return sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)
