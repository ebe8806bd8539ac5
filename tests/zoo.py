"""The zoo: architectures, tiny and with random weights, with what each is made of by its own configuration.

`ARCHITECTURES` is the table, by name. Nothing here needs pytest: benchmarks use the zoo too.
"""

from __future__ import annotations

import functools
import warnings

import torch
import transformers as hub
from torch import nn
from torch.export import ExportedProgram
from zoo_entry import Architecture, Make, OneInput
from zoo_language import LANGUAGE, TEXT
from zoo_vision import VISION
from zoo_written import WRITTEN

ARCHITECTURES: dict[str, Architecture] = {**VISION, **LANGUAGE, **WRITTEN}
# what `torch.export` says, of architectures that it does not export
NOT_EXPORTED: dict[str, tuple[Make, str]] = {
    "longformer": (
        lambda: OneInput(hub.LongformerModel(hub.LongformerConfig(**TEXT, attention_window=4)), "input_ids"),
        "Could not guard on data-dependent expression",
    ),
}
# and what its ONNX exporter says; every other entry can be exported
NOT_ONNX: dict[str, str] = {"mixtral": "No ONNX function found for .*grouped_mm"}


@functools.cache
def exported(name: str) -> ExportedProgram:
    """The exported program of an entry, exported once per process. Nothing may modify it."""
    entry = ARCHITECTURES[name]
    with torch.random.fork_rng(), warnings.catch_warnings():
        torch.manual_seed(0)
        warnings.simplefilter("ignore")
        made = lived_in(entry.make()).eval()
        return torch.export.export(made, entry.inputs(2, entry.lengths[0]), dynamic_shapes=entry.dynamic)


def lived_in(made: nn.Module) -> nn.Module:
    """Weights as large as after training: where they start, attention is flat and layer scales hide their branch."""
    with torch.no_grad():
        for name, tensor in made.named_parameters():
            if tensor.dim() > 1:
                tensor.normal_(std=(tensor[0].numel()) ** -0.5)
            elif name.endswith("bias"):
                tensor.normal_(std=0.2)
            else:
                tensor.uniform_(0.5, 1.5)
        for name, tensor in made.named_buffers():
            if name.endswith("running_mean"):
                tensor.normal_()
            elif name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
    return made
