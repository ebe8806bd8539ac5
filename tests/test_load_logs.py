"""What LoadGen wrote is read as it says it."""

import json
from pathlib import Path

import numpy as np
import pytest

from secateur.load import logs

VALID = {"result_validity": "VALID", "early_stopping_met": True, "early_stopping_result": " * Run successful."}
SLOW = {
    "result_validity": "INVALID",
    "result_perf_constraints_met": False,
    "result_min_duration_met": True,
    "result_min_queries_met": True,
    "early_stopping_met": False,
    "result_invalid_reason": "Reduce target QPS to improve latency. ",
    "early_stopping_result": " * Run unsuccessful.  * Processed 116 queries.  * Would need to run at least 9 more queries.",
}


def write(folder: Path, entries: list[tuple[str, object]]) -> None:
    lines = [f":::MLLOG {json.dumps({'key': key, 'value': value, 'time_ms': 0.1})}" for key, value in entries]
    (folder / logs.DETAIL).write_text("\n".join(lines) + "\n")


def test_values_are_read_by_their_keys_and_every_error_is_kept(tmp_path: Path) -> None:
    write(
        tmp_path, [("sut_name", "PySUT"), ("error_runtime", "one"), ("result_query_count", 7), ("error_runtime", "two")]
    )
    values = logs.detail(tmp_path)
    assert (values["sut_name"], values["result_query_count"]) == ("PySUT", 7)
    assert values["error_runtime"] == ["one", "two"]


def test_a_valid_run_has_no_reasons() -> None:
    assert logs.reasons(VALID | {"error_runtime": []}) == ()


def test_the_reasons_of_an_invalid_run_are_its_unmet_conditions_and_what_loadgen_says_of_them() -> None:
    assert logs.reasons(SLOW | {"error_runtime": ["Ending early: Too many outstanding queries."]}) == (
        "performance constraints not satisfied",
        "early stopping not satisfied",
        "Reduce target QPS to improve latency.",
        "Ending early: Too many outstanding queries.",
        "Run unsuccessful. Processed 116 queries. Would need to run at least 9 more queries.",
    )


def test_logged_answers_come_back_in_the_order_of_the_examples(tmp_path: Path) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(3, 2)
    entries = [{"seq_id": n, "qsl_idx": i, "data": rows[i].tobytes().hex().upper()} for n, i in enumerate((2, 0, 1))]
    (tmp_path / logs.ACCURACY).write_text(json.dumps(entries))
    np.testing.assert_array_equal(logs.predictions(tmp_path, "<f4", (2,), 3), rows)


def test_an_example_without_an_answer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / logs.ACCURACY).write_text("[]")
    with pytest.raises(KeyError):
        logs.predictions(tmp_path, "<f4", (2,), 3)
