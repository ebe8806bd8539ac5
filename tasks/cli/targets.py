"""What `secateur targets` shows: this machine, the providers that work on it, and what pruning can buy on each."""

from dataclasses import dataclass

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from secateur import gains, machine, probe
from secateur.errors import InputError
from secateur.gains import SPARSE_TENSOR_CORES, Gain
from secateur.machine import Gpu, Machine

_STYLE = {"time": "green", "memory": "cyan", "disk": "cyan", "nothing": "red", "unknown": "yellow"}


@dataclass(frozen=True)
class Provider:
    """One that is installed: why it does not work here, or what can be gained on it."""

    name: str
    problem: str | None
    gains: tuple[Gain, ...]


@dataclass(frozen=True)
class Targets:
    """All that is shown."""

    machine: Machine
    providers: tuple[Provider, ...]


def collect() -> Targets:
    """Look at the machine and try every provider that is installed; those that work come first."""
    here = machine.here()
    tried = [_tried(name, here) for name in here.providers]
    return Targets(here, tuple(sorted(tried, key=lambda provider: provider.problem is not None)))


def picture(found: Targets) -> list[RenderableType]:
    """The machine, the providers, and a table for each that works."""
    parts: list[RenderableType] = [_machine(found)]
    parts += [_gains(provider) for provider in found.providers if provider.problem is None]
    return parts


def _tried(name: str, here: Machine) -> Provider:
    try:
        probe.try_provider(name)
    except InputError as error:
        return Provider(name, str(error).removeprefix("target.provider: "), ())
    return Provider(name, None, gains.gains(name, here))


def _machine(found: Targets) -> Table:
    here = found.machine
    memory = "memory unknown" if here.memory_bytes is None else f"{_gibibytes(here.memory_bytes)} of memory"
    table = Table.grid(padding=(0, 2))
    table.add_row("CPU", f"{here.cpu}, {here.cores} cores, {memory}")
    table.add_row("instruction sets", ", ".join(here.instruction_sets) or "unknown")
    for gpu in here.gpus:
        table.add_row("GPU", _gpu(gpu))
    if not here.gpus:
        table.add_row("GPU", "no NVIDIA GPU seen")
    for provider in found.providers:
        says = ("works", "green") if provider.problem is None else (f"does not work: {provider.problem}", "red")
        table.add_row("provider", Text.assemble(f"{provider.name} ", says))
    return table


def _gpu(gpu: Gpu) -> str:
    sparse = "executes 2:4 sparsity" if gpu.capability >= SPARSE_TENSOR_CORES else "no sparse Tensor Cores"
    major, minor = gpu.capability
    return f"{gpu.name}, {_gibibytes(gpu.memory_bytes)}, compute capability {major}.{minor}, {sparse}"


def _gains(provider: Provider) -> Table:
    table = Table("method", "buys", "why", title=f"\nwhat pruning can buy on {provider.name}", title_justify="left")
    for gain in provider.gains:
        table.add_row(gain.method, Text(gain.buys, _STYLE[gain.buys]), gain.why)
    return table


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
