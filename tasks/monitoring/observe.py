"""What a look is given: the log since the last one, the dense model's answers to the same inputs, labels that came since."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks import registry, tracking
from tasks.sections.monitor import Monitor

if TYPE_CHECKING:
    import numpy as np

    from secateur.inference_log.schema import Label, Record
    from secateur.monitoring.drift import Difference
    from secateur.monitoring.judging import Observed
    from secateur.monitoring.reference import Reference
    from secateur.requests import Input
    from secateur.runtime import Target

ROOT = "SECATEUR_LOG"  # in the environment: where the inference log is
FOLDER = "inference-log"  # in the bucket, where nothing else is said
MOST_LABELLED = 5000  # requests of a look whose labels came
DRIFT_ALPHA = 1e-3  # share of the looks that chance alone calls drift


@dataclass(frozen=True)
class Seen:
    """All that a look has to go by; `problems` says what was left out of it and how often."""

    since: datetime
    until: datetime
    requests: int
    observed: Observed | None
    drift: tuple[Difference, ...]
    problems: Mapping[str, int]
    gaps: int
    labels: int = 0
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)  # of the examples that were looked at


def log_root() -> str:
    """Where the inference log is: SECATEUR_LOG, else a folder of the bucket."""
    root = os.environ.get(ROOT) or f"{os.environ.get('SECATEUR_BUCKET', '').rstrip('/')}/{FOLDER}"
    if root == f"/{FOLDER}":
        raise InputError(
            f"{ROOT}: expected a folder or s3:// address of the inference log, got none; set it or SECATEUR_BUCKET"
        )
    return root


def observe(
    model: str,
    version: str,
    dense: str,
    since: datetime,
    until: datetime,
    reference: Reference | None,
    monitor: Monitor,
    seed: int,
) -> Seen:
    """Read the log of [since, until), and let the dense version answer some of it.

    Args:
        model: the source model.
        version: of its deployable model, that serves.
        dense: the version that it was pruned from.
        since: the end of the last look.
        until: the end of this one.
        reference: what the gate kept; without it nothing is compared with the test set.
        monitor: how many examples, and how long labels are waited for.
        seed: of the draw among more examples.

    Raises:
        InputError: there is no log to read, or the dense version is gone.
        OSError: a store does not answer.
    """
    from secateur.inference_log import reader

    name = registry.onnx_name(model)
    window = reader.read(log_root(), name, since, until, version=version, most=monitor.examples)
    problems, mine = dict(window.problems), window.records
    labels, troubles = reader.read_labels(log_root(), name, since, until)
    for why, count in troubles.items():
        problems[why] = problems.get(why, 0) + count
    found = Seen(since, until, window.requests, None, (), problems, len(window.gaps), len(labels))
    if not mine and not labels:
        return found
    earlier = _labelled_requests(name, version, labels, since, monitor, problems) if labels else []
    target = registry.target(model, version)
    with tracking.fetched(registry.onnx_file(model, dense)) as path:
        return _answered(found, path, target, mine, earlier, reference, monitor.examples, seed, problems)


def columns_of(records: Sequence[Record]) -> dict[str, np.ndarray]:
    """The inputs of requests, by name; of those whose inputs are of the kind that the first one's are."""
    kinds = [_kinds(record) for record in records]
    fitting = [record for record, kind in zip(records, kinds, strict=True) if kind == kinds[0]]
    return {name: _stacked([record.inputs[name] for record in fitting]) for name in (kinds[0] if kinds else ())}


def _kinds(record: Record) -> dict[str, tuple[str, int]]:
    return {name: (array.dtype.name, array.ndim) for name, array in record.inputs.items()}


def _answered(
    found: Seen,
    path: Path,
    target: Target | None,
    mine: Sequence[Record],
    earlier: Sequence[tuple[Record, np.ndarray]],
    reference: Reference | None,
    most: int,
    seed: int,
    problems: dict[str, int],
) -> Seen:
    """The same, with what the dense model says."""
    import dataclasses

    import numpy as np

    from secateur import requests
    from secateur.monitoring.drift import compare, features
    from secateur.monitoring.judging import Labelled, Observed
    from secateur.monitoring.shadow import Shadow, shadow, told
    from secateur.runtime import Target

    on = target or Target()
    inputs = requests.inputs_of(path, on)
    order = [one.name for one in inputs]
    usable = _usable(mine, inputs, problems)
    examples = _Examples.of(usable, order, np.random.default_rng(seed), most)
    observed: Observed | None = None
    drift: tuple[Difference, ...] = ()
    if answered := _dense(path, on, examples, problems):
        dense, embedding = answered
        observed = Observed(shadow(dense, examples.outputs), examples.latency_ms)
        if reference is not None:
            before = features(reference.inputs, reference.dense, reference.embedding)
            now = features(dict(zip(order, examples.columns, strict=True)), dense, embedding)
            drift = tuple(compare(before, now, DRIFT_ALPHA, seed))
    labelled = [(record, label) for record, label in earlier if _fits(record, inputs) and len(label) == _count(record)]
    if missing := len(earlier) - len(labelled):
        problems["labels of requests whose inputs are not kept, or of another number"] = missing
    known = _Examples.of([record for record, _ in labelled], order, np.random.default_rng(seed), None)
    if (answered := _dense(path, on, known, problems)) and answered[0].ndim == 2:  # the truth of others is no class
        truth = np.concatenate([label.reshape(len(label), -1)[:, 0] for _, label in labelled])
        own = np.concatenate([np.full(len(label), record.time >= found.since) for record, label in labelled])
        answers = Labelled(told(answered[0])[0], told(known.outputs)[0], truth, own, _slices(labelled, truth))
        observed = dataclasses.replace(observed or Observed(Shadow(np.zeros(0)), np.zeros(0)), labelled=answers)
    kept = dict(zip(order, examples.columns, strict=True)) if len(examples) else {}
    return dataclasses.replace(found, observed=observed, drift=drift, inputs=kept)


def _dense(
    path: Path, target: Target, examples: _Examples, problems: dict[str, int]
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """The dense model's answers and embedding; None where there is no example, or it cannot answer them as they were answered."""
    from secateur.monitoring import reference

    if not len(examples):
        return None
    try:
        found = reference.answers(path, target, examples.columns)
        if found[0].shape != examples.outputs.shape:
            raise ValueError(f"its answers are {found[0].shape}, the logged ones {examples.outputs.shape}")
    except Exception as error:  # the runtime's own, without a common class
        why = f"examples that the dense model does not answer alike: {' '.join(str(error).split())[:200]}"
        problems[why] = len(examples)
        return None
    return found


@dataclass(frozen=True)
class _Examples:
    """Examples of requests, those of one request beside each other."""

    columns: tuple[np.ndarray, ...]
    outputs: np.ndarray
    latency_ms: np.ndarray

    def __len__(self) -> int:
        return len(self.outputs)

    @classmethod
    def of(
        cls, records: Sequence[Record], order: Sequence[str], rng: np.random.Generator, most: int | None
    ) -> _Examples:
        """All of them, or so many that were drawn; inputs of different lengths are padded by zeros to the longest."""
        import numpy as np

        if not records:
            return cls((), np.zeros((0, 1)), np.zeros(0))
        columns = [_stacked([record.inputs[name] for record in records]) for name in order]
        outputs = _stacked([_answer(record) for record in records])
        latency = np.concatenate([np.full(_count(record), record.latency_ms) for record in records])
        if most is not None and len(outputs) > most:
            chosen = np.sort(rng.permutation(len(outputs))[:most])
            columns, outputs, latency = [column[chosen] for column in columns], outputs[chosen], latency[chosen]
        return cls(tuple(columns), outputs, latency)


def _stacked(arrays: Sequence[np.ndarray]) -> np.ndarray:
    import numpy as np

    if len({array.shape[1:] for array in arrays}) == 1:
        return np.concatenate(arrays)
    longest = np.array([array.shape[1:] for array in arrays]).max(0)
    padded = [
        np.pad(array, [(0, 0), *((0, int(size - have)) for size, have in zip(longest, array.shape[1:], strict=True))])
        for array in arrays
    ]
    return np.concatenate(padded)


def _usable(records: Sequence[Record], inputs: Sequence[Input], problems: dict[str, int]) -> list[Record]:
    """Those that the model can be asked, whose answers are of one kind."""
    fitting = [record for record in records if _fits(record, inputs)]
    ranks = Counter(_answer(record).ndim for record in fitting)
    common = ranks.most_common(1)[0][0] if ranks else 0
    found = [record for record in fitting if _answer(record).ndim == common]
    if missing := len(records) - len(found):
        problems[
            "requests without the model's inputs or an output, or with other types, shapes or infinite numbers"
        ] = missing
    return found


def _fits(record: Record, inputs: Sequence[Input]) -> bool:
    """Whether a request has every input as the model takes it, and an answer to each of its examples."""
    import numpy as np

    arrays = [record.inputs.get(one.name) for one in inputs]
    if not record.outputs or any(array is None for array in arrays):
        return False
    given = [array for array in arrays if array is not None]
    counts = {len(array) if array.ndim else -1 for array in (*given, *record.outputs.values())}
    return (
        len(counts) == 1
        and -1 not in counts
        and all(_as_declared(array, one) for array, one in zip(given, inputs, strict=True))
        and all(np.isfinite(array).all() for array in given)
    )


def _as_declared(array: np.ndarray, declared: Input) -> bool:
    from secateur.requests import TYPES

    sizes = zip(declared.shape[1:], array.shape[1:], strict=False)
    wanted = TYPES.get(declared.type, array.dtype)
    return array.ndim == len(declared.shape) and array.dtype == wanted and all(n in (None, size) for n, size in sizes)


def _answer(record: Record) -> np.ndarray:
    return next(iter(record.outputs.values()))


def _count(record: Record) -> int:
    return len(_answer(record))


def _labelled_requests(
    name: str,
    version: str,
    labels: Sequence[Label],
    since: datetime,
    monitor: Monitor,
    problems: dict[str, int],
) -> list[tuple[Record, np.ndarray]]:
    """The requests that labels are of, each once, by the version that serves."""
    from secateur.inference_log import reader

    wanted = {label.request_id: label.label for label in labels}  # of several the last
    last = labels[-1].time + timedelta(seconds=1)
    first = since - timedelta(days=monitor.labels_within_days)
    window = reader.read(log_root(), name, first, last, only=wanted.keys(), most=MOST_LABELLED)
    found = {record.request_id: record for record in window.records}
    if unknown := len(wanted) - window.requests:
        problems["labels of requests that are not in the log"] = unknown
    if more := window.requests - len(window.records):
        problems[f"labels beyond the {MOST_LABELLED} that one look takes"] = more
    mine = [record for record in found.values() if record.model_version == version]
    if others := len(found) - len(mine):
        problems[f"labels of requests that another version than {version} answered"] = others
    return [(record, wanted[record.request_id]) for record in mine]


def _slices(labelled: Sequence[tuple[Record, np.ndarray]], truth: np.ndarray) -> dict[str, np.ndarray]:
    """The positions of each slice, as the gate names them: by label, and by what the log has as metadata."""
    import numpy as np

    named: dict[str, list[int]] = {}
    place = 0
    for record, label in labelled:
        for position in range(place, place + len(label)):
            for key, value in record.metadata.items():
                named.setdefault(f"{key} {value}", []).append(position)
            named.setdefault(f"label {truth[position]}", []).append(position)
        place += len(label)
    return {key: np.array(positions) for key, positions in named.items()}
