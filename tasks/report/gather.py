"""What a report tells, read from a run in MLflow: artifacts, metrics and tags in, one frozen dataclass of plain values out.

What a run does not have (it ended early, has no lower precision, predicts no classes) is None or empty here, and said to be missing there.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import NormalDist
from typing import Any

from secateur import planner
from secateur.errors import InputError
from tasks import precisions, tracking
from tasks.precisions import CONVERTED

Interval = tuple[float, float]
CONFIDENCE = 0.95  # of an accuracy's own interval on validation
FILES = ("pruned", *CONVERTED)  # that may ship, in the order in which they are shown
RATIOS = {  # metrics of the parent run: what a cut promises by one account or another
    "theoretical_speedup": "multiply-accumulates",
    "bytes_ratio": "bytes moved",
    "roofline_speedup": "roofline of this machine",
    "kernels_speedup": "kernels, each alone",
}


@dataclass(frozen=True)
class Bound:
    """A rule of the gate: what was asked, what was seen, and a sentence.

    The limit is NaN where nothing was asked. A rule over several parts, such as slices, holds one for each.
    """

    name: str
    outcome: str
    limit: float
    estimate: float
    low: float
    high: float
    sentence: str
    parts: tuple[Bound, ...] = ()


@dataclass(frozen=True)
class Measured:
    """A file on the target: validation metric and latency, test metric where the gate saw it."""

    name: str
    ships: bool
    validation: float | None
    test: float | None
    speedup: float | None
    speedup_interval: Interval | None
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    size_bytes: float | None
    params: float | None
    macs: float | None
    zeros: float | None = None  # of the parameters, where a method makes some


@dataclass(frozen=True)
class Point:
    """A model among the trade-offs: its metric on validation, what is gone, and its latency by the speedup measured in turns."""

    name: str
    kind: str  # dense, cycle or converted
    accuracy: float
    accuracy_interval: Interval | None
    sparsity: float | None
    latency_ms: float
    latency_interval: Interval | None
    chosen: bool


@dataclass(frozen=True)
class Width:
    """An axis before the first cut and in the cycle that was chosen."""

    name: str
    kind: str
    before: int
    after: int


@dataclass(frozen=True)
class Curve:
    """How a file's latency is distributed: percents of the requests, and the milliseconds that they took at most."""

    name: str
    points: tuple[tuple[float, float], ...]
    samples: int


@dataclass(frozen=True)
class ClassChange:
    """A class of the test split: examples lost and gained by the file that ships, and the change of its accuracy."""

    label: str
    examples: int
    lost: int
    gained: int
    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Size:
    """The file that ships against the dense one with requests of another size than the judged one."""

    batch: int
    speedup: float
    interval: Interval
    throughput: float  # examples a second
    dense_throughput: float
    memory_bytes: float  # that loading and running adds to a process, at the most
    dense_memory_bytes: float


@dataclass(frozen=True)
class Promise:
    """How many times less or faster by one account; an interval where it was measured."""

    name: str
    times: float
    interval: Interval | None


@dataclass(frozen=True)
class Evidence:
    """All that is told of one run."""

    run_id: str
    title: str  # the model with its version
    started: str
    model: str
    version: str
    recipe_name: str
    recipe: Mapping[str, Any]
    metric: str
    outcome: str  # empty without a verdict
    reason: str
    ships: str
    rules: tuple[Bound, ...]
    test_examples: int | None
    look: str  # how often this test split has been looked at, empty without a verdict
    incumbent: str  # what the gate knew of what served
    confidence: float
    plan: tuple[planner.Row, ...]
    not_pruned: str  # why the plan ended the run
    selected: str
    shipped_because: str
    promoted: str
    files: tuple[Measured, ...]
    points: tuple[Point, ...]
    widths: tuple[Width, ...]
    curves: tuple[Curve, ...]
    sizes: tuple[Size, ...]
    classes: tuple[ClassChange, ...]
    promises: tuple[Promise, ...]
    explained: str
    converted: Mapping[str, str]
    machine: str
    noise: str
    origin: tuple[tuple[str, str], ...]
    commands: tuple[tuple[str, str], ...]
    trial: str = ""  # what validation said of a sweep's candidate that was not judged by the test split

    @property
    def shipped(self) -> Measured | None:
        """The file that the verdict is on."""
        return next((file for file in self.files if file.ships), None)

    @property
    def dense(self) -> Measured | None:
        """The model as it came."""
        return next((file for file in self.files if file.name == "dense"), None)

    def rule(self, name: str) -> Bound | None:
        """The rule of a name, where the gate has one."""
        return next((rule for rule in self.rules if rule.name == name), None)


def gather(run_id: str) -> Evidence:
    """Everything that one parent run holds.

    Raises:
        InputError: there is no such run, or it is not one of a whole job.
    """
    run = job(run_id)
    tags, metrics = run.data.tags, run.data.metrics
    model, _, version = tags.get("secateur.source", "").removeprefix("models:/").rpartition("/")

    def read(path: str) -> Any:
        return tracking.get_json(run_id, path) or {}

    def told(path: str) -> str:
        return (tracking.get_bytes(run_id, path) or b"").decode()

    recipe, evidence, measured = read("recipe.json"), read("gate/verdict.json"), read("validate/measured.json")
    steps = {name: _result(read, name) for name in ("baseline", "select", "export", "validate")}
    plan = read("plan.json")
    reasons = tuple(planner.Row(**row) for row in plan.get("reasons", []))
    verdict, ships = evidence.get("verdict") or {}, steps["validate"].get("ships", "")
    metric = tags.get("secateur.metric", "accuracy")
    cycles = _cycles(read)
    chosen = (steps["select"].get("cycle") or {}).get("cycle")
    files = _files(metrics, metric, ships, steps)
    compared = {name: file for name, file in _onnx(steps["export"]).items() if name in ("dense", ships)}
    return Evidence(
        run_id=run_id,
        title=f"{model} version {version}",
        started=datetime.fromtimestamp(run.info.start_time / 1e3, UTC).strftime("%Y-%m-%d %H:%M"),
        model=model,
        version=version,
        recipe_name=tags.get("secateur.recipe", ""),
        recipe=recipe,
        metric=metric,
        outcome=verdict.get("outcome", ""),
        reason=verdict.get("reason", ""),
        ships=ships,
        rules=tuple(_bound(rule) for rule in verdict.get("rules", [])),
        test_examples=evidence.get("test_examples"),
        look=_look(evidence.get("look")),
        incumbent=evidence.get("incumbent", ""),
        confidence=(recipe.get("gate") or {}).get("confidence", CONFIDENCE),
        plan=reasons,
        not_pruned=reasons[0].because if reasons and plan.get("method") == planner.NONE else "",
        selected=tags.get("secateur.selected", ""),
        shipped_because=tags.get("secateur.ships", ""),
        promoted=tags.get("secateur.promoted", "").removeprefix("models:/"),
        files=files,
        points=_points(steps["baseline"], cycles, files, measured, chosen),
        widths=_widths(cycles, chosen),
        curves=_curves(measured),
        sizes=tuple(map(_size, measured.get("batches", ()))),
        classes=tuple(ClassChange(**{**one, "label": str(one["label"])}) for one in read("gate/classes.json")),
        promises=_promises(metrics),
        explained=told("validate/explained.txt"),
        converted=_converted(run_id),
        machine=_machine(measured),
        noise=steps["validate"].get("noise", ""),
        origin=_origin(run_id, tags, steps["export"]),
        commands=_commands(run_id, tags, (model, version), recipe, compared),
        trial="" if verdict else (read("trial/verdict.json").get("verdict") or {}).get("reason", ""),
    )


def job(run_id: str) -> Any:
    """The parent run of a job, as MLflow has it.

    Raises:
        InputError: there is no such run, or it is another kind of run.
    """
    from mlflow.exceptions import MlflowException

    try:
        run = tracking.client().get_run(run_id)
    except MlflowException as error:
        raise InputError(f"run: expected the id of a run in MLflow, got {run_id[:100]!r}: {error}") from error
    if run.data.tags.get("secateur.kind") != "job":
        raise InputError(
            f"run: expected the run of a whole job, got {run.info.run_name!r}, a {run.data.tags.get('secateur.kind', 'run of something else')}; "
            "its id ends the address that `secateur run` prints"
        )
    return run


def _result(read: Callable[[str], Any], step: str) -> dict[str, Any]:
    """What a step returned, as it is remembered."""
    found: dict[str, Any] = read(f"steps/{step}.json").get("result") or {}
    return found


def _cycles(read: Callable[[str], Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while cycle := _result(read, f"evaluate_{len(found) + 1}"):
        found.append(cycle)
    return found


def _look(look: Mapping[str, Any] | None) -> str:
    return f"look {look['number']} at this test split, {look['free']} of which cost no confidence" if look else ""


def _bound(rule: Mapping[str, Any]) -> Bound:
    """A rule of the verdict, whatever else is kept with it."""
    numbers = {name: _number(rule.get(name)) for name in ("limit", "estimate", "low", "high")}
    parts = tuple(map(_bound, rule.get("parts", ())))
    return Bound(rule["name"], rule["outcome"], **numbers, sentence=rule.get("sentence", ""), parts=parts)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _files(
    metrics: Mapping[str, float], metric: str, ships: str, steps: Mapping[str, dict[str, Any]]
) -> tuple[Measured, ...]:
    """Those that were measured in turns; of a run that ended before, the dense one as the baseline saw it."""
    found = [
        _measured(metrics, metric, name, ships) for name in ("dense", *FILES) if f"{name}.latency_p50_ms" in metrics
    ]
    seen = steps["baseline"].get("figures")
    if found or not seen:
        return tuple(found)
    times = (seen["latency_p50_ms"], seen["latency_p90_ms"], seen["latency_p99_ms"])
    costs = (seen["size_bytes"], seen["params"], seen["macs"])
    return (Measured("dense", False, seen["accuracy"], None, None, None, *times, *costs),)


def _measured(metrics: Mapping[str, float], metric: str, name: str, ships: str) -> Measured:
    def of(what: str) -> float | None:
        return metrics.get(f"{name}.{what}")

    return Measured(
        name=name,
        ships=name == ships,
        validation=of(f"validation_{metric}"),
        test=of(metric),
        speedup=of("speedup"),
        speedup_interval=_interval(of("speedup_low"), of("speedup_high")),
        p50_ms=of("latency_p50_ms"),
        p90_ms=of("latency_p90_ms"),
        p99_ms=of("latency_p99_ms"),
        size_bytes=of("size_bytes"),
        params=of("params"),
        macs=of("macs"),
        zeros=of("zeros"),
    )


def _interval(low: float | None, high: float | None) -> Interval | None:
    return None if low is None or high is None else (low, high)


def _points(
    baseline: Mapping[str, Any],
    cycles: Sequence[Mapping[str, Any]],
    files: Sequence[Measured],
    measured: Mapping[str, Any],
    chosen: int | None,
) -> tuple[Point, ...]:
    """The dense model, every cycle, and what was quantised.

    A latency is the dense median over the speedup, which was measured in turns: so neither another hour nor what else the
    machine did moves one point against another.
    """
    if not baseline:
        return ()
    seen = baseline["figures"]
    dense_ms = next((file.p50_ms for file in files if file.name == "dense" and file.p50_ms), seen["latency_p50_ms"])
    examples = measured.get("validation_examples") if measured.get("right_or_wrong") else None

    def around(accuracy: float) -> Interval | None:
        return wilson(accuracy, examples) if examples else None

    found = [Point("dense", "dense", seen["accuracy"], around(seen["accuracy"]), 0.0, dense_ms, None, False)]
    for cycle in cycles:
        accuracy = cycle["figures"]["accuracy"]
        times = (dense_ms / cycle["speedup"], (dense_ms / cycle["speedup_high"], dense_ms / cycle["speedup_low"]))
        number = cycle["cycle"]
        found.append(
            Point(
                f"cycle {number}",
                "cycle",
                accuracy,
                around(accuracy),
                cycle["sparsity"],
                *times,
                chosen=number == chosen,
            )
        )
    for file in files:
        if precisions.of(file.name) and file.speedup and file.speedup_interval and file.validation is not None:
            low, high = file.speedup_interval
            span = (dense_ms / high, dense_ms / low)
            of = (file.validation, around(file.validation), None, dense_ms / file.speedup, span)
            found.append(Point(precisions.spoken(file.name), "converted", *of, chosen=file.ships))
    return tuple(found)


def wilson(share: float, examples: int, confidence: float = CONFIDENCE) -> Interval:
    """The score interval of a share of so many examples (Wilson, J. Am. Stat. Assoc. 22:209-212, 1927)."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = (share + z * z / (2 * examples)) / (1 + z * z / examples)
    half = z / (1 + z * z / examples) * math.sqrt(share * (1 - share) / examples + (z / (2 * examples)) ** 2)
    return middle - half, middle + half


def _widths(cycles: Sequence[Mapping[str, Any]], chosen: int | None) -> tuple[Width, ...]:
    """Over all cuts up to the cycle that was chosen; an axis is what its name says, from one cut to the next."""
    found: dict[str, Width] = {}
    for cycle in cycles[:chosen]:
        for axis in tracking.get_json(cycle["run_id"], "cut/widths.json") or ():
            first = found.get(axis["name"])
            before = first.before if first else axis["before"]
            found[axis["name"]] = Width(axis["name"], axis["kind"], before, axis["after"])
    return tuple(found.values())


def _curves(measured: Mapping[str, Any]) -> tuple[Curve, ...]:
    latencies = measured.get("latencies", {})
    return tuple(
        Curve(
            precisions.spoken(name),
            tuple((float(p), ms) for p, ms in latencies[name]["curve"]),
            latencies[name]["samples"],
        )
        for name in ("dense", *FILES)
        if latencies.get(name, {}).get("curve")
    )


def _size(at: Mapping[str, Any]) -> Size:
    return Size(
        at["batch"],
        at["speedup"],
        (at["speedup_low"], at["speedup_high"]),
        at["throughput"],
        at["dense_throughput"],
        at["peak_memory_bytes"],
        at["dense_peak_memory_bytes"],
    )


def _promises(metrics: Mapping[str, float]) -> tuple[Promise, ...]:
    """Of the pruned file in floating point: what it was to become by every account, and what it did."""
    found = [
        Promise(title, metrics[name], None)
        for name, title in RATIOS.items()
        if math.isfinite(metrics.get(name, math.nan))  # a file whose profile shows nothing has no ratio
    ]
    if "pruned.speedup" in metrics:
        span = (metrics["pruned.speedup_low"], metrics["pruned.speedup_high"])
        found.append(Promise("measured", metrics["pruned.speedup"], span))
    return tuple(found)


def _converted(run_id: str) -> dict[str, str]:
    """What was said of each file in lower precision, or of why it was left out."""
    paths = [path for one in precisions.ALL for path in tracking.listed(run_id, one) if path.endswith(".txt")]
    return {
        path.rpartition("/")[2].removesuffix(".txt"): (tracking.get_bytes(run_id, path) or b"").decode()
        for path in paths
    }


def _machine(measured: Mapping[str, Any]) -> str:
    if not measured:
        return ""
    machine = measured["machine"]
    parts = [machine["cpu"], f"{machine['cores']} cores", ", ".join(machine["instruction_sets"])]
    parts += [gpu["name"] for gpu in machine["gpus"]]
    return " · ".join(filter(None, [*parts, measured["runtime"]]))


def _origin(run_id: str, tags: Mapping[str, str], export: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Everything that the run was pinned to, and the files that came out of it, by their digests."""
    named = {
        "source": tags.get("secateur.source"),
        "program": tags.get("secateur.program"),
        "data": tags.get("secateur.data"),
        "code": tags.get("secateur.code"),
        "objective": tags.get("secateur.objective"),
        "exporter": tags.get("secateur.exporter"),
        "DAG run": tags.get("secateur.dag_run"),
        "MLflow run": run_id,
    }
    files = [(f"{name} file", f"{file['uri']} {file['sha256']}") for name, file in _onnx(export).items()]
    return (*((name, value) for name, value in named.items() if value), *files)


def _onnx(export: Mapping[str, Any]) -> dict[str, Mapping[str, str]]:
    """The ONNX files of a run, by name."""
    plain = {name: export[name] for name in ("dense", "pruned") if export.get(name)}
    return plain | {name: export[name]["file"] for name in CONVERTED if export.get(name)}


def _commands(
    run_id: str, tags: Mapping[str, str], pinned: tuple[str, str], recipe: Mapping[str, Any], files: Mapping[str, Any]
) -> tuple[tuple[str, str], ...]:
    """What does it again, and what looks at it by hand: a purpose and a command each. `files` are the two to compare."""
    import yaml

    model, version = pinned
    name = tags.get("secateur.recipe", "")
    kind, of = ("sweep", name.partition(":")[0]) if ":" in name else ("recipe", name)
    again = ["secateur", "sweep" if kind == "sweep" else "run", model, "--version", version, f"--{kind}", of, "--fresh"]
    found = [(f"The whole {'sweep' if kind == 'sweep' else 'job'} again, measured and trained anew", shlex.join(again))]
    if len(files) == 2 and recipe.get("target"):
        fetch = [
            shlex.join(["mlflow", "artifacts", "download", "-u", one["uri"], "-d", of]) for of, one in files.items()
        ]
        target = yaml.safe_dump({name: value for name, value in recipe["target"].items() if value is not None})
        places = [f"{of}/{one['uri'].rpartition('/')[2]}" for of, one in files.items()]
        compare = shlex.join(["secateur", "compare", *places, "--target", "target.yaml"])
        write = f"cat > target.yaml <<'END'\n{target}END"
        found.append(("The speedup, measured on this machine", "\n".join([*fetch, write, compare])))
    found.append(("This report", shlex.join(["secateur", "report", run_id])))
    found.append(("Who moved what serves, when and why", shlex.join(["secateur", "history", model])))
    if "secateur.promoted" in tags:
        back = ["secateur", "rollback", model, "--to", "previous", "--reason", "why"]
        found.append(("What served before, again", shlex.join(back)))
    return tuple(found)
