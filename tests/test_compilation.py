"""Compiled steps are used where they are measured to be faster, and a run stays with what it began with."""

import dataclasses
import logging
import time
from collections.abc import Callable

import pytest
import torch
from test_recovery import SETTINGS, Memory, data, student, teacher, without_times

from secateur import InputError, compilation
from secateur import program as programs
from secateur.recovery import recover

STEP_S = 0.002
COMPILED = dataclasses.replace(SETTINGS, compile=True)


def takes(seconds: float) -> Callable[[], None]:
    return lambda: time.sleep(seconds)


def fails() -> None:
    raise RuntimeError("No working C++ compiler found\nmore about it")


@pytest.mark.parametrize(
    ("plain", "compiled", "faster", "said"),
    [
        (takes(5 * STEP_S), takes(STEP_S), True, "training goes on compiled"),
        (takes(STEP_S), takes(5 * STEP_S), False, "training goes on without it"),
        (takes(STEP_S), fails, False, "got RuntimeError: No working C++ compiler found; training goes on without it"),
    ],
)
def test_what_is_faster_is_used_and_said(
    plain: Callable[[], None],
    compiled: Callable[[], None],
    faster: bool,
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        assert compilation.pays(plain, compiled) is faster
    assert said in caplog.text


def test_a_run_that_was_compiled_does_not_go_on_otherwise() -> None:
    with pytest.raises(
        RuntimeError, match=r"^compile: expected .*as where the checkpoint was made, got .*No working C\+\+"
    ):
        compilation.again(fails)


def test_a_trial_that_does_not_pay_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled step is the plain one here, tried and found too slow: norms, gradients and draws are as without it."""
    monkeypatch.setattr(
        compilation, "compiled", lambda module: lambda *inputs: (time.sleep(STEP_S), module(*inputs))[1]
    )
    memory = Memory()
    seen = recover(student(), teacher(), data(), COMPILED, checkpoint=memory.checkpoint())
    plain = recover(student(), teacher(), data(), SETTINGS)
    assert programs.digest(seen.program) == programs.digest(plain.program)
    assert [state["compiled"] for state in memory.states] == [False] * SETTINGS.epochs


def test_compiled_steps_that_keep_few_activations_are_refused() -> None:
    with pytest.raises(InputError, match=r"^compile: expected one process that keeps its activations"):
        recover(student(), teacher(), data(), dataclasses.replace(COMPILED, recompute=True))


@pytest.mark.slow
def test_a_compiled_run_learns_what_a_plain_one_does_and_goes_on_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "_seconds", lambda step: -float(next(turns)))  # every second one, compiled, wins
    turns = iter(range(1000))
    memory = Memory(fails_after=2)
    whole = recover(student(), teacher(), data(), COMPILED)
    with pytest.raises(ConnectionError):
        recover(student(), teacher(), data(), COMPILED, checkpoint=memory.checkpoint())
    assert memory.states[-1]["compiled"] is True
    torch._dynamo.reset()  # another machine's
    resumed = recover(student(), teacher(), data(), COMPILED, checkpoint=memory.checkpoint())
    assert programs.digest(resumed.program) == programs.digest(whole.program)
    assert without_times(resumed.history) == without_times(whole.history)
    plain = recover(student(), teacher(), data(), SETTINGS)
    assert [e.loss for e in resumed.history[1:]] == pytest.approx([e.loss for e in plain.history[1:]], rel=1e-3)
