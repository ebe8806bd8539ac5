"""Recovery training repeats itself bit for bit, resumes where it stopped, and never gives back less than it was given."""

import dataclasses
import functools
import io
import itertools
import math
import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from together import together
from torch.export import ExportedProgram
from torch.nn import functional

from secateur import NM, InputError, Ratio, Unstructured, distributed, hidden_states, prune, sparsify, training
from secateur import program as programs
from secateur.checkpoints import Checkpoint, in_folder
from secateur.data import Dataset, Split
from secateur.learning_rates import cosine
from secateur.objectives import OBJECTIVES
from secateur.recovery import Recovered, recover
from secateur.sparsity import Masks
from secateur.training import Epoch, Settings, _lengths, _orders, _trimmed, evaluate

EXAMPLES = 49  # of training: the last batch of an epoch holds a single one
SETTINGS = Settings(epochs=3, batch=16, learning_rate=0.02, seed=7)


def answered_by(program: ExportedProgram, inputs: np.ndarray) -> Split:
    """Examples that the program gets right, every one."""
    with torch.no_grad():
        logits = program.module(check_guards=False)(torch.from_numpy(inputs))
    return Split(inputs, logits.argmax(1).numpy())


@functools.cache
def teacher() -> ExportedProgram:
    return models.exported("residual")


@functools.cache
def student() -> ExportedProgram:
    """The teacher with noise on its weights."""
    module = programs.graph_module(teacher())
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(3)
        for parameter in module.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return programs.reexport(module, teacher())


@functools.cache
def data() -> Dataset:
    parts = [answered_by(teacher(), models.images(count, seed)) for seed, count in enumerate((EXAMPLES, 60, 10))]
    return Dataset(*parts)


@functools.cache
def recovered() -> Recovered:
    """A run that is never interrupted."""
    return recover(student(), teacher(), data(), SETTINGS)


def accuracy(module: torch.fx.GraphModule, split: Split) -> float:
    return evaluate(module, split, OBJECTIVES["classification"])


class Memory:
    """A checkpoint in memory; it fails after a number of saves, as a machine does."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.saves: list[bytes] = []
        self.fails_after = fails_after

    @property
    def states(self) -> list[dict[str, Any]]:
        """What was saved, read as plain tensors and values."""
        return [torch.load(io.BytesIO(saved[2 * 64 + 16 :]), weights_only=True) for saved in self.saves]

    def save(self, state: bytes) -> None:
        self.saves.append(state)
        if len(self.saves) == self.fails_after:
            raise ConnectionError("the machine is gone")

    def checkpoint(self, seconds: float = math.inf) -> Checkpoint:
        return Checkpoint(self.save, lambda: self.saves[::-1], seconds)


def without_times(history: tuple[Epoch, ...]) -> list[tuple[int, float, float]]:
    return [(e.epoch, -1.0 if math.isnan(e.loss) else e.loss, e.accuracy) for e in history]


def test_recovery_improves_what_the_cut_spoilt() -> None:
    seen = recovered()
    assert seen.history[0].accuracy < seen.best.accuracy == max(e.accuracy for e in seen.history)
    assert [e.epoch for e in seen.history] == [0, 1, 2, 3]
    losses = [e.loss for e in seen.history[1:]]
    assert losses[-1] < losses[0]


def test_the_program_given_back_is_that_of_the_best_epoch() -> None:
    module = programs.graph_module(recovered().program)
    assert accuracy(module, data().validation) == recovered().best.accuracy
    assert programs.input_specs(recovered().program) == programs.input_specs(student())


def test_epoch_zero_is_the_program_as_it_came() -> None:
    first = recovered().history[0]
    assert math.isnan(first.loss)
    assert first.accuracy == accuracy(programs.graph_module(student()), data().validation)


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before() -> None:
    torch.manual_seed(99)
    torch.rand(5)
    again = recover(student(), teacher(), data(), SETTINGS)
    assert programs.digest(again.program) == programs.digest(recovered().program)
    assert without_times(again.history) == without_times(recovered().history)


def test_another_seed_gives_other_weights() -> None:
    other = recover(student(), teacher(), data(), dataclasses.replace(SETTINGS, seed=8))
    assert programs.digest(other.program) != programs.digest(recovered().program)


@pytest.mark.parametrize("change", [{}, {"average": 0.9}, {"channels_last": True}])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_interrupted_after_any_step_ends_where_it_would_have(optimizer: str, change: dict[str, Any]) -> None:
    settings = dataclasses.replace(
        SETTINGS, epochs=2, optimizer=optimizer, clip=1.0, augment=("flip", "mixup"), **change
    )
    whole = recover(student(), teacher(), data(), settings)
    memory, steps = Memory(), 0
    while True:
        memory.fails_after = len(memory.saves) + 2
        torch.manual_seed(steps)  # the new machine's random state is another
        try:
            resumed = recover(student(), teacher(), data(), settings, checkpoint=memory.checkpoint(seconds=0.0))
            break
        except ConnectionError:
            steps += 1
    assert steps >= 4  # of four steps and the end of an epoch each, every other one
    assert programs.digest(resumed.program) == programs.digest(whole.program)
    assert without_times(resumed.history) == without_times(whole.history)


LONG = dataclasses.replace(SETTINGS, epochs=60, average=0.9, augment=("crop", "flip"))  # seconds, so that kills hit


def train_long(folder: Path, result: Path) -> None:
    """A worker's whole life: go on from the folder's checkpoints, and leave the digest of the result."""
    seen = recover(student(), teacher(), data(), LONG, checkpoint=in_folder(folder, seconds=0.0))
    result.write_text(programs.digest(seen.program))


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_where_it_would_have(tmp_path: Path) -> None:
    draw, kills = random.Random(5), 0
    began = time.monotonic()
    undisturbed = recover(student(), teacher(), data(), LONG)
    whole = time.monotonic() - began  # so that the kills hit on a fast machine and a slow one
    context = multiprocessing.get_context("spawn")
    while not (tmp_path / "digest").exists():
        worker = context.Process(target=train_long, args=(tmp_path / "checkpoints", tmp_path / "digest"))
        worker.start()
        while worker.is_alive() and not (tmp_path / "checkpoints").exists():
            time.sleep(0.05)
        worker.join(draw.uniform(0, whole / 3) if kills < 3 else None)
        if worker.is_alive():
            worker.kill()
            worker.join()
            kills += 1
    assert kills >= 1
    assert (tmp_path / "digest").read_text() == programs.digest(undisturbed.program)


@pytest.mark.parametrize("saves", range(1, SETTINGS.epochs + 1))
def test_a_run_interrupted_after_any_epoch_ends_where_it_would_have(saves: int) -> None:
    memory = Memory(fails_after=saves)
    with pytest.raises(ConnectionError):
        recover(student(), teacher(), data(), SETTINGS, checkpoint=memory.checkpoint())
    torch.manual_seed(saves)  # the new machine's random state is another
    told: list[Epoch] = []
    resumed = recover(student(), teacher(), data(), SETTINGS, checkpoint=memory.checkpoint(), on_epoch=told.append)
    assert programs.digest(resumed.program) == programs.digest(recovered().program)
    assert without_times(resumed.history) == without_times(recovered().history)
    assert [epoch.epoch for epoch in told] == list(range(saves + 1, SETTINGS.epochs + 1))


def test_a_run_interrupted_after_every_epoch_ends_where_it_would_have() -> None:
    memory = Memory()
    for saves in range(1, SETTINGS.epochs + 1):
        memory.fails_after = saves
        with pytest.raises(ConnectionError):
            recover(student(), teacher(), data(), SETTINGS, checkpoint=memory.checkpoint())
    resumed = recover(student(), teacher(), data(), SETTINGS, checkpoint=memory.checkpoint())
    assert programs.digest(resumed.program) == programs.digest(recovered().program)


def test_a_checkpoint_is_saved_after_every_epoch_and_loads_without_unpickling_objects() -> None:
    memory = Memory()
    recover(student(), teacher(), data(), SETTINGS, checkpoint=memory.checkpoint())
    assert len(memory.saves) == SETTINGS.epochs
    assert [len(state["history"]) for state in memory.states] == [2, 3, 4]


def test_every_epoch_is_told_once_in_order() -> None:
    told: list[Epoch] = []
    seen = recover(student(), teacher(), data(), SETTINGS, on_epoch=told.append)
    assert tuple(told) == seen.history


def test_student_and_teacher_are_not_modified() -> None:
    before = programs.digest(student()), programs.digest(teacher())
    recover(student(), teacher(), data(), SETTINGS)
    assert (programs.digest(student()), programs.digest(teacher())) == before


def test_training_that_only_harms_gives_back_the_program_as_it_came() -> None:
    harmful = dataclasses.replace(SETTINGS, learning_rate=0.3)
    parts = (data().train, data().validation, data().test)
    flawless = Dataset(*(answered_by(student(), part.inputs) for part in parts))
    seen = recover(student(), teacher(), flawless, harmful)
    assert min(e.accuracy for e in seen.history) < 1
    assert seen.best.epoch == 0
    assert programs.digest(seen.program) == programs.digest(student())


def test_a_training_that_changes_nothing_keeps_the_program_as_it_was_cut() -> None:
    still = dataclasses.replace(SETTINGS, learning_rate=0.0)
    seen = recover(models.exported("perceptron"), models.exported("perceptron"), _vectors(), still)
    assert len({e.accuracy for e in seen.history}) == 1
    assert (seen.best.epoch, seen.kept) == (0, "cut")


def test_of_equal_epochs_that_are_better_the_latest_is_kept() -> None:
    """It has learnt longest. Every epoch ends with a flawless validation, which the noisy program does not have."""
    few = dataclasses.replace(data(), validation=answered_by(teacher(), models.images(60, 1)[:30]))
    seen = recover(student(), teacher(), few, dataclasses.replace(SETTINGS, epochs=12, learning_rate=0.05))
    best = max(epoch.accuracy for epoch in seen.history)
    equals = [epoch.epoch for epoch in seen.history if epoch.accuracy == best]
    assert seen.kept == "trained"
    assert len(equals) > 1
    assert seen.best.epoch == equals[-1]


def _vectors() -> Dataset:
    return Dataset(*(answered_by(models.exported("perceptron"), models.vectors(30, seed)) for seed in range(3)))


def test_every_epoch_goes_through_the_examples_in_an_order_of_its_own() -> None:
    orders = [np.concatenate([part.numpy() for part in _orders(EXAMPLES, SETTINGS, epoch)]) for epoch in (1, 1, 2)]
    assert np.array_equal(orders[0], orders[1])
    assert not np.array_equal(orders[0], orders[2])
    for order in orders:  # a last batch of one example is left out: it has no variance to normalise by
        assert len(set(order)) == len(order) == EXAMPLES - 1


def test_no_epochs_give_back_the_program_as_it_came() -> None:
    seen = recover(student(), teacher(), data(), dataclasses.replace(SETTINGS, epochs=0))
    assert (len(seen.history), seen.best.epoch) == (1, 0)
    assert programs.digest(seen.program) == programs.digest(student())


@pytest.mark.parametrize("distillation", [0.0, 0.3, 1.0])
def test_the_first_loss_is_that_of_the_formula(distillation: float) -> None:
    """One batch of everything, so that the loss told is the one before any step."""
    dense, other = models.exported("perceptron"), models.export(models.Perceptron(), torch.zeros(2, models.FEATURES))
    settings = Settings(epochs=1, batch=30, distillation=distillation, temperature=2.0)
    part = _vectors().train
    seen = recover(other, dense, _vectors(), settings).history[1].loss
    with torch.no_grad():
        given, taught = (p.module(check_guards=False)(torch.from_numpy(part.inputs)).double() for p in (other, dense))
    hard = float(functional.cross_entropy(given, torch.from_numpy(part.labels)))
    teachers, students = ((logits / 2).softmax(1) for logits in (taught, given))
    soft = float((teachers * (teachers.log() - students.log())).sum(1).mean())
    assert seen == pytest.approx((1 - distillation) * hard + distillation * 4 * soft, rel=1e-5)


def test_tied_weights_stay_tied_and_train() -> None:
    program = models.exported("tied")
    parts = [Split(models.tokens(90, seed), models.tokens(90, seed)[:, 0]) for seed in range(3)]
    settings = dataclasses.replace(SETTINGS, learning_rate=0.2, distillation=0.0)
    seen = recover(program, program, Dataset(*parts), settings)
    module = programs.graph_module(seen.program)
    assert seen.best.epoch > 0
    assert module.get_parameter("embed.weight") is module.get_parameter("head.weight")


def test_weight_decay_shrinks_matrices_but_neither_norms_nor_biases() -> None:
    """Where the teacher is the student and labels do not count, the decay alone moves the weights."""
    program = models.exported("perceptron")
    settings = Settings(epochs=1, batch=30, learning_rate=0.1, weight_decay=0.5, momentum=0.5, distillation=1.0)
    memory = Memory()
    recover(program, program, _vectors(), settings, checkpoint=memory.checkpoint())
    after = memory.states[-1]["module"]
    for name, before in program.state_dict.items():
        # Nesterov's first step is (1 + momentum) long, and the only step lies in the middle of the schedule
        shrunk = 1 - 0.1 * cosine(0.5, settings.warm_up) * 0.5 * 1.5 if before.dim() > 1 else 1.0
        assert torch.allclose(after[name], before * shrunk, atol=1e-6), name


def test_training_without_momentum_is_possible() -> None:
    seen = recover(student(), teacher(), data(), dataclasses.replace(SETTINGS, momentum=0.0))
    assert len(seen.history) == SETTINGS.epochs + 1


def test_weights_that_the_last_step_ruined_are_never_the_best() -> None:
    """A model of NaN answers class 0 every time, which may be right more often than the cut model was."""
    made = models.Perceptron()
    with torch.no_grad():
        made.second.bias[0] = -100.0  # never answers class 0
    program = models.export(made, torch.zeros(2, models.FEATURES))
    part = Split(models.vectors(30), np.zeros(30, dtype=np.int64))
    try:
        settings = Settings(epochs=1, batch=30, learning_rate=3e38, distillation=0.0)
        seen = recover(program, program, Dataset(part, part, part), settings)
    except FloatingPointError:
        return
    assert all(tensor.isfinite().all() for tensor in seen.program.state_dict.values())


def test_inputs_that_are_not_numbers_stop_the_training() -> None:
    broken = models.images(EXAMPLES)
    broken[3, 0, 0, 0] = np.nan
    with pytest.raises(
        FloatingPointError, match=r"training diverged: loss nan in epoch 1, step \d; lower the learning rate"
    ):
        recover(student(), teacher(), dataclasses.replace(data(), train=Split(broken, data().train.labels)), SETTINGS)


def test_a_learning_rate_that_diverges_stops_the_training() -> None:
    with pytest.raises(FloatingPointError, match="training diverged"):
        recover(student(), teacher(), data(), dataclasses.replace(SETTINGS, learning_rate=1e30))


def test_accuracy_is_the_share_of_right_answers() -> None:
    module = programs.graph_module(teacher())
    programs.set_training(module, True)
    part = data().validation
    wrong = Split(part.inputs, np.where(np.arange(len(part)) % 4 == 0, (part.labels + 1) % models.CLASSES, part.labels))
    assert accuracy(module, part) == 1.0
    assert accuracy(module, wrong) == 0.75


@functools.cache
def sparse(pattern: NM | Unstructured) -> tuple[ExportedProgram, Masks]:
    program, masks, _ = sparsify(student(), pattern=pattern)
    return program, masks


PATTERNS = pytest.mark.parametrize("pattern", [Unstructured(0.6), NM(2, 4)], ids=str)


@PATTERNS
def test_masked_weights_are_exactly_zero_after_every_step(pattern: NM | Unstructured) -> None:
    """An epoch is one step here, with momentum and weight decay, so that every checkpoint shows one."""
    given, masks = sparse(pattern)
    memory = Memory()
    settings = dataclasses.replace(SETTINGS, epochs=4, batch=EXAMPLES)
    seen = recover(given, teacher(), data(), settings, masks=masks, checkpoint=memory.checkpoint())
    steps = [state["module"] for state in memory.states]
    assert len(steps) == settings.epochs
    for weights in (*steps, seen.program.state_dict):
        for name, mask in masks.items():
            assert (weights[name][~mask] == 0).all()
            assert (weights[name][mask] != 0).all()
    changed = [name for name, mask in masks.items() if (steps[-1][name] != given.state_dict[name])[mask].all()]
    assert changed == list(masks)  # what stays does learn


def test_without_its_masks_a_sparse_program_fills_up_again() -> None:
    given, masks = sparse(NM(2, 4))
    seen = recover(given, teacher(), data(), SETTINGS)
    assert seen.best.epoch > 0
    assert any((seen.program.state_dict[name][~mask] != 0).any() for name, mask in masks.items())


@PATTERNS
def test_a_masked_run_that_was_interrupted_ends_where_it_would_have(pattern: NM | Unstructured) -> None:
    given, masks = sparse(pattern)
    memory = Memory(fails_after=1)
    with pytest.raises(ConnectionError):
        recover(given, teacher(), data(), SETTINGS, masks=masks, checkpoint=memory.checkpoint())
    resumed = recover(given, teacher(), data(), SETTINGS, masks=masks, checkpoint=memory.checkpoint())
    whole = recover(given, teacher(), data(), SETTINGS, masks=masks)
    assert programs.digest(resumed.program) == programs.digest(whole.program)
    for name, mask in masks.items():
        assert (resumed.program.state_dict[name][~mask] == 0).all()


def test_masks_are_burnt_in_even_where_no_epoch_helps() -> None:
    masks = {"outer.weight": torch.zeros(models.CHANNELS, models.HIDDEN, 3, 3, dtype=torch.bool)}
    seen = recover(student(), teacher(), data(), dataclasses.replace(SETTINGS, epochs=0), masks=masks)
    assert (seen.program.state_dict["outer.weight"] == 0).all()


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (
            {"outer": torch.ones(2, dtype=torch.bool)},
            r"^masks: expected names of the student's parameters, got 'outer'",
        ),
        (
            {"outer.bias": torch.ones(3, dtype=torch.bool)},
            r"^masks: expected \(8,\) \(torch.bool\) for outer.bias, got",
        ),
        ({"outer.bias": torch.ones(models.CHANNELS)}, r"got \(8,\) \(torch.float32\)"),
    ],
)
def test_masks_of_another_program_are_refused(masks: Masks, message: str) -> None:
    with pytest.raises(InputError, match=message):
        recover(student(), teacher(), data(), SETTINGS, masks=masks)


def test_the_best_epoch_is_chosen_on_validation_and_the_test_split_is_never_read() -> None:
    """The trap of reporting the best test epoch as accuracy: a test split that cannot be read changes nothing."""
    unreadable = dataclasses.replace(data(), test=None)
    seen = recover(student(), teacher(), unreadable, SETTINGS)
    assert programs.digest(seen.program) == programs.digest(recovered().program)


def test_recovery_on_a_tiny_set_that_hurts_keeps_what_was_cut() -> None:
    """Two examples with the wrong label teach the student to err: the best by validation is the program as it came."""
    flawless = answered_by(student(), models.images(60, 1))
    two = Split(flawless.inputs[:2], (flawless.labels[:2] + 1) % models.CLASSES)
    settings = dataclasses.replace(SETTINGS, epochs=5, batch=2, distillation=0.0, learning_rate=0.1)
    seen = recover(student(), teacher(), Dataset(two, flawless, flawless), settings)
    assert seen.history[-1].accuracy < 1
    assert seen.best.epoch == 0
    assert programs.digest(seen.program) == programs.digest(student())


def test_norms_measured_again_are_a_candidate_of_their_own() -> None:
    """The student's statistics are spoilt: measuring them again mends it, and the smallest training can only follow."""
    module = programs.graph_module(teacher())
    with torch.no_grad():
        module.get_buffer("norm.running_mean").add_(3.0)
        module.get_buffer("inner_norm.running_var").mul_(30.0)
    spoilt = programs.reexport(module, teacher())
    seen = recover(spoilt, teacher(), data(), dataclasses.replace(SETTINGS, epochs=0))
    assert (seen.kept, seen.best.epoch) == ("norms", 0)
    assert seen.adapted is not None
    assert seen.adapted == seen.best.accuracy > seen.history[0].accuracy
    without = recover(spoilt, teacher(), data(), dataclasses.replace(SETTINGS, epochs=0, reestimate_norms=False))
    assert (without.kept, without.adapted) == ("cut", None)


def test_patience_ends_a_training_that_brings_nothing() -> None:
    still = dataclasses.replace(SETTINGS, epochs=9, patience=2, learning_rate=0.0)
    assert len(recover(models.exported("perceptron"), teacher_of_vectors(), _vectors(), still).history) == 1 + 2


def teacher_of_vectors() -> ExportedProgram:
    return models.exported("perceptron")


def test_minutes_end_a_training_after_the_epoch_in_which_they_are_over() -> None:
    short = dataclasses.replace(SETTINGS, epochs=9, minutes=1e-9)
    assert len(recover(student(), teacher(), data(), short).history) == 1 + 1


def test_the_rates_are_down_when_the_minutes_are_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that ticks a second whenever it is looked at: an epoch takes as long as it has steps, and one more."""
    ticks = itertools.count()
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(ticks)))
    told: list[tuple[int, int]] = []

    def tell(step: int, steps: int, loss: float) -> None:
        told.append((step, steps))

    recover(student(), teacher(), data(), dataclasses.replace(SETTINGS, epochs=9), on_step=tell)
    whole = told[-1][1]
    each = whole // 9
    told.clear()
    seen = recover(
        student(),
        teacher(),
        data(),
        dataclasses.replace(SETTINGS, epochs=9, minutes=2.5 * (each + 1) / 60),
        on_step=tell,
    )
    assert len(seen.history) == 1 + 3
    assert [steps for _, steps in told] == [whole] * each + [3 * each] * 2 * each
    assert told[-1][0] == 3 * each


def test_an_average_of_the_weights_is_what_is_judged_and_kept() -> None:
    """One step from w0 to w1 with decay d leaves d w0 + (1 - d) w1."""
    made, memory = models.export(models.Perceptron(), torch.zeros(2, models.FEATURES)), Memory()
    settings = dataclasses.replace(SETTINGS, epochs=1, batch=30, average=0.75)
    recover(made, teacher_of_vectors(), _vectors(), settings, checkpoint=memory.checkpoint())
    state = memory.states[-1]
    for name, before in made.state_dict.items():
        assert torch.allclose(state["average"][name], 0.75 * before + 0.25 * state["module"][name], atol=1e-6)


def test_masked_weights_stay_zero_in_an_average() -> None:
    given, masks = sparse(Unstructured(0.6))
    seen = recover(given, teacher(), data(), dataclasses.replace(SETTINGS, average=0.5), masks=masks)
    assert all((seen.program.state_dict[name][~mask] == 0).all() for name, mask in masks.items())


def test_clipped_gradients_move_the_weights_no_further_than_asked() -> None:
    made, memory = models.export(models.Perceptron(), torch.zeros(2, models.FEATURES)), Memory()
    settings = Settings(epochs=1, batch=30, learning_rate=1.0, momentum=0.0, weight_decay=0.0, warm_up=0.99, clip=1e-3)
    recover(made, teacher_of_vectors(), _vectors(), settings, checkpoint=memory.checkpoint())
    after = memory.states[-1]["module"]
    length = (
        sum(float((after[name] - before).detach().square().sum()) for name, before in made.state_dict.items()) ** 0.5
    )
    assert 0 < length <= 1.01e-3


def test_steps_are_told_with_their_number_and_loss() -> None:
    told: list[tuple[int, int, float]] = []
    recover(student(), teacher(), data(), SETTINGS, on_step=lambda *seen: told.append(seen))
    assert [step for step, _, _ in told] == list(range(1, 10))
    assert {steps for _, steps, _ in told} == {9}
    assert all(loss > 0 for _, _, loss in told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "fast"}, "^schedule: expected one of cosine"),
        ({"optimizer": "lion"}, "^optimizer: expected one of sgd"),
        ({"distillation": 1.5}, "^distillation: expected a weight from 0 to 1"),
        ({"average": 1.0}, "^average: expected a share"),
        ({"batch": 1}, "^batch: expected at least 2"),
        ({"augment": ("blur",)}, "^augment: expected some of crop"),
        ({"augment": ("mixup", "cutmix")}, "^augment: expected one of mixup and cutmix"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recover(student(), teacher(), data(), dataclasses.replace(SETTINGS, **changes))


def test_a_split_that_is_too_small_is_refused() -> None:
    tiny = Split(models.images(1), np.zeros(1, dtype=np.int64))
    with pytest.raises(InputError, match="at least two examples of training"):
        recover(student(), teacher(), Dataset(tiny, tiny, tiny), SETTINGS)


def without_dropout() -> tuple[ExportedProgram, ExportedProgram]:
    """A network of norms whose dropout draws nothing, and the same with noise on its weights."""
    network = models.Residual()
    network.drop.p = 0.0
    dense = models.export(models.with_lived_in_norms(network), torch.from_numpy(models.images(2)))
    module = programs.graph_module(dense)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return dense, programs.reexport(module, dense)


@pytest.mark.parametrize("augment", [(), ("crop", "flip", "mixup")])
def test_two_processes_train_as_one_with_the_same_batch(augment: tuple[str, ...]) -> None:
    """Norms, clipping, averages, masks and the teacher included; the batch does not divide evenly."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        dense, noisy = without_dropout()
    noisy, masks, _ = sparsify(noisy, pattern=Unstructured(0.5))
    settings = dataclasses.replace(SETTINGS, batch=15, augment=augment, clip=0.5, average=0.9, learning_rate=0.01)

    def work() -> tuple[list[float], dict[str, np.ndarray]]:
        found = recover(noisy, dense, data(), settings, masks=masks)
        state = {name: tensor.detach().numpy() for name, tensor in found.program.state_dict.items()}
        return [value for epoch in found.history for value in (epoch.loss, epoch.accuracy)], state

    alone, two = work(), together(work)
    for (history, state), (expected, weights) in ((seen, alone) for seen in two):
        assert history == pytest.approx(expected, rel=1e-4, nan_ok=True)
        for name, weight in weights.items():
            np.testing.assert_allclose(state[name], weight, rtol=1e-3, atol=1e-5, err_msg=name)
    for name, weight in two[0][1].items():  # and the processes agree bit for bit
        np.testing.assert_array_equal(weight, two[1][1][name], err_msg=name)


def test_two_processes_that_were_stopped_go_on_from_the_first_ones_checkpoint(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(step: int, steps: int, loss: float) -> None:
        if step == steps // 2:
            raise Stop

    def work(stopped: bool) -> str:
        # only the first process reads and writes: the other's folder does not exist
        place = in_folder(tmp_path / str(distributed.rank()), seconds=0.0)
        try:
            hook = stop if stopped and distributed.rank() == 0 else lambda step, steps, loss: None
            return programs.digest(
                recover(student(), teacher(), data(), SETTINGS, checkpoint=place, on_step=hook).program
            )
        except (Stop, RuntimeError):  # the process that is left alone finds its partner gone
            return "stopped"

    assert together(functools.partial(work, True)) == ["stopped"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["0"]
    resumed = together(functools.partial(work, False))
    (tmp_path / "0").rename(tmp_path / "used")
    assert resumed == together(functools.partial(work, False))


def test_a_batch_in_parts_gives_the_gradient_of_the_whole() -> None:
    """Without batch norms: those normalise by what they see at once."""
    dense = models.exported("encoder")
    tokens = [models.tokens(count, seed) for seed, count in enumerate((40, 20, 10))]
    examples = Dataset(*(answered_by(dense, part) for part in tokens))
    module = programs.graph_module(dense)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    noisy = programs.reexport(module, dense)
    whole, parts = (
        recover(noisy, dense, examples, dataclasses.replace(SETTINGS, accumulate=count)) for count in (1, 3)
    )
    for name, weight in whole.program.state_dict.items():
        torch.testing.assert_close(parts.program.state_dict[name], weight, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"channels_last": True}])
def test_other_number_formats_and_layouts_train_to_about_the_same_weights(change: dict[str, Any]) -> None:
    plain = recover(student(), teacher(), data(), SETTINGS)
    other = recover(student(), teacher(), data(), dataclasses.replace(SETTINGS, **change))
    assert [e.loss for e in other.history[1:]] == pytest.approx([e.loss for e in plain.history[1:]], rel=0.05)
    for weight in other.program.state_dict.values():
        assert weight.dtype != torch.bfloat16
        assert weight.is_contiguous()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accumulate": 0}, "^accumulate: expected at least 1 part, got 0"),
        ({"accumulate": 9}, "^batch: expected at least 18 examples, 2 for each part of each process"),
        ({"precision": "float16"}, "^precision: expected one of float32, bfloat16, got 'float16'"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        recover(student(), teacher(), data(), dataclasses.replace(SETTINGS, **change))


@pytest.mark.parametrize("change", [{}, {"hidden_states": 1.0, "accumulate": 2, "precision": "bfloat16"}])
def test_recomputed_activations_train_to_the_same_weights_bit_for_bit(change: dict[str, Any]) -> None:
    kept, again = (
        recover(student(), teacher(), data(), dataclasses.replace(SETTINGS, recompute=choice, **change))
        for choice in (False, True)
    )
    assert programs.digest(again.program) == programs.digest(kept.program)
    assert without_times(again.history) == without_times(kept.history)


def test_hidden_states_that_both_share_come_nearer_to_the_teachers() -> None:
    settings = dataclasses.replace(SETTINGS, epochs=6)

    def distance(program: ExportedProgram) -> float:
        ours, theirs = (programs.graph_module(p) for p in (program, teacher()))
        pairs = hidden_states.shared_nodes(ours, theirs)
        x = torch.from_numpy(data().test.inputs)
        with torch.no_grad():
            states = [
                hidden_states.tapped(module, names)(x)[1]
                for module, names in ((ours, list(pairs)), (theirs, list(pairs.values())))
            ]
        return float(hidden_states.hidden_state_loss(*states))

    found = [
        recover(student(), teacher(), data(), dataclasses.replace(settings, hidden_states=weight))
        for weight in (5.0, 0.0)
    ]
    assert [seen.kept for seen in found] == ["trained"] * 2
    with_states, without = (distance(seen.program) for seen in found)
    assert with_states < 0.9 * without
    assert with_states < distance(student())


def test_without_a_shared_hidden_state_there_is_nothing_to_come_nearer_to() -> None:
    dense = models.exported("perceptron")
    cut, _ = prune(dense, goal=Ratio(0.5), kinds=["width"])
    with pytest.raises(InputError, match=r"^hidden_states: expected a hidden state that the cut left as wide"):
        recover(cut, dense, _vectors(), dataclasses.replace(SETTINGS, hidden_states=1.0))


def padded(lengths: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [N, 12] with zeros after their lengths, and the mask of what is there."""
    mask = (np.arange(12) < lengths[:, None]).astype(np.int64)
    return np.random.default_rng(seed).integers(1, models.VOCABULARY, mask.shape) * mask, mask


class Pooled(torch.nn.Module):
    """Tokens [N, T] and their mask to logits: the mean of what the words are, padding left out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(models.VOCABULARY, 8), torch.nn.Linear(8, models.CLASSES)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        words = torch.tanh(self.embed(tokens)) * mask[:, :, None]
        return self.head(words.sum(1) / mask.sum(1, keepdim=True))


def pooled(any_length: bool) -> ExportedProgram:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        made = Pooled()
    tokens, mask = (torch.from_numpy(array) for array in padded(np.array([12, 3]), 0))
    sizes = {0: torch.export.Dim.AUTO, **({1: torch.export.Dim.AUTO} if any_length else {})}
    return torch.export.export(made, (tokens, mask), dynamic_shapes=(sizes, sizes))


@pytest.mark.parametrize("any_length", [True, False])
@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_batches_are_as_long_as_their_longest_example_where_the_program_allows(
    any_length: bool, distillation: float
) -> None:
    """Padding is masked, so trimming it changes no answer: the same data without lengths trains alike but for the order."""
    program = pooled(any_length)
    draw = np.random.default_rng(1)
    splits = []
    for seed, count in enumerate((70, 40, 10)):
        lengths = draw.integers(1, 13, count)
        tokens, mask = padded(lengths, seed)
        splits.append(Split(tokens, tokens[:, 0] % models.CLASSES, (mask,), lengths))
    examples = Dataset(*splits)
    settings = dataclasses.replace(SETTINGS, batch=10, distillation=distillation, learning_rate=0.2, epochs=4)
    seen: list[int] = []
    with_lengths = recover(program, program, examples, settings)
    module = programs.graph_module(program)
    plain = Split(splits[1].inputs, splits[1].labels, splits[1].more)
    assert evaluate(module, splits[1], OBJECTIVES["classification"]) == evaluate(
        module, plain, OBJECTIVES["classification"]
    )
    assert with_lengths.best.accuracy > with_lengths.history[0].accuracy
    lengths = splits[0].lengths
    assert lengths is not None
    for batch in _orders(70, settings, 1, lengths):
        seen += batch.tolist()
        shown = _trimmed([torch.from_numpy(splits[0].inputs)[batch]], batch, _lengths(module, splits[0]))[0].shape[1]
        assert shown == (lengths[batch.numpy()].max() if any_length else 12)
    assert sorted(seen) == list(range(70))
