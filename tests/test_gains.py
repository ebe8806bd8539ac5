"""What pruning can buy: the table of machines and providers that this one may not have."""

from dataclasses import replace

import onnxruntime as ort
import pytest

from secateur.gains import METHODS, gain, gains
from secateur.machine import Gpu, Machine
from secateur.runtime import CPU

CUDA, TENSORRT, OPENVINO = "CUDAExecutionProvider", "TensorrtExecutionProvider", "OpenVINOExecutionProvider"
HASWELL = Machine("Haswell", 4, ("SSE4.2", "AVX2", "FMA", "F16C"), None)
SAPPHIRE_RAPIDS = replace(
    HASWELL, instruction_sets=(*HASWELL.instruction_sets, "AVX-512F", "AVX-512 VNNI", "AMX INT8", "AMX BF16")
)
GRAVITON = replace(HASWELL, instruction_sets=("NEON", "dotprod"))
OLD = replace(HASWELL, instruction_sets=("SSE4.2",))


def with_gpu(major: int, minor: int) -> Machine:
    return replace(HASWELL, gpus=(Gpu("GPU", 2**34, (major, minor)),))


def buys(method: str, provider: str, machine: Machine) -> str:
    return gain(method, provider, machine).buys


@pytest.mark.parametrize("provider", ort.get_all_providers())
@pytest.mark.parametrize("machine", [HASWELL, SAPPHIRE_RAPIDS, GRAVITON, OLD, with_gpu(6, 1), with_gpu(9, 0)])
def test_every_provider_has_a_row_with_a_reason_for_every_method(provider: str, machine: Machine) -> None:
    table = gains(provider, machine)
    assert tuple(row.method for row in table) == METHODS
    assert all(row.why for row in table)
    assert {row.buys for row in table if row.method in ("structured", "depth")} == {"time"}


def test_zeros_buy_no_time_where_kernels_are_dense() -> None:
    for provider in (CPU, CUDA, OPENVINO):
        for machine in (SAPPHIRE_RAPIDS, with_gpu(7, 5)):
            assert buys("unstructured", provider, machine) == "disk"
            assert buys("2:4", provider, machine) in ("nothing", "unknown")
            assert buys("blocks", provider, machine) == "nothing"


@pytest.mark.parametrize(
    ("capability", "verdict"), [((7, 5), "nothing"), ((8, 0), "time"), ((8, 9), "time"), ((10, 0), "time")]
)
def test_two_of_four_pays_by_tensorrt_from_capability_8_on(capability: tuple[int, int], verdict: str) -> None:
    row = gain("2:4", TENSORRT, with_gpu(*capability))
    assert row.buys == verdict
    assert (f"this GPU has {capability[0]}.{capability[1]}" in row.why) == (verdict == "nothing")


def test_cuda_points_to_tensorrt_only_where_that_would_help() -> None:
    assert "TensorRT" in gain("2:4", CUDA, with_gpu(8, 6)).why
    assert "TensorRT" not in gain("2:4", CUDA, with_gpu(7, 5)).why


@pytest.mark.parametrize(
    ("machine", "verdict", "why"),
    [
        (SAPPHIRE_RAPIDS, "time", "AVX-512 VNNI, AMX INT8: "),
        (GRAVITON, "time", "dotprod: "),
        (HASWELL, "time", "less than with VNNI"),
        (OLD, "memory", "may even grow"),
    ],
)
def test_int8_depends_on_the_instructions_of_the_cpu(machine: Machine, verdict: str, why: str) -> None:
    row = gain("INT8", CPU, machine)
    assert row.buys == verdict
    assert why in row.why


@pytest.mark.parametrize(
    ("machine", "step"), [(SAPPHIRE_RAPIDS, "steps of 16"), (HASWELL, "steps of 8"), (GRAVITON, "steps of 4")]
)
def test_widths_pay_in_steps_of_the_widest_register(machine: Machine, step: str) -> None:
    assert step in gain("structured", CPU, machine).why


@pytest.mark.parametrize(
    ("machine", "half", "integers"),
    [
        (with_gpu(6, 1), "memory", "memory"),
        (with_gpu(7, 0), "time", "memory"),
        (with_gpu(8, 0), "time", "time"),
        (HASWELL, "unknown", "unknown"),
    ],
)
def test_precision_depends_on_the_tensor_cores_of_the_gpu(machine: Machine, half: str, integers: str) -> None:
    assert buys("FP16/BF16", CUDA, machine) == buys("FP16/BF16", TENSORRT, machine) == half
    assert buys("INT8", TENSORRT, machine) == integers


def test_half_precision_pays_on_a_cpu_that_computes_in_it_where_the_runtime_does() -> None:
    assert buys("FP16/BF16", OPENVINO, SAPPHIRE_RAPIDS) == "time"
    assert buys("FP16/BF16", OPENVINO, HASWELL) == buys("FP16/BF16", CPU, SAPPHIRE_RAPIDS) == "disk"


def test_what_a_provider_does_not_document_is_unknown() -> None:
    assert buys("INT8", "CANNExecutionProvider", HASWELL) == "unknown"
