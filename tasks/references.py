"""What steps hand to each other: small values and references into MLflow, never tensors, never paths of one machine."""

from __future__ import annotations

from dataclasses import dataclass


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
    requests_per_s: float | None = None  # within the limit of a goal that sets one


@dataclass(frozen=True)
class Baseline:
    """The dense model, measured; for a goal of time also what its operations take at other widths, where that can be told."""

    figures: Figures
    latencies: File | None = None


@dataclass(frozen=True)
class Plan:
    """The method and the schedule: for each cycle the share of `measure` that is gone when it ends, and why."""

    measure: str  # what the goal sets
    shares: tuple[float, ...]
    epochs: tuple[int, ...]
    reasons: tuple[str, ...]


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
    """The cycle that goes on, chosen on validation."""

    cycle: Cycle
    reason: str


@dataclass(frozen=True)
class Exported:
    """The file that would be deployed, beside the dense one."""

    cycle: int
    dense: File
    pruned: File
    program: File


@dataclass(frozen=True)
class Validated:
    """What the serving runtime says of both files."""

    speedup: float
    speedup_low: float
    speedup_high: float
    confidence: float
    theoretical_speedup: float
    parity: float
    noise: str  # what disturbed the measurement, or why the interval stayed wider than wished


@dataclass(frozen=True)
class RuleResult:
    """One rule of the gate."""

    name: str
    outcome: str
    sentence: str


@dataclass(frozen=True)
class GateResult:
    """The verdict; `evidence` is the SHA-256 of the JSON artifact that holds all of it."""

    outcome: str
    reason: str
    rules: tuple[RuleResult, ...]
    evidence: str


@dataclass(frozen=True)
class Promotion:
    """What serves now, and what served before."""

    model: str
    version: str
    previous: str | None
    uri: str
