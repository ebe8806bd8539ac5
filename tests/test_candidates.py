"""A sweep's file: every candidate is a complete recipe before anything starts, and what is wrong is one sentence that names it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from secateur.errors import InputError
from tasks import candidates, recipe

BASE: dict[str, Any] = {
    "model": "m",
    "data": {"source": "digits"},
    "goal": {"sparsity": 0.5},
    "gate": {"confidence": 0.9},
}
MATRIX = {"prune.criterion": ["l2", "taylor"], "goal.sparsity": [0.5, 0.75]}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes with one base."""
    monkeypatch.setenv("SECATEUR_RECIPES", str(tmp_path))
    write("base", BASE, tmp_path)
    return tmp_path


def write(name: str, content: Any, folder: Path) -> None:
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def refusal(folder: Path, **content: Any) -> str:
    """The sentence with which a sweep is refused."""
    write("sweep", {"base": "base", "matrix": MATRIX} | content, folder)
    with pytest.raises(InputError) as caught:
        candidates.of_sweep("sweep")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_combination_is_a_candidate_called_by_what_varies(folder: Path) -> None:
    write("sweep", {"base": "base", "matrix": MATRIX | {"prune.align": [4]}}, folder)
    _, found = candidates.of_sweep("sweep")
    assert list(found) == ["l2-0.5", "l2-0.75", "taylor-0.5", "taylor-0.75"]
    assert {(one.prune.criterion, one.goal.sparsity, one.prune.align) for one in found.values()} == {
        ("l2", 0.5, 4),
        ("l2", 0.75, 4),
        ("taylor", 0.5, 4),
        ("taylor", 0.75, 4),
    }


def test_whole_sections_and_lists_vary_too(folder: Path) -> None:
    matrix = {"goal": [{"sparsity": 0.5}, {"speedup": 2.0}], "prune.kinds": [["channel"], ["channel", "width"]]}
    write("sweep", {"base": "base", "matrix": matrix}, folder)
    _, found = candidates.of_sweep("sweep")
    assert list(found) == [
        "sparsity-0.5-channel",
        "sparsity-0.5-channel-width",
        "speedup-2.0-channel",
        "speedup-2.0-channel-width",
    ]
    assert found["speedup-2.0-channel"].goal.given == ("speedup", 2.0)


@pytest.mark.parametrize("off", [False, "off", None])
def test_a_list_of_recipes_is_a_sweep(folder: Path, off: object) -> None:
    write("other", BASE | {"goal": {"sparsity": 0.25}}, folder)
    write("sweep", {"recipes": ["base", "other"], "halving": off}, folder)
    sweep, found = candidates.of_sweep("sweep")
    assert [one.goal.sparsity for one in found.values()] == [0.5, 0.25]
    assert sweep.halving is None


def test_a_candidate_is_a_recipe_by_its_name_and_its_bounds_are_corrected_for_all(folder: Path) -> None:
    write("sweep", {"base": "base", "matrix": MATRIX, "finalists": 2}, folder)
    found = recipe.load("sweep:taylor-0.75")
    assert (found.prune.criterion, found.goal.sparsity) == ("taylor", 0.75)
    assert found.measured_with == pytest.approx(1 - 0.1 / 4)
    assert found.trial is not None
    assert (found.trial.finalists, found.trial.share, found.trial.short) == (2, 1.0, False)
    assert recipe.load("base").measured_with == 0.9


def test_rungs_share_the_recovery_and_only_the_last_is_not_short(folder: Path) -> None:
    write("sweep", {"base": "base", "matrix": MATRIX, "halving": {"eta": 3, "rungs": 3}}, folder)
    trials = [recipe.load(f"sweep:l2-0.5:{rung}").trial for rung in (1, 2, 3)]
    assert [(round(one.share, 3), one.short) for one in trials if one] == [(0.111, True), (0.333, True), (1.0, False)]
    with pytest.raises(InputError, match="expected a rung of sweep sweep, which has 3, got '4'"):
        recipe.load("sweep:l2-0.5:4")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"matrix": {"prune.criterion": ["l2", "l2"]}}, "candidates l2 and l2-2 are the same recipe"),
        (
            {"matrix": {"goal.sparsity": [0.5, 1.5]}},
            "candidate 1.5: goal.sparsity: input should be less than 1, got 1.5",
        ),
        ({"matrix": {"goal.speedup": [2.0, 3.0]}}, "candidate 2.0: goal: exactly one of"),
        ({"matrix": {"prune.criterum": ["l2", "l1"]}}, "candidate l2: prune.criterum: unknown setting; known here: "),
        ({"matrix": {"seed": [1, 2]}}, "candidates 1 and 2 differ in seed"),
        ({"matrix": {"budget.accuracy_drop": [0.1, 0.2]}}, "0.1 and 0.2 differ in budget.accuracy_drop"),
        ({"matrix": {"target.threads": [1, 2]}}, "candidates 1 and 2 differ in target"),
        (
            {"matrix": {"model.name": ["a", "b"]}},
            "matrix.model.name: expected model of the base to be a section, it is 'm'",
        ),
        ({"matrix": {"goal.sparsity": [0.5]}}, "expected from 2 to 32 candidates to compare, got 1"),
        ({"matrix": {"goal.sparsity": 0.5}}, "matrix.goal.sparsity: input should be a valid tuple"),
        ({"matrix": {"goal.sparsity": []}}, "matrix.goal.sparsity needs a list of values"),
        (
            {"matrix": {f"prune.x{n}": list(range(10)) for n in range(9)}},
            "matrix: expected at most 32 candidates, got 1000000000",
        ),
        ({"matrix": {}}, "base with matrix is needed, or recipes alone"),
        ({"recipes": ["base", "other"]}, "base with matrix is needed, or recipes alone"),
        ({"halving": {"eta": 1}}, "halving.eta: input should be greater than or equal to 2, got 1"),
        ({"halving": True}, "halving: must be {eta: 2, rungs: 2}, or off, got True"),
        ({"halving": {"rung": 2}}, "halving.rung: unknown setting; known here: eta, rungs"),
        ({"finalists": 9}, "finalists: input should be less than or equal to 3, got 9"),
        ({"paralel": 3}, "paralel: unknown setting; known here: base, matrix, recipes, halving, finalists"),
        ({"base": "none"}, "recipe: expected one of base, sweep"),
        ({"base": "../up"}, "recipe: expected a name of small letters"),
        ({"base": "sweep"}, "candidate l2-0.5: expected one recipe, this is a sweep of several"),
        ({"matrix": {"trial.candidates": [2, 3]}}, "candidate 2: trial: expected to be left out"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_what_is_wrong_is_said_with_the_candidate_before_anything_starts(
    folder: Path, content: dict[str, Any], said: str
) -> None:
    sentence = refusal(folder, **content)
    assert sentence.startswith(("sweep sweep", "recipe"))
    assert said in sentence


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sweep", "this is a sweep of several"),
        ("sweep:none", "expected a candidate of sweep sweep, l2-0.5, l2-0.75, taylor-0.5, taylor-0.75, got 'none'"),
        ("sweep:l2-0.5:1", "expected a rung of sweep sweep, which has none, got '1'"),
        ("sweep:l2-0.5:", "expected a rung"),
        ("base:x", "sweep base: expected base with matrix, or recipes; this is one recipe"),
        ("none:x", "expected one of base, sweep"),
    ],
)
def test_a_name_that_is_no_candidate_is_refused(folder: Path, name: str, said: str) -> None:
    write("sweep", {"base": "base", "matrix": MATRIX}, folder)
    with pytest.raises(InputError) as caught:
        recipe.load(name)
    assert said in str(caught.value)


def test_a_recipe_may_not_claim_to_be_a_trial(folder: Path) -> None:
    write("sly", BASE | {"trial": {"candidates": 2, "finalists": 1}}, folder)
    with pytest.raises(InputError, match="trial: expected to be left out"):
        recipe.load("sly")


def test_every_shipped_sweep_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = Path(__file__).resolve().parents[1] / "recipes"
    monkeypatch.setenv("SECATEUR_RECIPES", str(shipped))
    sweeps = [path for path in shipped.glob("*.yaml") if "matrix" in yaml.safe_load(path.read_text())]
    assert sweeps
    for path in sweeps:
        assert len(candidates.of_sweep(path.stem)[1]) > 1
        assert f"--sweep {path.stem}" in path.read_text().splitlines()[0]
