"""The networks of the zoo that are written out in `zoo_networks`."""

from __future__ import annotations

import zoo_networks as networks
from torch import nn
from torch.export import Dim
from zoo_entry import (
    BATCH,
    FREE,
    IMAGE,
    LENGTH,
    PAIR,
    SHORT,
    WORDS,
    Architecture,
    Axes,
    Branches,
    Inputs,
    Make,
    features,
    images,
    words,
)

HIDDEN, LAYERS, HEADS, GROUPS, HEAD_DIM, FFN, EMBEDDING, STATE = 48, 2, 4, 2, 12, 96, 24, 20
SIDE = 16
SERIAL = {"attention": LAYERS, "mlp": LAYERS, "layer": LAYERS}


def _image(make: Make, axes: Axes, branches: Branches, inputs: Inputs | None = None) -> Architecture:
    return Architecture("written here", make, inputs or images(SIDE), axes, branches)


def _text(make: Make, axes: Axes, branches: Branches, other: int = SHORT) -> Architecture:
    return Architecture("written here", make, words(), axes, branches, (FREE,), (LENGTH, other))


WRITTEN: dict[str, Architecture] = {
    "vgg": _image(lambda: networks.Vgg((8, 12, 16), 20, SIDE), {"channel": [8, 12, 16], "width": [20]}, {}),
    "densenet": _image(
        lambda: networks.DenseNet(stem=12, growth=4, bottleneck=9, depths=(2, 2)),
        {"channel": [12] + 4 * [4] + 4 * [9] + [(12 + 2 * 4) // 2]},
        {},
    ),
    "inception": _image(
        lambda: networks.Inception(stem=12, paths=(4, 6, 5, 3), reduced=8, modules=2),
        {"channel": [12] + 2 * [4, 6, 5, 3] + 2 * 2 * [8]},
        {},
    ),
    # the halves of the first unit's input: one passes (8) and is one with what the shuffle lays between it, one is
    # transformed (8); each further unit halves what passed, and has an inner width (8)
    "shufflenet-v2": _image(
        lambda: networks.ShuffleNetV2(width=16, units=3), {"channel": [8, 4, 2, 2] + 3 * [8] + [32]}, {}
    ),
    # two groups, of 12 / 2 members outside; the 24 / 2 members inside are shuffled into two groups of 6
    "shufflenet-v1": _image(
        lambda: networks.ShuffleNetV1(width=12, inner=24, groups=2),
        {"channel": [2, 12 // 2, 24 // 2 // 2]},
        {"block": 1},
    ),
    "unet": _image(lambda: networks.UNet((8, 12, 16)), {"channel": [8, 12, 16] + 2 * [12, 8]}, {}),
    "unet-group-norm": _image(
        lambda: networks.GroupNormUNet(width=12, inner=24, groups=3),
        {"channel": [3, 12 // 3, 3, 24 // 3]},
        {"block": 1},
    ),
    # a stage's stream is the one before it between new channels on both sides: 16, then 8 + 8 more, then 16 + 16 more
    "resnet20-option-a": _image(
        lambda: networks.OptionAResNet(blocks=3, widths=(16, 32, 64)),
        {"channel": [16, 8, 8, 16, 16] + 3 * [16, 32, 64]},
        {"block": 3 + 2 + 2},
    ),
    "conv1d": Architecture(
        "written here",
        lambda: networks.Conv1dNet(features=5, width=12, inner=20),
        features(5),
        {"channel": [12, 20]},
        {"block": 1},
        ({0: Dim.AUTO, 2: Dim.AUTO},),
        (24, 17),
    ),
    "conv3d": _image(
        lambda: networks.Conv3dNet(width=12, inner=20), {"channel": [12, 20]}, {"block": 1}, features(3, 4, 8, 8)
    ),
    "squeeze-excitation": _image(
        lambda: networks.SqueezeExcitation(width=16, inner=24, squeezed=6),
        {"channel": [16, 24], "width": [6]},
        {"block": 1},
    ),
    "pixel-shuffle": _image(lambda: networks.PixelShuffle(width=8, inner=10, factor=2), {"channel": [8, 10]}, {}),
    # the initial states of all layers and directions are one tensor, so their widths are one axis; torch.export unrolls
    # a recurrent layer over the length of the example
    "lstm": _text(
        lambda: networks.Recurrent(nn.LSTM(EMBEDDING, STATE, 2, batch_first=True), WORDS, EMBEDDING, STATE),
        {"embedding": [EMBEDDING], "width": [STATE]},
        {},
        other=LENGTH,
    ),
    "gru-bidirectional": _text(
        lambda: networks.Recurrent(
            nn.GRU(EMBEDDING, STATE, batch_first=True, bidirectional=True), WORDS, EMBEDDING, 2 * STATE
        ),
        {"embedding": [EMBEDDING], "width": [STATE]},
        {},
        other=LENGTH,
    ),
    # one matrix holds queries, keys and values as three rows of equal layout, so their widths are one axis
    "torch-transformer": Architecture(
        "written here",
        lambda: networks.TorchTransformer(WORDS, HIDDEN, HEADS, FFN, LAYERS),
        words(2),
        {
            "head": [HEADS] * 3 * LAYERS,
            "qk_width": [HEAD_DIM] * 3 * LAYERS,
            "width": [FFN] * 2 * LAYERS,
            "embedding": [HIDDEN],
        },
        {"attention": 3 * LAYERS, "mlp": 2 * LAYERS, "layer": 2 * LAYERS},
        PAIR,
        (LENGTH, SHORT),
    ),
    # 4 of 12 features turn in pairs
    "modern-decoder": _text(
        lambda: networks.ModernDecoder(
            WORDS, HIDDEN, LAYERS, heads=HEADS, groups=GROUPS, width=HEAD_DIM, inner=FFN, rotary=4
        ),
        {
            "kv_group": [GROUPS] * LAYERS,
            "q_per_group": [HEADS // GROUPS] * LAYERS,
            "qk_width": [4 // 2, HEAD_DIM - 4] * LAYERS,
            "v_width": [HEAD_DIM] * LAYERS,
            "width": [FFN] * LAYERS,
            "embedding": [HIDDEN],
        },
        SERIAL,
    ),
    # what came before has the heads and widths that it has
    "cached-decoder": Architecture(
        "written here",
        lambda: networks.CachedDecoder(WORDS, HIDDEN, HEADS, FFN),
        lambda batch, length: (*words()(batch, length), *features(batch, HEADS, 5, HEAD_DIM)(2, 0)),
        {"embedding": [HIDDEN], "width": [FFN]},
        {"attention": 1, "mlp": 1},
        ({0: BATCH, 1: Dim.AUTO}, {1: BATCH}),
        (3, 2),
    ),
    # every expert sees every word, so whole experts can go too
    "soft-moe": _text(
        lambda: networks.SoftMoe(WORDS, HIDDEN, experts=3, inner=FFN),
        {"width": [3, FFN], "embedding": [HIDDEN]},
        {"mlp": 1},
    ),
    "mlp-mixer": _image(
        lambda: networks.MlpMixer(IMAGE, 8, HIDDEN, tokens=20, channels=FFN, layers=LAYERS),
        {"width": [20, FFN] * LAYERS, "embedding": [HIDDEN]},
        {"mlp": 2 * LAYERS},
        images(),
    ),
}
