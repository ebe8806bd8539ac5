"""Sparse learning makes what a cut removes small, keeps the last weights, and resumes bit for bit."""

import dataclasses
import functools
import math
from typing import Any

import models
import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from secateur import InputError, Ratio, learn_sparsity, prune
from secateur import program as programs
from secateur.axes.infer import infer
from secateur.calibration import Statistics
from secateur.checkpoints import Checkpoint
from secateur.data import Dataset, Split
from secateur.importance import CRITERIA, Evidence
from secateur.objectives import OBJECTIVES
from secateur.penalties import PenaltySettings
from secateur.pruning import Choice
from secateur.recovery import recover
from secateur.sparse_learning import Learned, check_learnable
from secateur.training import Epoch, Settings, evaluate

EXAMPLES, PATTERNS = 240, 30
LONG = Settings(epochs=12, batch=20, learning_rate=0.02, weight_decay=0.0, distillation=0.0, seed=7)
SHORT = Settings(epochs=2, batch=60, learning_rate=0.02, augment=("flip", "mixup"), average=0.5, clip=1.0)
LASSO = PenaltySettings("group_lasso", 0.006)
GROWING = PenaltySettings("growing", 0.05, every=2, ceiling=2.0)
SLIMMING = PenaltySettings("slimming", 0.05)
NONE = PenaltySettings("group_lasso", 1e-30)  # plain training
HALF = Ratio(0.5)


def patterns(seed: int) -> Split:
    """Images of many patterns under noise, ten patterns to a class: every channel of the network is of use."""
    rng, which = np.random.default_rng(seed), np.arange(EXAMPLES) % PATTERNS
    noise = 0.5 * rng.normal(size=(EXAMPLES, *models.IMAGE)).astype(np.float32)
    return Split(models.images(PATTERNS)[which] + noise, which % models.CLASSES)


@functools.cache
def data() -> Dataset:
    return Dataset(*(patterns(seed) for seed in (1, 2, 3)))


@functools.cache
def dense() -> ExportedProgram:
    return models.exported("residual")


@functools.cache
def kept() -> dict[str, tuple[int, ...]]:
    """What a cut to half of the dense program leaves."""
    return prune(dense(), goal=HALF)[1].kept


def learn(penalty: PenaltySettings, settings: Settings, **options: Any) -> Learned:
    units = kept() if penalty.method == "growing" else None
    return learn_sparsity(dense(), data(), settings, Choice(), penalty, kept=units, **options)


@functools.cache
def learned(penalty: PenaltySettings, settings: Settings = LONG) -> Learned:
    """A run that is never interrupted."""
    return learn(penalty, settings)


def scores(program: ExportedProgram, criterion: str = "l2") -> dict[str, np.ndarray]:
    """The scores of each axis's units."""
    module = programs.graph_module(program, shared=True)
    structure = infer(module)
    evidence = Evidence(module, structure, Statistics())
    return {info.name: CRITERIA[criterion].score(evidence, info) for info in structure.prunable}


def weak_to_strong(program: ExportedProgram, criterion: str) -> np.ndarray:
    """The mean score of each axis's weaker half over that of its stronger one; 0 is perfect separation."""
    halves = [np.split(np.sort(score), 2) for score in scores(program, criterion).values()]
    return np.array([weak.mean() / strong.mean() for weak, strong in halves])


def accuracy(program: ExportedProgram) -> float:
    return evaluate(programs.graph_module(program), data().validation, OBJECTIVES["classification"])


@pytest.mark.parametrize(("penalty", "criterion"), [(LASSO, "l2"), (GROWING, "l2"), (SLIMMING, "norm_scale")])
def test_weak_and_strong_units_part_further_than_in_plain_training(penalty: PenaltySettings, criterion: str) -> None:
    plain = weak_to_strong(learned(NONE).program, criterion)
    assert (weak_to_strong(learned(penalty).program, criterion) < plain).all()


@pytest.mark.parametrize("penalty", [LASSO, GROWING])
def test_a_cut_to_half_costs_less_than_after_plain_training(penalty: PenaltySettings) -> None:
    plain, sparse = (accuracy(prune(learned(p).program, goal=HALF)[0]) for p in (NONE, penalty))
    assert sparse > plain


def test_growing_shrinks_the_doomed_units_away_and_no_others() -> None:
    before, after = scores(dense()), scores(learned(GROWING).program)
    for name, units in kept().items():
        stays = np.isin(np.arange(len(before[name])), units)
        assert (after[name][~stays] < 1e-3 * before[name][~stays]).all()
        assert (after[name][stays] > 0.3 * before[name][stays]).all()


def test_a_cut_after_growing_removes_exactly_the_doomed_units_and_loses_nothing() -> None:
    seen = learned(GROWING)
    pruned, report = prune(seen.program, goal=HALF)
    assert report.kept == kept()
    assert accuracy(pruned) == pytest.approx(seen.history[-1].accuracy, abs=0.02)


def test_sizes_and_inputs_stay_as_they_are() -> None:
    seen = learned(LASSO).program
    assert {name: t.shape for name, t in seen.state_dict.items()} == {n: t.shape for n, t in dense().state_dict.items()}
    assert programs.input_specs(seen) == programs.input_specs(dense())


@pytest.mark.parametrize("average", [0.0, 0.5])
def test_the_program_given_back_is_that_of_the_last_epoch_and_not_of_the_best(average: float) -> None:
    """Validation wants the answers of the program as it came, training wants others: every epoch is worse than none."""
    inputs = data().validation.inputs
    with torch.no_grad():
        answers = dense().module(check_guards=False)(torch.from_numpy(inputs)).argmax(1).numpy()
    flawless, wrong = Split(inputs, answers), Split(inputs, (answers + 1) % models.CLASSES)
    settings = dataclasses.replace(LONG, epochs=3, average=average)
    seen = learn_sparsity(dense(), Dataset(wrong, flawless, flawless), settings, Choice(), LASSO)
    assert [epoch.epoch for epoch in seen.history] == [0, 1, 2, 3]
    assert seen.history[-1].accuracy < seen.history[0].accuracy == 1.0
    module = programs.graph_module(seen.program)
    assert evaluate(module, flawless, OBJECTIVES["classification"]) == seen.history[-1].accuracy


def test_epoch_zero_is_the_program_as_it_came() -> None:
    first = learned(LASSO).history[0]
    assert math.isnan(first.loss)
    assert first.accuracy == accuracy(dense())


def test_patience_and_norms_measured_again_are_no_part_of_it() -> None:
    impatient = dataclasses.replace(SHORT, patience=1, reestimate_norms=True, learning_rate=1e-9)
    plain = dataclasses.replace(SHORT, patience=None, reestimate_norms=False, learning_rate=1e-9)
    seen, expected = learn(LASSO, impatient), learn(LASSO, plain)
    assert len(seen.history) == SHORT.epochs + 1
    assert programs.digest(seen.program) == programs.digest(expected.program)


def test_without_a_penalty_to_speak_of_the_steps_are_those_of_recovery() -> None:
    one = dataclasses.replace(LONG, epochs=1, reestimate_norms=False)
    expected = recover(dense(), dense(), data(), one)
    assert expected.kept == "trained"
    seen = learned(NONE, one).program
    for name, tensor in expected.program.state_dict.items():
        assert torch.equal(seen.state_dict[name], tensor)


def test_with_distillation_the_program_as_it_came_is_the_teacher() -> None:
    """Where the labels do not count and the teacher is the student, the first loss is nothing."""
    alone = dataclasses.replace(LONG, epochs=1, batch=EXAMPLES, distillation=1.0)
    program = models.exported("perceptron")
    split = Split(models.vectors(EXAMPLES), np.zeros(EXAMPLES, dtype=np.int64))
    seen = learn_sparsity(program, Dataset(split, split, split), alone, Choice(), LASSO)
    assert seen.history[1].loss == pytest.approx(0.0, abs=1e-5)


def test_attention_learns_too() -> None:
    program, tokens = models.exported("encoder"), models.tokens(EXAMPLES)
    split = Split(tokens, tokens[:, 0] % models.CLASSES)
    results = [
        learn_sparsity(program, Dataset(split, split, split), LONG, Choice(), penalty).program
        for penalty in (NONE, PenaltySettings("group_lasso", 0.02))
    ]
    plain, sparse = ({n: s.min() / s.max() for n, s in scores(result).items()} for result in results)
    for name in ("query:kv_group", "query:q_per_group", "up:width"):
        assert sparse[name] < plain[name]


def test_the_program_that_came_is_not_modified() -> None:
    before = programs.digest(dense())
    learn(LASSO, SHORT)
    assert programs.digest(dense()) == before


def fails_after(saves: list[bytes], count: float) -> Checkpoint:
    """A checkpoint in memory after every step, of a machine that is gone once so many are saved."""

    def save(state: bytes) -> None:
        saves.append(state)
        if len(saves) == count:
            raise ConnectionError("the machine is gone")

    return Checkpoint(save, lambda: saves[::-1], 0.0)


@pytest.mark.parametrize("penalty", [LASSO, GROWING, SLIMMING], ids=lambda penalty: penalty.method)
def test_a_run_interrupted_after_any_step_ends_where_it_would_have(penalty: PenaltySettings) -> None:
    saves: list[bytes] = []
    interruptions = 0
    while True:
        torch.manual_seed(interruptions)  # the new machine's random state is another
        try:
            resumed = learn(penalty, SHORT, checkpoint=fails_after(saves, len(saves) + 2))
            break
        except ConnectionError:
            interruptions += 1
    assert interruptions >= 4  # of four steps and the end of an epoch each, every other one
    assert programs.digest(resumed.program) == programs.digest(learned(penalty, SHORT).program)
    told = [(e.epoch, e.accuracy) for e in resumed.history]
    assert told == [(e.epoch, e.accuracy) for e in learned(penalty, SHORT).history]


def test_a_finished_run_started_again_gives_the_same_without_a_step() -> None:
    saves: list[bytes] = []
    steps: list[int] = []
    first = learn(LASSO, SHORT, checkpoint=fails_after(saves, math.inf))
    again = learn(
        LASSO, SHORT, checkpoint=fails_after(saves, math.inf), on_step=lambda step, of, loss: steps.append(step)
    )
    assert steps == []
    assert programs.digest(again.program) == programs.digest(first.program)


@pytest.mark.parametrize(
    "other", [dataclasses.replace(LASSO, strength=0.1), GROWING, SLIMMING], ids=["strength", "growing", "slimming"]
)
def test_a_checkpoint_of_another_penalty_is_refused(other: PenaltySettings) -> None:
    saves: list[bytes] = []
    learn(LASSO, SHORT, checkpoint=fails_after(saves, math.inf))
    with pytest.raises(InputError, match=r"^checkpoint: expected one of this program"):
        learn(other, SHORT, checkpoint=fails_after(saves, math.inf))


def test_epochs_and_steps_are_told_in_order() -> None:
    epochs: list[Epoch] = []
    steps: list[tuple[int, int]] = []
    seen = learn(LASSO, SHORT, on_epoch=epochs.append, on_step=lambda step, of, loss: steps.append((step, of)))
    assert tuple(epochs) == seen.history
    assert steps == [(step, 8) for step in range(1, 9)]


@pytest.mark.parametrize(
    ("settings", "choice", "penalty", "units", "message"),
    [
        (SHORT, Choice(), PenaltySettings("lasso"), None, "^method: expected one of group_lasso, growing, slimming"),
        (SHORT, Choice(), PenaltySettings(strength=0.0), None, "^strength: expected a finite number above 0"),
        (
            dataclasses.replace(SHORT, epochs=0),
            Choice(),
            LASSO,
            None,
            "^epochs: expected at least 1 of sparse learning",
        ),
        (dataclasses.replace(SHORT, batch=1), Choice(), LASSO, None, "^batch: expected at least 2"),
        (SHORT, Choice(kinds=("head",)), LASSO, None, "^kinds: expected at least one axis of head"),
        (SHORT, Choice(), GROWING, None, "^kept: method growing needs"),
        (
            SHORT,
            Choice(),
            GROWING,
            {"other:channel": (0,)},
            "^kept: expected axes of this program, got 'other:channel'",
        ),
        (SHORT, Choice(), GROWING, {"stem:channel": (0, 8)}, "^kept: expected ascending units below 8"),
    ],
)
def test_what_cannot_be_is_refused(
    settings: Settings, choice: Choice, penalty: PenaltySettings, units: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        learn_sparsity(dense(), data(), settings, choice, penalty, kept=units)


def test_growing_shrinks_all_that_lives_in_a_branch_that_the_cut_will_drop() -> None:
    choice = Choice(kinds=("channel", "block"), allocation="knapsack")
    settings, grows = (
        dataclasses.replace(SHORT, epochs=3, average=0.0),
        dataclasses.replace(GROWING, strength=0.5, every=1),
    )
    learned = learn_sparsity(dense(), data(), settings, choice, grows, kept={"graph:block": ()}).program
    inner, stem = (
        learned.state_dict[f"{name}.weight"].norm() / dense().state_dict[f"{name}.weight"].norm()
        for name in ("inner", "stem")
    )
    assert inner < 0.9 * stem
    with pytest.raises(
        InputError, match=r"^kinds: expected a kind of axes, whose units sparse learning shrinks, got block"
    ):
        check_learnable(dense(), dataclasses.replace(choice, kinds=("block",)), LASSO)


def test_a_penalty_that_finds_nothing_to_shrink_is_refused_before_any_training() -> None:
    encoder = models.exported("encoder")
    with pytest.raises(InputError, match=r"^method slimming: query:kv_group has no batch norm"):
        check_learnable(encoder, Choice(), SLIMMING)
    for penalty in (LASSO, GROWING):
        check_learnable(encoder, Choice(), penalty)
