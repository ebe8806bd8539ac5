"""How analysis and surgery grow: Llama-shaped decoders of 8 to 64 layers, and a whole cut of one with a billion parameters.

`make bench-scale` runs it. The analysis needs shapes alone (meta tensors); the cut uses real weights of 32 layers (4.5 GB).
"""

from __future__ import annotations

import argparse
import gc
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import fx
from torch.export import Dim, ExportedProgram

from secateur import Ratio, prune, surgery
from secateur import program as programs
from secateur.axes.infer import infer

LAYERS = (8, 16, 32, 64)
BILLION = 32  # layers that make 1.1 B parameters
SHAPE: dict[str, Any] = {
    "hidden_size": 1792,
    "intermediate_size": 4864,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 32_000,
    "tie_word_embeddings": True,
}
TOKENS = 16


class Decoder(torch.nn.Module):
    """Tokens [N, T] to logits [N, T, vocabulary], without a cache."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, num_hidden_layers=layers))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


def exported(layers: int, device: str) -> ExportedProgram:
    """A decoder with random weights on a device; on "meta" there are none."""
    with torch.device(device):
        model = Decoder(layers).eval()
        tokens = torch.zeros(2, TOKENS, dtype=torch.long)
    return torch.export.export(model, (tokens,), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},))


def analysis(layers: int) -> tuple[int, int, int, float]:
    """Graph nodes, parameters, free axes, and the seconds that copying the graph and finding its axes take."""
    program = exported(layers, "meta")
    started = time.perf_counter()
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    seconds = time.perf_counter() - started
    return len(module.graph.nodes), structure.count_parameters(), len(structure.prunable), seconds


def peak_of(work: Callable[[], object]) -> tuple[float, float, float]:
    """Seconds, and resident memory before and at the peak [GB] of a function without arguments."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak that VmHWM tells
    before = _status("VmRSS")
    started = time.perf_counter()
    work()
    return time.perf_counter() - started, before, _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def surgery_alone(module: fx.GraphModule) -> None:
    """Half of every free axis out of the weights; each dense tensor is released as soon as its successor is there."""
    structure = infer(module)
    kept = {info.axis: np.arange((info.size + 1) // 2) for info in structure.prunable}
    surgery.cut(module, structure, kept)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-cut", action="store_true", help="leave out the cut of a billion real parameters")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    console = Console()
    table = Table("layers", "nodes", "parameters", "free axes", "analysis [s]", "ms per node", title="analysis")
    for layers in LAYERS:
        nodes, parameters, axes, seconds = analysis(layers)
        cells = (layers, nodes, f"{parameters:,}", axes, f"{seconds:.2f}", f"{seconds / nodes * 1e3:.2f}")
        table.add_row(*map(str, cells))
        console.print(f"{layers} layers: {seconds:.2f} s", style="dim")
    console.print(table)
    if not arguments.skip_cut:
        cut_a_billion(console)


def cut_a_billion(console: Console) -> None:
    """Time and memory of a whole `prune`, and of surgery that owns the weights."""
    programs_left = [exported(BILLION, "cpu")]
    size = sum(parameter.numel() * 4 for parameter in dict(programs_left[0].named_parameters()).values()) / 1e9
    table = Table("what", "seconds", "before [GB]", "peak [GB]", "peak / model", title=f"a model of {size:.2f} GB")

    def row(what: str, work: Callable[[], object]) -> None:
        seconds, before, peak = peak_of(work)
        table.add_row(what, f"{seconds:.1f}", f"{before:.2f}", f"{peak:.2f}", f"{peak / size:.2f}")

    row("prune: dense kept, every proof", lambda: prune(programs_left[0], goal=Ratio(0.5)))
    module = programs.graph_module(programs_left.pop(), shared=True)
    row("axes and surgery alone", lambda: surgery_alone(module))
    console.print(table)


if __name__ == "__main__":
    main()
