"""What the machine that runs this offers to inference: processor, instruction sets, memory, GPUs, providers."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# by torch's name for it: what the matrix kernels of the runtimes ask for, x86 before ARM
INSTRUCTION_SETS = {
    "sse4_2": "SSE4.2",
    "avx2": "AVX2",
    "fma3": "FMA",
    "f16c": "F16C",
    "avx_vnni": "AVX-VNNI",
    "avx512_f": "AVX-512F",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX INT8",
    "amx_bf16": "AMX BF16",
    "neon": "NEON",
    "dot": "dotprod",
    "i8mm": "i8mm",
    "fp16_arith": "FP16",
    "bf16": "BF16",
    "sve": "SVE",
}
_SMI_LINE = re.compile(r"(?P<name>.+), *(?P<mebibytes>\d+), *(?P<major>\d+)\.(?P<minor>\d+)")


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU."""

    name: str
    memory_bytes: int
    capability: tuple[int, int]  # major and minor compute capability


@dataclass(frozen=True)
class Machine:
    """What one machine offers. What it does not tell is None, or not there."""

    cpu: str
    cores: int  # that this process may use
    instruction_sets: tuple[str, ...]  # of INSTRUCTION_SETS
    memory_bytes: int | None
    gpus: tuple[Gpu, ...] = ()
    providers: tuple[str, ...] = ()  # of ONNX Runtime, installed


def here() -> Machine:
    """The machine that runs this."""
    import onnxruntime as ort
    import torch

    told = torch.cpu.get_capabilities()
    return Machine(
        cpu=processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        instruction_sets=instruction_sets(told),
        memory_bytes=_memory(),
        gpus=_gpus_of_torch() or _gpus_of_driver(),
        providers=tuple(ort.get_available_providers()),
    )


def processor() -> str:
    """Its name."""
    import torch

    name: str = torch.cpu.get_capabilities().get("cpu_name", "")
    return name or platform.processor() or platform.machine()


def instruction_sets(capabilities: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that matter to inference, from what `torch.cpu.get_capabilities` tells of any processor."""
    return tuple(label for name, label in INSTRUCTION_SETS.items() if capabilities.get(name))


def gpus_of_smi(text: str) -> tuple[Gpu, ...]:
    """The GPUs in a listing of `nvidia-smi --query-gpu=name,memory.total,compute_cap --format=csv,noheader,nounits`."""
    lines = filter(None, (_SMI_LINE.fullmatch(line.strip()) for line in text.splitlines()))
    return tuple(
        Gpu(line["name"], int(line["mebibytes"]) * 2**20, (int(line["major"]), int(line["minor"]))) for line in lines
    )


def _memory() -> int | None:
    """Bytes of the whole machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return None


def _gpus_of_torch() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available() or torch.version.hip:
        return ()
    found = (torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count()))
    return tuple(Gpu(one.name, one.total_memory, (one.major, one.minor)) for one in found)


def _gpus_of_driver() -> tuple[Gpu, ...]:
    """What the driver's own tool lists: torch may be built without CUDA where ONNX Runtime is not."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return ()
    query = ["--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([program, *query], capture_output=True, text=True, check=False, timeout=30)
    except subprocess.TimeoutExpired:  # a driver that hangs serves nothing
        return ()
    return gpus_of_smi(done.stdout)
