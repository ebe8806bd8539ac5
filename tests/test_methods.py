"""How each method cuts: as much less as was asked, counted in what it made; what it cannot do is refused beforehand."""

from dataclasses import replace
from typing import Any

import models
import pytest
import test_depth
from torch.export import ExportedProgram

from secateur import machine
from secateur import program as programs
from secateur.errors import InputError
from secateur.machine import Machine
from secateur.sparsity import recorded_zeros
from tasks import figures, methods, recipe
from tasks.methods import Made, Work

LAYERED = test_depth.exported("layer")


def recipe_of(goal: dict[str, Any], **prune: Any) -> recipe.Recipe:
    return recipe.Recipe.model_validate({"model": "m", "data": {"source": "digits"}, "goal": goal, "prune": prune})


def work(program: ExportedProgram, goal: dict[str, Any] | None = None, **prune: Any) -> Work:
    """A program to cut, as a recipe with these settings asks."""
    return Work(recipe_of(goal or {"sparsity": 0.5}, **prune), ("x",), program, {}, None, "", "")


def left(made: Made) -> int:
    """The weights that are not zero by a pattern."""
    counted = figures.counts(made.program, {"cuts": [made.record]})
    return counted.params - counted.zeros


def parameters(program: ExportedProgram) -> int:
    return figures.counts(program, {}).params


def test_zeros_are_counted_in_the_whole_program_and_a_second_cut_adds_to_the_first() -> None:
    dense = work(models.exported("residual"), method="unstructured", weights={"criterion": "random"})
    total = parameters(dense.program)
    first = methods.unstructured(dense, 1.5)
    assert left(first) == pytest.approx(total / 1.5, abs=3)
    lineage = programs.descend({}, "dense", first.record)
    second = methods.unstructured(replace(dense, program=first.program, lineage=lineage), 2.0)
    assert left(second) == pytest.approx(total / 3, abs=5)
    for name, weight in first.program.state_dict.items():
        assert (second.program.state_dict[name][weight == 0] == 0).all(), f"{name}: a zero came back"


def test_a_pattern_gives_what_it_gives() -> None:
    made = methods.n_m(work(LAYERED, method="n_m", weights={"pattern": "1:4"}), 99.0)
    assert made.record["pattern"] == "NM(n=1, m=4)"
    assert made.report.sparsity == pytest.approx(0.75)  # type: ignore[union-attr]


def test_branches_leave_until_what_stands_for_a_time_is_so_many_times_less() -> None:
    made = methods.depth(work(LAYERED, {"speedup": 1.5}, method="depth", layers={"criterion": "last"}), 1 / 0.6)
    assert len(made.record["dropped"]) == 2
    assert left(made) <= 0.6 * parameters(LAYERED)


@pytest.mark.parametrize("method", ["unstructured", "depth"])
def test_no_more_is_said_to_be_within_reach_than_can_be_cut(method: str) -> None:
    wanted = work(LAYERED, method=method, layers={"criterion": "last"} if method == "depth" else {})
    most = methods.most(wanted, method)
    assert left(methods.CUTS[method](wanted, most)) <= parameters(LAYERED) / most * 1.01
    with pytest.raises(InputError, match=r"is out of reach|expected a share"):
        methods.CUTS[method](wanted, 1000.0)


def test_zeros_of_a_program_whose_lineage_has_no_pattern_are_nobodys() -> None:
    made = methods.unstructured(work(models.exported("perceptron"), method="unstructured"), 1.5)
    assert recorded_zeros(made.program, {}) == 0
    assert recorded_zeros(made.program, {"cuts": [{"kept": {}}, made.record]}) > 0


@pytest.mark.parametrize(
    ("goal", "prune", "sentence"),
    [
        (
            {"sparsity": 0.9},
            {"method": "depth"},
            r"^goal\.sparsity: expected at most 0\.7\d\d, what prune\.method depth can",
        ),
        (
            {"sparsity": 0.999},
            {"method": "unstructured"},
            r"^goal\.sparsity: expected at most 0\.\d+, what prune\.method unst",
        ),
        (
            {"speedup": 2},
            {"method": "unstructured"},
            r"^prune\.method: unstructured cannot .* it would buy disk \(dense",
        ),
        (
            {"sparsity": 0.5},
            {"method": "n_m", "weights": {"pattern": "8:16"}},
            r"^pattern: NM\(n=8, m=16\).* fits no weight",
        ),
        ({"sparsity": 0.5}, {"method": "depth", "layers": {"kind": "block"}}, "^kind: expected branches of kind block"),
        (
            {"sparsity": 0.5},
            {"method": "unstructured", "weights": {"criterion": "l2"}},
            "^criterion: expected one of mag",
        ),
        ({"sparsity": 0.5}, {"weights": {"criterion": "l2"}}, "^criterion: expected one of magnitude"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_before_anything_is_measured(
    goal: dict[str, Any], prune: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        methods.check(recipe_of(goal, **prune), LAYERED, {}, ("x",))


@pytest.mark.parametrize("method", ["auto", "structured", "unstructured", "n_m", "depth", "none"])
def test_what_can_be_is_let_through(method: str) -> None:
    methods.check(recipe_of({"sparsity": 0.3}, method=method), LAYERED, {}, ("x",))


def test_two_of_four_is_the_pattern_whose_gain_is_documented(monkeypatch: pytest.MonkeyPatch) -> None:
    ampere = Machine("", 1, ("AVX2",), None, gpus=(machine.Gpu("A100", 2**34, (8, 0)),))
    monkeypatch.setattr(machine, "here", lambda: ampere)
    for pattern, buys in (("2:4", "time"), ("4:8", "unknown")):
        wanted = recipe_of({"sparsity": 0.5}, method="n_m", weights={"pattern": pattern})
        on_gpu = wanted.model_copy(
            update={"target": recipe.TargetSection.model_construct(provider="TensorrtExecutionProvider")}
        )
        assert methods.gain_of(on_gpu, "n_m").buys == buys
        assert methods.gain_of(wanted, "n_m").buys == "nothing"
