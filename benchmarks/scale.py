"""How analysis and surgery grow: Llama-shaped decoders of 8 to 64 layers, and a whole cut of one with a billion parameters.

`make bench-scale` runs it. The analysis needs shapes alone (meta tensors); the cut uses real weights of 32 layers (4.5 GB).
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
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
REPEATS = 3


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
    """Graph nodes, parameters, free axes, and the seconds that copying the graph and finding its axes take: of three
    measurements the least, since whatever else the machine does only adds."""
    program = exported(layers, "meta")
    seconds = []
    for _ in range(REPEATS):
        gc.collect()
        started = time.perf_counter()
        module = programs.graph_module(program, shared=True)
        structure = infer(module)
        seconds.append(time.perf_counter() - started)
    return len(module.graph.nodes), structure.count_parameters(), len(structure.prunable), min(seconds)


def peak_of(name: str) -> tuple[float, float, float, float]:
    """Of one kind of cut of a billion parameters: size of the model [GB], seconds, resident memory before and peak [GB]."""
    kept = [exported(BILLION, "cpu")]
    size = sum(parameter.numel() * 4 for parameter in dict(kept[0].named_parameters()).values()) / 1e9
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak that VmHWM tells
    before = _status("VmRSS")
    started = time.perf_counter()
    CUTS[name](kept)
    return size, time.perf_counter() - started, before, _status("VmHWM")


def _status(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e9


def pruned(kept: list[ExportedProgram]) -> None:
    """What a user calls; the dense program stays."""
    prune(kept[0], goal=Ratio(0.5))


def surgery_alone(kept: list[ExportedProgram]) -> None:
    """Half of every free axis out of the weights; each dense tensor is released as soon as its successor is there."""
    module = programs.graph_module(kept.pop(), shared=True)
    structure = infer(module)
    halves = {info.axis: np.arange((info.size + 1) // 2) for info in structure.prunable}
    surgery.cut(module, structure, halves)


CUTS = {"axes and surgery alone": surgery_alone, "prune: dense kept, every proof": pruned}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--skip-cut", action="store_true", help="leave out the cut of a billion real parameters")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", FutureWarning)
    console = Console()
    table = Table("layers", "nodes", "parameters", "free axes", "analysis, s", "ms per node", title="analysis")
    for layers in LAYERS:
        nodes, parameters, axes, seconds = analysis(layers)
        cells = (layers, nodes, f"{parameters:,}", axes, f"{seconds:.2f}", f"{seconds / nodes * 1e3:.2f}")
        table.add_row(*map(str, cells))
        console.print(f"{layers} layers: {seconds:.2f} s", style="dim")
    console.print(table)
    if not arguments.skip_cut:
        cut_a_billion(console)


def cut_a_billion(console: Console) -> None:
    """Time and memory of surgery that owns the weights, and of a whole `prune`, each in a process of its own."""
    table = Table("what", "seconds", "model, GB", "before, GB", "peak, GB", "peak / model", title=f"{BILLION} layers")
    for name in CUTS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            size, seconds, before, peak = pool.apply(peak_of, (name,))
        table.add_row(name, f"{seconds:.1f}", f"{size:.2f}", f"{before:.2f}", f"{peak:.2f}", f"{peak / size:.2f}")
    console.print(table)


if __name__ == "__main__":
    main()
