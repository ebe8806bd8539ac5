"""Recipes: what is wanted from a pruning, as YAML with every default filled in and every unknown key refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from secateur.errors import InputError

NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,99}$")
Share = Annotated[float, Field(gt=0, lt=1)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(_Section):
    """Where the examples come from, and how they are split."""

    source: Literal["digits", "npz"]
    path: str | None = None  # for npz: a file on every worker, or s3://bucket/key
    split: tuple[Share, Share, Share] = (0.5, 0.15, 0.35)  # train, validation, test

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        if (self.source == "npz") != (self.path is not None):
            raise ValueError("path is needed with source npz, and only there")
        if abs(sum(self.split) - 1) > 1e-9:
            raise ValueError(f"split must sum to 1, sums to {sum(self.split):g}")
        return self


class TargetSection(_Section):
    """The hardware that will serve the model."""

    provider: str = "CPUExecutionProvider"
    threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1)


class Goal(_Section):
    """What to reach; exactly one of them."""

    sparsity: Share | None = None  # share of the parameters removed
    macs: Share | None = None  # share of the multiply-accumulates removed
    speedup: Annotated[float, Field(gt=1)] | None = None  # measured on the target

    @model_validator(mode="after")
    def _one(self) -> Goal:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of sparsity, macs, speedup is needed, got {', '.join(given) or 'none'}")
        return self


class Budget(_Section):
    """What the pruning may cost."""

    accuracy_drop: Annotated[float, Field(ge=0, lt=1)] = 0.01
    recovery_epochs: int = Field(12, ge=1)  # over all cycles


class SparseLearning(_Section):
    """Training under a penalty before the first cut, so that cuts take little away; the rest of it is `recovery`'s."""

    method: Literal["group_lasso", "growing", "slimming"]
    strength: float = Field(1e-4, gt=0)  # of the penalty; what growing grows by
    epochs: int = Field(10, ge=1)  # beside the budget's
    alpha: float = Field(4.0, gt=0)  # of group_lasso: the weakest units are shrunk 2^alpha times as strongly
    every: int = Field(10, ge=1)  # of growing: steps until it grows again
    ceiling: float = Field(1.0, gt=0)  # of growing

    @property
    def penalty(self) -> dict[str, Any]:
        """The penalty's settings."""
        return self.model_dump(exclude={"epochs"})


class Prune(_Section):
    """How to cut; the plan fills in the number of cycles unless it is given."""

    kinds: tuple[str, ...] = ("head", "kv_group", "q_per_group", "channel", "width")
    include: tuple[str, ...] = ("*",)  # globs on axis names, as `secateur inspect` prints them
    exclude: tuple[str, ...] = ()
    criterion: str = "l2"
    allocation: Literal["uniform", "global", "grouped", "sensitivity"] = "uniform"
    align: int = Field(8, ge=1)
    floor: float = Field(0.0, ge=0, lt=1)  # share of every axis that stays
    calibration: int = Field(
        256, ge=1
    )  # examples of the training split, for criteria and allocations that look at data
    schedule: Literal["one_shot", "linear", "cubic", "exponential"] = "exponential"  # of the share over the cycles
    cycles: int | None = Field(None, ge=1, le=5)
    sparse_learning: SparseLearning | None = None  # before the first cut; none unless it is asked for

    @property
    def choice(self) -> dict[str, Any]:
        """What `secateur.prune` is asked, but for the goal."""
        return self.model_dump(exclude={"calibration", "schedule", "cycles", "sparse_learning"})


class Recovery(_Section):
    """How to train after a cut."""

    batch: int = Field(64, ge=2)
    accumulate: int = Field(1, ge=1)  # parts that a batch is taken in, to need less memory
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False  # how images and kernels lie in memory
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["cosine", "rewind", "one_cycle"] = "cosine"
    warm_up: float = Field(0.1, ge=0, lt=1)  # share of the steps
    distillation: float = Field(0.5, ge=0, le=1)  # weight of the dense model's answers, the rest is the labels'
    temperature: float = Field(4.0, gt=0)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip: float | None = Field(None, gt=0)  # largest norm of the gradient
    average: float = Field(0.0, ge=0, lt=1)  # decay of a moving average of the weights; 0: none
    patience: int | None = Field(None, ge=1)  # epochs without a better one that end the training
    minutes: float | None = Field(None, gt=0)  # of a cycle's training
    augment: tuple[Literal["crop", "flip", "erase", "mixup", "cutmix"], ...] = ()
    reestimate_norms: bool = True  # measure batch norms again before any gradient, and keep that if it is better


class GateSection(_Section):
    """What must be proven before a promotion."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    speedup: float = Field(1.0, gt=0)  # the interval's low end must reach it
    parity: float = Field(1e-4, gt=0)  # ONNX against torch, relative to the largest output


class Recipe(_Section):
    """A whole recipe."""

    model: str
    data: Data
    objective: Literal["classification"] = "classification"
    target: TargetSection = TargetSection()
    goal: Goal
    budget: Budget = Budget()
    prune: Prune = Prune()
    recovery: Recovery = Recovery()
    gate: GateSection = GateSection()
    seed: int = Field(0, ge=0)


def load(name: str) -> Recipe:
    """Read a recipe by name from the folder SECATEUR_RECIPES (default: `recipes` in the working directory).

    Raises:
        InputError: no such recipe, not YAML, an unknown key or an impossible value; the message names the setting.
    """
    folder = Path(os.environ.get("SECATEUR_RECIPES", "recipes"))
    if not NAME.match(name):
        raise InputError(
            f"recipe: expected a name of small letters, digits, dot, dash and underscore, got {name[:100]!r}"
        )
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml"))) or "none"
        raise InputError(f"recipe: expected one of {known} (in {folder}), got {name!r}")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"recipe {name}: expected YAML text in UTF-8, got other bytes: {error}") from error
    return parse(text, name)


def parse(text: str, name: str) -> Recipe:
    """Read a recipe from YAML text; `name` is for messages."""
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
        raise InputError(f"recipe {name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"recipe {name}: expected a mapping of settings, got {type(content).__name__}")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise InputError(f"recipe {name}: {'; '.join(map(_sentence, error.errors()))}") from error


def _sentence(problem: object) -> str:
    """One validation finding as setting, expectation and what was seen."""
    details: dict = dict(problem)  # type: ignore[call-overload]
    where = ".".join(map(str, details["loc"])) or "recipe"
    if details["type"] == "extra_forbidden":
        return f"{where}: unknown setting; known here: {', '.join(_known(details['loc'][:-1]))}"
    message = details["msg"].removeprefix("Value error, ").lower()
    return f"{where}: {message}" + ("" if isinstance(details["input"], dict) else f", got {details['input']!r}")


def _known(location: tuple[str | int, ...]) -> list[str]:
    section: type[BaseModel] = Recipe
    for key in location:
        annotation = section.model_fields[str(key)].annotation
        parts = (annotation, *get_args(annotation))  # a section, or one that may be none
        section = next(part for part in parts if isinstance(part, type) and issubclass(part, BaseModel))
    return list(section.model_fields)
