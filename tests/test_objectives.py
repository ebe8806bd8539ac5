"""Losses against formulas written out, metrics against counting, padding that never counts."""

import dataclasses
import hashlib
import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import accuracy_score, f1_score, log_loss, r2_score

from secateur.errors import InputError
from secateur.objectives import (
    ALLOWED,
    IGNORED,
    OBJECTIVES,
    Objective,
    answered,
    distance,
    identity_of,
    objective_of,
    plain_loss,
)

N, T, C = 3, 4, 5
LOGITS = torch.randn(N, C, generator=torch.Generator().manual_seed(0)).double()
TAUGHT = torch.randn(N, C, generator=torch.Generator().manual_seed(1)).double()
LABELS = torch.tensor([4, 0, 2])
TOKEN_LOGITS = torch.randn(N, T, C, generator=torch.Generator().manual_seed(2)).double()
TOKENS = torch.tensor([[1, 2, 3, IGNORED], [0, 4, IGNORED, IGNORED], [2, 2, 1, 0]])


def metric(name: str, logits: torch.Tensor, target: torch.Tensor) -> float:
    objective = objective_of(name)
    answers, targets = objective.answers(logits, target)
    return objective.score(answers.numpy(), targets.numpy())


def test_classification_is_cross_entropy() -> None:
    expected = -np.mean([math.log(LOGITS.softmax(1)[i, label]) for i, label in enumerate(LABELS)])
    assert float(OBJECTIVES["classification"].loss(LOGITS, LABELS, 0.0)) == pytest.approx(expected)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    log = LOGITS.log_softmax(1)
    own = torch.stack([log[i, label] for i, label in enumerate(LABELS)])
    expected = -(0.9 * own + 0.1 * log.mean(1)).mean()
    assert float(OBJECTIVES["classification"].loss(LOGITS, LABELS, 0.1)) == pytest.approx(float(expected))


@pytest.mark.parametrize("t", [1.0, 4.0])
def test_distillation_is_the_divergence_from_the_teacher_scaled_by_the_temperature(t: float) -> None:
    p, q = (TAUGHT / t).softmax(1), (LOGITS / t).softmax(1)
    expected = t * t * (p * (p.log() - q.log())).sum(1).mean()
    seen = OBJECTIVES["classification"].distillation(LOGITS, TAUGHT, LABELS, t)
    assert float(seen) == pytest.approx(float(expected))


@pytest.mark.parametrize("name", ["classification", "multi_label", "regression"])
def test_a_student_that_answers_as_its_teacher_learns_nothing_more_from_it(name: str) -> None:
    student = TAUGHT.clone().requires_grad_()
    OBJECTIVES[name].distillation(student, TAUGHT, torch.zeros(N, dtype=torch.long), 2.0).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-12


def test_padding_counts_neither_in_loss_nor_metric_nor_distillation() -> None:
    padded = TOKENS == IGNORED
    other = torch.where(padded[..., None], torch.randn(N, T, C).double(), TOKEN_LOGITS)
    objective = OBJECTIVES["token_classification"]
    taught = torch.randn(N, T, C).double()
    for seen, changed in (
        (objective.loss(TOKEN_LOGITS, TOKENS, 0.0), objective.loss(other, TOKENS, 0.0)),
        (
            objective.distillation(TOKEN_LOGITS, taught, TOKENS, 2.0),
            objective.distillation(other, taught, TOKENS, 2.0),
        ),
    ):
        assert float(seen) == pytest.approx(float(changed))
    assert metric("token_classification", TOKEN_LOGITS, TOKENS) == metric("token_classification", other, TOKENS)


def test_a_causal_model_is_judged_by_the_next_token() -> None:
    log = TOKEN_LOGITS.log_softmax(-1)
    told = [float(log[n, t, TOKENS[n, t + 1]]) for n in range(N) for t in range(T - 1) if TOKENS[n, t + 1] != IGNORED]
    assert float(OBJECTIVES["causal_lm"].loss(TOKEN_LOGITS, TOKENS, 0.0)) == pytest.approx(-np.mean(told))
    assert metric("causal_lm", TOKEN_LOGITS, TOKENS) == pytest.approx(np.mean(told))


def test_several_labels_are_judged_one_by_one() -> None:
    target = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 1]])
    p = torch.sigmoid(LOGITS)
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert float(OBJECTIVES["multi_label"].loss(LOGITS, target, 0.0)) == pytest.approx(float(expected))
    answered = LOGITS > 0
    right = int((answered & (target == 1)).sum())
    assert metric("multi_label", LOGITS, target) == pytest.approx(2 * right / int(answered.sum() + target.sum()))


def test_a_regression_is_judged_by_the_share_of_variance_it_explains() -> None:
    target = torch.tensor([1.0, 2.0, 4.0])
    output = torch.tensor([[1.5], [2.0], [3.0]])
    assert float(OBJECTIVES["regression"].loss(output, target, 0.0)) == pytest.approx((0.25 + 0 + 1) / 3)
    spread = float(((target - target.mean()) ** 2).sum())
    assert metric("regression", output, target) == pytest.approx(1 - 1.25 / spread)


def test_an_objective_that_does_not_exist_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"^objective: expected one of classification, multi_label"):
        objective_of("ranking")


# --- the metrics against scikit-learn's

NUMBERS = st.floats(-3, 3, width=32)


@given(st.data(), st.integers(2, 30), st.integers(1, 3))
@settings(max_examples=60)
def test_r2_is_that_of_scikit_learn(data: st.DataObject, n: int, k: int) -> None:
    output, target = (data.draw(arrays.arrays(np.float32, (n, k), elements=NUMBERS)) for _ in range(2))
    expected = r2_score(target.astype(float), output.astype(float))
    seen = metric("regression", torch.from_numpy(output), torch.from_numpy(target))
    assert seen == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(st.data(), st.integers(1, 30), st.integers(1, 5))
@settings(max_examples=60)
def test_micro_f1_is_that_of_scikit_learn(data: st.DataObject, n: int, c: int) -> None:
    logits = data.draw(arrays.arrays(np.float32, (n, c), elements=NUMBERS))
    target = data.draw(arrays.arrays(np.int64, (n, c), elements=st.integers(0, 1)))
    # a row more, of a label found and one missed: scikit-learn takes one column for classes, and nothing found for an error
    logits, target = np.pad(logits, ((0, 1), (0, 2)), constant_values=-1), np.pad(target, ((0, 1), (0, 2)))
    logits[-1, -2], target[-1, -2:] = 1, 1
    expected = f1_score(target, logits > 0, average="micro")
    assert metric("multi_label", torch.from_numpy(logits), torch.from_numpy(target)) == pytest.approx(expected)


@given(st.data(), st.integers(1, 6), st.integers(2, 5))
@settings(max_examples=60)
def test_metrics_of_tokens_are_those_of_scikit_learn_on_the_tokens_that_count(
    data: st.DataObject, n: int, t: int
) -> None:
    logits = data.draw(arrays.arrays(np.float64, (n, t, C), elements=NUMBERS))
    target = data.draw(arrays.arrays(np.int64, (n, t), elements=st.sampled_from([IGNORED, 0, 1, 2, 3, 4])))
    target[0, -1] = 2
    chances = torch.from_numpy(logits).softmax(-1).numpy()
    both = torch.from_numpy(logits), torch.from_numpy(target)
    counts = target != IGNORED
    expected = accuracy_score(target[counts], logits.argmax(-1)[counts])
    assert metric("token_classification", *both) == pytest.approx(expected)
    loss = log_loss(target[counts], chances[counts], labels=range(C))
    assert metric("masked_lm", *both) == pytest.approx(-loss)
    counts = counts[:, 1:]
    loss = log_loss(target[:, 1:][counts], chances[:, :-1][counts], labels=range(C))
    assert metric("causal_lm", *both) == pytest.approx(-loss)


def test_a_target_that_never_varies_is_explained_wholly_or_not_at_all() -> None:
    target = torch.ones(4)
    assert metric("regression", torch.ones(4), target) == r2_score(target, torch.ones(4)) == 1
    assert metric("regression", torch.zeros(4), target) == r2_score(target, torch.zeros(4)) == 0


# --- over batches, and for criteria


def test_answers_batch_by_batch_are_those_of_all_at_once() -> None:
    objective, labels = OBJECTIVES["token_classification"], TOKENS.numpy()
    parts = (TOKEN_LOGITS[start : start + 2].numpy() for start in range(0, N, 2))
    whole = objective.answers(TOKEN_LOGITS, TOKENS)
    for seen, expected in zip(answered(objective, parts, labels), whole, strict=True):
        np.testing.assert_array_equal(seen, expected.numpy())


def test_the_plain_loss_takes_the_first_output_and_is_nothing_where_no_target_counts() -> None:
    loss = plain_loss(OBJECTIVES["masked_lm"])
    assert float(loss((TOKEN_LOGITS, None), TOKENS)) == float(OBJECTIVES["masked_lm"].loss(TOKEN_LOGITS, TOKENS, 0.0))
    logits = TOKEN_LOGITS.clone().requires_grad_()
    nothing = loss(logits, torch.full_like(TOKENS, IGNORED))
    nothing.backward()
    assert nothing.item() == float(logits.grad.abs().sum()) == 0  # type: ignore[union-attr]


def test_the_distance_from_the_dense_answers_is_nothing_for_the_dense_answers() -> None:
    for name in ("classification", "regression"):
        measure = distance(OBJECTIVES[name])
        assert float(measure(TAUGHT, TAUGHT, LABELS)) == pytest.approx(0, abs=1e-12)
        assert float(measure(LOGITS, TAUGHT, LABELS)) > 0.01


# --- an objective of the user's own

OWN = """
import dataclasses
from secateur.objectives import OBJECTIVES

def ranking():
    return dataclasses.replace(OBJECTIVES["classification"], metric="hit_rate")

def broken():
    raise RuntimeError("no such\\nfile")

def nothing():
    return None

def misnamed():
    return dataclasses.replace(OBJECTIVES["classification"], metric="hit rate/%")

constant = 3
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module `own_objectives` on the path, all of it allowed."""
    (tmp_path / "own_objectives.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(importlib.sys.modules, "own_objectives", raising=False)  # type: ignore[attr-defined]
    functions = ("ranking", "broken", "nothing", "misnamed", "constant", "missing")
    monkeypatch.setenv(ALLOWED, ", ".join(f"own_objectives:{name}" for name in functions) + ",nowhere.at_all:f")
    return tmp_path / "own_objectives.py"


@pytest.mark.usefixtures("own")
def test_a_function_that_is_allowed_gives_the_objective() -> None:
    made = objective_of("own_objectives:ranking")
    assert isinstance(made, Objective)
    assert made == dataclasses.replace(OBJECTIVES["classification"], metric="hit_rate")


def test_the_identity_of_an_own_objective_changes_with_its_file(own: Path) -> None:
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    assert identity_of("own_objectives:ranking") == f"own_objectives:ranking {digest}"
    assert identity_of("classification") == "classification"
    own.write_text(OWN + "# changed\n")
    assert identity_of("own_objectives:ranking") != f"own_objectives:ranking {digest}"


@pytest.mark.parametrize("allowed", [None, "", "own_objectives", "own_objectives:ranking2", "own_objectives:*"])
def test_a_function_that_is_not_allowed_is_never_imported(
    allowed: str | None, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own.write_text("raise SystemExit('imported')")
    if allowed is None:
        monkeypatch.delenv(ALLOWED)
    else:
        monkeypatch.setenv(ALLOWED, allowed)
    with pytest.raises(
        InputError, match=rf"^{ALLOWED}: expected it to list own_objectives:ranking, .* got '?{allowed or 'nothing'}"
    ):
        objective_of("own_objectives:ranking")


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "refusal"),
    [
        (
            "own_objectives:broken",
            "expected own_objectives:broken to give an objective, it failed: RuntimeError: no such",
        ),
        ("own_objectives:nothing", "to give a secateur.objectives.Objective, got a NoneType"),
        ("own_objectives:misnamed", "to call its metric by letters, digits and underscores, got 'hit rate/%'"),
        ("own_objectives:constant", "expected a function constant in .*own_objectives.py, found none"),
        ("own_objectives:missing", "expected a function missing in .*own_objectives.py, found none"),
        (
            "nowhere.at_all:f",
            "expected a module nowhere.at_all to import, got ModuleNotFoundError: .* put it on PYTHONPATH",
        ),
        (
            "own_objectives:ranking()",
            r"expected one of classification, .* or module:function, got 'own_objectives:ranking\(\)'",
        ),
        ("../own_objectives:ranking", "expected one of classification, .* or module:function"),
    ],
)
def test_an_own_objective_that_is_none_is_refused(name: str, refusal: str) -> None:
    with pytest.raises(InputError, match=rf"^objective: .*{refusal}") as caught:
        objective_of(name)
    assert "\n" not in str(caught.value)
