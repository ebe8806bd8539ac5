"""One scenario of MLPerf LoadGen against an ONNX file, in a fresh process: what LoadGen measured, and its verdict on it.

A query asks for examples one by one; what is computed together is at most the target's batch. SingleStream sends one
example and waits for its answer, MultiStream eight, Offline all at once; Server sends single ones at random times (a
Poisson process) and does not wait (Reddi et al., "MLPerf Inference Benchmark", ISCA 2020).
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from secateur.errors import InputError
from secateur.load import logs
from secateur.load.process import SCENARIOS
from secateur.measure import SAMPLES_BEYOND, shortened
from secateur.noise import Counters
from secateur.runtime import Target
from secateur.worker import allowed_cores, check_finite, exchange, started, stored

FEWEST_QUERIES = 2  # of one LoadGen knows no rate
_THROUGHPUT = {  # examples a second, by LoadGen's name for it
    "single_stream": "result_qps_with_loadgen_overhead",
    "server": "result_completed_samples_per_sec",
    "offline": "result_samples_per_second",
}
_BOUND = {"single_stream": "early_stopping_latency_ss", "multi_stream": "early_stopping_latency_ms"}


@dataclass(frozen=True)
class Arrivals:
    """What Server is asked: queries at a rate (a second) of which 99 % shall be answered within a limit (milliseconds)."""

    rate: float
    p99_ms: float


@dataclass(frozen=True)
class Cores:
    """Where a run's threads were: a share of the cores for each request that is computed at once, and LoadGen's own."""

    serving: tuple[tuple[int, ...], ...]
    generator: tuple[int, ...]

    def __str__(self) -> str:
        if not self.generator:
            return "pinned to no cores"
        used = {core for share in self.serving for core in share}
        beside = "them too" if used.issuperset(self.generator) else ",".join(map(str, self.generator))
        total = len(used.union(self.generator))
        return f"cores {','.join(map(str, sorted(used)))} of {total}, LoadGen on {beside}"


@dataclass(frozen=True)
class Run:
    """What LoadGen says of a run.

    A percentile is None where fewer than ten samples lie beyond it, and for Offline, whose examples all wait from the
    start; MultiStream's are of whole queries. `bound_ms` is LoadGen's own figure for SingleStream (the 90th percentile) and
    MultiStream (the 99th): with 99 % confidence the percentile is no higher (MLPerf's "early stopping").
    """

    scenario: str
    valid: bool
    reasons: tuple[str, ...]
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    bound_ms: float | None
    throughput: float  # examples a second
    computing_ms: float  # of the largest request before LoadGen began, the median: what is more is queue and LoadGen
    queries: int
    min_queries: int
    min_seconds: float
    cores: Cores
    counters: Counters  # of all cores, while LoadGen ran
    loadgen: str  # its version
    folder: str  # of its settings and logs


def run(
    path: str | Path,
    target: Target,
    columns: Sequence[np.ndarray],
    scenario: str,
    folder: str | Path,
    *,
    seconds: float = 10.0,
    queries: int = FEWEST_QUERIES,
    arrivals: Arrivals | None = None,
    parallel: int = 1,
    seed: int = 0,
) -> Run:
    """Run a scenario for some seconds and some queries, at least; LoadGen's settings and logs stay in the folder.

    Args:
        path: of the ONNX file.
        target: `threads` for each request, `batch` examples at most are computed together.
        columns: the inputs of examples [N, ...], in the program's order.
        scenario: single_stream, multi_stream, server or offline.
        folder: is made where it is not there.
        seconds: minimum duration.
        queries: minimum number of them.
        arrivals: for server, and only for it.
        parallel: requests that are computed at once, each by a session with its own threads on its own cores.
        seed: of the order of examples and of the arrivals.

    Raises:
        InputError: a setting cannot be, LoadGen is missing, or the file cannot be loaded or its outputs are not finite.
    """
    if scenario not in SCENARIOS:
        raise InputError(f"scenario: expected one of {', '.join(SCENARIOS)}, got {scenario}")
    if (arrivals is not None) != (scenario == "server"):
        raise InputError(
            f"arrivals: expected a rate and a limit for server and for nothing else, got {arrivals} for {scenario}"
        )
    if arrivals is not None:
        check_positive("p99_ms", arrivals.p99_ms)
        check_positive("rate", arrivals.rate)
    check_positive("seconds", seconds)
    if queries < FEWEST_QUERIES:
        raise InputError(f"queries: expected at least {FEWEST_QUERIES}, got {queries}")
    extra = {"mode": "performance", "seconds": seconds, "queries": queries, **(asdict(arrivals) if arrivals else {})}
    cores = _cores(target, parallel)
    said = _tested(path, target, columns, cores, {"scenario": scenario, "folder": str(folder), "seed": seed, **extra})
    return _run_of(scenario, cores, folder, said)


def predictions(
    path: str | Path,
    target: Target,
    columns: Sequence[np.ndarray],
    folder: str | Path,
    *,
    parallel: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """The first output for all examples, in their order, as LoadGen's accuracy mode logs it in the Offline scenario.

    Score them against labels as you would score what the file answers: they are the same numbers. Arguments as of `run`.

    Raises:
        InputError: as `run`.
    """
    cores = _cores(target, parallel)
    order = {
        "scenario": "offline",
        "mode": "accuracy",
        "seconds": 1,
        "queries": FEWEST_QUERIES,
        "folder": str(folder),
        "seed": seed,
    }
    said = _tested(path, target, columns, cores, order)
    made = logs.predictions(folder, said["dtype"], said["shape"], len(columns[0]))
    check_finite(Path(path).name, made)
    return made


@contextmanager
def kept(folder: str | Path | None) -> Iterator[Path]:
    """Where settings and logs go: the folder, or without one a place that passes with its context."""
    if folder is not None:
        yield Path(folder)
        return
    with tempfile.TemporaryDirectory(prefix="secateur-") as passing:
        yield Path(passing)


def check_positive(name: str, value: float) -> None:
    """Raise InputError unless a setting is a number above 0."""
    if not 0 < value < float("inf"):
        raise InputError(f"{name}: expected a number above 0, got {value}")


def _tested(
    path: str | Path, target: Target, columns: Sequence[np.ndarray], cores: Cores, order: dict[str, Any]
) -> dict[str, Any]:
    if importlib.util.find_spec("mlperf_loadgen") is None:
        raise InputError(
            "loadgen: expected MLPerf LoadGen, it is not installed; run `pip install mlcommons-loadgen` (it has wheels for "
            "x86-64 Linux, Windows and Apple silicon, and needs a C++ compiler elsewhere)"
        )
    counts = {len(column) for column in columns}
    if len(counts) != 1 or 0 in counts:
        raise InputError(
            f"inputs: expected the same number of examples of every input, at least one, got {sorted(counts)}"
        )
    if not Path(path).is_file():
        raise InputError(f"model: expected an ONNX file, got {path}, which is not there")
    Path(order["folder"]).mkdir(parents=True, exist_ok=True)
    with stored(shortened(columns, target)) as inputs, started("secateur.load.process") as process:
        where = {"path": str(path), "target": asdict(target), "inputs": inputs}
        places = {"cores": cores.serving, "generator": cores.generator, "parallel": len(cores.serving)}
        return exchange(process, order | where | places)


def _cores(target: Target, parallel: int) -> Cores:
    """A share for each request at once; LoadGen gets what is left, or where nothing is, the same ones."""
    for name, value in {"parallel": parallel, "target.threads": target.threads, "target.batch": target.batch}.items():
        if value < 1:
            raise InputError(f"{name}: expected at least 1, got {value}")
    allowed, threads = allowed_cores(), target.threads
    if not allowed:
        return Cores(((),) * parallel, ())
    used = parallel * threads
    if used > len(allowed):
        raise InputError(
            f"parallel: expected at most the {len(allowed)} cores that this process may use, got {parallel} requests at once "
            f"with {threads} threads each"
        )
    shares = tuple(tuple(allowed[start : start + threads]) for start in range(0, used, threads))
    return Cores(shares, tuple(allowed[used:] or allowed))


def _run_of(scenario: str, cores: Cores, folder: str | Path, said: Mapping[str, Any]) -> Run:
    values = logs.detail(folder)
    queries = values["result_query_count"]
    bound = values.get(_BOUND.get(scenario, ""))
    return Run(
        scenario=scenario,
        valid=values["result_validity"] == "VALID",
        reasons=logs.reasons(values),
        p50_ms=_percentile(values, 50, scenario),
        p90_ms=_percentile(values, 90, scenario),
        p99_ms=_percentile(values, 99, scenario),
        bound_ms=bound / 1e6 if bound else None,  # 0 where there were too few queries for one
        throughput=_throughput(values, scenario),
        computing_ms=said["seconds"] * 1e3,
        queries=queries,
        min_queries=values["effective_min_query_count"],
        min_seconds=values["effective_min_duration_ms"] / 1e3,
        cores=cores,
        counters=Counters(**said["counters"]),
        loadgen=values["loadgen_version"],
        folder=str(folder),
    )


def _percentile(values: Mapping[str, Any], percent: int, scenario: str) -> float | None:
    """Milliseconds."""
    if scenario == "offline" or values["result_query_count"] * (100 - percent) < 100 * SAMPLES_BEYOND:
        return None
    of = "per_query_latency" if scenario == "multi_stream" else "latency"
    return float(values[f"result_{percent}.00_percentile_{of}_ns"]) / 1e6


def _throughput(values: Mapping[str, Any], scenario: str) -> float:
    if scenario == "multi_stream":  # LoadGen gives it no throughput; it asks again as soon as it is answered
        return float(values["effective_samples_per_query"] / values["result_mean_query_latency_ns"] * 1e9)
    return float(values[_THROUGHPUT[scenario]])
