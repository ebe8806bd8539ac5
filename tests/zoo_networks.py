"""Networks of the zoo that no library we depend on has, each the smallest that shows its way of wiring channels."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional

CLASSES = 7


def conv_norm(into: int, out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution of equal padding, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    )


class Vgg(nn.Module):
    """Plain stack with pooling, flattened into a perceptron (Simonyan and Zisserman, ICLR 2015)."""

    def __init__(self, widths: tuple[int, ...], hidden: int, side: int) -> None:
        super().__init__()
        pairs = zip((3, *widths), widths, strict=False)
        self.features = nn.Sequential(
            *(m for a, b in pairs for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)))
        )
        left = (side // 2 ** len(widths)) ** 2
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(widths[-1] * left, hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, CLASSES)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x))


class DenseLayer(nn.Module):
    """Norm, ReLU, convolution, twice; what comes out is laid behind what came in."""

    def __init__(self, into: int, growth: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(into), nn.Conv2d(into, bottleneck, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(bottleneck), nn.Conv2d(bottleneck, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        new = self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


class DenseNet(nn.Module):
    """Dense blocks with halving transitions between them (Huang et al., CVPR 2017)."""

    def __init__(self, stem: int, growth: int, bottleneck: int, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        width = stem
        for position, depth in enumerate(depths):
            for _ in range(depth):
                blocks.append(DenseLayer(width, growth, bottleneck))
                width += growth
            if position + 1 < len(depths):
                transition = nn.Conv2d(width, width // 2, 1, bias=False)
                blocks += [nn.BatchNorm2d(width), nn.ReLU(), transition, nn.AvgPool2d(2)]
                width //= 2
        self.blocks, self.norm, self.head = nn.Sequential(*blocks), nn.BatchNorm2d(width), nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Inception(nn.Module):
    """Four parallel paths laid behind each other, twice (Szegedy et al., CVPR 2015)."""

    def __init__(self, stem: int, paths: tuple[int, int, int, int], reduced: int, modules: int) -> None:
        super().__init__()
        self.stem = conv_norm(3, stem, stride=2)
        one, three, five, pooled = paths
        into = stem
        self.paths = nn.ModuleList()
        for _ in range(modules):
            self.paths.append(
                nn.ModuleList(
                    [
                        conv_norm(into, one, 1),
                        nn.Sequential(conv_norm(into, reduced, 1), conv_norm(reduced, three)),
                        nn.Sequential(conv_norm(into, reduced, 1), conv_norm(reduced, five, 5)),
                        nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_norm(into, pooled, 1)),
                    ]
                )
            )
            into = sum(paths)
        self.head = nn.Linear(into, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for paths in self.paths:
            x = torch.cat([path(x) for path in paths], 1)  # type: ignore[union-attr]
        return self.head(x.mean((2, 3)))


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Channels of the groups interleaved, written out as a view and a transposition."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


class ShuffleUnit(nn.Module):
    """Half of the channels pass, half are transformed, then all are shuffled (Ma et al., ECCV 2018)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.path = nn.Sequential(
            conv_norm(half, half, 1),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            conv_norm(half, half, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        passed, changed = x.chunk(2, 1)
        return shuffled(torch.cat([passed, self.path(changed)], 1), 2)


class ShuffleNetV2(nn.Module):
    """A stem and shuffle units at one width."""

    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.stem = conv_norm(3, width, stride=2)
        self.units = nn.Sequential(*(ShuffleUnit(width) for _ in range(units)))
        self.last = conv_norm(width, 2 * width, 1)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.last(self.units(self.stem(x))).mean((2, 3)))


class ShuffleNetV1(nn.Module):
    """Grouped 1x1 convolutions with `nn.ChannelShuffle` between them, in a residual block (Zhang et al., CVPR 2018)."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.stem = conv_norm(3, width, stride=2)
        self.path = nn.Sequential(
            conv_norm(width, inner, 1, groups=groups),
            nn.ChannelShuffle(groups),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.Conv2d(inner, width, 1, groups=groups, bias=False),
            nn.BatchNorm2d(width),
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(torch.relu(x + self.path(x)).mean((2, 3)))


class UNet(nn.Module):
    """Down, up by transposed convolutions, and skips laid behind what comes up (Ronneberger et al., MICCAI 2015)."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.down = nn.ModuleList(conv_norm(a, b) for a, b in zip((3, *widths), widths, strict=False))
        pairs = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairs)
        self.merge = nn.ModuleList(conv_norm(2 * b, b) for _, b in pairs)
        self.head = nn.Conv2d(widths[0], CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skips: list[torch.Tensor] = []
        for position, layer in enumerate(self.down):
            x = layer(x if position == 0 else functional.max_pool2d(x, 2))
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([up(x), skip], 1))
        return self.head(x)


class GroupNormUNet(nn.Module):
    """One level down by convolution, up by interpolation, group norms, the skip added."""

    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.GroupNorm(groups, width)
        self.down, self.inner_norm = nn.Conv2d(width, inner, 3, stride=2, padding=1), nn.GroupNorm(groups, inner)
        self.up = nn.Conv2d(inner, width, 3, padding=1)
        self.head = nn.Conv2d(width, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.silu(self.norm(self.stem(x)))
        y = functional.silu(self.inner_norm(self.down(x)))
        return self.head(x + self.up(functional.interpolate(y, scale_factor=2.0, mode="nearest")))


class OptionABlock(nn.Module):
    """A basic block whose shortcut has no parameters: every other pixel, new channels of zeros on both sides."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        stride = 1 if into == out else 2
        self.conv1, self.norm1 = nn.Conv2d(into, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out)
        self.conv2, self.norm2 = nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out)
        self.new = out - into

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        if self.new:
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new // 2, self.new - self.new // 2))
        return torch.relu(x + y)


class OptionAResNet(nn.Module):
    """The CIFAR ResNet of He et al. (CVPR 2016) with 6n+2 layers; n = 3 is ResNet-20."""

    def __init__(self, blocks: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.stem = conv_norm(3, widths[0])
        into = [widths[0], *(width for width in widths for _ in range(blocks))]
        self.blocks = nn.Sequential(*(OptionABlock(a, b) for a, b in itertools.pairwise(into)))
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Conv1dNet(nn.Module):
    """Dilated residual convolutions over time with instance norms, as in a temporal convolutional network."""

    def __init__(self, features: int, width: int, inner: int) -> None:
        super().__init__()
        self.stem = nn.Conv1d(features, width, 3, padding=1)
        self.norm1, self.conv1 = (
            nn.InstanceNorm1d(width, affine=True),
            nn.Conv1d(width, inner, 3, padding=2, dilation=2),
        )
        self.norm2, self.conv2 = nn.InstanceNorm1d(inner, affine=True), nn.Conv1d(inner, width, 3, padding=1)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = x + self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        return self.head(functional.adaptive_avg_pool1d(x, 1).flatten(1))


class Conv3dNet(nn.Module):
    """Convolutions over video, the second factorised into space and time (Tran et al., CVPR 2018)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv3d(3, width, 3, padding=1), nn.BatchNorm3d(width), nn.ReLU())
        self.space = nn.Conv3d(width, inner, (1, 3, 3), padding=(0, 1, 1))
        self.time = nn.Conv3d(inner, width, (3, 1, 1), padding=(1, 0, 0))
        self.norm, self.pool = nn.BatchNorm3d(width), nn.MaxPool3d(2)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        x = torch.relu(self.norm(x + self.time(torch.relu(self.space(x)))))
        return self.head(x.mean((2, 3, 4)))


class SqueezeExcitation(nn.Module):
    """A residual block whose channels are scaled by a gate computed from their means (Hu et al., CVPR 2018)."""

    def __init__(self, width: int, inner: int, squeezed: int) -> None:
        super().__init__()
        self.stem = conv_norm(3, width)
        self.first, self.second = conv_norm(width, inner), nn.Conv2d(inner, width, 3, padding=1)
        self.squeeze, self.excite = nn.Linear(width, squeezed), nn.Linear(squeezed, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        y = self.second(self.first(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3))))))
        return self.head((x + y * gate[:, :, None, None]).mean((2, 3)))


class PixelShuffle(nn.Module):
    """Super-resolution: pixels folded into channels, transformed, and unfolded again (Shi et al., CVPR 2016)."""

    def __init__(self, width: int, inner: int, factor: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.fold, self.unfold = nn.PixelUnshuffle(factor), nn.PixelShuffle(factor)
        self.inner = nn.Conv2d(width * factor**2, inner * factor**2, 3, padding=1)
        self.head = nn.Conv2d(inner, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.unfold(torch.relu(self.inner(self.fold(self.stem(x))))))


class Recurrent(nn.Module):
    """Words read by a recurrent network, the mean of its states classified."""

    def __init__(self, layer: nn.Module, words: int, embedding: int, states: int) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(words, embedding), layer, nn.Linear(states, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(self.embed(x))[0].mean(1))


class TorchTransformer(nn.Module):
    """`nn.TransformerEncoder` and `nn.TransformerDecoder`: packed projections, self-attention and cross-attention."""

    def __init__(self, words: int, hidden: int, heads: int, inner: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, hidden)
        shared = {"d_model": hidden, "nhead": heads, "dim_feedforward": inner, "batch_first": True, "norm_first": True}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**shared),  # type: ignore[arg-type]
            layers,
            enable_nested_tensor=False,
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**shared), layers)  # type: ignore[arg-type]
        self.head = nn.Linear(hidden, words)

    def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.head(self.decoder(self.embed(target), self.encoder(self.embed(source))))


class RmsNorm(nn.Module):
    """Root mean square norm written out (Zhang and Sennrich, NeurIPS 2019)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


def rotated(x: torch.Tensor, width: int) -> torch.Tensor:
    """Rotary positions on the first `width` features of a head, halves paired (Su et al., 2021)."""
    turned, passed = x[..., :width], x[..., width:]
    frequencies = 10_000 ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(x.shape[-2], dtype=torch.float32)[:, None] * frequencies
    angles = torch.cat([angles, angles], -1)
    left, right = turned.chunk(2, -1)
    turned = turned * angles.cos() + torch.cat([-right, left], -1) * angles.sin()
    return torch.cat([turned, passed], -1)


class ModernLayer(nn.Module):
    """Fused projections of grouped queries, keys and values, partial rotary positions, one matrix for gate and value."""

    def __init__(self, hidden: int, heads: int, groups: int, width: int, inner: int, rotary: int) -> None:
        super().__init__()
        self.heads, self.groups, self.width, self.inner, self.rotary = heads, groups, width, inner, rotary
        self.norm1, self.norm2 = RmsNorm(hidden), nn.RMSNorm(hidden)
        self.qkv = nn.Linear(hidden, (heads + 2 * groups) * width, bias=False)
        self.out = nn.Linear(heads * width, hidden, bias=False)
        self.gate_up, self.down = nn.Linear(hidden, 2 * inner, bias=False), nn.Linear(inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.norm1(x))
        gate, up = self.gate_up(self.norm2(x)).chunk(2, -1)
        return x + self.down(functional.silu(gate) * up)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        sizes = [self.heads * self.width, self.groups * self.width, self.groups * self.width]
        q, k, v = (p.view(batch, length, -1, self.width).transpose(1, 2) for p in self.qkv(x).split(sizes, -1))
        q, k = rotated(q, self.rotary), rotated(k, self.rotary)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, -1))


class ModernDecoder(nn.Module):
    """Tied embeddings around modern layers."""

    def __init__(self, words: int, hidden: int, layers: int, **layer: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, hidden)
        self.layers = nn.ModuleList(ModernLayer(hidden, **layer) for _ in range(layers))
        self.norm, self.head = RmsNorm(hidden), nn.Linear(hidden, words, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class CachedDecoder(nn.Module):
    """One layer that continues a text, its keys and values so far an input [2, batch, heads, past, width]."""

    def __init__(self, words: int, hidden: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.embed, self.norm1, self.norm2 = nn.Embedding(words, hidden), nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.qkv, self.out = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, hidden)
        self.up, self.down, self.head = nn.Linear(hidden, inner), nn.Linear(inner, hidden), nn.Linear(hidden, words)

    def forward(self, x: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        q, k, v = (p.unflatten(-1, (self.heads, -1)).transpose(1, 2) for p in self.qkv(self.norm1(x)).chunk(3, -1))
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x + self.down(functional.silu(self.up(self.norm2(x)))))


class SoftMoe(nn.Module):
    """Every expert sees every word, the router weighs them: one matrix per projection holds all experts."""

    def __init__(self, words: int, hidden: int, experts: int, inner: int) -> None:
        super().__init__()
        self.embed, self.norm, self.router = (
            nn.Embedding(words, hidden),
            nn.LayerNorm(hidden),
            nn.Linear(hidden, experts),
        )
        self.up = nn.Parameter(torch.randn(experts, hidden, inner) / hidden**0.5)
        self.down = nn.Parameter(torch.randn(experts, inner, hidden) / inner**0.5)
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        y = self.norm(x)
        weights = torch.sigmoid(self.router(y))
        inner = functional.gelu(torch.einsum("blh,ehi->blei", y, self.up))
        return self.head((x + torch.einsum("blei,eih,ble->blh", inner, self.down, weights)).mean(1))


class MlpMixer(nn.Module):
    """Perceptrons across patches and across channels in turn (Tolstikhin et al., NeurIPS 2021)."""

    def __init__(self, side: int, patch: int, hidden: int, tokens: int, channels: int, layers: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, hidden, patch, patch)
        count = (side // patch) ** 2
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(2 * layers))
        self.across = nn.ModuleList(self._perceptron(count, tokens) for _ in range(layers))
        self.along = nn.ModuleList(self._perceptron(hidden, channels) for _ in range(layers))
        self.head = nn.Linear(hidden, CLASSES)

    @staticmethod
    def _perceptron(outer: int, inner: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(outer, inner), nn.GELU(), nn.Linear(inner, outer))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for position, (across, along) in enumerate(zip(self.across, self.along, strict=True)):
            x = x + across(self.norms[2 * position](x).transpose(1, 2)).transpose(1, 2)
            x = x + along(self.norms[2 * position + 1](x))
        return self.head(x.mean(1))
