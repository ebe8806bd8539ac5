"""What LoadGen wrote into its folder: settings and results of a run, its verdict with reasons, logged predictions."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

DETAIL, ACCURACY = "mlperf_log_detail.txt", "mlperf_log_accuracy.json"
_PREFIX = ":::MLLOG "  # of every line of the detailed log, before its JSON
_CONDITIONS = {  # what LoadGen asks of a run, by the name of its answer
    "result_perf_constraints_met": "performance constraints not satisfied",
    "result_min_duration_met": "minimum duration not satisfied",
    "result_min_queries_met": "minimum queries not satisfied",
    "early_stopping_met": "early stopping not satisfied",
}


def detail(folder: str | Path) -> dict[str, Any]:
    """The detailed log as values by their keys; of errors, which may be many, all messages under `error_runtime`."""
    values: dict[str, Any] = {"error_runtime": []}
    for line in (Path(folder) / DETAIL).read_text(encoding="utf-8").splitlines():
        entry = json.loads(line.removeprefix(_PREFIX))
        if entry["key"].startswith("error_"):
            values["error_runtime"].append(entry["value"])
        else:
            values[entry["key"]] = entry["value"]
    return values


def reasons(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Why LoadGen calls a run INVALID, in its words; nothing for one that is VALID."""
    if values["result_validity"] == "VALID":
        return ()
    missed = [sentence for key, sentence in _CONDITIONS.items() if not values.get(key, True)]
    said = [values["result_invalid_reason"], *values["error_runtime"]]
    if not values["early_stopping_met"]:
        said.append(values["early_stopping_result"])
    plain = (" ".join(re.sub(r"(^|\s)\*\s", " ", text).split()) for text in said)  # without the stars of its lists
    return (*missed, *filter(None, plain))


def predictions(folder: str | Path, dtype: str, shape: Sequence[int], count: int) -> np.ndarray:
    """What an accuracy run logged, [count, *shape] in the order of the examples.

    LoadGen writes the bytes of each answer as hexadecimal digits, in the order of the answers.

    Raises:
        ValueError: examples have no answer, or one of another size.
    """
    entries = json.loads((Path(folder) / ACCURACY).read_text(encoding="utf-8"))
    rows = {entry["qsl_idx"]: np.frombuffer(bytes.fromhex(entry["data"]), dtype) for entry in entries}
    return np.stack([rows[index].reshape(shape) for index in range(count)])
