"""Losses against formulas written out, metrics against counting, padding that never counts."""

import math

import numpy as np
import pytest
import torch

from secateur.errors import InputError
from secateur.objectives import IGNORED, OBJECTIVES, objective_of

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
