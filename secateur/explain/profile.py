"""What a file takes on a target node by node, from the runtime's own profiler, and the work that is in each node."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import InputError
from secateur.measure import request_of
from secateur.runtime import CPU, Target, open_session, run

BUDGET_S = 3.0
FEWEST, MOST = 5, 200  # runs after the first, which warms up
_KERNEL = "_kernel_time"
_BLOCKED = "_nchwc"  # what the runtime appends to a node's name
_PRODUCTS = ("MatMul", "FusedMatMul", "Gemm")
FLOAT = 4  # bytes
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One node as it runs: its seconds, multiply-accumulates, and the bytes that it reads and writes at least once."""

    name: str
    op: str
    seconds: float
    macs: int
    bytes: int
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    blocked: bool = False  # channels laid out in vectors: the runtime's faster convolutions (NCHWc)


@dataclass(frozen=True)
class Profile:
    """The nodes of a file in the order in which they run, and the most that the runtime's arena held."""

    nodes: tuple[Node, ...]
    arena_bytes: int

    @property
    def seconds(self) -> float:
        """Of all nodes."""
        return sum(node.seconds for node in self.nodes)

    @property
    def macs(self) -> int:
        """Of all nodes."""
        return sum(node.macs for node in self.nodes)

    @property
    def bytes(self) -> int:
        """Of all nodes: data that stays in a cache between two nodes counts for both."""
        return sum(node.bytes for node in self.nodes)


def check_target(target: Target) -> None:
    """Raise InputError where the runtime does not tell the time of each node."""
    if target.provider != CPU:
        raise InputError(
            f"target.provider: expected {CPU}, whose profile tells the time of each kernel, got {target.provider}; use the "
            "vendor's profiler there"
        )


def profile(path: str | Path, target: Target, columns: Sequence[np.ndarray], budget_s: float = BUDGET_S) -> Profile:
    """Run a file under the profiler; each node counts with the least of its times, since other work only adds to one.

    `columns` are the inputs of examples [N, ...], in the program's order.

    Raises:
        InputError: the provider has no such profile, or the file cannot be loaded.
    """
    check_target(target)
    request = request_of(columns, target)
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        session = open_session(path, target, profile=Path(folder) / "profile")
        began, runs = time.perf_counter(), 0
        while runs <= FEWEST or (runs <= MOST and time.perf_counter() - began < budget_s):
            run(session, *request)
            runs += 1
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels, seconds = kernel_times(events, runs)
    arena = max((int(kernel["args"].get("mem_arena_held", 0)) for kernel in kernels), default=0)
    return Profile(tuple(_node(kernel, taken) for kernel, taken in zip(kernels, seconds, strict=True)), arena)


def kernel_times(events: Sequence[Mapping[str, Any]], runs: int) -> tuple[list[Mapping[str, Any]], np.ndarray]:
    """The kernels of one run as the profiler describes them, and of each the least seconds of all runs but the first."""
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(_KERNEL)]
    times = np.array([kernel["dur"] for kernel in kernels], dtype=float).reshape(runs, -1)[1:].min(axis=0) / 1e6
    return kernels[: len(times)], times


def _node(kernel: Mapping[str, Any], seconds: float) -> Node:
    args = kernel["args"]
    name = kernel["name"].removesuffix(_KERNEL)
    blocked = name.endswith(_BLOCKED)
    name = name.removesuffix(_BLOCKED)
    inputs, outputs = (_shapes(args.get(key, ())) for key in ("input_type_shape", "output_type_shape"))
    counted = _MACS.get(args["op_name"])
    packed = args["op_name"] in _PRODUCTS and len(inputs) == 1  # a weight that was laid out anew is no input any more
    if packed and outputs:
        inputs = (*inputs, (inputs[0][-1], outputs[0][-1]))
    return Node(
        name=name,
        op=args["op_name"],
        seconds=float(seconds),
        macs=counted(inputs, outputs) if counted and inputs and outputs else 0,
        bytes=sum(int(args.get(key, 0)) for key in ("activation_size", "parameter_size", "output_size"))
        + (FLOAT * math.prod(inputs[1]) if packed else 0),
        inputs=inputs,
        outputs=outputs,
        blocked=blocked,
    )


def _shapes(said: Sequence[Mapping[str, Sequence[int]]]) -> tuple[Shape, ...]:
    return tuple(tuple(int(size) for size in shape) for one in said for shape in one.values())


def _convolution(inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    return math.prod(outputs[0]) * math.prod(inputs[1][1:])  # weight: out, in of its group, kernel


def _product(inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    left, right = inputs[0], inputs[1]
    return math.prod(outputs[0]) * (left[-1] if left[-1] in right[-2:] else left[-2])  # the fused one may transpose


def _quantised(inputs: tuple[Shape, ...], outputs: tuple[Shape, ...]) -> int:
    return _convolution((inputs[0], inputs[3]), outputs)  # after the input, its scale and its zero point


_MACS: Mapping[str, Callable[[tuple[Shape, ...], tuple[Shape, ...]], int]] = {
    "Conv": _convolution,
    "FusedConv": _convolution,
    "QLinearConv": _quantised,
    "Gemm": lambda inputs, outputs: math.prod(inputs[0]) * outputs[0][-1],
    "MatMul": _product,
    "FusedMatMul": _product,
    "QLinearMatMul": lambda inputs, outputs: math.prod(outputs[0]) * inputs[0][-1],
    "MatMulIntegerToFloat": _product,
    "DynamicQuantizeMatMul": _product,
}
