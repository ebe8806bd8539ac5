"""What a program is trained for: the loss on its labels, the loss against its teacher, and the metric that decides.

Logits and targets are, for N examples, C classes, T tokens: classification [N, C] and [N]; multi_label [N, C] and 0/1 of the
same shape; regression [N] or [N, K] and the same; the three token objectives [N, T, C] and [N, T], where a target of -100 is
ignored (padding). Larger metrics are better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from secateur.errors import InputError

IGNORED = -100

Loss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]  # logits, target, label smoothing
Distillation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]  # logits, taught, target, T
Answers = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Score = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Objective:
    """`answers` reduces logits and targets of a batch to what `score` compares over the whole split; `counted` says how many
    targets the mean loss is over."""

    metric: str
    loss: Loss
    distillation: Distillation
    answers: Answers
    score: Score
    counted: Callable[[torch.Tensor], int]


def objective_of(name: str) -> Objective:
    """The objective of a name.

    Raises:
        InputError: there is none.
    """
    if name not in OBJECTIVES:
        raise InputError(f"objective: expected one of {', '.join(OBJECTIVES)}, got {name!r}")
    return OBJECTIVES[name]


def _by_class(logits: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
    return functional.cross_entropy(
        logits.flatten(0, -2), target.flatten(), ignore_index=IGNORED, label_smoothing=smoothing
    )


def _next_token(logits: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
    return _by_class(logits[:, :-1], target[:, 1:], smoothing)


def _by_label(logits: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
    smooth = target.to(logits.dtype) * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, smooth)


def _squared(output: torch.Tensor, target: torch.Tensor, smoothing: float) -> torch.Tensor:
    return functional.mse_loss(output.reshape(target.shape), target.to(output.dtype))


def _soft_classes(logits: torch.Tensor, taught: torch.Tensor, target: torch.Tensor, t: float) -> torch.Tensor:
    """T^2 KL(teacher_T || student_T) over the positions that count (Hinton et al. 2015)."""
    counts = (target != IGNORED).flatten()
    students, teachers = (functional.log_softmax(x.flatten(0, -2) / t, 1) for x in (logits, taught))
    if not bool(counts.all()):
        students, teachers = students[counts], teachers[counts]
    return t * t * functional.kl_div(students, teachers, log_target=True, reduction="batchmean")


def _soft_labels(logits: torch.Tensor, taught: torch.Tensor, target: torch.Tensor, t: float) -> torch.Tensor:
    return t * t * functional.binary_cross_entropy_with_logits(logits / t, torch.sigmoid(taught / t))


def _same_output(output: torch.Tensor, taught: torch.Tensor, target: torch.Tensor, t: float) -> torch.Tensor:
    return functional.mse_loss(output, taught)


def _class_answers(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    counts = target != IGNORED
    return logits.argmax(-1)[counts], target[counts]


def _label_answers(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (logits > 0).long(), target.long()


def _plain_answers(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return output.reshape(target.shape), target


def _likelihood_answers(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    nll = functional.cross_entropy(logits.flatten(0, -2), target.flatten(), ignore_index=IGNORED, reduction="none")
    counts = (target != IGNORED).flatten()
    return -nll[counts], target.flatten()[counts]


def _next_likelihood_answers(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _likelihood_answers(logits[:, :-1], target[:, 1:])


def _counted(target: torch.Tensor) -> int:
    return int((target != IGNORED).sum())


def _next_counted(target: torch.Tensor) -> int:
    return _counted(target[:, 1:])


def _mean(answers: np.ndarray, target: np.ndarray) -> float:
    return float(answers.mean())


def _accuracy(answers: np.ndarray, target: np.ndarray) -> float:
    return float((answers == target).mean())


def _f1(answers: np.ndarray, target: np.ndarray) -> float:
    from sklearn import metrics  # 140 MB that most objectives need not hold

    return float(metrics.f1_score(target, answers, average="micro", zero_division=0.0))


def _r2(answers: np.ndarray, target: np.ndarray) -> float:
    from sklearn import metrics

    return float(metrics.r2_score(target, answers))


OBJECTIVES: dict[str, Objective] = {
    "classification": Objective("accuracy", _by_class, _soft_classes, _class_answers, _accuracy, _counted),
    "multi_label": Objective("micro_f1", _by_label, _soft_labels, _label_answers, _f1, _counted),
    "regression": Objective("r2", _squared, _same_output, _plain_answers, _r2, _counted),
    "token_classification": Objective("token_accuracy", _by_class, _soft_classes, _class_answers, _accuracy, _counted),
    "masked_lm": Objective(
        "log_likelihood", _by_class, _soft_classes, _likelihood_answers, _mean, _counted
    ),  # nats per token
    "causal_lm": Objective(
        "log_likelihood", _next_token, _soft_classes, _next_likelihood_answers, _mean, _next_counted
    ),
}


def logits_of(output: Any) -> torch.Tensor:
    """The first tensor of a program's output."""
    return torch.utils._pytree.tree_leaves(output)[0]
