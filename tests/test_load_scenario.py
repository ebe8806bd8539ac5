"""LoadGen drives real files: each scenario is what it is called, its verdict is kept, its answers are the file's own."""

import sys
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from secateur.errors import InputError
from secateur.load import logs
from secateur.load.scenario import Arrivals, Cores, predictions, run
from secateur.runtime import Target, open_session, predict
from secateur.worker import allowed_cores

pytestmark = pytest.mark.alone

EXAMPLES = models.vectors(10)
LABELS = np.arange(len(EXAMPLES)) % models.CLASSES
SHORT = 0.2  # seconds
FIXED = 4  # batch of a file that takes no other
ROWS = 3  # of a table to look up in


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weight = np.random.default_rng(0).normal(size=(models.FEATURES, models.CLASSES))
    return models.linear_onnx(tmp_path_factory.mktemp("load") / "small.onnx", weight)


def directly(path: Path, batch: int = 1) -> np.ndarray:
    return np.concatenate(list(predict(open_session(path, Target()), [EXAMPLES], batch)))


def test_single_stream_is_one_request_after_another_and_its_logs_stay(small: Path, tmp_path: Path) -> None:
    seen = run(small, Target(), [EXAMPLES], "single_stream", tmp_path / "logs", seconds=SHORT, queries=1000)
    assert (seen.valid, seen.reasons) == (True, ())
    assert seen.p50_ms is not None
    assert seen.p90_ms is not None
    assert seen.p99_ms is not None
    assert 0 < seen.p50_ms <= seen.p90_ms <= seen.p99_ms
    assert seen.bound_ms is not None
    assert seen.bound_ms >= seen.p90_ms
    assert seen.queries >= seen.min_queries == 1000
    assert seen.min_seconds == SHORT
    assert seen.throughput < 1e3 / seen.computing_ms
    assert seen.counters.wall >= SHORT
    written = logs.detail(seen.folder)
    assert (written["effective_scenario"], written["qsl_reported_total_count"]) == ("SingleStream", len(EXAMPLES))


def test_a_run_too_short_for_a_verdict_is_invalid_in_loadgens_words(small: Path, tmp_path: Path) -> None:
    """MultiStream takes 662 queries of eight examples; of so few no percentile is known either."""
    seen = run(small, Target(), [EXAMPLES], "multi_stream", tmp_path, seconds=1e-3)
    assert not seen.valid
    assert seen.reasons[0] == "early stopping not satisfied"
    assert seen.reasons[1].endswith("Need to process at least 662 queries for early stopping.")
    assert (seen.p99_ms, seen.bound_ms) == (None, None)
    assert logs.detail(tmp_path)["effective_samples_per_query"] == 8


def test_offline_asks_everything_at_once_and_has_no_percentiles(small: Path, tmp_path: Path) -> None:
    seen = run(small, Target(batch=4), [EXAMPLES], "offline", tmp_path, seconds=SHORT)
    assert seen.queries == 1
    assert (seen.p50_ms, seen.p90_ms, seen.p99_ms) == (None, None, None)
    assert seen.throughput > 100


def test_server_keeps_a_rate_within_a_limit(small: Path, tmp_path: Path) -> None:
    seen = run(
        small,
        Target(),
        [EXAMPLES],
        "server",
        tmp_path,
        seconds=SHORT,
        queries=500,
        arrivals=Arrivals(1000, 500),
        seed=3,
    )
    assert (seen.valid, seen.reasons) == (True, ())
    assert seen.throughput == pytest.approx(1000, rel=0.3)
    written = logs.detail(tmp_path)
    assert written["effective_target_latency_ns"] == 500_000_000
    assert written["effective_schedule_rng_seed"] == 3


def test_a_rate_far_beyond_the_machine_ends_early_and_is_invalid(small: Path, tmp_path: Path) -> None:
    arrivals = Arrivals(1e6, 1)
    seen = run(small, Target(), [EXAMPLES], "server", tmp_path, seconds=SHORT, queries=1000, arrivals=arrivals)
    assert not seen.valid
    assert "performance constraints not satisfied" in seen.reasons
    assert any("Too many outstanding queries" in reason for reason in seen.reasons)


def test_what_the_accuracy_mode_logs_is_exactly_what_the_file_answers(small: Path, tmp_path: Path) -> None:
    made = predictions(small, Target(), [EXAMPLES], tmp_path)
    np.testing.assert_array_equal(made, directly(small))
    assert (made.argmax(1) == LABELS).mean() == (directly(small).argmax(1) == LABELS).mean()


def test_a_file_with_a_fixed_batch_answers_examples_that_do_not_fill_it(small: Path, tmp_path: Path) -> None:
    model = onnx.load(small)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = FIXED
    onnx.save(model, tmp_path / "fixed.onnx")
    made = predictions(tmp_path / "fixed.onnx", Target(batch=FIXED), [EXAMPLES], tmp_path / "logs")
    np.testing.assert_allclose(made, directly(small), rtol=1e-6)


def test_an_example_that_the_file_cannot_take_ends_the_run_with_what_the_runtime_says(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])],
        "lookup",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["batch"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 1])],
        [helper.make_tensor("table", TensorProto.FLOAT, [ROWS, 1], [0.0] * ROWS)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "lookup.onnx")
    with pytest.raises(InputError, match=r"^model lookup.onnx: .*out of data bounds"):
        predictions(tmp_path / "lookup.onnx", Target(), [np.array([0, 1, ROWS])], tmp_path / "logs")


def test_a_file_without_an_output_for_each_example_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        "total",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", models.FEATURES])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [])],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "total.onnx"
    )
    with pytest.raises(
        InputError, match=r"^model total.onnx: expected a first output with a row for each of 1 examples"
    ):
        run(tmp_path / "total.onnx", Target(), [EXAMPLES], "offline", tmp_path / "logs")


def test_a_file_whose_outputs_are_not_finite_is_refused(tmp_path: Path) -> None:
    path = models.linear_onnx(tmp_path / "broken.onnx", np.full((models.FEATURES, models.CLASSES), np.nan))
    with pytest.raises(InputError, match=r"^model broken.onnx: expected finite outputs, got NaN"):
        run(path, Target(), [EXAMPLES], "single_stream", tmp_path / "logs")


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"scenario": "offlin"}, r"^scenario: expected one of single_stream, .*, got offlin"),
        ({"scenario": "server"}, r"^arrivals: expected a rate and a limit for server and for nothing else, got None"),
        ({"arrivals": Arrivals(1, 1)}, r"^arrivals: expected .* for single_stream"),
        ({"scenario": "server", "arrivals": Arrivals(1, 0)}, r"^p99_ms: expected a number above 0, got 0"),
        ({"scenario": "server", "arrivals": Arrivals(-1, 1)}, r"^rate: expected a number above 0, got -1"),
        ({"seconds": float("nan")}, r"^seconds: expected a number above 0, got nan"),
        ({"queries": 1}, r"^queries: expected at least 2, got 1"),
        ({"parallel": 0}, r"^parallel: expected at least 1, got 0"),
        ({"target": Target(threads=0)}, r"^target.threads: expected at least 1, got 0"),
        ({"target": Target(batch=0)}, r"^target.batch: expected at least 1, got 0"),
        ({"parallel": 10**6}, r"^parallel: expected at most the \d+ cores that this process may use, got 1000000"),
        (
            {"columns": [EXAMPLES[:0]]},
            r"^inputs: expected the same number of examples of every input, at least one, got \[0\]",
        ),
        ({"path": Path("nowhere.onnx")}, r"^model: expected an ONNX file, got nowhere.onnx"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    changed: dict[str, object], sentence: str, small: Path, tmp_path: Path
) -> None:
    given: dict[str, object] = {"path": small, "target": Target(), "columns": [EXAMPLES], "scenario": "single_stream"}
    with pytest.raises(InputError, match=sentence):
        run(**(given | changed), folder=tmp_path)  # type: ignore[arg-type]


def test_without_loadgen_it_is_said_what_to_install(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    with pytest.raises(InputError, match=r"^loadgen: .* not installed; run `pip install mlcommons-loadgen`"):
        run(small, Target(), [EXAMPLES], "offline", tmp_path)


@pytest.mark.skipif(len(allowed_cores()) < 2, reason="one core")
def test_each_request_at_once_has_its_own_cores_and_loadgen_the_rest(small: Path, tmp_path: Path) -> None:
    first, second, *rest = allowed_cores()
    seen = run(small, Target(), [EXAMPLES], "offline", tmp_path, seconds=SHORT, parallel=2)
    assert seen.cores == Cores(((first,), (second,)), tuple(rest) or (first, second))
