"""FP16 files: half the weights, the same answers within half precision, zeros that stay zero, what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from test_quantization import answers, multiplies, vectors

from secateur import onnx_export
from secateur.errors import InputError
from secateur.half import halve
from secateur.runtime import Target

NEAR = 0.005  # of the largest output: 11 bits of significand through a few layers


@pytest.mark.parametrize(
    ("name", "columns"), [("residual", models.images(6)), ("encoder", models.tokens(6))], ids=["residual", "encoder"]
)
def test_weights_are_halved_and_answers_stay_near_in_float32(name: str, columns: np.ndarray, tmp_path: Path) -> None:
    onnx_export.export(models.exported(name), tmp_path / "float.onnx")
    made = halve(tmp_path / "float.onnx", tmp_path / "half.onnx", [columns], Target())
    assert made.weight_bytes < 0.6 * made.weight_bytes_before
    assert str(made) == f"FP16: weights of {made.weight_bytes:,} bytes, before {made.weight_bytes_before:,}"
    before, after = (answers(tmp_path / f"{kind}.onnx", columns) for kind in ("float", "half"))
    assert after.dtype == np.float32
    assert not np.array_equal(after, before)
    np.testing.assert_allclose(after, before, atol=NEAR * np.abs(before).max())
    onnx.checker.check_model(str(made.path), full_check=True)
    first = made.path.read_bytes()
    halve(tmp_path / "float.onnx", tmp_path / "half.onnx", [columns], Target())
    assert made.path.read_bytes() == first


def test_zeros_stay_zero_and_what_is_smaller_than_half_precision_holds_does_not_become_zero(tmp_path: Path) -> None:
    weight = vectors(5, 4)
    weight[1], weight[2] = 0.0, 1e-12
    halve(multiplies(tmp_path / "float.onnx", weight), tmp_path / "half.onnx", [vectors(3)], Target())
    stored = numpy_helper.to_array(onnx.load(tmp_path / "half.onnx").graph.initializer[0])
    assert stored.dtype == np.float16
    assert (stored[1] == 0).all()
    assert (stored[2] > 0).all()


@pytest.mark.parametrize(
    ("weight", "examples", "why"),
    [
        (
            vectors(5, 4).astype(np.float32) * 1e5,
            vectors(3),
            r"^model: expected weights up to 65504, which is all that half precision holds, got [\d.e+]+ in w; leave FP16 out$",
        ),
        (
            vectors(5, 4),
            vectors(3) * np.float32(np.nan),
            r"^inputs: expected finite examples, got NaN or infinity in x",
        ),
        (vectors(5, 4), vectors(3, 4), r"^model: expected CPUExecutionProvider to run float\.onnx on the examples"),
    ],
)
def test_what_half_precision_cannot_hold_or_does_not_fit_is_refused_and_nothing_is_written(
    weight: np.ndarray, examples: np.ndarray, why: str, tmp_path: Path
) -> None:
    path = multiplies(tmp_path / "float.onnx", weight)
    with pytest.raises(InputError, match=why):
        halve(path, tmp_path / "half.onnx", [examples], Target())
    assert not (tmp_path / "half.onnx").exists()


def test_a_file_that_is_in_half_precision_already_is_refused(tmp_path: Path) -> None:
    onnx_export.export(models.exported("residual"), tmp_path / "mixed.onnx")
    halve(tmp_path / "mixed.onnx", tmp_path / "mixed.onnx", [models.images(3)], Target())
    with pytest.raises(InputError, match="leave FP16 out"):
        halve(tmp_path / "mixed.onnx", tmp_path / "again.onnx", [models.images(3)], Target())
    halve(multiplies(tmp_path / "float.onnx", vectors(5, 4)), tmp_path / "half.onnx", [vectors(3)], Target())
    with pytest.raises(InputError, match=r"^model: expected float32 weights in half\.onnx, found none; leave FP16 out"):
        halve(tmp_path / "half.onnx", tmp_path / "again.onnx", [vectors(3)], Target())


def test_the_command_in_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    onnx_export.export(models.exported("residual"), tmp_path / "float.onnx")
    examples, output = tmp_path / "examples.npz", tmp_path / "other.onnx"
    np.savez(examples, inputs=models.images(6))
    command = [sys.executable, "-m", "tasks.cli.app", "halve", tmp_path / "float.onnx", output, "--inputs", examples]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONHASHSEED": "1"})
    assert done.returncode == 0, done.stderr
    made = halve(tmp_path / "float.onnx", tmp_path / "here.onnx", [models.images(6)], Target())
    assert done.stdout == f"{made}\nWritten: {output}\n"
    assert output.read_bytes() == made.path.read_bytes()
