"""Seconds of an operation on a target: a small ONNX file in the serving runtime, timed kernel by kernel."""

from __future__ import annotations

import hashlib
import json
import resource
import tempfile
import time
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from secateur.explain.profile import kernel_times
from secateur.latency import clock
from secateur.latency.nodes import Sketch, Value
from secateur.machine import processor
from secateur.onnx_export import OPSET
from secateur.runtime import Target

BUDGET_S, PATIENCE_S = 0.1, 1.5  # for runs that nothing interrupted; for all runs, where other work keeps interrupting
CLOCK = "without profiling"  # times kept from before it was subtracted do not compare
FEWEST, MOST = 5, 100  # runs that nothing interrupted
BORDERS = (
    "ReorderInput",
    "ReorderOutput",
)  # change of memory layout: in a whole model only where a chain of convolutions ends


def signature(sketch: Sketch) -> str:
    """Equal for operations that take equal time: the operators, how they are wired, every size and attribute."""
    content = [sketch.nodes, sketch.inputs, sketch.weights, sorted(sketch.constants.items()), sketch.outputs]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def description(target: Target) -> dict[str, str | int]:
    """What a time depends on beside the operation."""
    return {
        "processor": processor(),
        "provider": target.provider,
        "threads": target.threads,
        "optimisation": target.optimisation,
        "onnxruntime": ort.__version__,
        "opset": OPSET,
        "clock": CLOCK,
    }


def seconds(sketch: Sketch, target: Target) -> float:
    """Time of one run, without the change of memory layout at the borders.

    Each kernel counts with the least of its times, since whatever else the machine does only adds, less what timing it adds. An operation so long that
    hardly a run of it is left alone counts with the processor time of its thread, where it has only one.
    """
    if not sketch.outputs or not sketch.nodes:
        return 0.0
    rng = np.random.default_rng(0)
    model = to_model(sketch, rng).SerializeToString()
    feeds = {value.name: _random(value, rng) for value in sketch.inputs}
    with tempfile.TemporaryDirectory() as folder:
        session = clock.profiled(model, target, folder)
        runs = _run(session, feeds)
        events = clock.events_of(session)
    inner, all_kernels = kernel_seconds(events, len(runs.processor), clock.added_seconds(target))
    if runs.undisturbed < FEWEST and target.threads == 1:
        return float(np.median(runs.processor[1:])) * inner / all_kernels
    return inner


class Runs(NamedTuple):
    """What is known of each run: the processor time of its thread; and how many had the processor for themselves."""

    processor: np.ndarray
    undisturbed: int


def _run(session: ort.InferenceSession, feeds: dict[str, np.ndarray]) -> Runs:
    """Run until enough runs had the processor for themselves, or for as long as patience lasts."""
    began = time.perf_counter()
    processor: list[float] = []
    undisturbed = 0
    while True:
        switches, worked = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw, time.thread_time()
        session.run(None, feeds)
        processor.append(time.thread_time() - worked)
        undisturbed += len(processor) > 1 and resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw == switches
        taken = time.perf_counter() - began
        enough = undisturbed >= MOST or (undisturbed >= FEWEST and taken > BUDGET_S)
        if enough or (taken > PATIENCE_S and len(processor) > FEWEST):
            return Runs(np.array(processor), undisturbed)


def kernel_seconds(events: list[dict[str, Any]], runs: int, added: float) -> tuple[float, float]:
    """The sum over kernels without borders, and of all, of each the least of all runs but the first, which warms up.

    `added` are the seconds that timing adds to each.
    """
    kernels, times = kernel_times(events, runs)
    times = np.maximum(times - added, 0.0)
    inner = [kernel["args"]["op_name"] not in BORDERS for kernel in kernels]
    return float(times[inner].sum()), float(times.sum())


def to_model(sketch: Sketch, rng: np.random.Generator) -> onnx.ModelProto:
    """The sketch as an ONNX model with random weights."""
    nodes = [helper.make_node(n.op, list(n.inputs), list(n.outputs), **dict(n.attributes)) for n in sketch.nodes]
    weights = [numpy_helper.from_array(_random(value, rng), value.name) for value in sketch.weights]
    for name, (dtype, values) in sketch.constants.items():
        scalar = name.startswith("s")
        weights.append(numpy_helper.from_array(np.array(values[0] if scalar else values, dtype=dtype), name))
    inputs = [helper.make_tensor_value_info(v.name, _type(v.dtype), v.shape) for v in sketch.inputs]
    outputs = [onnx.ValueInfoProto(name=name) for name in sketch.outputs]  # the runtime infers type and shape
    graph = helper.make_graph(nodes, "operation", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


def _type(dtype: str) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _random(value: Value, rng: np.random.Generator) -> np.ndarray:
    """Numbers of ordinary size: a CPU is slower on denormal ones; an index is zero, which every table has."""
    if value.dtype.startswith("float"):
        return (rng.random(value.shape, dtype=np.float32) / 10).astype(value.dtype)
    return np.zeros(value.shape, dtype=value.dtype)
