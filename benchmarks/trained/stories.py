"""A real trained Llama (dim 64, 5 layers, 8 heads on 4 KV heads, RoPE, tied embeddings) and sequences sampled from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from torch import nn
from torch.export import Dim, ExportedProgram

from secateur.calibration import Batch

HEADS, GROUPS = 8, 4
# our names of a layer's weights by the file's
NAMES = {
    "rms_att": "input_layernorm",
    "wq": "self_attn.q_proj",
    "wk": "self_attn.k_proj",
    "wv": "self_attn.v_proj",
    "wo": "self_attn.o_proj",
    "rms_ffn": "post_attention_layernorm",
    "w1": "mlp.gate_proj",
    "w2": "mlp.down_proj",
    "w3": "mlp.up_proj",
}


class Stories(nn.Module):
    """Tokens [N, T] to logits [N, T, V]."""

    def __init__(self, words: int, layers: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=words,
                hidden_size=hidden,
                intermediate_size=inner,
                num_hidden_layers=layers,
                num_attention_heads=HEADS,
                num_key_value_heads=GROUPS,
                max_position_embeddings=512,
                rms_norm_eps=1e-5,
                tie_word_embeddings=True,
            )
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=tokens, use_cache=False).logits


def load(folder: Path) -> tuple[Stories, torch.Tensor]:
    """The model with its weights, and sequences [512, 257]."""
    stored = {name: torch.from_numpy(value) for name, value in np.load(folder / "stories260k_repaired.npz").items()}
    layers, inner, hidden = stored["w1"].shape
    model = Stories(len(stored["tok_emb"]), layers, hidden, inner)
    state = {"model.embed_tokens.weight": stored["tok_emb"], "model.norm.weight": stored["rms_final"]}
    state["lm_head.weight"] = stored["tok_emb"]
    for theirs, ours in NAMES.items():
        for i, weight in enumerate(stored[theirs]):
            halves = {"wq": HEADS, "wk": GROUPS}.get(theirs)
            state[f"model.layers.{i}.{ours}.weight"] = _halved(weight, halves) if halves else weight
    model.model.load_state_dict(state)
    tokens = np.load(folder / "self_samples_T1.npz")["tokens"].astype(np.int64)
    return model.eval(), torch.from_numpy(tokens)


def _halved(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """The file turns neighbouring pairs of a head's rows, transformers turns its halves against each other."""
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.transpose(1, 2).reshape(weight.shape)


def batch(sequences: torch.Tensor) -> Batch:
    """Tokens and the tokens that follow them."""
    return sequences[:, :-1].contiguous(), sequences[:, 1:].contiguous()


def exported(model: Stories, example: Batch) -> ExportedProgram:
    """The program, with any batch and any length."""
    return torch.export.export(model, (example[0][:, :16],), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},))
