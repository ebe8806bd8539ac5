"""The networks of images in the zoo that nobody here wrote."""

from __future__ import annotations

import transformers as hub
from zoo_entry import IMAGE, Architecture, vision

PATCH, HIDDEN, LAYERS, HEADS, HEAD_DIM, FFN = 8, 48, 2, 4, 12, 96
VIT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "image_size": IMAGE,
    "patch_size": PATCH,
}
CNN, TRANSFORMER = "cnn", "vision transformer"

LAYER = {"head": [HEADS] * LAYERS, "qk_width": [HEAD_DIM] * LAYERS, "v_width": [HEAD_DIM] * LAYERS}
VIT_AXES = LAYER | {"width": [FFN] * LAYERS, "embedding": [HIDDEN]}
VIT_BRANCHES = {"attention": LAYERS, "mlp": LAYERS, "layer": LAYERS}

# Sandler et al., CVPR 2018, table 2: expansion, channels, blocks, stride of the first
MOBILENETV2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
# Tan and Le, ICML 2019, table 1
EFFICIENTNET = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 40, 2, 2),
    (6, 80, 3, 2),
    (6, 112, 3, 1),
    (6, 192, 4, 2),
    (6, 320, 1, 1),
)


def eights(width: float) -> int:
    """The multiple of eight next to a width, not more than a tenth below it."""
    near = max(8, int(width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * width else near


def inverted_residuals(stages: tuple, stem: int, multiplier: float, depth: float = 1, squeeze: int = 0) -> list[int]:
    """A stream per stage, the stem's too, and for each block its expanded channels and those of its squeezed gate."""
    found, into = [stem], stem
    for expansion, channels, blocks, _ in stages:
        out = eights(channels * multiplier)
        found.append(out)
        for _ in range(-int(-blocks * depth // 1)):
            found += [] if expansion == 1 else [into * expansion]
            found += [max(1, into // squeeze)] if squeeze else []
            into = out
    return found


VISION: dict[str, Architecture] = {
    # a stage is one stream, a basic block has one width of its own, a bottleneck two; the stem is the first stage's
    "resnet-basic": vision(
        CNN,
        lambda: hub.ResNetForImageClassification(
            hub.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48], depths=[2, 2, 1], layer_type="basic")
        ),
        {"channel": [16, 32, 48, 16, 16, 32, 32, 48]},
        {"block": 2 + 1 + 0},
    ),
    "resnet-bottleneck": vision(
        CNN,
        lambda: hub.ResNetForImageClassification(
            hub.ResNetConfig(embedding_size=16, hidden_sizes=[32, 64, 64], depths=[2, 1, 1])
        ),
        {"channel": [16, 32, 64, 64] + 2 * [32 // 4, 32 // 4, 64 // 4, 64 // 4]},
        {"block": 1},
    ),
    "mobilenetv2": vision(
        CNN,
        lambda: hub.MobileNetV2ForImageClassification(hub.MobileNetV2Config(depth_multiplier=0.35, image_size=IMAGE)),
        {"channel": [*inverted_residuals(MOBILENETV2, stem=16, multiplier=0.35), 1280]},
        {"block": sum(blocks - 1 for _, _, blocks, _ in MOBILENETV2)},
    ),
    "efficientnet": vision(
        CNN,
        lambda: hub.EfficientNetForImageClassification(
            hub.EfficientNetConfig(image_size=IMAGE, width_coefficient=0.25, depth_coefficient=0.3, hidden_dim=320)
        ),
        {"channel": [*inverted_residuals(EFFICIENTNET, stem=8, multiplier=0.25, depth=0.3, squeeze=4), 320]},
        {"block": 1},
    ),
    "convnext": vision(
        CNN,
        lambda: hub.ConvNextForImageClassification(
            hub.ConvNextConfig(hidden_sizes=[16, 32, 48], depths=[1, 1, 2], num_stages=3)
        ),
        {"embedding": [16, 32, 48], "width": [4 * 16, 4 * 32, 4 * 48, 4 * 48]},
        {"block": 1 + 1 + 2},
    ),
    # a grouped convolution has groups, members that go in and members that come out; the gate is a quarter of the input
    "regnet": vision(
        CNN,
        lambda: hub.RegNetForImageClassification(
            hub.RegNetConfig(embedding_size=16, hidden_sizes=[32, 32, 64], depths=[1, 2, 1], groups_width=8)
        ),
        {"channel": [16, 32, 32, 64] + [4, 4, 4, 8] + 2 * 4 * [8] + [16 // 4, 32 // 4, 32 // 4, 32 // 4]},
        {"block": 1},
    ),
    "vit": vision(TRANSFORMER, lambda: hub.ViTForImageClassification(hub.ViTConfig(**VIT)), VIT_AXES, VIT_BRANCHES),
    "deit": vision(TRANSFORMER, lambda: hub.DeiTForImageClassification(hub.DeiTConfig(**VIT)), VIT_AXES, VIT_BRANCHES),
    "swin": vision(
        TRANSFORMER,
        lambda: hub.SwinForImageClassification(
            hub.SwinConfig(image_size=IMAGE, patch_size=2, embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4)
        ),
        {
            "head": [2, 2, 4, 4],
            "qk_width": 4 * [12],
            "v_width": 4 * [12],
            "width": [4 * 24, 4 * 24, 4 * 48, 4 * 48],
            "embedding": [24, 48],
        },
        {"attention": 4, "mlp": 4, "layer": 4},
    ),
    "beit": vision(
        TRANSFORMER,
        lambda: hub.BeitForImageClassification(hub.BeitConfig(**VIT, use_relative_position_bias=True)),
        VIT_AXES,
        VIT_BRANCHES,
    ),
    "dinov2": vision(
        TRANSFORMER,
        lambda: hub.Dinov2ForImageClassification(hub.Dinov2Config(**VIT)),
        VIT_AXES | {"width": [4 * HIDDEN] * LAYERS},
        VIT_BRANCHES,
    ),
    # three stages of 2, 4 and 3 transformer layers, each between four convolutions of one width
    "mobilevit": vision(
        TRANSFORMER,
        lambda: hub.MobileViTForImageClassification(
            hub.MobileViTConfig(
                image_size=64,
                hidden_sizes=[24, 32, 48],
                neck_hidden_sizes=[8, 12, 16, 20, 24, 28, 40],
                num_attention_heads=4,
            )
        ),
        {
            "channel": [8, 12, 16] + 4 * [20, 24, 28] + [40] + [4 * n for n in (8, 12, 16, 16, 16, 20, 24)],
            "embedding": [24, 32, 48],
            "head": 9 * [4],
            "qk_width": 2 * [24 // 4] + 4 * [32 // 4] + 3 * [48 // 4],
            "v_width": 2 * [24 // 4] + 4 * [32 // 4] + 3 * [48 // 4],
            "width": 2 * [2 * 24] + 4 * [2 * 32] + 3 * [2 * 48],
        },
        {"attention": 9, "mlp": 9, "layer": 9, "block": 2},
        side=64,
    ),
    # the first stage shortens its keys by a convolution with a norm; a feed-forward network holds a depthwise one
    "segformer": vision(
        TRANSFORMER,
        lambda: hub.SegformerForImageClassification(
            hub.SegformerConfig(
                num_encoder_blocks=2,
                depths=[1, 2],
                sr_ratios=[2, 1],
                hidden_sizes=[16, 32],
                patch_sizes=[7, 3],
                strides=[4, 2],
                num_attention_heads=[2, 4],
                mlp_ratios=[2, 2],
            )
        ),
        {
            "head": [2, 4, 4],
            "qk_width": 3 * [8],
            "v_width": 3 * [8],
            "channel": [2 * 16, 2 * 32, 2 * 32],
            "embedding": [16, 32, 16],
        },
        {"attention": 3, "block": 3, "layer": 3},
    ),
    # its output is the residual stream itself, which therefore stays
    "clip-vision": vision(
        TRANSFORMER,
        lambda: hub.CLIPVisionModel(hub.CLIPVisionConfig(**VIT)),
        LAYER | {"width": [FFN] * LAYERS},
        VIT_BRANCHES,
    ),
}
