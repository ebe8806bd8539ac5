"""What a machine offers: read from what torch and the driver tell, of this machine and of others."""

import os
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from secateur.machine import Gpu, gpus_of_smi, here, instruction_sets

SAPPHIRE_RAPIDS = {"sse4_2", "avx2", "fma3", "f16c", "avx512_f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}
GRAVITON_3 = {"neon", "dot", "i8mm", "fp16_arith", "bf16", "sve"}
FLAGS = {"AVX2": "avx2", "FMA": "fma", "F16C": "f16c", "AVX-512F": "avx512f", "AVX-512 VNNI": "avx512_vnni"}
FLAGS |= {"SSE4.2": "sse4_2", "AVX-VNNI": "avx_vnni", "AMX INT8": "amx_int8", "AMX BF16": "amx_bf16"}


def test_instruction_sets_are_named_as_their_vendors_do() -> None:
    assert instruction_sets(dict.fromkeys(SAPPHIRE_RAPIDS, True) | {"avx_vnni": False, "cpu_name": "Xeon"}) == (
        *("SSE4.2", "AVX2", "FMA", "F16C"),
        *("AVX-512F", "AVX-512 VNNI", "AVX-512 BF16", "AMX INT8", "AMX BF16"),
    )
    assert instruction_sets(dict.fromkeys(GRAVITON_3, True)) == ("NEON", "dotprod", "i8mm", "FP16", "BF16", "SVE")
    assert instruction_sets({"architecture": "riscv64"}) == ()


def test_this_machine_is_described() -> None:
    machine = here()
    assert machine.cpu
    assert 1 <= machine.cores <= (os.cpu_count() or 1)
    assert machine.providers == tuple(ort.get_available_providers())


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs Linux's own word")
def test_what_is_said_of_this_machine_is_what_linux_says() -> None:
    machine = here()
    listed = Path("/proc/cpuinfo").read_text().split()
    if "flags" in listed:  # x86
        assert {name: name in machine.instruction_sets for name in FLAGS} == {
            name: flag in listed for name, flag in FLAGS.items()
        }
    kibibytes = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0])
    assert machine.memory_bytes == pytest.approx(kibibytes * 1024, rel=0.01)


def test_gpus_are_read_from_the_drivers_listing() -> None:
    text = "NVIDIA H100 80GB HBM3, 81559, 9.0\nTesla T4, 15360, 7.5\n"
    assert gpus_of_smi(text) == (
        Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, (9, 0)),
        Gpu("Tesla T4", 15360 * 2**20, (7, 5)),
    )


@pytest.mark.parametrize("text", ["", "No devices were found\n", "Tesla K80, 11441, [N/A]\n"])
def test_what_the_driver_does_not_know_is_no_gpu(text: str) -> None:
    assert gpus_of_smi(text) == ()


@pytest.mark.skipif(sys.platform == "win32", reason="a program without an ending")
def test_the_driver_is_asked_where_torch_sees_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla T4, 15360, 7.5'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert [gpu.name for gpu in here().gpus] == ["Tesla T4"]
