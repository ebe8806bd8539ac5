"""What steps hand to each other: small values and references into MLflow, never tensors, never paths of one machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from secateur.errors import InputError
from secateur.gate.verdict import Rule
from secateur.planner import Alone, Row

WHY = "why"  # beside the result of a step that failed: its exception, in its own words
SCHEMA = 1  # of what is below; one more whenever a step of the release before could not read it rightly


@dataclass(frozen=True)
class File:
    """An artifact in MLflow and the SHA-256 of its bytes."""

    uri: str
    sha256: str


@dataclass(frozen=True)
class Pinned:
    """Everything a run depends on, fixed. `run_id` is the parent run in MLflow, `key` the digest of all the rest."""

    model: str
    version: str
    recipe_name: str
    recipe: dict  # complete, every default filled in
    program: File
    program_digest: str
    data_digest: str
    code_digest: str
    key: str
    experiment_id: str
    run_id: str
    dag_run_id: str
    inputs: tuple[str, ...]  # of the program, in order
    objective: str  # its name; of a user's own with the digest of its file
    metric: str  # of the objective; larger is better
    examples: int  # of training
    trial: bool = False  # it ends before the gate
    sweep: str = ""  # the MLflow run of the sweep that it is a part of
    begun: str = ""  # the parent run whose recovery it goes on with, that of the rung before
    schema: int = 1  # SCHEMA of the release that began the run; the first one did not say


@dataclass(frozen=True)
class Figures:
    """A program as the target sees it: one ONNX file, measured."""

    onnx: File
    params: int
    macs: int
    size_bytes: int
    gzip_bytes: int  # of the file, compressed
    weight_bytes: int  # once they are loaded
    accuracy: float  # on validation; the objective's metric, as wherever accuracy is said
    latency_p50_ms: float
    latency_p90_ms: float
    latency_p99_ms: float | None
    throughput: float
    peak_memory_bytes: int
    kv_cache_bytes: int | None = None  # a decoder's, for each position; none without attention
    requests_per_s: float | None = None  # within the limit of a goal that sets one
    zeros: int = 0  # of the parameters, where a pattern of zeros was cut

    @property
    def weights(self) -> int:
        """The parameters that are left: what sparsity is counted by."""
        return self.params - self.zeros


@dataclass(frozen=True)
class Converted:
    """A file in a lower precision, and what it was made from: a file in float32, and the program which that was exported from."""

    file: File
    onnx: File
    program: File


@dataclass(frozen=True)
class Baseline:
    """The dense model, measured; for a goal of time also what its operations take at other widths, where that can be told."""

    figures: Figures
    int8: Converted | None = None  # of the same weights, as what follows where the recipe asks for it
    fp16: Converted | None = None
    latencies: File | None = None
    int8_alone: Alone | None = None  # what that INT8 file gives, where the plan may choose it


@dataclass(frozen=True)
class Plan:
    """The method and the schedule: for each cycle the share of `measure` that is gone when it ends, and why."""

    method: str  # one of recipe.METHODS
    measure: str  # what the goal sets
    shares: tuple[float, ...]
    epochs: tuple[int, ...]
    reasons: tuple[Row, ...]  # the first is that of the method
    budget: int = 0  # epochs of recovery, those of all rungs where a sweep has some
    done: int = 0  # of them, in the rungs before


@dataclass(frozen=True)
class Cut:
    """The program of one cycle right after surgery."""

    cycle: int
    run_id: str
    program: File
    sparsity: float


@dataclass(frozen=True)
class Recovered:
    """The program of one cycle after training; `kept` is "cut", "norms" or "trained", whichever validation preferred."""

    cycle: int
    run_id: str
    program: File
    kept: str
    accuracy_before: float
    epochs: int
    seconds: float
    sparsity: float


@dataclass(frozen=True)
class Cycle:
    """The finished cycle, measured."""

    cycle: int
    run_id: str
    program: File
    figures: Figures
    sparsity: float
    accuracy_delta: float
    speedup: float
    speedup_low: float
    speedup_high: float


@dataclass(frozen=True)
class Selected:
    """The cycle that goes on, chosen on validation; none where the plan is to quantise only."""

    cycle: Cycle | None
    reason: str


@dataclass(frozen=True)
class Exported:
    """The files that could be deployed, and the dense one; `program` is the pruned one's. Nothing is pruned in cycle 0."""

    cycle: int
    dense: File
    pruned: File | None
    program: File | None
    dense_int8: Converted | None = None
    pruned_int8: Converted | None = None
    dense_fp16: Converted | None = None
    pruned_fp16: Converted | None = None

    @property
    def converted(self) -> dict[str, Converted]:
        """Those in a lower precision that there are, by name."""
        return {name: one for name, one in vars(self).items() if isinstance(one, Converted)}

    @property
    def candidates(self) -> dict[str, File]:
        """The files that could ship, by name: all but the dense one."""
        pruned = {} if self.pruned is None else {"pruned": self.pruned}
        return {**pruned, **{name: one.file for name, one in self.converted.items()}}


@dataclass(frozen=True)
class Validated:
    """What the serving runtime says of the file that ships, against the dense one."""

    ships: str  # a name of Exported.candidates
    speedup: float
    speedup_low: float
    speedup_high: float
    confidence: float
    theoretical_speedup: float
    parity: float  # of the floating-point file that it is or was quantised from
    noise: str  # what disturbed the measurement, or why the interval stayed wider than wished
    costs: dict[str, tuple[float, float, float]] = field(
        default_factory=dict
    )  # what else the gate asks, with intervals


@dataclass(frozen=True)
class RuleResult:
    """One rule of the gate."""

    name: str
    outcome: str
    sentence: str


@dataclass(frozen=True)
class OnTarget:
    """What another target that will serve says of the file that ships, against the dense one, and how its rules came out."""

    target: str  # its name
    ships: str
    speedup: float
    speedup_low: float
    speedup_high: float
    rules: tuple[Rule, ...]
    noise: str


@dataclass(frozen=True)
class GateResult:
    """The verdict on a file; `evidence` is the SHA-256 of the JSON artifact that holds all of it."""

    ships: str  # the file, a name of Exported.candidates
    outcome: str
    reason: str
    rules: tuple[RuleResult, ...]
    evidence: str
    look: int = 1  # the how-manieth file this is that the test set has judged


@dataclass(frozen=True)
class Reported:
    """The report of a run as a page, and where that is in MLflow's UI."""

    page: File
    address: str


@dataclass(frozen=True)
class Question:
    """What a person is asked; `body` is Markdown."""

    subject: str
    body: str
    users: tuple[str, ...]
    hours: float


@dataclass(frozen=True)
class Person:
    """A user of Airflow."""

    id: str
    name: str


@dataclass(frozen=True)
class Answer:
    """What came of a question, as Airflow words it. Without a user, time ran out."""

    chosen_options: tuple[str, ...]
    responded_by_user: Person | None
    params_input: dict

    @property
    def yes(self) -> bool:
        """Whether a person approved."""
        return self.responded_by_user is not None and self.chosen_options == ("Approve",)

    @property
    def sentence(self) -> str:
        """Who said what."""
        if self.responded_by_user is None:
            return "Nobody answered in time."
        words = str(self.params_input.get("words") or "").strip()
        said = f"{'Approved' if self.yes else 'Rejected'} by {self.responded_by_user.name}"
        return f"{said}: {words}" if words else f"{said}."


@dataclass(frozen=True)
class Promotion:
    """What serves now, and what served before."""

    model: str
    version: str
    previous: str | None
    uri: str


@dataclass(frozen=True)
class Sweeping:
    """A sweep under way; `run_id` is its run in MLflow, to which those of its candidates belong."""

    name: str
    model: str
    version: str
    run_id: str
    experiment_id: str
    dag_run_id: str
    fresh: bool
    metric: str
    drop: float  # of the metric, that is allowed
    confidence: float  # that all candidates' bounds hold at once with
    candidates: tuple[str, ...]
    digests: dict[str, str]  # of their recipes
    rungs: int  # of recovery; 1 without halving
    eta: int
    finalists: int


@dataclass(frozen=True)
class Start:
    """A run of a DAG to be started."""

    run_id: str
    conf: dict


@dataclass(frozen=True)
class Ended:
    """How such a run ended: success or failed."""

    run_id: str
    state: str


@dataclass(frozen=True)
class Standing:
    """A candidate of a sweep, as its last rung has left it.

    Intervals are estimate, low and high, at the confidence that is corrected for all candidates.
    """

    name: str
    rung: int
    state: str  # measured, not pruned or failed
    reason: str  # of the verdict, or of there being none
    dag_run_id: str
    run_id: str = ""  # its job in MLflow
    ships: str = ""
    outcome: str = ""  # of the gate's rules on validation
    metric: float = 0.0  # on validation
    change: tuple[float, float, float] = (0.0, 0.0, 0.0)  # of the metric, from the dense model's
    speedup: tuple[float, float, float] = (0.0, 0.0, 0.0)
    p50_ms: float | None = None
    p99_ms: float | None = None
    size_bytes: float = 0.0
    sparsity: float = 0.0
    front: bool = False  # whether no other of its rung beats it in metric, speed and size
    goes_on: bool = False  # to the next rung


@dataclass(frozen=True)
class Dense:
    """The model that all candidates come from, as it was measured beside the first of them."""

    metric: float  # on validation
    p50_ms: float
    p99_ms: float | None
    size_bytes: float


@dataclass(frozen=True)
class Standings:
    """Every candidate after a rung, in the order of the sweep."""

    rung: int
    candidates: tuple[Standing, ...]


@dataclass(frozen=True)
class Swept:
    """What came of a sweep: who won if anybody, and why; the page that shows all side by side."""

    name: str
    winner: str | None
    reason: str
    judged: dict[str, GateResult]  # by the test split
    candidates: tuple[Standing, ...]
    metric: str
    run_id: str
    address: str


def read(kind: Any, value: Any, name: str) -> Any:
    """What another step handed on, from plain JSON, as its type; `name` is for messages.

    Raises:
        InputError: it is of another release of Secateur, which began this run, and cannot be read rightly by this one.
    """
    from pydantic import TypeAdapter, ValidationError

    from tasks.recipe import Recipe

    again = (
        "another release of Secateur began this run: clear it from its first step on, `resolve` in prune_model or `begin` in "
        "sweep_model, and it begins anew with this one"
    )
    where: tuple[Any, ...] = (name,)
    try:
        found = TypeAdapter(kind).validate_python(value)
        if isinstance(found, Pinned):
            where = (name, "recipe")
            Recipe.model_validate(found.recipe)
    except ValidationError as error:
        problem = error.errors()[0]
        setting = ".".join(map(str, (*where, *problem["loc"])))
        raise InputError(
            f"{setting}: expected what this release hands from step to step, got {problem['msg']}; {again}"
        ) from error
    if isinstance(found, Pinned) and found.schema > SCHEMA:
        raise InputError(
            f"{name}.schema: expected at most {SCHEMA}, which this release reads, got {found.schema}; {again}"
        )
    return found
