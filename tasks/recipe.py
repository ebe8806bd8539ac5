"""Recipes: what is wanted from a pruning, as YAML with every default filled in and every unknown key refused."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from secateur.errors import InputError
from secateur.gate.verdict import shared_out
from tasks.sections.data import COMPUTED_SLICES, TABLES, Data
from tasks.sections.gate import IMAGE_CORRUPTIONS, TEXT_CORRUPTIONS, GateSection
from tasks.sections.monitor import Monitor
from tasks.sections.section import Drop, Qps, Section, Share
from tasks.sections.sweep import Trial

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
S = TypeVar("S", bound=BaseModel)
SCHEMA = 1  # of recipes; one more whenever an older release would read one wrongly
COUNTED = ("sparsity", "macs", "kv_cache")  # goals that follow from the program alone: what is asked is what comes
UNCHANGED_BY_ZEROS = ("macs", "kv_cache", "size_mb", "memory_mb")  # goals
OBJECTIVES = ("classification", "multi_label", "regression", "token_classification", "masked_lm", "causal_lm")


class TargetSection(Section):
    """The hardware that will serve the model, and how it will; `secateur targets` lists what a machine offers."""

    name: str | None = None  # what people call it; a parameter of the run
    provider: str = "CPUExecutionProvider"
    threads: int = Field(1, ge=1)
    batch: int = Field(1, ge=1)  # examples of a request, of which goal and gate speak
    batches: tuple[PositiveInt, ...] = ()  # other sizes, at which what ships is measured too; not judged
    length: int | None = Field(None, ge=1)  # positions of its examples, where the second dimension is dynamic
    optimisation: Literal["all", "extended", "basic", "none"] = "all"  # of the graph, by ONNX Runtime

    @model_validator(mode="after")
    def _others(self) -> TargetSection:
        if len({self.batch, *self.batches}) <= len(self.batches):
            raise ValueError(
                f"batches names other sizes than batch, each once; batch is {self.batch}, batches "
                f"{', '.join(map(str, self.batches))}"
            )
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What `secateur.runtime.Target` is told."""
        return self.model_dump(exclude={"name", "batches"})


class Goal(Section):
    """What to reach; exactly one of them. What is measured, on the target and its requests, is aimed at again and again."""

    sparsity: Share | None = None  # share of the parameters removed
    macs: Share | None = None  # share of the multiply-accumulates removed
    kv_cache: Share | None = None  # share of the keys and values removed that a decoder keeps for each position
    speedup: Annotated[float, Field(gt=1)] | None = None  # measured
    p99_ms: PositiveFloat | None = None  # 99 of 100 requests answered within, one after the other, measured
    qps: Qps | None = None  # measured under the load that MLPerf LoadGen makes (Server)
    size_mb: PositiveFloat | None = None  # of the ONNX file, 10^6 bytes
    memory_mb: PositiveFloat | None = None  # peak that loading and running the file adds to a process, measured

    @model_validator(mode="after")
    def _one(self) -> Goal:
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(type(self).model_fields)} is needed, got {', '.join(given) or 'none'}"
            )
        return self

    @property
    def given(self) -> tuple[str, float]:
        """The one that is set, and its value; of requests a second their rate."""
        name, value = next((name, value) for name, value in self if value is not None)
        return name, value.rate if isinstance(value, Qps) else value

    def __str__(self) -> str:
        return "{} {:g}".format(*self.given)


class Budget(Section):
    """What the pruning may cost."""

    accuracy_drop: Drop = 0.01
    recovery_epochs: int | None = Field(None, ge=1)  # over all cycles; 12 where nothing is said of the training before
    trained_epochs: int | None = Field(None, ge=1)  # that the dense model was trained for; recovery is a share of them
    trained_steps: int | None = Field(None, ge=1)  # the same in steps, each of `recovery.batch` examples
    recovery: Share | None = None  # that share; the plan chooses one of 0.1 to 0.2 unless it is given
    measuring_s: PositiveFloat = (
        60.0  # seconds for a file that could ship beside the dense one; on the way a third of it
    )

    @property
    def on_the_way_s(self) -> float:
        """Seconds for a comparison by which nothing ships yet."""
        return self.measuring_s / 3

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        """The default of what the other settings ask for."""
        if not isinstance(given, dict):
            return given
        trained = any(given.get(name) is not None for name in ("trained_epochs", "trained_steps"))
        default = {} if trained else {"recovery_epochs": 12}
        return default | {name: value for name, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _one(self) -> Budget:
        names = ("recovery_epochs", "trained_epochs", "trained_steps")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"at most one of {', '.join(names)} is needed, got {', '.join(given)}")
        if self.recovery is not None and given == ["recovery_epochs"]:
            raise ValueError(
                "recovery is a share of trained_epochs or trained_steps: give one of them, or recovery_epochs alone"
            )
        return self


class SparseLearning(Section):
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


class Weights(Section):
    """Which single weights become zero; of the methods unstructured and n_m."""

    criterion: str = "magnitude"
    include: tuple[str, ...] = ("*",)  # globs on names of parameters
    exclude: tuple[str, ...] = ()
    scope: Literal["layer", "global"] = "layer"  # of unstructured: the same share of every layer, or one ranking of all
    pattern: Annotated[str, Field(pattern=r"^[1-9][0-9]?:[1-9][0-9]?$")] = "2:4"  # of n_m: at most n of every m stay

    @model_validator(mode="after")
    def _some_go(self) -> Weights:
        n, m = self.n_m
        if n >= m:
            raise ValueError(f"pattern must leave fewer than all, n of m with n < m; it is {self.pattern}")
        return self

    @property
    def n_m(self) -> tuple[int, int]:
        """The pattern's two numbers."""
        n, _, m = self.pattern.partition(":")
        return int(n), int(m)


class Layers(Section):
    """Which branches leave whole; of the method depth."""

    kind: Literal["auto", "layer", "block", "attention", "mlp"] = (
        "auto"  # auto: layers where there are any, else blocks
    )
    criterion: Literal["influence", "variance", "last", "random"] = "influence"


METHODS: dict[str, tuple[str, ...]] = {  # and the settings of `prune` that only some of them look at
    "structured": ("kinds", "include", "exclude", "criterion", "allocation", "align", "floor", "sparse_learning"),
    "unstructured": ("weights",),
    "n_m": ("weights",),
    "depth": ("layers",),
    "quantize": (),
    "none": (),
}


class Prune(Section):
    """How to cut; the plan chooses the method and the number of cycles unless they are given."""

    method: Literal["auto", "structured", "unstructured", "n_m", "depth", "quantize", "none"] = "auto"
    # of axes; attention, mlp, block and layer are whole branches, which allocation knapsack drops where that is cheaper
    kinds: tuple[str, ...] = ("head", "kv_group", "q_per_group", "channel", "width")
    include: tuple[str, ...] = ("*",)  # globs on names, as `secateur inspect` prints them: an axis, or branch:kind
    exclude: tuple[str, ...] = ()
    criterion: str = "l2"
    allocation: Literal["uniform", "global", "grouped", "sensitivity", "knapsack"] = "uniform"
    align: int = Field(8, ge=1)
    floor: float = Field(0.0, ge=0, lt=1)  # share of every axis that stays, and of the branches of every kind
    calibration: int = Field(
        256, ge=1
    )  # examples of the training split, for criteria and allocations that look at data
    schedule: Literal["one_shot", "linear", "cubic", "exponential"] = "exponential"  # of the share over the cycles
    cycles: int | None = Field(None, ge=1, le=5)
    sparse_learning: SparseLearning | None = None  # before the first cut; none unless it is asked for
    weights: Weights = Weights()
    layers: Layers = Layers()

    @model_validator(mode="after")
    def _goes_with_the_method(self) -> Prune:
        if self.method == "auto":
            return self
        others = {name for names in METHODS.values() for name in names} - set(METHODS[self.method])
        for name in sorted(others):
            if getattr(self, name) != type(self).model_fields[name].default:
                owners = ", ".join(method for method, names in METHODS.items() if name in names)
                raise ValueError(f"{name} goes with method {owners}, method is {self.method}: leave it out")
        if self.method in ("n_m", "quantize", "none") and (self.cycles or 1) > 1:
            raise ValueError(f"cycles must be 1 or left out with method {self.method}; it is {self.cycles}")
        return self

    @property
    def choice(self) -> dict[str, Any]:
        """What `secateur.prune` is asked, but for the goal."""
        return self.model_dump(include=set(METHODS["structured"]) - {"sparse_learning"})


class Recovery(Section):
    """How to train after a cut."""

    processes: int = Field(1, ge=1)  # of the worker's machine, that train as one; on GPUs one each
    batch: int = Field(64, ge=2)  # over all processes together
    accumulate: int = Field(1, ge=1)  # parts that a batch is taken in, to need less memory
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False  # how images and kernels lie in memory
    recompute: bool = False  # activations in the backward pass, to need less memory (gradient checkpointing)
    compile: bool = False  # by torch.compile, where a few steps measure that it is faster; by one process
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)  # of sgd
    weight_decay: float = Field(5e-4, ge=0)
    schedule: Literal["cosine", "rewind", "one_cycle"] = "cosine"
    warm_up: float = Field(0.1, ge=0, lt=1)  # share of the steps
    distillation: float = Field(0.5, ge=0, le=1)  # weight of the dense model's answers, the rest is the labels'
    temperature: float = Field(4.0, gt=0)
    hidden_states: float = Field(0.0, ge=0)  # weight of the distance to the dense model's hidden states
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip: float | None = Field(None, gt=0)  # largest norm of the gradient
    average: float = Field(0.0, ge=0, lt=1)  # decay of a moving average of the weights; 0: none
    patience: int | None = Field(None, ge=1)  # epochs without a better one that end the training
    minutes: float | None = Field(None, gt=0)  # of a cycle's training
    augment: tuple[Literal["crop", "flip", "erase", "mixup", "cutmix"], ...] = ()
    reestimate_norms: bool = True  # measure batch norms again before any gradient, and keep that if it is better

    @model_validator(mode="after")
    def _shared(self) -> Recovery:
        least = 2 * self.processes * self.accumulate
        if self.batch < least:
            raise ValueError(
                f"batch must be at least {least}, 2 examples for each of {self.accumulate} parts in each of {self.processes} "
                f"processes; it is {self.batch}"
            )
        if self.compile and (self.recompute or self.processes > 1):
            raise ValueError(
                f"compile needs one process that keeps its activations; processes is {self.processes}, recompute "
                f"{str(self.recompute).lower()}"
            )
        return self

    @property
    def training(self) -> dict[str, Any]:
        """What `secateur.training.Settings` is told."""
        return self.model_dump(exclude={"processes"})


class Resources(Section):
    """The machines that train one model together, beside what `recovery` says of each."""

    gpus: int = Field(0, ge=0)  # of each machine, a process each; 0: recovery.processes on its CPU
    nodes: int = Field(1, ge=1)  # machines; more than one on Kubernetes alone


class Quantize(Section):
    """Lower precisions beside float32; of the files within the accuracy budget on validation the fastest that reaches the goal ships."""

    int8: Literal[False, True, "auto"] = False  # auto: where the target is known to gain time and can run it
    fp16: Literal[False, True, "auto"] = False
    # examples of the training split, for the ranges of INT8's activations; FP16 answers some of them, which must be finite
    calibration: int = Field(256, ge=1)
    method: Literal["minmax", "entropy", "percentile"] = "minmax"  # how the ranges follow from them
    # of training with rounded weights, where INT8 breaks the accuracy budget; in one process, otherwise as `recovery` says
    # but for compile, recompute and hidden_states; 0: none
    aware_epochs: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _asked(self) -> Quantize:
        if self.aware_epochs and not self.int8:
            raise ValueError(f"aware_epochs needs int8 true or auto; int8 is false, aware_epochs {self.aware_epochs}")
        return self


class Approval(Section):
    """Which verdicts are put before a person; a fail is never one of them."""

    verdicts: tuple[Literal["inconclusive", "pass"], ...] = Field(("inconclusive",), min_length=1)
    users: tuple[str, ...] = Field(min_length=1)  # who may answer: their ids in Airflow
    hours: float = Field(24.0, gt=0, le=24 * 365)  # without an answer it is a no


class Recipe(Section):
    """A whole recipe."""

    model_config = ConfigDict(serialize_by_alias=True)

    schema_: int = Field(SCHEMA, alias="schema", ge=1, strict=True)
    model: str
    data: Data
    objective: str = "classification"  # or another of OBJECTIVES, or module:function, which the installation must allow
    target: TargetSection = TargetSection()
    # other targets that will serve it: each of them measures what ships, and the gate asks the same speedup there
    also_on: tuple[TargetSection, ...] = ()
    goal: Goal
    budget: Budget = Budget()
    prune: Prune = Prune()
    recovery: Recovery = Recovery()
    resources: Resources = Resources()
    quantize: Quantize = Quantize()
    gate: GateSection = GateSection()
    approval: Approval | None = None  # nobody is asked unless it is there
    monitor: Monitor = Monitor()
    seed: int = Field(0, ge=0)
    trial: Trial | None = None  # of a sweep's candidate

    @property
    def measured_with(self) -> float:
        """The confidence of the measured figures that the gate judges: of several candidates the best is chosen by them."""
        return shared_out(self.gate.confidence, self.trial.candidates if self.trial else 1)

    @model_validator(mode="before")
    @classmethod
    def _of_this_release(cls, given: Any) -> Any:
        """Before all else: of a later form nothing else can be told."""
        asked = given.get("schema") if isinstance(given, dict) else None
        if isinstance(asked, int | float) and asked > SCHEMA:
            raise ValueError(
                f"schema {asked} is read by a later release of Secateur than this one, {version('secateur')}, which reads "
                f"{SCHEMA}: upgrade whatever reads the recipe, or write it in schema {SCHEMA}"
            )
        return given

    @field_validator("objective")
    @classmethod
    def _known_or_own(cls, name: str) -> str:
        if name not in OBJECTIVES and ":" not in name:
            raise ValueError(f"must be one of {', '.join(OBJECTIVES)}, or module:function")
        return name

    @model_validator(mode="after")
    def _method_serves_the_goal(self) -> Recipe:
        method, (goal, value) = self.prune.method, self.goal.given
        if method in ("unstructured", "n_m") and goal in UNCHANGED_BY_ZEROS:
            raise ValueError(
                f"goal {goal} is nothing that zeros change, and prune.method is {method}; ask for sparsity, or choose "
                "structured or depth"
            )
        n, m = self.prune.weights.n_m
        if method == "n_m" and goal == "sparsity" and value > 1 - n / m:
            raise ValueError(
                f"goal sparsity {value:g} is more than the {1 - n / m:g} that prune.weights.pattern {n}:{m} gives; ask for no "
                "more than that, or choose a sparser pattern"
            )
        if method == "quantize" and goal in COUNTED:
            raise ValueError(
                f"goal {goal} counts what INT8 leaves as it is, and prune.method is quantize; choose a goal that is measured"
            )
        if method == "quantize" and not self.quantize.int8:
            raise ValueError("prune.method quantize needs quantize.int8 true or auto; it is false")
        return self

    @model_validator(mode="after")
    def _together(self) -> Recipe:
        gpus, nodes, processes = self.resources.gpus, self.resources.nodes, self.recovery.processes
        if gpus and processes not in (1, gpus):
            raise ValueError(
                f"resources.gpus {gpus} is a process each, and recovery.processes is {processes}: leave one of them out"
            )
        least = 2 * self.processes * nodes * self.recovery.accumulate
        if self.recovery.batch < least:
            raise ValueError(
                f"recovery.batch must be at least {least}, 2 examples for each part in each of {self.processes} processes on "
                f"each of {nodes} nodes; it is {self.recovery.batch}"
            )
        if self.recovery.compile and self.processes * nodes > 1:
            raise ValueError(
                f"recovery.compile needs one process; resources asks for {self.processes} on each of {nodes} nodes"
            )
        return self

    @property
    def processes(self) -> int:
        """That train as one on each node."""
        return self.resources.gpus or self.recovery.processes

    @model_validator(mode="after")
    def _told_apart(self) -> Recipe:
        names = [target.name for target in self.also_on]
        if None in names or len({self.target.name, *names}) <= len(names):
            said = ", ".join(str(name) for name in (self.target.name, *names))
            raise ValueError(
                f"also_on needs a name for each target, no two alike nor like target.name; they are {said}"
            )
        if unused := [target for target in self.also_on if target.batches]:
            raise ValueError(f"also_on measures the one batch that is judged: leave batches of {unused[0].name} out")
        return self

    @model_validator(mode="after")
    def _teachable(self) -> Recipe:
        if self.data.labels == "none" and self.recovery.distillation != 1:
            raise ValueError(
                "data.labels none needs recovery.distillation 1.0, for only the dense model can teach without labels; it is "
                f"{self.recovery.distillation:g}"
            )
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Recipe:
        """What is pruned for must be what is asked in the end: the cycles stop where the goal is reached."""
        name, goal = self.goal.given
        asked = getattr(self.gate, name, None)
        if isinstance(asked, Qps):
            asked = asked.rate
        contradicts = asked is not None and (asked > goal if name in ("speedup", "qps") else asked < goal)
        if contradicts:
            raise ValueError(
                f"gate.{name} {asked:g} asks for more than goal.{name} {goal:g}, where pruning stops; mend one"
            )
        return self

    @model_validator(mode="after")
    def _judgeable(self) -> Recipe:
        gate = self.gate
        if self.objective in OBJECTIVES and self.objective != "classification" and gate.of_classes:
            raise ValueError(
                f"{gate.of_classes[0]} needs answers that are right or wrong, as of objective classification; it is {self.objective}"
            )
        if gate.documents is not None and self.objective == "classification":
            raise ValueError("gate.documents goes with metrics that are resampled, accuracy is not; leave it out")
        named = [gate.documents] if gate.documents is not None else []
        named += [by for by in (gate.slices.by if gate.slices else ()) if by not in COMPUTED_SLICES]
        if unknown := [name for name in named if name not in self.data.metadata]:
            raise ValueError(
                f"gate needs {unknown[0]} in data.metadata, which names {', '.join(self.data.metadata) or 'nothing'}; slices are "
                f"by {', '.join(COMPUTED_SLICES)} or metadata"
            )
        return self

    @model_validator(mode="after")
    def _corruptible(self) -> Recipe:
        robustness, data = self.gate.robustness, self.data
        if robustness is None:
            return self
        if robustness.shifted is not None and data.source == "digits":
            raise ValueError("gate.robustness.shifted needs a source that is read from places, source is digits")
        table = data.source in TABLES
        fit = TEXT_CORRUPTIONS if data.text else ("feature_noise",) if table else (*IMAGE_CORRUPTIONS, "feature_noise")
        if unfit := [name for name in robustness.corruptions if name not in fit]:
            raise ValueError(
                f"gate.robustness.corruptions: {unfit[0]} does not go with source {data.source}"
                f"{' and data.text' if data.text else ''}; choose some of {', '.join(fit)}"
            )
        return self


def load(name: str) -> Recipe:
    """Read a recipe by name from the folder SECATEUR_RECIPES (default: `recipes` in the working directory).

    `SWEEP:CANDIDATE` names a candidate of a sweep in that folder.

    Raises:
        InputError: no such recipe, not YAML, an unknown key or an impossible value; the message names the setting.
    """
    if ":" in name:
        from tasks import candidates  # which reads recipes too

        return candidates.load(name)
    return plain(read(name), f"recipe {name}")


def read(name: str) -> dict[str, Any]:
    """What a file of the folder says, not checked yet.

    Raises:
        InputError: no such file, or not a mapping in YAML.
    """
    folder = Path(os.environ.get("SECATEUR_RECIPES", "recipes"))
    if not NAME.fullmatch(name):
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
    return _mapping(text, f"recipe {name}")


def parse(text: str, name: str) -> Recipe:
    """Read a recipe from YAML text; `name` is for messages."""
    return plain(_mapping(text, f"recipe {name}"), f"recipe {name}")


def plain(content: dict[str, Any], name: str) -> Recipe:
    """A recipe as a person wrote it; `name` is for messages.

    Raises:
        InputError: an unknown key, an impossible value, or a sweep of recipes.
    """
    if {"base", "matrix", "recipes"} & content.keys():
        raise InputError(
            f"{name}: expected one recipe, this is a sweep of several; start it by `secateur sweep`, or name one of its candidates: "
            "SWEEP:CANDIDATE"
        )
    if content.get("trial") is not None:
        raise InputError(f"{name}: trial: expected to be left out, it is for a sweep to fill in")
    return checked(Recipe, content, name)


def section(kind: type[S], text: str, name: str) -> S:
    """Read a section, such as `Recovery`, from YAML text; `name` is for messages.

    Raises:
        InputError: not YAML, an unknown key or an impossible value; the message names the setting.
    """
    return checked(kind, _mapping(text, name), name)


def _mapping(text: str, name: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
        raise InputError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{name}: expected a mapping of settings, got {type(content).__name__}")
    return content


def checked(kind: type[S], content: dict[str, Any], name: str) -> S:
    """A section from what its file says; `name` is for messages.

    Raises:
        InputError: an unknown key or an impossible value; the message names the setting.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{name}: {'; '.join(_sentence(kind, problem) for problem in error.errors())}") from error


def _sentence(kind: type[BaseModel], problem: object) -> str:
    """One validation finding as setting, expectation and what was seen."""
    details: dict = dict(problem)  # type: ignore[call-overload]
    where = ".".join(map(str, details["loc"])) or "recipe"
    if details["type"] == "extra_forbidden":
        return f"{where}: unknown setting; known here: {', '.join(_known(kind, details['loc'][:-1]))}"
    message = details["msg"].removeprefix("Value error, ")
    return f"{where}: {message[:1].lower()}{message[1:]}" + (
        "" if isinstance(details["input"], dict) else f", got {details['input']!r}"
    )


def _known(kind: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    section: Any = kind
    for key in location:
        if key in section.model_fields:  # else it is a place in a list or mapping of the same sections
            section = next(_sections(section.model_fields[str(key)].annotation))
    return [field.alias or name for name, field in section.model_fields.items()]


def _sections(annotation: Any) -> Iterator[Any]:
    """The sections that an annotation names: itself, one of a union, or what a list or a mapping holds."""
    if hasattr(annotation, "model_fields"):
        yield annotation
    for inner in get_args(annotation):
        yield from _sections(inner)
