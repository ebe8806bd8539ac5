"""The networks of text and sound in the zoo that nobody here wrote."""

from __future__ import annotations

import transformers as hub
from torch import nn
from zoo_entry import (
    FREE,
    LENGTH,
    SHORT,
    WORDS,
    Architecture,
    OneInput,
    TwoInputs,
    features,
    padded_words,
    text,
    two_texts,
)

HIDDEN, LAYERS, HEADS, GROUPS, HEAD_DIM, FFN, POSITIONS, EMBEDDING = 48, 2, 4, 2, 12, 96, 64, 24
TEXT = {
    "vocab_size": WORDS,
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "max_position_embeddings": POSITIONS,
}
EXPERTS = 3
GROUPED = TEXT | {"num_key_value_heads": GROUPS}
T5 = {
    "vocab_size": WORDS,
    "d_model": HIDDEN,
    "d_kv": HEAD_DIM,
    "d_ff": FFN,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
}
BART = {
    "vocab_size": WORDS,
    "d_model": HIDDEN,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": FFN,
    "decoder_ffn_dim": FFN,
    "max_position_embeddings": POSITIONS,
}
WAV2VEC2 = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "conv_dim": [16, EMBEDDING],
    "conv_kernel": [10, 3],
    "conv_stride": [5, 2],
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}

# an encoder whose output is the residual stream itself, which therefore stays
BARE = {
    "head": [HEADS] * LAYERS,
    "qk_width": [HEAD_DIM] * LAYERS,
    "v_width": [HEAD_DIM] * LAYERS,
    "width": [FFN] * LAYERS,
}
HEADED = BARE | {"embedding": [HIDDEN]}
CLASSIFIER = HEADED | {"width": [FFN] * LAYERS + [HIDDEN]}  # between encoder and classifier lies one more layer
ONE_BIAS = {"head": [HEADS]}  # all layers add one table of position biases to their heads
# rotary positions turn pairs of features by one table of frequencies for all layers
ROTARY = {
    "kv_group": [GROUPS] * LAYERS,
    "q_per_group": [HEADS // GROUPS] * LAYERS,
    "qk_width": [HEAD_DIM // 2],
    "v_width": [HEAD_DIM] * LAYERS,
    "width": [FFN] * LAYERS,
    "embedding": [HIDDEN],
}
# half of the features of a head are turned in pairs, the other half is each layer's own
HALF_ROTARY = HEADED | {"qk_width": [HEAD_DIM // 2 // 2] + [HEAD_DIM // 2] * LAYERS}
# encoder, decoder and cross-attention
THREE_ATTENTIONS = {
    "head": [HEADS] * 3 * LAYERS,
    "qk_width": [HEAD_DIM] * 3 * LAYERS,
    "v_width": [HEAD_DIM] * 3 * LAYERS,
    "width": [FFN] * 2 * LAYERS,
    "embedding": [HIDDEN],
}
SERIAL = {"attention": LAYERS, "mlp": LAYERS, "layer": LAYERS}
PAIRED = {"attention": 3 * LAYERS, "mlp": 2 * LAYERS, "layer": 2 * LAYERS}
ONE_NORM = {"layer": LAYERS}  # attention and feed-forward network side by side behind one norm: only both can go

ENCODER, DECODER, BOTH = "encoder", "decoder", "encoder-decoder"


def _bert(**changed: str) -> nn.Module:
    return hub.BertForSequenceClassification(hub.BertConfig(**TEXT, **changed))


LANGUAGE: dict[str, Architecture] = {
    "bert": text(ENCODER, _bert, CLASSIFIER, SERIAL),
    "bert-written-out": text(ENCODER, lambda: _bert(attn_implementation="eager"), CLASSIFIER, SERIAL),
    "bert-padded": Architecture(
        ENCODER,
        lambda: TwoInputs(_bert(), "input_ids", "attention_mask"),
        padded_words,
        CLASSIFIER,
        SERIAL,
        (FREE, FREE),
        (LENGTH, SHORT),
    ),
    "distilbert": text(
        ENCODER,
        lambda: hub.DistilBertForSequenceClassification(
            hub.DistilBertConfig(
                vocab_size=WORDS,
                dim=HIDDEN,
                n_layers=LAYERS,
                n_heads=HEADS,
                hidden_dim=FFN,
                max_position_embeddings=POSITIONS,
            )
        ),
        CLASSIFIER,
        SERIAL,
    ),
    "roberta": text(
        ENCODER, lambda: hub.RobertaForSequenceClassification(hub.RobertaConfig(**TEXT)), CLASSIFIER, SERIAL
    ),
    # every layer has the same weights: one of each kind, and no layer that could go alone
    "albert": text(
        ENCODER,
        lambda: hub.AlbertForSequenceClassification(hub.AlbertConfig(**TEXT, embedding_size=EMBEDDING)),
        {
            "head": [HEADS],
            "qk_width": [HEAD_DIM],
            "v_width": [HEAD_DIM],
            "width": [FFN, HIDDEN],
            "embedding": [EMBEDDING, HIDDEN],
        },
        {"layer": 1},
    ),
    "electra": text(
        ENCODER,
        lambda: hub.ElectraForSequenceClassification(hub.ElectraConfig(**TEXT, embedding_size=EMBEDDING)),
        CLASSIFIER | {"embedding": [EMBEDDING, HIDDEN]},
        SERIAL,
    ),
    # the table of relative positions has a width of its own
    "deberta": text(
        ENCODER,
        lambda: hub.DebertaForSequenceClassification(
            hub.DebertaConfig(**TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"])
        ),
        CLASSIFIER | {"width": [FFN] * LAYERS + [HIDDEN, HIDDEN]},
        SERIAL,
    ),
    "deberta-v2": text(
        ENCODER,
        lambda: hub.DebertaV2ForSequenceClassification(
            hub.DebertaV2Config(**TEXT, relative_attention=True, pos_att_type=["c2p", "p2c"])
        ),
        CLASSIFIER | {"width": [FFN] * LAYERS + [HIDDEN, HIDDEN]},
        SERIAL,
    ),
    "mpnet": text(
        ENCODER, lambda: hub.MPNetForSequenceClassification(hub.MPNetConfig(**TEXT)), CLASSIFIER | ONE_BIAS, SERIAL
    ),
    "clip-text": text(ENCODER, lambda: hub.CLIPTextModel(hub.CLIPTextConfig(**TEXT, eos_token_id=2)), BARE, SERIAL),
    "t5-encoder": text(ENCODER, lambda: hub.T5EncoderModel(hub.T5Config(**T5)), BARE | ONE_BIAS, SERIAL),
    "t5-gated": text(
        ENCODER,
        lambda: hub.T5EncoderModel(hub.T5Config(**T5, feed_forward_proj="gated-gelu")),
        BARE | ONE_BIAS,
        SERIAL,
    ),
    "bart-encoder": text(ENCODER, lambda: hub.BartModel(hub.BartConfig(**BART)).encoder, BARE, SERIAL),
    "gpt2": text(
        DECODER,
        lambda: hub.GPT2LMHeadModel(
            hub.GPT2Config(vocab_size=WORDS, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=POSITIONS)
        ),
        HEADED | {"width": [4 * HIDDEN] * LAYERS},
        SERIAL,
    ),
    "gpt-neox": text(
        DECODER,
        lambda: hub.GPTNeoXForCausalLM(
            hub.GPTNeoXConfig(
                **TEXT, rope_parameters={"rope_type": "default", "rope_theta": 10_000, "partial_rotary_factor": 0.5}
            )
        ),
        HALF_ROTARY,
        SERIAL,
    ),
    "opt": text(
        DECODER,
        lambda: hub.OPTForCausalLM(
            hub.OPTConfig(
                vocab_size=WORDS,
                hidden_size=HIDDEN,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                ffn_dim=FFN,
                max_position_embeddings=POSITIONS,
                word_embed_proj_dim=HIDDEN,
            )
        ),
        HEADED,
        SERIAL,
    ),
    # one table of slopes for the heads of all layers; query, key and value of a head lie in one row of width HEAD_DIM
    "bloom": text(
        DECODER,
        lambda: hub.BloomForCausalLM(
            hub.BloomConfig(vocab_size=WORDS, hidden_size=HIDDEN, n_layer=LAYERS, n_head=HEADS)
        ),
        {
            "head": [HEADS],
            "qk_width": [HEAD_DIM] * LAYERS,
            "width": [4 * HIDDEN] * LAYERS,
            "embedding": [HIDDEN],
        },
        SERIAL,
    ),
    "llama": text(DECODER, lambda: hub.LlamaForCausalLM(hub.LlamaConfig(**GROUPED)), ROTARY, SERIAL),
    "mistral": text(DECODER, lambda: hub.MistralForCausalLM(hub.MistralConfig(**GROUPED)), ROTARY, SERIAL),
    "qwen2": text(DECODER, lambda: hub.Qwen2ForCausalLM(hub.Qwen2Config(**GROUPED)), ROTARY, SERIAL),
    "qwen3": text(DECODER, lambda: hub.Qwen3ForCausalLM(hub.Qwen3Config(**GROUPED, head_dim=HEAD_DIM)), ROTARY, SERIAL),
    "gemma": text(DECODER, lambda: hub.GemmaForCausalLM(hub.GemmaConfig(**GROUPED, head_dim=HEAD_DIM)), ROTARY, SERIAL),
    # neighbours of 8 of the 12 features turn in pairs, by a table for each layer
    "gptj": text(
        DECODER,
        lambda: hub.GPTJForCausalLM(
            hub.GPTJConfig(
                vocab_size=WORDS, n_embd=HIDDEN, n_layer=LAYERS, n_head=HEADS, n_positions=POSITIONS, rotary_dim=8
            )
        ),
        HEADED | {"qk_width": [8 // 2, HEAD_DIM - 8] * LAYERS, "width": [4 * HIDDEN] * LAYERS},
        ONE_NORM,
    ),
    "phi": text(DECODER, lambda: hub.PhiForCausalLM(hub.PhiConfig(**TEXT)), HALF_ROTARY, ONE_NORM),
    # heads of queries lie above one key and one value of the same width, and rotary positions pair that width
    "falcon": text(
        DECODER,
        lambda: hub.FalconForCausalLM(
            hub.FalconConfig(vocab_size=WORDS, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS)
        ),
        {
            "head": [HEADS] * LAYERS,
            "qk_width": [HEAD_DIM // 2],
            "width": [4 * HIDDEN] * LAYERS,
            "embedding": [HIDDEN],
        },
        ONE_NORM,
    ),
    "falcon-grouped": text(
        DECODER,
        lambda: hub.FalconForCausalLM(
            hub.FalconConfig(
                vocab_size=WORDS,
                hidden_size=HIDDEN,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_kv_heads=GROUPS,
                new_decoder_architecture=True,
            )
        ),
        {
            "kv_group": [GROUPS] * LAYERS,
            "q_per_group": [HEADS // GROUPS] * LAYERS,
            "qk_width": [HEAD_DIM // 2],
            "width": [4 * HIDDEN] * LAYERS,
            "embedding": [HIDDEN],
        },
        SERIAL,
    ),
    # queries, and keys with values, pass through a latent width; a part of each key has positions and is one for all heads.
    # Keys are written part by part, so attention is no branch of its own
    "minicpm3": text(
        DECODER,
        lambda: hub.MiniCPM3ForCausalLM(
            hub.MiniCPM3Config(
                **TEXT,
                num_key_value_heads=HEADS,
                q_lora_rank=28,
                kv_lora_rank=20,
                qk_nope_head_dim=8,
                qk_rope_head_dim=4,
                v_head_dim=10,
            )
        ),
        {
            "head": [HEADS] * LAYERS,
            "qk_width": [8] * LAYERS + [4 // 2],
            "v_width": [10] * LAYERS,
            "width": [FFN] * LAYERS,
            "embedding": [HIDDEN] + [28, 20] * LAYERS,
        },
        {"mlp": LAYERS, "layer": LAYERS},
    ),
    # the experts of a layer share their inner width
    "mixtral": text(
        DECODER,
        lambda: hub.MixtralForCausalLM(hub.MixtralConfig(**GROUPED, num_local_experts=EXPERTS)),
        ROTARY | {"expert": [EXPERTS] * LAYERS},
        SERIAL,
    ),
    "mixtral-batched": text(
        DECODER,
        lambda: hub.MixtralForCausalLM(
            hub.MixtralConfig(**GROUPED, num_local_experts=3, experts_implementation="batched_mm")
        ),
        ROTARY,
        SERIAL,
    ),
    "t5": two_texts(
        BOTH,
        lambda: hub.T5ForConditionalGeneration(hub.T5Config(**T5)),
        # one table of biases for the encoder, one for the decoder, none across
        THREE_ATTENTIONS | {"head": [HEADS] * (1 + 1 + LAYERS)},
        PAIRED,
    ),
    "bart": two_texts(BOTH, lambda: hub.BartForConditionalGeneration(hub.BartConfig(**BART)), THREE_ATTENTIONS, PAIRED),
    "whisper-encoder": Architecture(
        "audio",
        lambda: OneInput(
            hub.WhisperModel(
                hub.WhisperConfig(**BART | {"num_mel_bins": 20, "max_source_positions": 16, "pad_token_id": 0})
            ).encoder,
            "input_features",
        ),
        features(20, 2 * 16),
        BARE | {"channel": [HIDDEN]},
        SERIAL,
    ),
    # positions come from a convolution that is a residual block of its own
    "wav2vec2": Architecture(
        "audio",
        lambda: OneInput(hub.Wav2Vec2Model(hub.Wav2Vec2Config(**WAV2VEC2)), "input_values"),
        features(),
        BARE | {"channel": [16], "embedding": [EMBEDDING]},
        SERIAL | {"block": 1},
        (FREE,),
        (400, 325),
    ),
}
