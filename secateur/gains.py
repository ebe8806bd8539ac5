"""What each kind of pruning or compression can buy on a provider and a machine, and why: the table before the work.

It says what can be gained at the most, by what the vendors document; how much it is, only a measurement says. Sources:

- ONNX Runtime: dense kernels of the CPU provider (MLAS), casts around operators without half precision; "Quantize ONNX
  models" on VNNI, AVX2's saturation, and that INT8 on GPUs is left to TensorRT; its pages on the TensorRT (`trt_sparsity_enable`),
  QNN and XNNPACK providers.
- Intel, "Deep Learning Boost" and "Advanced Matrix Extensions"; Arm, the dot product and i8mm extensions.
- NVIDIA, "Matrix Multiplication Background" of the deep learning performance guide on widths; the tuning guides and the
  "Ampere architecture" paper on Tensor Cores by compute capability; Mishra et al. 2021, "Accelerating sparse deep neural
  networks", on 2:4.
- OpenVINO, "CPU device" on BF16, and sparse weights decompression.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from secateur.machine import Machine
from secateur.runtime import CPU

Buys = Literal["time", "memory", "disk", "nothing", "unknown"]  # the most of it; time and memory save on disk too
Row = tuple[Buys, str]

METHODS = ("structured", "depth", "unstructured", "2:4", "blocks", "INT8", "FP16/BF16")
VNNI = ("AVX-512 VNNI", "AVX-VNNI", "AMX INT8", "dotprod", "i8mm")  # multiply and add 8-bit numbers in one instruction
SPARSE_TENSOR_CORES = (8, 0)  # the compute capability they begin with


@dataclass(frozen=True)
class Gain:
    """What one method can buy at the most, and why."""

    method: str  # one of METHODS
    buys: Buys
    why: str


def gains(provider: str, machine: Machine) -> tuple[Gain, ...]:
    """The table of a provider on a machine, a row for each of METHODS in their order."""
    documented = _TABLES[provider](machine) if provider in _TABLES else {}
    rows = {**_UNDOCUMENTED, **documented}
    return tuple(Gain(method, *rows[method]) for method in METHODS)


def gain(method: str, provider: str, machine: Machine) -> Gain:
    """One row of the table."""
    return next(row for row in gains(provider, machine) if row.method == method)


_UNDOCUMENTED: Mapping[str, Row] = {
    "structured": ("time", "fewer multiply-accumulates; in which steps of width, only a measurement says"),
    "depth": ("time", "whole layers leave, and all of their time with them"),
    **dict.fromkeys(METHODS[2:], ("unknown", "this provider does not document it; measure before counting on it")),
}


def _dense(widths: str) -> dict[str, Row]:
    """The rows of a provider that has dense kernels only."""
    alike = "dense kernels: it runs like the dense model, and costs more accuracy than as many zeros left free"
    return {
        "structured": ("time", f"fewer multiply-accumulates in dense kernels; {widths}"),
        "unstructured": ("disk", "dense kernels: a zero costs what any number costs; only a compressed file shrinks"),
        "2:4": ("nothing", alike),
        "blocks": ("nothing", alike),
    }


def _cpu(machine: Machine) -> dict[str, Row]:
    half: Row = ("disk", "half the file; most operators are computed in float32 between casts")
    return {**_dense(_vectors(machine)), "INT8": _integers(machine), "FP16/BF16": half}


def _vectors(machine: Machine) -> str:
    widest = {"AVX-512F": 16, "AVX2": 8, "SSE4.2": 4, "NEON": 4}
    for name, floats in widest.items():
        if name in machine.instruction_sets:
            return f"time follows widths in steps of {floats}, the floats in a register of {name}"
    return "time follows widths in steps of a vector register"


def _integers(machine: Machine) -> Row:
    found = [name for name in VNNI if name in machine.instruction_sets]
    if found:
        return "time", f"{', '.join(found)}: a product of 8-bit numbers and its sum are one instruction"
    if "AVX2" in machine.instruction_sets:
        return "time", (
            "less than with VNNI: three instructions multiply and add 8-bit numbers, and may saturate unless weights keep "
            "to 7 bits"
        )
    return "memory", "a quarter of the weights; without 8-bit dot products the time may even grow"


def _openvino(machine: Machine) -> dict[str, Row]:
    native = [name for name in ("AVX-512 BF16", "AMX BF16") if name in machine.instruction_sets]
    rows = _cpu(machine) | {"FP16/BF16": ("disk", "half the file; this CPU computes it in float32")}
    if native:
        rows["FP16/BF16"] = ("time", f"{', '.join(native)}: OpenVINO computes in BF16 where the CPU can")
    if "AMX INT8" in machine.instruction_sets:
        why = "OpenVINO can keep sparse INT8 weights packed on AMX, by an option that is not set here; a compressed file shrinks"
        rows["unstructured"] = ("disk", why)
    return rows


def _xnnpack(machine: Machine) -> dict[str, Row]:
    rows = _cpu(machine)
    del rows["FP16/BF16"]
    return rows | {
        "INT8": ("time", "convolutions and pooling run in 8 bits; other quantised operators leave the provider")
    }


def _qnn(machine: Machine) -> dict[str, Row]:
    del machine
    return {"INT8": ("time", "integers of 8 and 16 bits are what the NPU computes in")}


def _unseen() -> dict[str, Row]:
    return dict.fromkeys(("2:4", "INT8", "FP16/BF16"), ("unknown", "no NVIDIA GPU is seen on this machine"))


def _cuda(machine: Machine) -> dict[str, Row]:
    rows = _dense("time follows widths in steps: multiples of 8 in FP16, of 64 from compute capability 8.0 on")
    if not machine.gpus:
        return rows | _unseen()
    left = "the CUDA provider calls dense kernels"
    if machine.gpus[0].capability >= SPARSE_TENSOR_CORES:
        left += "; on this GPU the TensorRT provider can run it"
    return rows | {
        "2:4": ("nothing", left),
        "INT8": (
            "disk",
            "ONNX Runtime leaves INT8 on GPUs to the TensorRT provider, this one computes in floating point",
        ),
        "FP16/BF16": _half(machine.gpus[0].capability),
    }


def _tensorrt(machine: Machine) -> dict[str, Row]:
    rows = _cuda(machine)
    if not machine.gpus:
        return rows
    capability = machine.gpus[0].capability
    return rows | {"2:4": _two_of_four(capability), "INT8": _tensor_integers(capability)}


def _two_of_four(capability: tuple[int, int]) -> Row:
    if capability >= SPARSE_TENSOR_CORES:
        return "time", "Sparse Tensor Cores skip the zeros in layers where TensorRT finds that faster; often few"
    return "nothing", f"Sparse Tensor Cores begin with compute capability 8.0, this GPU has {_dotted(capability)}"


def _tensor_integers(capability: tuple[int, int]) -> Row:
    if capability >= (7, 5):
        return "time", "Tensor Cores multiply 8-bit numbers"
    return "memory", f"INT8 Tensor Cores begin with compute capability 7.5, this GPU has {_dotted(capability)}"


def _half(capability: tuple[int, int]) -> Row:
    if capability >= (8, 0):
        return "time", "Tensor Cores compute in FP16 and BF16"
    if capability >= (7, 0):
        return "time", "Tensor Cores compute in FP16; BF16 begins with compute capability 8.0"
    return (
        "memory",
        f"half the weights; Tensor Cores begin with compute capability 7.0, this GPU has {_dotted(capability)}",
    )


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


_TABLES: dict[str, Callable[[Machine], dict[str, Row]]] = {
    CPU: _cpu,
    "CUDAExecutionProvider": _cuda,
    "TensorrtExecutionProvider": _tensorrt,
    "OpenVINOExecutionProvider": _openvino,
    "XnnpackExecutionProvider": _xnnpack,
    "QNNExecutionProvider": _qnn,
}
