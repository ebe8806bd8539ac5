"""What a program is trained for: the loss on its labels, the loss against its teacher, and the metric that decides.

Logits and targets are, for N examples, C classes, T tokens: classification [N, C] and [N]; multi_label [N, C] and 0/1 of the
same shape; regression [N] or [N, K] and the same; the three token objectives [N, T, C] and [N, T], where a target of -100 is
ignored (padding). Larger metrics are better.

A function of the user's own may give another one. It is named as `module:function`, and imported here and nowhere else.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from secateur.errors import InputError

IGNORED = -100
ALLOWED = "SECATEUR_ALLOWED_OBJECTIVES"  # in the environment: the functions that may be imported, by comma
_FUNCTION = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")
_METRIC = re.compile(r"^\w{1,50}$")

Loss = Callable[[torch.Tensor, torch.Tensor, float], torch.Tensor]  # logits, target, label smoothing
Distillation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]  # logits, taught, target, T
Answers = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
Score = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True)
class Objective:
    """What is learnt, and how it is judged.

    `answers` reduces the logits and targets of a batch to two arrays with a row for each example. `score` is the metric over
    any rows of them, for the gate draws examples anew, thousands of times. `counted` says how many targets the mean loss
    is over.
    """

    metric: str
    loss: Loss
    distillation: Distillation
    answers: Answers
    score: Score
    counted: Callable[[torch.Tensor], int]
    right_or_wrong: bool = False  # an answer is its target or not, and the metric is the share of those that are


def objective_of(name: str) -> Objective:
    """The objective of a name, or the one that a user's own `module:function` gives, called without arguments.

    Raises:
        InputError: there is none; or a function that SECATEUR_ALLOWED_OBJECTIVES does not list, cannot be imported, fails,
            or gives something else.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    module, function = _imported(name), name.partition(":")[2]
    if not callable(make := getattr(module, function, None)):
        raise InputError(f"objective: expected a function {function} in {module.__file__}, found none; mend the name")
    try:
        made = make()
    except Exception as error:  # whatever a user's code raises
        raise InputError(f"objective: expected {name} to give an objective, it failed: {_line(error)}") from error
    if not isinstance(made, Objective):
        raise InputError(
            f"objective: expected {name} to give a secateur.objectives.Objective, got a {type(made).__name__}"
        )
    if not _METRIC.match(made.metric):
        raise InputError(
            f"objective: expected {name} to call its metric by letters, digits and underscores, got {made.metric!r}"
        )
    return made


def identity_of(name: str) -> str:
    """The name; with the SHA-256 of the file it is written in where it is a user's own, which may change under it.

    Raises:
        InputError: as `objective_of`.
    """
    if name in OBJECTIVES:
        return name
    return f"{name} {hashlib.sha256(Path(str(_imported(name).__file__)).read_bytes()).hexdigest()}"


def _imported(name: str) -> ModuleType:
    """The module of a `module:function` that may be imported."""
    if not _FUNCTION.match(name):
        raise InputError(f"objective: expected one of {', '.join(OBJECTIVES)}, or module:function, got {name[:100]!r}")
    allowed = os.environ.get(ALLOWED, "")
    if name not in {entry.strip() for entry in allowed.split(",")}:
        raise InputError(
            f"{ALLOWED}: expected it to list {name}, for an objective of your own is code to import, got "
            f"{allowed or 'nothing'!r}; add that name, after a comma, where steps run, or choose one of {', '.join(OBJECTIVES)}"
        )
    module = name.partition(":")[0]
    try:
        return importlib.import_module(module)
    except Exception as error:  # whatever a user's code raises
        raise InputError(
            f"objective: expected a module {module} to import, got {_line(error)}; put it on PYTHONPATH where steps run"
        ) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def answered(objective: Objective, outputs: Iterable[np.ndarray], labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The answers and targets [N, ...] of all examples in their order, from outputs that come batch by batch."""
    answers, targets, start = [], [], 0
    for output in outputs:
        target = torch.from_numpy(np.array(labels[start : start + len(output)]))
        start += len(output)
        answer, wanted = objective.answers(torch.from_numpy(output), target)
        answers.append(answer.numpy())
        targets.append(wanted.numpy())
    return np.concatenate(answers), np.concatenate(targets)


def plain_loss(objective: Objective) -> Callable[[Any, torch.Tensor], torch.Tensor]:
    """The loss of a program's output on its targets, without smoothing: what criteria take gradients of.

    It is 0 where no target counts, as of a single text without a masked token.
    """

    def loss(output: Any, target: torch.Tensor) -> torch.Tensor:
        logits = logits_of(output)
        return objective.loss(logits, target, 0.0) if objective.counted(target) else 0 * logits.sum()

    return loss


def distance(objective: Objective) -> Callable[[Any, torch.Tensor, torch.Tensor], torch.Tensor]:
    """How far a program's output is from the dense answers: what distillation would teach, at temperature 1."""
    return lambda output, dense, target: objective.distillation(logits_of(output), dense, target, 1.0)


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
    return logits.argmax(-1), target


def _label_answers(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Twice the labels that were found, and the labels found or missed or invented: F1 is their ratio."""
    said, true = logits > 0, target.bool()
    return 2 * (said & true).sum(1), said.sum(1) + true.sum(1)


def _plain_answers(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return output.reshape(target.shape).double(), target.double()


def _token_answers(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of each example that are right, and those that count."""
    return (logits.argmax(-1) == target).sum(1), (target != IGNORED).sum(1)


def _likelihood_answers(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-likelihood of each example in nats, and its tokens that count."""
    likelihood = -functional.cross_entropy(logits.movedim(-1, 1), target, ignore_index=IGNORED, reduction="none")
    return likelihood.double().sum(1), (target != IGNORED).sum(1)


def _next_likelihood_answers(logits: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _likelihood_answers(logits[:, :-1], target[:, 1:])


def _counted(target: torch.Tensor) -> int:
    return int((target != IGNORED).sum())


def _next_counted(target: torch.Tensor) -> int:
    return _counted(target[:, 1:])


def _accuracy(answers: np.ndarray, target: np.ndarray) -> float:
    return float((answers == target).mean())


def _ratio(answers: np.ndarray, target: np.ndarray) -> float:
    """Of the sums; 0 where nothing counts."""
    total = target.sum()
    return float(answers.sum() / total) if total else 0.0


def _r2(answers: np.ndarray, target: np.ndarray) -> float:
    """As scikit-learn's `r2_score`, the mean over K; that one checks what it is given for longer than it sums."""
    residual, spread = ((target - answers) ** 2).sum(0), ((target - target.mean(0)) ** 2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.where(spread > 0, 1 - residual / spread, residual == 0).mean())


OBJECTIVES: dict[str, Objective] = {
    "classification": Objective(
        "accuracy", _by_class, _soft_classes, _class_answers, _accuracy, _counted, right_or_wrong=True
    ),
    "multi_label": Objective("micro_f1", _by_label, _soft_labels, _label_answers, _ratio, _counted),
    "regression": Objective("r2", _squared, _same_output, _plain_answers, _r2, _counted),
    "token_classification": Objective("token_accuracy", _by_class, _soft_classes, _token_answers, _ratio, _counted),
    "masked_lm": Objective(
        "log_likelihood", _by_class, _soft_classes, _likelihood_answers, _ratio, _counted
    ),  # nats per token
    "causal_lm": Objective(
        "log_likelihood", _next_token, _soft_classes, _next_likelihood_answers, _ratio, _next_counted
    ),
}


def logits_of(output: Any) -> torch.Tensor:
    """The first tensor of a program's output."""
    return torch.utils._pytree.tree_leaves(output)[0]
