"""Token by token in the runtime: the files answer as the program does, and every figure has its interval."""

from pathlib import Path

import models
import numpy as np
import onnx
import pytest
import zoo
from onnx import numpy_helper

from secateur import InputError, Ratio, prune
from secateur.decoding import speed
from secateur.decoding.speed import Files, export, measure

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """A cache that grows, without any model around it."""
    path = models.growing_onnx(tmp_path / "growing.onnx")
    return Files(path, path, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), [("llama", "kv_group"), ("gpt2", "head"), ("qwen3", "kv_group")])
def test_the_files_of_a_cut_model_answer_as_its_program_does(name: str, kind: str, tmp_path: Path) -> None:
    pruned, _ = prune(zoo.exported(name), goal=Ratio(0.5), kinds=[kind])
    files = export(pruned, tmp_path, "model")  # proves itself equal to the program
    assert (files.prompt.is_file(), files.step.is_file()) == (True, True)


@pytest.mark.slow
def test_files_that_answer_otherwise_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(program: object, path: Path) -> None:
        exported(program, path)
        model = onnx.load(path)
        for weight in [one for one in model.graph.initializer if len(one.dims) == 2]:
            weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), weight.name))
        onnx.save(model, path)

    exported = speed.onnx_export.export
    monkeypatch.setattr(speed.onnx_export, "export", damaged)
    with pytest.raises(RuntimeError, match="other logits than the program"):
        export(zoo.exported("llama"), tmp_path, "model")


@pytest.mark.slow
def test_a_model_alone_has_figures_with_intervals(files: Files) -> None:
    seen = measure(files, None, prompt=6, tokens=4, batches=(1, 2), budget_s=0.1)
    assert [row.batch for row in seen.rows] == [1, 2]
    for row in seen.rows:
        for figure in (row.model.first_token_ms, row.model.token_ms, row.model.tokens_per_s):
            assert 0 < figure.low <= figure.value <= figure.high
        assert row.model.tokens_per_s.value == pytest.approx(row.batch / row.model.token_ms.value * 1e3)
        assert row.dense is row.token_speedup is None


@pytest.mark.slow
def test_two_models_are_timed_in_turns(files: Files) -> None:
    seen = measure(files, files, prompt=6, tokens=4, batches=(1,), budget_s=0.1)
    (row,) = seen.rows
    assert row.dense is not None
    assert row.token_speedup is not None
    assert 0 < row.token_speedup.low <= row.token_speedup.value <= row.token_speedup.high
    assert (seen.bytes_per_token, seen.dense_bytes_per_token) == (4, 4)


def test_more_positions_than_the_model_has_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "three.onnx"
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Shape", ["ids"], ["end"], start=1),
            onnx.helper.make_node("Gather", ["places", "end"], ["y"]),
        ],
        "three positions",
        [onnx.helper.make_tensor_value_info("ids", onnx.TensorProto.INT64, ["batch", "positions"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.zeros(4, np.float32), "places")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(
        InputError, match=r"^prompt: expected with the tokens after it at most the positions .* 4 and 1;"
    ):
        measure(Files(path, path, 4), None, prompt=4, tokens=1, batches=(1,))


def test_numbers_below_one_are_refused_before_anything_is_timed(files: Files) -> None:
    for name, setting in {"prompt": 0, "tokens": 0, "threads": 0, "batches": (1, 0)}.items():
        with pytest.raises(InputError, match=rf"^{name}: expected at least 1, got 0"):
            measure(files, None, **{name: setting})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^batches: expected at least one"):
        measure(files, None, batches=())
