"""What a machine can do at the most, and so the least time that the work of a file can take on it.

The roofline: work takes at least as long as its multiply-accumulates at the peak of the arithmetic, and at least as long as its
bytes at the peak of the memory (Williams, Waterman and Patterson, "Roofline", CACM 2009).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from secateur.explain.profile import Node, check_target
from secateur.onnx_export import OPSET
from secateur.runtime import Target, session_options

SIDE = 1536  # of the square matrices: large enough that packing them does not count
COPIED = 1 << 25  # floats, 128 MiB: more than the caches hold
RUNS = 7


@dataclass(frozen=True)
class Peaks:
    """Float32 multiply-accumulates and bytes a second, each the best of several runs."""

    macs: float
    bytes: float

    @property
    def balance(self) -> float:
        """Multiply-accumulates a byte below which memory sets the time."""
        return self.macs / self.bytes

    def seconds(self, nodes: Iterable[Node]) -> float:
        """The least time of the nodes one after the other."""
        return sum(max(node.macs / self.macs, node.bytes / self.bytes) for node in nodes)

    def __str__(self) -> str:
        return f"{self.macs / 1e9:,.0f} G multiply-accumulates/s, {self.bytes / 1e9:,.1f} GB/s"


def peaks(target: Target) -> Peaks:
    """Measured by a large matrix product and a large copy, in the runtime and with the threads of the target.

    Raises:
        InputError: the target's provider is not the CPU's.
    """
    check_target(target)
    product = _best(target, "MatMul", (SIDE, SIDE), 2)
    copy = _best(target, "Neg", (COPIED,), 1)
    return Peaks(macs=SIDE**3 / product, bytes=2 * 4 * COPIED / copy)


def _best(target: Target, op: str, shape: tuple[int, ...], operands: int) -> float:
    """Seconds of the fastest run of one operator."""
    names = [f"x{i}" for i in range(operands)]
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y"])],
        "peak",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names],
        [onnx.ValueInfoProto(name="y")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), session_options(target), providers=[target.provider])
    array = np.random.default_rng(0).random(shape, dtype=np.float32)
    feeds = dict.fromkeys(names, array)
    seconds = []
    for _ in range(RUNS):
        began = time.perf_counter()
        session.run(None, feeds)
        seconds.append(time.perf_counter() - began)
    return min(seconds)
