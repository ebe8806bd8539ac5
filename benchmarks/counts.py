"""What a program holds and what it costs, counted in the program itself."""

from __future__ import annotations

from torch.export import ExportedProgram

from secateur import program as programs
from secateur.axes.infer import infer


def macs(program: ExportedProgram) -> int:
    """Multiply-accumulates of one example, by the one counter that all programs go through."""
    return infer(programs.graph_module(program, shared=True)).count_macs(programs.per_example_symbols(program))


def weights(program: ExportedProgram) -> int:
    """Parameters that are not zero; tied ones count once."""
    module = programs.graph_module(program, shared=True)
    return sum(int(parameter.count_nonzero()) for parameter in module.parameters())


def units(program: ExportedProgram, kinds: tuple[str, ...]) -> int:
    """Units of all axes of some kinds that can be cut."""
    structure = infer(programs.graph_module(program, shared=True))
    return sum(info.size for info in structure.prunable if info.kind in kinds)
