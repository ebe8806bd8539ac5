"""Branches and layers that matter least go first: scores against the eager network, and what cannot be done refused."""

import functools

import models
import numpy as np
import pytest
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.nn import functional

from secateur import InputError, KvCache, Macs, Parameters, depth, drop_branches
from secateur import program as programs
from secateur.allocate import Goal
from secateur.axes.infer import infer
from secateur.calibration import Batch

LAYERS, WIDTH, TOKENS = 4, 8, 5
Seen = dict[str, tuple[torch.Tensor, torch.Tensor]]  # by branch: what goes in, what comes out


class Layer(nn.Module):
    """Attention and a feed-forward network, each a residual branch; notes what passes when it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 12), nn.Linear(12, WIDTH)

    def forward(self, x: torch.Tensor, note: Seen | None = None, name: str = "") -> torch.Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, -1)).movedim(-3, 0).transpose(2, 3)
        y = x + self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        z = y + self.down(functional.gelu(self.up(self.mlp_norm(y))))
        if note is not None:
            note |= {f"{name} attention": (x, y), f"{name} mlp": (y, z), f"{name} layer": (x, z)}
        return z


class Transformer(nn.Module):
    """Vectors [N, T, 8] to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(WIDTH, models.CLASSES)

    def forward(self, x: torch.Tensor, note: Seen | None = None) -> torch.Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x, note, f"layers.{number}")
        return self.head(x.mean(1))


class Blocks(nn.Module):
    """Signals [N, 6, T] to logits through residual convolutions, whose features are the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Conv1d(6, 6, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(6, models.CLASSES)

    def forward(self, x: torch.Tensor, note: Seen | None = None) -> torch.Tensor:
        for number, block in enumerate(self.blocks):
            y = x + functional.relu(block(x))
            if note is not None:
                note[f"blocks.{number} block"] = (x.movedim(1, -1), y.movedim(1, -1))
            x = y
        return self.head(x.mean(2))


@functools.cache
def network(kind: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = Blocks() if kind == "block" else Transformer()
        for number, part in enumerate(made.children()):
            for parameter in part.parameters():
                parameter.data *= 1 + 0.3 * number
    return made.eval()


def inputs(kind: str, count: int, seed: int = 0) -> torch.Tensor:
    """Examples whose features differ in mean and in scale, so that a variance over everything would show."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, TOKENS, 6 if kind == "block" else WIDTH, generator=generator)
    x = x * torch.arange(1, x.shape[-1] + 1) + torch.arange(x.shape[-1])
    return x.movedim(1, -1).contiguous() if kind == "block" else x


@functools.cache
def exported(kind: str) -> ExportedProgram:
    return models.export(network(kind), inputs(kind, 2))


def batches(kind: str) -> list[Batch]:
    """Two batches of unlike sizes: a mean of their means is not the mean."""
    return [(inputs(kind, n, n), torch.zeros(n, dtype=torch.long)) for n in (2, 7)]


def influence(entry: torch.Tensor, exit_: torch.Tensor) -> float:
    cosines = (entry * exit_).sum(-1) / (entry.norm(dim=-1) * exit_.norm(dim=-1))
    return float(1 - cosines.mean())


def variance(entry: torch.Tensor, exit_: torch.Tensor) -> float:
    added, out = (np.cov(x.flatten(0, -2).numpy().T, bias=True) for x in (exit_ - entry, exit_))
    return float(np.trace(added) / np.trace(out))


@pytest.mark.parametrize("criterion", [influence, variance], ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["attention", "mlp", "layer", "block"])
def test_branches_score_what_the_eager_network_shows(kind: str, criterion: object) -> None:
    note: Seen = {}
    with torch.no_grad():
        network(kind).double()(torch.cat([batch[0] for batch in batches(kind)]).double(), note)
    network(kind).float()
    expected = [criterion(*passed) for name, passed in note.items() if name.endswith(kind)]  # type: ignore[operator]
    _, report = drop_branches(
        exported(kind), share=0.5, kind=kind, criterion=criterion.__name__, calibration=batches(kind)
    )
    assert [score for _, score in report.scores] == pytest.approx(expected, rel=1e-3)
    lowest = sorted(report.scores, key=lambda named: named[1])[: round(0.5 * len(expected))]
    assert set(report.dropped) == {name for name, _ in lowest}


@pytest.mark.parametrize("kind", ["attention", "mlp", "layer"])
def test_the_last_go_first_where_the_criterion_says_so(kind: str) -> None:
    _, report = drop_branches(exported(kind), share=0.5, kind=kind, criterion="last")
    assert report.dropped == tuple(name for name, _ in report.scores[LAYERS // 2 :])


def test_the_random_control_follows_from_its_seed() -> None:
    reports = [drop_branches(exported("mlp"), share=0.5, kind="mlp", criterion="random", seed=s)[1] for s in (1, 1, 2)]
    assert reports[0] == reports[1]
    assert reports[0].scores != reports[2].scores


def test_dropped_layers_leave_the_network_of_the_other_layers() -> None:
    shallow, report = drop_branches(exported("layer"), share=0.5, kind="layer", criterion="last")
    made = Transformer()
    made.load_state_dict(network("layer").state_dict())
    made.layers = made.layers[: LAYERS // 2]
    x = inputs("layer", 6)
    assert torch.allclose(shallow.module(check_guards=False)(x), made(x), atol=1e-6)
    assert report.parameters_after == sum(p.numel() for p in made.parameters())
    assert report.parameters_after == sum(p.numel() for p in programs.graph_module(shallow).parameters())


def test_the_program_that_was_given_keeps_all_its_layers() -> None:
    before = programs.digest(exported("layer"))
    drop_branches(exported("layer"), share=0.5, criterion="influence", calibration=batches("layer"))
    assert programs.digest(exported("layer")) == before


def test_a_program_without_layers_is_told_what_it_has() -> None:
    with pytest.raises(InputError, match=r"^kind: expected branches of kind layer in the program, found none of any"):
        drop_branches(models.exported("perceptron"), share=0.5, criterion="last")
    with pytest.raises(InputError, match=r"found attention, mlp$"):
        drop_branches(models.exported("encoder"), share=0.5, kind="block", criterion="last")


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_share_that_drops_no_layer_or_every_one_is_refused(share: float) -> None:
    with pytest.raises(InputError, match=r"^layers: expected a share of 4 branches of kind layer that drops at least"):
        drop_branches(exported("layer"), share=share, criterion="last")


@pytest.mark.parametrize("criterion", ["influence", "variance"])
def test_a_criterion_without_its_data_is_refused(criterion: str) -> None:
    with pytest.raises(InputError, match=r"^calibration: expected at least one batch"):
        drop_branches(exported("layer"), share=0.5, criterion=criterion)


def test_layers_of_a_program_with_a_fixed_batch_are_scored_with_batches_of_that_size() -> None:
    x = inputs("layer", 3)
    program = torch.export.export(network("layer"), (x,))
    target = torch.zeros(3, dtype=torch.long)
    _, report = drop_branches(program, share=0.5, calibration=[(x, target)])
    assert len(report.dropped) == LAYERS // 2
    with pytest.raises(
        InputError, match=r"^calibration: expected 3x5x8 \(torch.float32\) for input x, batch 0 has 2x5x8"
    ):
        drop_branches(program, share=0.5, calibration=[(x[:2], target[:2])])


def test_a_dynamic_length_is_counted_position_by_position() -> None:
    x = inputs("layer", 2)
    program = torch.export.export(network("layer"), (x,), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},))
    short, long = inputs("layer", 3, 1)[:, :2], inputs("layer", 3, 2)
    targets = torch.zeros(3, dtype=torch.long)
    _, report = drop_branches(program, share=0.5, calibration=[(short, targets), (long, targets)])
    note_short, note_long = ({}, {})  # type: ignore[var-annotated]
    with torch.no_grad():
        network("layer")(short, note_short)
        network("layer")(long, note_long)
    for (_, score), name in zip(report.scores, [n for n in note_short if n.endswith("layer")], strict=True):
        passed = [
            torch.cat([a.flatten(0, 1), b.flatten(0, 1)])
            for a, b in zip(note_short[name], note_long[name], strict=True)
        ]
        assert score == pytest.approx(influence(*passed), rel=1e-3)


@pytest.mark.parametrize("goal", [Parameters(0.3), Macs(0.3), KvCache(0.3)], ids=lambda goal: type(goal).__name__)
def test_a_goal_drops_the_fewest_layers_that_reach_it(goal: Goal) -> None:
    shallow, report = drop_branches(exported("layer"), goal=goal, criterion="last")
    counted = {
        Parameters: (report.parameters_before, report.parameters_after),
        Macs: (report.macs_before, report.macs_after),
        KvCache: tuple(
            infer(programs.graph_module(one, shared=True)).count_cache() for one in (exported("layer"), shallow)
        ),
    }[type(goal)]  # type: ignore[index]
    dropped = len(report.dropped)
    assert dropped == 2, "one layer of four is less than 30 %"
    assert (1 - goal.share) * counted[0] >= counted[1]


def test_a_goal_beyond_all_layers_but_one_is_refused_with_what_they_give() -> None:
    most = depth.reachable(exported("layer"), "layer", Parameters(0.5))
    assert 0.7 < most < 0.75, "three of four layers, and a head"
    with pytest.raises(
        InputError, match=rf"expected a share of at most {most:.3f}, which 3 branches of kind layer give"
    ):
        drop_branches(exported("layer"), goal=Parameters(0.9), criterion="last")


@pytest.mark.parametrize(("share", "goal"), [(None, None), (0.5, Parameters(0.5))])
def test_either_a_share_or_a_goal_is_needed(share: float | None, goal: Goal | None) -> None:
    with pytest.raises(InputError, match=r"^layers: expected either a share or a goal, got "):
        drop_branches(exported("layer"), share=share, goal=goal, criterion="last")


def test_depth_is_made_of_layers_or_of_the_blocks_of_a_residual_network() -> None:
    assert depth.usual_kind(exported("layer")) == "layer"
    assert depth.usual_kind(exported("block")) == "block"
