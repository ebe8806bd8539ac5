"""Data are held against the program and the objective before anything runs, and splits against each other."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from secateur import InputError, data_checks
from secateur.data import Dataset, Split
from secateur.objectives import ALLOWED

EXAMPLES = 12


def labels(count: int = EXAMPLES) -> np.ndarray:
    return np.arange(count) % models.CLASSES


def dataset(inputs: np.ndarray | None = None, of: np.ndarray | None = None, *more: np.ndarray) -> Dataset:
    """Three splits of the same examples."""
    part = Split(models.vectors(EXAMPLES) if inputs is None else inputs, labels() if of is None else of, more)
    return Dataset(part, part, part)


class Two(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + right.to(left.dtype)


class Listed(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x + 2


class Scorer(nn.Module):
    """Tokens [N, 5] to logits [N, 5, 3], a class per token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(models.VOCABULARY, 4), nn.Linear(4, models.CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(tokens))


def two() -> ExportedProgram:
    """Takes vectors of numbers and vectors of integers, and gives four logits."""
    ones = torch.ones(2, models.FEATURES)
    return models.export(Two(), ones, ones.long())


def scorer() -> ExportedProgram:
    return models.export(Scorer(), torch.from_numpy(models.tokens(2)))


def test_data_that_fits_is_accepted() -> None:
    data_checks.check_fits(dataset(), models.exported("perceptron"))


def test_examples_of_another_shape_are_refused_with_both_shapes() -> None:
    with pytest.raises(InputError) as error:
        data_checks.check_fits(dataset(), models.exported("residual"))
    for part in ("data: expected examples of 3x6x6 (torch.float32) for input x", "got 4 (float32) in the train split"):
        assert part in str(error.value)


def test_examples_of_another_type_are_refused_with_both_types() -> None:
    with pytest.raises(InputError, match=r"^data: expected examples of 4 \(torch.float32\) .* got 4 \(float64\)"):
        data_checks.check_fits(dataset(models.vectors(EXAMPLES).astype(np.float64)), models.exported("perceptron"))


def test_inputs_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"^data: expected numbers as inputs \(such as float32\), got an array of <U"):
        data_checks.check_fits(dataset(models.vectors(EXAMPLES).astype(str)), models.exported("perceptron"))


@pytest.mark.parametrize("part", ["validation", "test"])
def test_every_split_must_fit(part: str) -> None:
    wide = Split(np.zeros((EXAMPLES, models.FEATURES + 1), dtype=np.float32), labels())
    parts: dict[str, Split] = {**dataset().splits, part: wide}
    with pytest.raises(InputError, match=rf"got 5 \(float32\) in the {part} split"):
        data_checks.check_fits(Dataset(**parts), models.exported("perceptron"))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_not_finite_are_refused_with_the_first_of_them(value: float) -> None:
    inputs = models.vectors(EXAMPLES)
    inputs[[3, 5], 1] = value
    with pytest.raises(
        InputError, match=r"^data: expected finite inputs, found NaN or infinity in example 3 of the train"
    ):
        data_checks.check_fits(dataset(inputs), models.exported("perceptron"))


@pytest.mark.parametrize(("offset", "seen"), [(1, r"1\.\.3"), (-1, r"-1\.\.1")])
def test_labels_that_the_model_does_not_know_are_refused(offset: int, seen: str) -> None:
    with pytest.raises(InputError, match=rf"^data: expected labels in 0\.\.2, got {seen}"):
        data_checks.check_fits(dataset(of=labels() + offset), models.exported("perceptron"))


def test_a_model_of_a_fixed_batch_is_refused() -> None:
    program = torch.export.export(models.module("perceptron"), (torch.from_numpy(models.vectors(5)),))
    with pytest.raises(InputError, match=r"^model: expected a dynamic batch dimension, input x is fixed at 5"):
        data_checks.check_fits(dataset(), program)


def test_a_model_of_two_inputs_takes_two_columns_in_its_order() -> None:
    floats, integers = models.vectors(EXAMPLES), np.ones((EXAMPLES, models.FEATURES), dtype=np.int64)
    data_checks.check_fits(dataset(floats, None, integers), two())
    with pytest.raises(
        InputError, match=r"^data: expected examples of 4 \(torch.float32\) for input left, got 4 \(int64\)"
    ):
        data_checks.check_fits(dataset(integers, None, floats), two())


def test_the_second_input_must_be_finite_too() -> None:
    program = models.export(Two(), *(torch.zeros(2, models.FEATURES) for _ in range(2)))
    with pytest.raises(InputError, match=r"^data: expected finite inputs"):
        data_checks.check_fits(dataset(None, None, np.full((EXAMPLES, models.FEATURES), np.inf, np.float32)), program)


def test_too_few_columns_are_refused_with_the_names_of_the_inputs() -> None:
    with pytest.raises(
        InputError, match=r"^data: expected an array for each of the model's 2 inputs \(left, right\), got 1"
    ):
        data_checks.check_fits(dataset(), two())


@pytest.mark.parametrize("made", [Listed(), nn.Unflatten(1, (2, 2))], ids=["two outputs", "three dimensions"])
def test_a_model_that_gives_no_logits_is_refused(made: nn.Module) -> None:
    program = models.export(made, torch.zeros(2, models.FEATURES))
    with pytest.raises(
        InputError, match=r"^model: expected one output of logits \[batch, classes\] for classification, got"
    ):
        data_checks.check_fits(dataset(), program)


def one_hot() -> np.ndarray:
    return np.eye(models.CLASSES, dtype=np.int64)[labels()]


def numbers() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(EXAMPLES, models.CLASSES)).astype(np.float32)


def per_token() -> np.ndarray:
    """A class per token, the last one left out."""
    made = models.tokens(EXAMPLES) % models.CLASSES
    made[:, -1] = -100
    return made


@pytest.mark.parametrize(
    ("objective", "of"), [("classification", labels()), ("multi_label", one_hot()), ("regression", numbers())]
)
def test_labels_of_the_objectives_shape_are_accepted(objective: str, of: np.ndarray) -> None:
    data_checks.check_fits(dataset(of=of), models.exported("perceptron"), objective)


@pytest.mark.parametrize("objective", ["token_classification", "masked_lm", "causal_lm"])
def test_labels_of_tokens_are_accepted_where_the_ignored_do_not_count(objective: str) -> None:
    data_checks.check_fits(dataset(models.tokens(EXAMPLES), per_token()), scorer(), objective)


@pytest.mark.parametrize(
    ("objective", "of", "refusal"),
    [
        ("classification", one_hot(), r"expected labels \[N\], .* got shape \(12, 3\)"),
        ("classification", labels().astype(np.int32), r"expected labels as int64 .* got int32"),
        ("multi_label", labels(), r"expected labels \[N, 3\] of 0 and 1, got shape \(12,\)"),
        ("multi_label", one_hot() * 2, r"expected labels of 0 and 1, .* such as 2"),
        ("regression", numbers()[:, 0], r"expected 3 numbers per example as labels, .* got shape \(12,\)"),
        ("regression", one_hot(), r"expected floating-point labels, got int64"),
        ("regression", numbers() * np.float32(np.inf), r"expected finite labels, found NaN or infinity"),
    ],
)
def test_labels_of_another_objective_are_refused(objective: str, of: np.ndarray, refusal: str) -> None:
    with pytest.raises(InputError, match=f"^data: {refusal}"):
        data_checks.check_fits(dataset(of=of), models.exported("perceptron"), objective)


@pytest.mark.parametrize(
    ("of", "refusal"),
    [
        (per_token()[:, 1:], r"expected labels \[N, 5\], a class number per token, got shape \(12, 4\)"),
        (per_token() + 1, r"expected labels in 0\.\.2, got -99\.\.3"),
        (np.full((EXAMPLES, models.LENGTH), -100), r"expected labels that count, all of the train split are -100"),
    ],
    ids=["length", "range", "none"],
)
def test_labels_that_do_not_go_with_the_tokens_are_refused(of: np.ndarray, refusal: str) -> None:
    with pytest.raises(InputError, match=f"^data: {refusal}"):
        data_checks.check_fits(dataset(models.tokens(EXAMPLES), of), scorer(), "token_classification")


def test_an_unknown_objective_is_refused() -> None:
    with pytest.raises(InputError, match=r"^objective: expected one of classification"):
        data_checks.check_fits(dataset(), models.exported("perceptron"), "ranking")


OWN = """
import dataclasses, torch
from secateur.objectives import OBJECTIVES

def whole():
    return OBJECTIVES["regression"]

def infinite():
    return dataclasses.replace(whole(), loss=lambda output, target, smoothing: output.sum() / 0)

def averaged():
    return dataclasses.replace(whole(), answers=lambda output, target: (output.mean()[None], target.mean()[None]))
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module `checked_objectives`, all of it allowed."""
    (tmp_path / "checked_objectives.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(ALLOWED, ",".join(f"checked_objectives:{name}" for name in ("whole", "infinite", "averaged")))


@pytest.mark.usefixtures("own")
def test_an_own_objective_is_tried_on_examples_of_every_split() -> None:
    program, name = models.exported("perceptron"), "checked_objectives:whole"
    good = dataset(of=numbers())
    data_checks.check_fits(good, program, name)
    with pytest.raises(
        InputError,
        match=rf"^objective: expected {name} to take outputs \[2, 3\] and labels \[2\] \(torch.float32\) of the test",
    ):
        data_checks.check_fits(dataclasses.replace(good, test=dataset(of=numbers()[:, 0]).test), program, name)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "of", "refusal"),
    [
        (
            "infinite",
            numbers(),
            "objective: expected a finite loss of checked_objectives:infinite in the train split, got",
        ),
        ("averaged", numbers(), "objective: .* a row for each of 2 examples, got \\[1, 1\\] rows"),
        ("whole", labels().astype(str), "data: expected numbers as labels, got <U"),
        ("whole", np.full((EXAMPLES, 3), np.nan), "data: expected finite labels, found NaN"),
    ],
)
def test_an_own_objective_that_does_not_work_on_the_data_is_refused(name: str, of: np.ndarray, refusal: str) -> None:
    with pytest.raises(InputError, match=f"^{refusal}"):
        data_checks.check_fits(dataset(of=of), models.exported("perceptron"), f"checked_objectives:{name}")


def test_a_class_missing_from_a_split_is_refused_by_its_number() -> None:
    whole = dataset().train
    splits = {"train": whole, "test": whole.take(whole.labels != 1)}
    with pytest.raises(
        InputError, match=r"^data: expected examples of each of 3 classes in the test split, found none of 1"
    ):
        data_checks.check_every_class(splits)
    data_checks.check_every_class({"train": whole, "test": whole})


def without(part: Split, position: int) -> Split:
    return part.take(np.arange(len(part)) != position)


@pytest.mark.parametrize("label", [0, 1])
def test_an_example_in_two_splits_is_refused_whatever_its_label(label: int) -> None:
    train, test = (Split(models.vectors(EXAMPLES, seed), labels()) for seed in (0, 1))
    test.inputs[4], test.labels[4] = train.inputs[7], label
    with pytest.raises(InputError, match=r"^data.splits: .* found 1 in both train and test, such as example 4 of test"):
        data_checks.check_separate({"train": train, "test": test}, [("train", "test")])
    data_checks.check_separate({"train": train, "test": without(test, 4)}, [("train", "test")])


def test_examples_that_differ_in_a_second_input_are_two() -> None:
    inputs = models.vectors(EXAMPLES)
    splits = {part: Split(inputs, labels(), (inputs + shift,)) for shift, part in enumerate(("train", "test"))}
    data_checks.check_separate(splits, [("train", "test")])


def test_pairs_that_are_not_asked_for_are_not_compared() -> None:
    part = dataset().train
    data_checks.check_separate({"train": part, "validation": part}, [])


@pytest.mark.parametrize(("batch", "enough"), [(6, True), (10, True), (11, False), (12, False), (64, False)])
def test_training_needs_a_second_batch_of_more_than_one_example(batch: int, enough: bool) -> None:
    if enough:
        data_checks.check_enough(dataset().train, batch)
    else:
        with pytest.raises(
            InputError, match=r"^recovery.batch: expected at least two batches of training, 12 examples"
        ):
            data_checks.check_enough(dataset().train, batch)


def of_any_length(made: nn.Module) -> ExportedProgram:
    """The network's program, its batch and its length dynamic."""
    dynamic = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    return torch.export.export(made.eval(), (torch.from_numpy(models.tokens(2)),), dynamic_shapes=(dynamic,))


def test_a_length_is_taken_where_the_second_dimension_is_dynamic() -> None:
    data_checks.check_length(of_any_length(Scorer()), [models.tokens(2)], 3)


@pytest.mark.parametrize(
    ("program", "columns", "sentence"),
    [
        (scorer, [models.tokens(2)], f"that of tokens is fixed at {models.LENGTH}; leave target.length out"),
        (lambda: models.export(nn.ReLU(), torch.ones(3)), [np.ones(3, np.float32)], "that of input is missing"),
    ],
    ids=["fixed", "missing"],
)
def test_a_length_is_refused_where_the_program_has_its_own(
    program: Callable[[], ExportedProgram], columns: list[np.ndarray], sentence: str
) -> None:
    with pytest.raises(InputError, match=rf"^target.length: expected inputs whose second .*{sentence}"):
        data_checks.check_length(program(), columns, 3)


class Windowed(nn.Module):
    """Needs three positions at least."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.window = nn.Embedding(models.VOCABULARY, 4), nn.Conv1d(4, models.CLASSES, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.window(self.embed(tokens).transpose(1, 2)).mean(2)


def test_a_length_that_the_model_cannot_take_is_refused_with_what_it_says() -> None:
    with pytest.raises(InputError, match=r"^target.length: expected a length that the model takes, got 2: .* >= 3"):
        data_checks.check_length(of_any_length(Windowed()), [models.tokens(2)], 2)


def test_a_length_beyond_the_examples_is_refused() -> None:
    with pytest.raises(InputError, match=rf"^target.length: expected at most the {models.LENGTH} positions .*, got 9"):
        data_checks.check_length(of_any_length(Scorer()), [models.tokens(2)], 9)
