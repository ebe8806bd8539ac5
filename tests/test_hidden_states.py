"""Hidden states of a cut program are matched with those of the dense one by what makes them, and compared by direction."""

from collections.abc import Mapping

import models
import pytest
import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.nn import functional

from secateur import InputError, Ratio, drop_branches, prune
from secateur import program as programs
from secateur.calibration import values_of
from secateur.hidden_states import hidden_state_loss, shared_nodes


def modules(student: ExportedProgram, teacher: ExportedProgram) -> tuple[fx.GraphModule, fx.GraphModule]:
    return programs.graph_module(student), programs.graph_module(teacher)


def states(module: fx.GraphModule, names: list[str], inputs: torch.Tensor) -> list[torch.Tensor]:
    """What the named nodes compute."""
    nodes = {node.name: node for node in module.graph.nodes if node.name in names}
    values = values_of(module, set(nodes.values()), [inputs])
    return [values[nodes[name]] for name in names]


def makers(module: fx.GraphModule, names: Mapping[str, str] | list[str]) -> list[str]:
    """For each node the parameters that it reads, or its operator."""
    found = {}
    for node in module.graph.nodes:
        stored = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
        found[node.name] = (
            " ".join(stored) or node.target._overloadpacket.__name__ if node.op == "call_function" else ""
        )
    return [found[name] for name in names]


def test_a_cut_inside_of_branches_leaves_the_streams_shared() -> None:
    dense = models.exported("encoder")
    student, teacher = modules(prune(dense, goal=Ratio(0.5))[0], dense)
    assert makers(student, shared_nodes(student, teacher)) == [
        *("embed.weight", "norm.weight norm.bias", "out.weight out.bias", "add"),
        *("down.weight down.bias", "add"),
    ]


def test_a_stream_that_was_cut_is_not_shared() -> None:
    dense = models.exported("residual")
    inner = prune(dense, goal=Ratio(0.5), include=["inner:channel"])[0]
    student, teacher = modules(inner, dense)
    assert "add" in makers(student, shared_nodes(student, teacher))
    both = prune(dense, goal=Ratio(0.5))[0]
    assert shared_nodes(*modules(both, dense)) == {}


def test_every_hidden_state_is_shared_with_an_equal_program_and_outputs_are_none() -> None:
    student, teacher = modules(models.exported("residual"), models.exported("residual"))
    shared = shared_nodes(student, teacher)
    assert all(ours == theirs for ours, theirs in shared.items())
    assert len(shared) == 6  # three convolutions, two norms, one sum; neither activations nor the classifier


class Block(nn.Module):
    """x + down(gelu(up(norm(x))))."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(models.FEATURES)
        self.up, self.down = nn.Linear(models.FEATURES, models.HIDDEN), nn.Linear(models.HIDDEN, models.FEATURES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(functional.gelu(self.up(self.norm(x))))


def test_after_a_branch_is_dropped_states_are_matched_by_their_layers_and_not_by_their_names() -> None:
    """Of three blocks the first, which does nothing, goes: names move up by one, and each sum adds up something else."""
    blocks = nn.Sequential(*(first := Block(), Block(), Block()), nn.Linear(models.FEATURES, models.CLASSES))
    for parameter in first.down.parameters():
        nn.init.zeros_(parameter)
    dense = models.export(blocks, torch.from_numpy(models.vectors(2)))
    batch = (torch.from_numpy(models.vectors(8)), torch.zeros(8, dtype=torch.int64))
    student, teacher = modules(drop_branches(dense, share=0.34, kind="mlp", calibration=[batch])[0], dense)
    shared = shared_nodes(student, teacher)
    assert shared["linear"] == "linear_2"
    assert makers(student, shared) == makers(teacher, list(shared.values()))
    assert makers(student, shared) == [
        f"{block}.{layer}.weight {block}.{layer}.bias" for block in (1, 2) for layer in ("norm", "up", "down")
    ]


def test_the_loss_is_nothing_for_the_same_directions_and_four_for_opposite_ones() -> None:
    state = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0))
    assert float(hidden_state_loss([state], [7 * state])) == pytest.approx(0.0, abs=1e-6)
    assert float(hidden_state_loss([state], [-2 * state])) == pytest.approx(4.0, abs=1e-5)
    assert float(hidden_state_loss([state, state], [state, -state])) == pytest.approx(2.0, abs=1e-5)


def test_the_loss_is_the_mean_over_examples_of_the_squared_distance_of_unit_vectors() -> None:
    ours, theirs = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert float(hidden_state_loss([ours], [theirs])) == pytest.approx((0 + 2) / 2)


def test_a_student_that_follows_the_gradient_comes_nearer() -> None:
    dense = models.exported("encoder")
    student, teacher = modules(prune(dense, goal=Ratio(0.5))[0], dense)
    shared = shared_nodes(student, teacher)
    tokens = torch.from_numpy(models.tokens(16))
    with torch.no_grad():
        taught = states(teacher, list(shared.values()), tokens)
    optimizer = torch.optim.SGD(student.parameters(), 0.1)
    losses = []
    for _ in range(5):
        loss = hidden_state_loss(states(student, list(shared), tokens), taught)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("students", "teachers"), [([], []), ([torch.ones(2, 2)], [])])
def test_no_pair_of_states_is_refused(students: list[torch.Tensor], teachers: list[torch.Tensor]) -> None:
    with pytest.raises(
        InputError, match=r"^hidden states: expected as many of the student as of the teacher and at least"
    ):
        hidden_state_loss(students, teachers)
