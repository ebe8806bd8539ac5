"""Recovery training repeats itself bit for bit, resumes where it stopped, and never gives back less than it was given."""

import dataclasses
import functools
import io
import math

import models
import numpy as np
import pytest
import torch
from torch.export import ExportedProgram
from torch.nn import functional

from secateur import program as programs
from secateur.data import Dataset, Split
from secateur.errors import InputError
from secateur.recovery import Checkpoint, Epoch, Recovered, Settings, _batches, accuracy, recover, reestimate_norms

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


class Memory:
    """A checkpoint in memory; it fails after a number of saves, as a machine does."""

    def __init__(self, fails_after: int | None = None) -> None:
        self.saves: list[bytes] = []
        self.fails_after = fails_after

    def save(self, state: bytes) -> None:
        self.saves.append(state)
        if len(self.saves) == self.fails_after:
            raise ConnectionError("the machine is gone")

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(self.save, lambda: self.saves[-1] if self.saves else None)


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
    for number, stored in enumerate(memory.saves, start=1):
        assert len(torch.load(io.BytesIO(stored), weights_only=True)["history"]) == number + 1


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


def test_of_equal_epochs_the_earliest_is_kept() -> None:
    still = dataclasses.replace(SETTINGS, learning_rate=0.0)
    seen = recover(models.exported("perceptron"), models.exported("perceptron"), _vectors(), still)
    assert len({e.accuracy for e in seen.history}) == 1
    assert seen.best.epoch == 0


def _vectors() -> Dataset:
    return Dataset(*(answered_by(models.exported("perceptron"), models.vectors(30, seed)) for seed in range(3)))


def test_every_epoch_goes_through_the_examples_in_an_order_of_its_own() -> None:
    numbered = Split(np.arange(EXAMPLES, dtype=np.float32)[:, None], np.arange(EXAMPLES))
    orders = [
        np.concatenate([labels.numpy() for _, labels in _batches(numbered, SETTINGS, epoch)]) for epoch in (1, 1, 2)
    ]
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
    after = torch.load(io.BytesIO(memory.saves[-1]), weights_only=True)["module"]
    for name, before in program.state_dict.items():
        shrunk = 1 - 0.1 * 0.5 * 1.5 if before.dim() > 1 else 1.0  # Nesterov's first step is (1 + momentum) long
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
    with pytest.raises(FloatingPointError, match=r"recovery diverged: loss nan in epoch 1; lower the learning rate"):
        recover(student(), teacher(), dataclasses.replace(data(), train=Split(broken, data().train.labels)), SETTINGS)


def test_a_learning_rate_that_diverges_stops_the_training() -> None:
    with pytest.raises(FloatingPointError, match="recovery diverged"):
        recover(student(), teacher(), data(), dataclasses.replace(SETTINGS, learning_rate=1e30))


def test_accuracy_is_the_share_of_right_answers_whatever_the_batch() -> None:
    module = programs.graph_module(teacher())
    programs.set_training(module, True)
    part = data().validation
    wrong = Split(part.inputs, np.where(np.arange(len(part)) % 4 == 0, (part.labels + 1) % models.CLASSES, part.labels))
    for batch in (1, 7, 256):
        assert accuracy(module, part, batch) == 1.0
        assert accuracy(module, wrong, batch) == 0.75


def test_norms_are_reestimated_as_torch_does_without_momentum() -> None:
    """Torch's own cumulative average (`momentum=None`), on the eager network in training mode, dropout off."""
    eager = models.Residual()
    module = programs.graph_module(models.export(eager, torch.zeros(2, *models.IMAGE)))
    batches = [(torch.from_numpy(models.images(20, seed)),) for seed in range(3)]
    assert reestimate_norms(module, batches) == 2
    eager.train()
    eager.drop.eval()
    for norm in (eager.norm, eager.inner_norm):
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for batch in batches:
            eager(*batch)
    for name in ("norm.running_mean", "norm.running_var", "inner_norm.running_mean", "inner_norm.running_var"):
        assert torch.allclose(module.get_buffer(name), eager.get_buffer(name), atol=1e-6), name


def test_reestimating_norms_leaves_weights_and_mode_alone() -> None:
    module = programs.graph_module(student())
    weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    arguments = [node.args for node in module.graph.nodes]
    reestimate_norms(module, [(torch.from_numpy(models.images(8)),)])
    assert [node.args for node in module.graph.nodes] == arguments
    assert all(torch.equal(parameter, weights[name]) for name, parameter in module.named_parameters())
    once = module.get_buffer("norm.running_mean").clone()
    with torch.no_grad():
        module(torch.from_numpy(models.images(8, 1)))
    assert torch.equal(module.get_buffer("norm.running_mean"), once)


def test_reestimating_norms_needs_data_where_there_are_norms() -> None:
    with pytest.raises(InputError, match="at least one batch"):
        reestimate_norms(programs.graph_module(student()), [])
    assert reestimate_norms(programs.graph_module(models.exported("perceptron")), []) == 0
