"""Whether a provider works on this machine: a tiny model is opened and run on it, in a process of its own.

That a provider is installed says little: its libraries, its driver or its device may be missing, and it may end the
process instead of raising.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from secateur.errors import InputError
from secateur.runtime import CPU, Target, check_provider, open_session, run

PATIENCE_S = 120  # a provider may compile for tens of seconds
_CAUSE = re.compile(r"with error: (.+)")  # how ONNX Runtime logs that a library of a provider cannot be loaded


def try_provider(provider: str) -> None:
    """Raise InputError unless the provider is installed and runs a tiny model, all of it, with the right result."""
    check_provider(Target(provider))
    if provider == CPU:  # it is in every process anyway
        return _run_tiny(provider)
    command = [sys.executable, "-m", "secateur.probe", provider]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired as error:
        raise InputError(
            f"target.provider: expected {provider} to run a tiny model, it had not after {PATIENCE_S} seconds; choose another"
        ) from error
    if done.returncode:
        cause = _CAUSE.search(done.stderr)
        said = done.stdout.strip() or (
            f"target.provider: {provider} ended the process that tried it (status {done.returncode}); choose another"
        )
        raise InputError(f"{said} ({cause[1]})" if cause else said)


def _run_tiny(provider: str) -> None:
    rng = np.random.default_rng(0)
    inputs, weight = (rng.normal(size=size).astype(np.float32) for size in ((1, 4), (4, 3)))
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "tiny.onnx"
        onnx.save(_tiny(weight), path)
        seen = run(open_session(path, Target(provider)), inputs)
    expected = np.maximum(inputs @ weight, 0)
    if not np.allclose(seen, expected, atol=0.05):  # some providers compute in half precision
        raise InputError(
            f"target.provider: expected {expected.tolist()} of a tiny model from {provider}, got {seen.tolist()}; choose another"
        )


def _tiny(weight: np.ndarray) -> onnx.ModelProto:
    """Vectors times a weight [rows, columns], negative results cut off: what every provider for networks takes."""
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["z"], "product"), helper.make_node("Relu", ["z"], ["y"], "relu")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _main() -> None:
    """The body of the fresh process: prints why the provider named on the command line does not work, if it does not."""
    try:
        _run_tiny(sys.argv[1])
    except InputError as error:
        print(error)
        sys.exit(1)


if __name__ == "__main__":
    _main()
