"""What the runtime's profiler adds to the time of a kernel that it times: on a kernel of 5 us this is a fifth."""

from __future__ import annotations

import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from secateur.explain.profile import kernel_times
from secateur.onnx_export import OPSET
from secateur.runtime import Target, session_options

SIZES = tuple(
    range(64, 64 * 25, 64)
)  # elements: kernels of 1 to 15 us, so that whole microseconds of the profile even out
SHORT, LONG = 2, 6  # kernels in a row for each size
RUNS = 200


@functools.cache
def added_seconds(target: Target) -> float:
    """Seconds that profiling adds to each kernel: what kernels take by the profile, less what as many more of them add to a run.

    The least of many runs each, since whatever else the machine does only adds.
    """
    rng = np.random.default_rng(0)
    feeds = {f"x{size}": rng.random(size, dtype=np.float32) for size in SIZES}
    longer = _fastest(_chains(LONG), feeds, target) - _fastest(_chains(SHORT), feeds, target)
    by_profile = float(_profiled(_chains(LONG), feeds, target).mean())
    return max(by_profile - longer / ((LONG - SHORT) * len(SIZES)), 0.0)


def _chains(repeats: int) -> bytes:
    """For each size a chain of an operator that no optimisation joins with itself."""
    nodes = [
        helper.make_node("Softplus", [f"x{size}" if i == 0 else f"y{size}.{i - 1}"], [f"y{size}.{i}"])
        for size in SIZES
        for i in range(repeats)
    ]
    inputs = [helper.make_tensor_value_info(f"x{size}", TensorProto.FLOAT, [size]) for size in SIZES]
    outputs = [onnx.ValueInfoProto(name=f"y{size}.{repeats - 1}") for size in SIZES]
    graph = helper.make_graph(nodes, "chains", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10).SerializeToString()


def _fastest(model: bytes, feeds: dict[str, np.ndarray], target: Target) -> float:
    session = ort.InferenceSession(model, session_options(target), providers=[target.provider])
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        session.run(None, feeds)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _profiled(model: bytes, feeds: dict[str, np.ndarray], target: Target) -> np.ndarray:
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        session = profiled(model, target, folder)
        for _ in range(RUNS):
            session.run(None, feeds)
        return kernel_times(events_of(session), RUNS)[1]


def profiled(model: bytes, target: Target, folder: str) -> ort.InferenceSession:
    """A session under the runtime's profiler, whose file lies in a folder."""
    options = session_options(target)
    options.enable_profiling = True
    options.profile_file_prefix = str(Path(folder) / "profile")
    return ort.InferenceSession(model, options, providers=[target.provider])


def events_of(session: ort.InferenceSession) -> list[dict[str, Any]]:
    """What the profiler noted; it stops."""
    events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return events
