"""Scores against numbers worked out by hand, and against the eager network with its hooks and gradients."""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from secateur import InputError, Ratio, prune
from secateur import program as programs
from secateur.axes.infer import Structure, infer
from secateur.calibration import Statistics, collect
from secateur.importance import CRITERIA, Evidence, l2


def scores(made: nn.Module, *inputs: torch.Tensor) -> dict[str, list[float]]:
    """The group norm of every unit of every prunable axis; the L2 score is its square."""
    module = programs.graph_module(models.export(made, *inputs))
    structure = infer(module)
    return {
        info.name: np.sqrt(l2(Evidence(module, structure, Statistics()), info)).tolist() for info in structure.prunable
    }


def filled(layer: nn.Linear | nn.Conv2d, weight: object, bias: float = 100.0) -> nn.Linear | nn.Conv2d:
    """A layer with the given weights, and a bias that would show if it were counted."""
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight, dtype=torch.float32).reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.fill_(bias)
    return layer


def test_a_hidden_unit_scores_its_row_and_its_column_together() -> None:
    made = nn.Sequential(
        filled(nn.Linear(2, 3), [[3, 4], [0, 0], [1, 2]]),
        nn.ReLU(),
        filled(nn.Linear(3, 2), [[12, 0, 2], [0, 0, 4]]),
    )
    assert scores(made, torch.zeros(2, 2)) == {"0:width": [13.0, 0.0, 5.0]}


def test_a_channel_that_is_flattened_scores_all_its_columns() -> None:
    made = nn.Sequential(filled(nn.Conv2d(1, 2, 1), [3, 0]), nn.Flatten(), filled(nn.Linear(4, 1), [[0, 4, 6, 8]]))
    assert scores(made, torch.zeros(2, 1, 1, 2)) == {"0:channel": [5.0, 10.0]}


def test_a_channel_of_a_depthwise_convolution_scores_its_own_kernel() -> None:
    made = nn.Sequential(
        filled(nn.Conv2d(1, 2, 1), [1, 2]),
        filled(nn.Conv2d(2, 2, 1, groups=2), [2, 4]),
        filled(nn.Conv2d(2, 1, 1), [2, 4]),
    )
    assert list(scores(made, torch.zeros(2, 1, 1, 1)).values()) == [[3.0, 6.0]]


def test_scales_of_batch_norms_count_and_biases_do_not() -> None:
    norm = nn.BatchNorm2d(2)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.0, 84.0]))
    nn.init.constant_(norm.bias, 50.0)
    made = nn.Sequential(filled(nn.Conv2d(1, 2, 1), [3, 5]), norm, filled(nn.Conv2d(2, 1, 1), [4, 12]))
    assert list(scores(made, torch.zeros(2, 1, 1, 1)).values()) == [[5.0, 85.0]]


class Repeated(nn.Module):
    """One number spread over a vector of scales, and summed: its axis lives in vectors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(torch.tensor(values)) for values in ([3.0, 0.0], [4.0, 2.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * self.scale + self.shift).sum(-1)


def test_vectors_count_where_no_matrix_carries_the_axis() -> None:
    assert list(scores(Repeated(), torch.zeros(3, 1)).values()) == [[5.0, 2.0]]


def test_a_tied_matrix_is_counted_once() -> None:
    made = models.Tied()
    nn.init.constant_(made.embed.weight, 2.0)
    nn.init.constant_(made.middle.weight, 0.0)
    (seen,) = scores(made, torch.from_numpy(models.tokens(2))).values()
    assert seen == pytest.approx([2 * models.VOCABULARY**0.5] * models.EMBEDDING)


def test_an_axis_on_both_sides_of_a_matrix_scores_row_and_column() -> None:
    class Ring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.ring, self.down = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.up(x)
            return self.down(x + self.ring(x))

    made = Ring()
    filled(made.up, [[0, 0], [0, 0]])
    filled(made.ring, [[0, 3], [4, 0]])
    filled(made.down, [[0, 0]])
    assert scores(made, torch.zeros(2, 2)) == {"up:width": [5.0, 5.0]}


def test_half_precision_weights_do_not_overflow_when_squared() -> None:
    made = nn.Sequential(filled(nn.Linear(1, 2), [300, 400]), filled(nn.Linear(2, 1), [400, 300])).half()
    assert scores(made, torch.zeros(2, 1).half()) == {"0:width": [500.0, 500.0]}


WEIGHTS_ALONE = [name for name, criterion in CRITERIA.items() if not criterion.needs and name != "norm_scale"]


@pytest.mark.parametrize("criterion", WEIGHTS_ALONE)
@pytest.mark.parametrize("name", models.MODELS)
def test_every_unit_of_every_axis_has_a_finite_score(name: str, criterion: str) -> None:
    module = programs.graph_module(models.exported(name))
    structure = infer(module)
    for info in structure.prunable:
        seen = CRITERIA[criterion].score(Evidence(module, structure, Statistics()), info)
        assert seen.shape == (info.size,)
        assert np.isfinite(seen).all()
        assert (seen > 0).all()


@dataclass(frozen=True)
class Case:
    """An axis, and by hand what the eager network holds of it: the unit of each position, -1 where there is none."""

    model: str
    axis: str
    members: dict[str, tuple[int, np.ndarray]]  # parameter: dimension, units
    feeds: dict[str, np.ndarray]  # module: the unit of each of its input features
    made_by: tuple[str, ...]  # the parameters whose output the axis is

    @property
    def size(self) -> int:
        return 1 + max(int(units.max()) for _, units in self.members.values())


class Matmul(nn.Module):
    """A linear layer as GPT-2 writes it: its weight is [in, out]."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(features, out)), nn.Parameter(torch.randn(out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Matmuls(nn.Module):
    """A perceptron of such layers."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = Matmul(models.FEATURES, models.HIDDEN), Matmul(models.HIDDEN, models.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(x)))


def spread(*factors: int, over: int) -> np.ndarray:
    """The unit of each position of a row-major product of sizes, for the factor at index `over`."""
    return np.indices(factors)[over].reshape(-1)


A6, A8 = np.arange(models.HIDDEN), np.arange(models.CHANNELS)
HEADS_OF = (models.GROUPS, models.HEADS // models.GROUPS, models.HEAD_DIM)
GROUPED = spread(2, 4, over=1)  # the stem's channels within the two groups of a convolution
CASES = [
    Case(
        "residual",
        "inner:channel",
        {"inner.weight": (0, A6), "inner_norm.weight": (0, A6), "inner_norm.bias": (0, A6), "outer.weight": (1, A6)},
        {"outer": A6},
        ("inner.weight",),
    ),
    Case(  # into a convolution, and flattened into a linear layer
        "residual",
        "stem:channel",
        {
            **dict.fromkeys(("stem.weight", "norm.weight", "norm.bias", "outer.weight", "outer.bias"), (0, A8)),
            **{"inner.weight": (1, A8), "head.weight": (1, spread(models.CHANNELS, 4, over=0))},
        },
        {"inner": A8, "head": spread(models.CHANNELS, 4, over=0)},
        ("stem.weight", "outer.weight"),
    ),
    Case(  # through a depthwise and a grouped convolution, and a part of a concatenation
        "branches",
        "stem:channel.2",
        {
            **dict.fromkeys(("stem.weight", "stem.bias", "depthwise.weight", "depthwise.bias"), (0, GROUPED)),
            **{"grouped.weight": (1, np.arange(4)), "mix.weight": (1, np.concatenate([GROUPED, np.full(12, -1)]))},
        },
        {"depthwise": GROUPED, "grouped": GROUPED, "mix": np.concatenate([GROUPED, np.full(12, -1)])},
        ("stem.weight", "depthwise.weight"),
    ),
    Case(  # a value and its gate
        "branches",
        "mix:channel",
        {"mix.weight": (0, np.tile(A6, 2)), "mix.bias": (0, np.tile(A6, 2)), "head.weight": (1, A6)},
        {"head": A6},
        ("mix.weight",),
    ),
    Case(  # a key and value head with its query heads
        "encoder",
        "query:kv_group",
        {
            **{f"query.{kind}": (0, spread(*HEADS_OF, over=0)) for kind in ("weight", "bias")},
            **{f"{n}.{kind}": (0, spread(2, 3, over=0)) for n in ("key", "value") for kind in ("weight", "bias")},
            "out.weight": (1, spread(*HEADS_OF, over=0)),
        },
        {"out": spread(*HEADS_OF, over=0)},
        ("query.weight", "key.weight", "value.weight"),
    ),
    Case(
        "encoder",
        "query:q_per_group",
        {
            **{f"query.{kind}": (0, spread(*HEADS_OF, over=1)) for kind in ("weight", "bias")},
            "out.weight": (1, spread(*HEADS_OF, over=1)),
        },
        {"out": spread(*HEADS_OF, over=1)},
        ("query.weight",),
    ),
    Case(
        "encoder",
        "up:width",
        {"up.weight": (0, A8), "up.bias": (0, A8), "down.weight": (1, A8)},
        {"down": A8},
        ("up.weight",),
    ),
    Case(
        "matmuls",
        "up:width.2",
        {"up.weight": (1, A6), "up.bias": (0, A6), "down.weight": (0, A6)},
        {"down": A6},
        ("up.weight",),
    ),
]
CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}-{case.axis}")
SAMPLES = (3, 1, 4)  # per batch: unlike sizes, so that a mean of means would show
LOSS = functional.cross_entropy


@functools.cache
def network(name: str) -> nn.Module:
    if name != "matmuls":
        return models.module(name)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return Matmuls().eval()


@functools.cache
def batches(name: str) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    draw = models.MODELS[name][1] if name in models.MODELS else models.vectors
    everything = torch.from_numpy(draw(sum(SAMPLES)))
    targets = torch.arange(sum(SAMPLES)) % models.CLASSES
    return tuple(zip(everything.split(SAMPLES), targets.split(SAMPLES), strict=True))


def samples(name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x[i : i + 1], y[i : i + 1]) for x, y in batches(name) for i in range(len(x))]


@functools.cache
def graph(name: str) -> tuple[fx.GraphModule, Structure]:
    module = programs.graph_module(models.export(copy.deepcopy(network(name)), batches(name)[0][0][:2]))
    return module, infer(module)


@functools.cache
def statistics(name: str, needs: frozenset[str]) -> Statistics:
    return collect(*graph(name), batches(name), needs, learning_rate=0.1)


def score(criterion: str, name: str, axis: str) -> np.ndarray:
    """What the library gives."""
    module, structure = graph(name)
    (info,) = [info for info in structure.prunable if info.name == axis]
    evidence = Evidence(module, structure, statistics(name, CRITERIA[criterion].needs))
    return CRITERIA[criterion].score(evidence, info)


def parameters(name: str) -> dict[str, torch.Tensor]:
    return dict(network(name).named_parameters())


def of_unit(case: Case, name: str, values: torch.Tensor, unit: int) -> torch.Tensor:
    """The elements of a parameter's values that belong to one unit."""
    dim, units = case.members[name]
    return values.detach().double().index_select(dim, torch.from_numpy(np.flatnonzero(units == unit)))


def gradients_of(made: nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    made.zero_grad(set_to_none=True)
    LOSS(made(x), y).backward()
    grads = {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}
    made.zero_grad(set_to_none=True)
    return grads


def per_unit(case: Case, of: Callable[[int], float]) -> list[float]:
    return [float(of(unit)) for unit in range(case.size)]


def matrices(case: Case) -> list[str]:
    return [name for name in case.members if parameters(case.model)[name].dim() > 1]


def squares(case: Case) -> list[float]:
    """By unit: the squares of its matrices' elements and of its scales in batch norms."""
    owners = {name: network(case.model).get_submodule(name.rpartition(".")[0]) for name in case.members}
    scales = [n for n, owner in owners.items() if isinstance(owner, nn.BatchNorm2d) and n.endswith(".weight")]
    return per_unit(
        case,
        lambda unit: sum(
            float((of_unit(case, name, parameters(case.model)[name], unit) ** 2).sum())
            for name in (*matrices(case), *scales)
        ),
    )


def near(expected: list[float]) -> Any:
    return pytest.approx(expected, rel=2e-3, abs=1e-9)


@CASE
def test_l1_is_the_sum_of_magnitudes_over_the_matrices_of_the_group(case: Case) -> None:
    weights = {name: parameters(case.model)[name].abs() for name in matrices(case)}
    expected = per_unit(case, lambda u: sum(float(of_unit(case, name, w, u).sum()) for name, w in weights.items()))
    assert score("l1", case.model, case.axis) == near(expected)


@CASE
def test_l2_is_the_squared_norm_of_the_group_with_its_batch_norm_scales(case: Case) -> None:
    assert score("l2", case.model, case.axis) == near(squares(case))


@CASE
def test_lamp_is_the_share_of_a_unit_among_itself_and_all_larger_ones(case: Case) -> None:
    of_units = squares(case)
    expected = [s / sum(other for other in of_units if other >= s) for s in of_units]
    assert score("lamp", case.model, case.axis) == near(expected)
    assert max(expected) == pytest.approx(1.0)


@CASE
def test_fpgm_is_the_sum_of_distances_to_the_other_units(case: Case) -> None:
    rows = [
        torch.cat([of_unit(case, n, parameters(case.model)[n], u).flatten() for n in case.made_by])
        for u in range(case.size)
    ]
    assert score("fpgm", case.model, case.axis) == near([sum(float((a - b).norm()) for b in rows) for a in rows])


def signed_terms(case: Case) -> np.ndarray:
    """sum g w of each unit, over all its parameters, norms and biases included: [samples, units]."""
    made = copy.deepcopy(network(case.model))
    terms = []
    for x, y in samples(case.model):
        grads = gradients_of(made, x, y)
        products = {n: grads[n] * parameters(case.model)[n] for n in case.members}
        terms.append(per_unit(case, lambda u, p=products: sum(of_unit(case, n, p[n], u).sum() for n in case.members)))
    return np.array(terms)


@CASE
def test_taylor_squares_the_mean_of_the_samples_first_order_terms(case: Case) -> None:
    assert score("taylor", case.model, case.axis) == near((signed_terms(case).mean(0) ** 2).tolist())


@CASE
def test_fisher_is_the_mean_of_the_samples_squares_and_not_that_of_the_last_sample(case: Case) -> None:
    """The trap of Hessian importance that keeps only the last sample."""
    terms = signed_terms(case)
    seen = score("fisher", case.model, case.axis)
    assert seen == near((terms**2).mean(0).tolist())
    assert seen != near((terms[-1] ** 2).tolist())
    assert seen != near((terms.mean(0) ** 2).tolist())


def test_fisher_does_not_depend_on_how_the_samples_are_batched_or_ordered() -> None:
    module = programs.graph_module(models.exported("residual"))
    structure = infer(module)
    (x, y) = (torch.cat(parts) for parts in zip(*batches("residual"), strict=True))
    whole, turned = (
        collect(module, structure, [(x[o], y[o])], CRITERIA["fisher"].needs)
        for o in (torch.arange(len(x)), torch.arange(len(x)).flip(0))
    )
    for info in structure.prunable:
        expected = CRITERIA["fisher"].score(Evidence(module, structure, whole), info)
        assert CRITERIA["fisher"].score(Evidence(module, structure, turned), info) == near(expected.tolist())
        assert score("fisher", "residual", info.name) == near(expected.tolist())


def test_taylor_does_not_forget_batch_norm() -> None:
    """Two channels whose convolutions are the same and whose norms differ: what the convolution alone says is equal."""
    made = nn.Sequential(
        nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2, bias=False)
    ).eval()
    filled(made[0], [1, 1])
    filled(made[3], [1, 1, -1, -1])
    with torch.no_grad():
        made[1].bias.copy_(torch.tensor([0.0, 2.0]))
    x, y = torch.full((2, 1, 1, 1), 1.0), torch.tensor([0, 1])
    module = programs.graph_module(models.export(made, x))
    structure = infer(module)
    (info,) = structure.prunable
    seen = collect(module, structure, [(x[:1], y[:1])], CRITERIA["taylor"].needs)
    alone, shifted = CRITERIA["taylor"].score(Evidence(module, structure, seen), info)
    # both receive the same gradient g at their output: the shift's own term adds 2 g to the second one, and the same
    # to what the classifier's column carries
    assert shifted > 1.5 * alone > 0


@CASE
def test_gradient_is_the_magnitude_of_the_mean_gradient(case: Case) -> None:
    grads = [gradients_of(copy.deepcopy(network(case.model)), x, y) for x, y in samples(case.model)]
    mean = {n: torch.stack([g[n] for g in grads]).mean(0).abs() for n in case.members}
    expected = per_unit(case, lambda u: sum(of_unit(case, n, mean[n], u).sum() for n in case.members))
    assert score("gradient", case.model, case.axis) == near(expected)


@CASE
def test_movement_sums_minus_gradient_times_weight_over_the_steps(case: Case) -> None:
    made = copy.deepcopy(network(case.model))
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
    total = dict.fromkeys(case.members, torch.zeros(()))
    for x, y in batches(case.model):
        grads = gradients_of(made, x, y)
        for name, parameter in made.named_parameters():
            parameter.grad = grads.get(name)
            if name in case.members:
                total[name] = total[name] - grads[name] * parameter.detach()
        optimizer.step()
    expected = per_unit(case, lambda u: sum(of_unit(case, n, total[n], u).sum() for n in case.members))
    assert score("movement", case.model, case.axis) == near(expected)


def inputs_of(case: Case) -> dict[str, torch.Tensor]:
    """What the modules that the axis feeds receive, by module: [features, positions]."""
    made, seen = copy.deepcopy(network(case.model)), {name: [] for name in case.feeds}  # type: ignore[var-annotated]
    for name, module in made.named_modules():
        if name in seen:
            module.register_forward_hook(lambda _, args, __, name=name: seen[name].append(args[0].detach().double()))
    for x, _ in batches(case.model):
        made(x)
    joined = {name: torch.cat(parts) for name, parts in seen.items()}
    return {name: x.movedim(1 if x.dim() == 4 else -1, 0).flatten(1) for name, x in joined.items()}


@CASE
def test_activation_is_the_mean_magnitude_of_what_the_unit_sends_on(case: Case) -> None:
    means = [(x.abs().mean(1), case.feeds[name]) for name, x in inputs_of(case).items()]
    expected = per_unit(
        case, lambda u: np.mean([float(m[i]) for m, units in means for i in np.flatnonzero(units == u)])
    )
    assert score("activation", case.model, case.axis) == near(expected)


@CASE
def test_apoz_is_the_share_of_what_the_unit_sends_on_that_is_not_zero(case: Case) -> None:
    shares = [((x != 0).double().mean(1), case.feeds[name]) for name, x in inputs_of(case).items()]
    expected = per_unit(
        case, lambda u: np.mean([float(m[i]) for m, units in shares for i in np.flatnonzero(units == u)])
    )
    assert score("apoz", case.model, case.axis) == near(expected)


def columns(case: Case, name: str) -> tuple[np.ndarray, list[torch.Tensor]]:
    """The weights by which a module reads each of its input features, and that feature's unit."""
    layer = dict(network(case.model).named_modules())[name]
    if isinstance(layer, Matmul):
        return case.feeds[name], list(layer.weight)
    groups = getattr(layer, "groups", 1)
    parts = [column for part in layer.weight.chunk(groups, 0) for column in part.unbind(1)]
    return case.feeds[name], parts


@CASE
def test_wanda_weighs_what_reads_a_unit_by_the_norm_of_what_it_sends(case: Case) -> None:
    expected = np.zeros(case.size)
    for name, x in inputs_of(case).items():
        for unit, column, feature in zip(*columns(case, name), x, strict=True):
            if unit >= 0:
                expected[unit] += float(column.detach().double().abs().sum() * feature.norm())
    assert score("wanda", case.model, case.axis) == near(expected.tolist())


@pytest.mark.parametrize("case", [c for c in CASES if c.model in ("encoder", "matmuls")], ids=lambda c: c.axis)
def test_variance_is_that_of_the_outputs_with_all_other_units_silent(case: Case) -> None:
    expected = np.zeros(case.size)
    for name, x in inputs_of(case).items():
        units, parts = columns(case, name)
        weight = torch.stack([part.detach().double() for part in parts])  # [in, out]
        for unit in range(case.size):
            alone = x * torch.from_numpy(units == unit)[:, None]
            expected[unit] += float((alone.T @ weight).var(0, correction=0).sum())
    assert score("variance", case.model, case.axis) == near(expected.tolist())


def test_variance_says_that_it_cannot_see_through_convolutions() -> None:
    with pytest.raises(InputError, match=r"^criterion variance: expected that stem:channel feeds linear layers alone"):
        score("variance", "residual", "stem:channel")


def test_variance_of_a_single_position_is_refused() -> None:
    module, structure = graph("matmuls")
    (x, y) = batches("matmuls")[1]
    seen = collect(module, structure, [(x, y)], CRITERIA["variance"].needs)
    (info,) = structure.prunable
    with pytest.raises(InputError, match=r"^criterion variance: expected at least 2 calibration positions .* got 1"):
        CRITERIA["variance"].score(Evidence(module, structure, seen), info)


def test_wanda_of_what_a_transposed_convolution_reads() -> None:
    made = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ConvTranspose1d(4, 6, 3, groups=2))
    x = torch.randn(5, 3, 7, generator=torch.Generator().manual_seed(0))
    module = programs.graph_module(models.export(made, x))
    structure = infer(module)
    (info,) = (i for i in structure.prunable if i.name == "0:channel")
    seen = collect(module, structure, [(x, x)], CRITERIA["wanda"].needs)
    read = made[0](x).movedim(1, 0).flatten(1).norm(dim=1)
    expected = made[1].weight.abs().sum((1, 2)) * read
    scores = CRITERIA["wanda"].score(Evidence(module, structure, seen), info)
    # a cut takes the same place of both groups
    assert scores == near(expected.reshape(2, 2).sum(0).tolist())


@pytest.mark.parametrize("criterion", ["activation", "apoz", "wanda", "variance"])
def test_a_width_that_feeds_no_weight_is_told_so(criterion: str) -> None:
    """Queries and keys meet each other, and no weight that reads them."""
    with pytest.raises(InputError, match=r"criterion.*query:qk_width feeds"):
        score(criterion, "encoder", "query:qk_width")


def test_norm_scale_is_the_mean_magnitude_of_the_batch_norms_scales() -> None:
    for axis, norm in (("inner:channel", "inner_norm"), ("stem:channel", "norm")):
        expected = parameters("residual")[f"{norm}.weight"].abs().tolist()
        assert score("norm_scale", "residual", axis) == near(expected)


def test_norm_scale_of_an_axis_that_is_flattened_into_a_second_norm() -> None:
    made = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 2))
    with torch.no_grad():
        made[1].weight.copy_(torch.tensor([1.0, -2.0]))
        made[3].weight.copy_(torch.tensor([3.0, -3.0, 2.0, 5.0, 5.0, 8.0]))
    module = programs.graph_module(models.export(made, torch.zeros(2, 1, 1, 3)))
    structure = infer(module)
    (info,) = structure.prunable
    seen = CRITERIA["norm_scale"].score(Evidence(module, structure, Statistics()), info)
    assert seen == near([(1 + 3 + 3 + 2) / 4, (2 + 5 + 5 + 8) / 4])


@pytest.mark.parametrize(("name", "axis"), [("encoder", "up:width"), ("encoder", "norm:embedding")])
def test_norm_scale_says_where_there_is_no_batch_norm(name: str, axis: str) -> None:
    with pytest.raises(InputError, match=rf"^criterion norm_scale: {axis} has no batch norm with a scale"):
        score("norm_scale", name, axis)


def test_random_follows_from_the_seed_and_the_axis() -> None:
    module = programs.graph_module(models.exported("residual"))
    structure = infer(module)
    stem, inner = structure.prunable
    drawn = [CRITERIA["random"].score(Evidence(module, structure, Statistics(), s), stem).tolist() for s in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][:6] != CRITERIA["random"].score(Evidence(module, structure, Statistics()), inner).tolist()
    assert all(0 <= value < 1 for value in drawn[0])


def test_a_tied_matrix_takes_part_in_what_an_axis_feeds() -> None:
    """The head reads the embedding's axis through a weight whose first name is another."""
    made = models.module("tied")
    seen: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, args, __: seen.append(args[0].flatten(0, -2)))
        for layer in (made.middle, made.head)
    ]
    made(batches("tied")[0][0])
    for hook in hooks:
        hook.remove()
    module, structure = graph("tied")
    noted = collect(module, structure, batches("tied")[:1], CRITERIA["activation"].needs)
    (info,) = structure.prunable
    expected = torch.stack([x.detach().double().abs().mean(0) for x in seen]).mean(0)
    assert CRITERIA["activation"].score(Evidence(module, structure, noted), info) == near(expected.tolist())


@pytest.mark.parametrize("criterion", sorted(set(CRITERIA) - {"norm_scale"}))
def test_every_criterion_cuts_heads_and_groups_and_never_nothing(criterion: str) -> None:
    """The trap of the silent no-op: what is asked of heads under grouped queries is taken from them."""
    _, report = prune(
        models.exported("encoder"),
        goal=Ratio(0.5),
        kinds=["kv_group", "q_per_group", "width"],
        criterion=criterion,
        calibration=batches("encoder"),
    )
    cuts = {(cut.kind, cut.before, cut.after) for cut in report.axes}
    assert cuts == {("kv_group", 2, 1), ("q_per_group", 2, 1), ("width", 8, 4)}


def test_snip_adds_up_what_each_weight_of_a_unit_would_cost_alone() -> None:
    made = nn.Sequential(filled(nn.Linear(2, 2), [[1, -2], [3, 4]]), filled(nn.Linear(2, 1), [5, -6]))
    module = programs.graph_module(models.export(made, torch.zeros(2, 2)))
    structure = infer(module)
    gradients = {"0.weight": torch.tensor([[1.0, 1.0], [0.5, 0.0]]), "1.weight": torch.tensor([[-1.0, 0.5]])}
    gradients |= {name: torch.full_like(module.get_parameter(name), 9.0) for name in ("0.bias", "1.bias")}
    evidence = Evidence(module, structure, Statistics(gradients=gradients))
    (info,) = structure.prunable
    assert CRITERIA["snip"].score(evidence, info).tolist() == [3.0 + 5.0, 1.5 + 3.0]
