"""`secateur targets` as a shell sees it: this machine, and what it would print on others."""

import json

import pytest
from rich.console import Console
from test_cli_programs import run
from test_gains import HASWELL, SAPPHIRE_RAPIDS, TENSORRT, with_gpu

from secateur import gains, machine
from secateur.machine import Machine
from secateur.runtime import CPU
from tasks.cli.targets import Provider, Targets, picture


def shown(here: Machine, *names: str, width: int = 120, broken: str | None = None) -> str:
    """What is printed of a machine on which these providers work, and one, if it is named, does not."""
    providers = [Provider(name, None, gains.gains(name, here)) for name in names]
    if broken:
        providers.append(Provider(broken, "libcudnn.so.9 is missing", ()))
    console = Console(width=width)
    with console.capture() as captured:
        for part in picture(Targets(here, tuple(providers))):
            console.print(part)
    return captured.get()


def test_this_machine_is_printed_with_a_table_of_what_pruning_buys() -> None:
    printed = run("targets")
    assert machine.here().cpu in printed
    assert f"{CPU} works" in printed
    assert f"what pruning can buy on {CPU}" in printed


def test_json_holds_the_same() -> None:
    found = json.loads(run("targets", "--json"))
    assert found["machine"]["instruction_sets"] == list(machine.here().instruction_sets)
    first = found["providers"][0]
    assert (first["name"], first["problem"]) == (CPU, None)
    assert {row["method"]: row["buys"] for row in first["gains"]}["2:4"] == "nothing"


def test_a_gpu_is_said_to_execute_two_of_four_or_not() -> None:
    assert "compute capability 9.0, executes 2:4 sparsity" in shown(with_gpu(9, 0), TENSORRT)
    assert "compute capability 7.5, no sparse Tensor Cores" in shown(with_gpu(7, 5), TENSORRT)
    assert "no NVIDIA GPU seen" in shown(HASWELL, CPU)


def test_a_provider_that_does_not_work_has_its_reason_in_place_of_a_table() -> None:
    printed = shown(HASWELL, CPU, broken=TENSORRT)
    assert f"{TENSORRT} does not work: libcudnn.so.9 is missing" in printed
    assert f"what pruning can buy on {TENSORRT}" not in printed


@pytest.mark.parametrize("width", [80, 120])
def test_nothing_is_cut_off_in_a_narrow_terminal(width: int) -> None:
    lines = shown(SAPPHIRE_RAPIDS, CPU, TENSORRT, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in "".join(lines)
