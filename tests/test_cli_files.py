"""`secateur compare` as a user runs it: a table for each batch size, the same as JSON, targets as recipes write them."""

import json
import sys
from pathlib import Path

import models
import numpy as np
import pytest

from tasks.cli import app

SIDE = 64
KNOWN, INCONCLUSIVE = 0, 3  # exit status


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("linear")
    return [str(models.linear_onnx(folder / f"{name}.onnx", np.ones((SIDE, SIDE)))) for name in ("dense", "pruned")]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["secateur", "compare", *arguments])
    with pytest.raises(SystemExit) as ended:
        app.main()
    return ended.value.code


def test_each_batch_size_has_its_table(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *files, "--batches", "1,8", "--budget", "0.1", "--until", "10") == KNOWN
    shown = capsys.readouterr().out
    for part in ("batch 1", "batch 8", "peak memory", "pruned.onnx against dense.onnx, batch 8:"):
        assert part in shown


def test_a_target_with_a_name_is_the_recipe_s(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "target.yaml"
    target.write_text("{name: serving, batch: 2, batches: [4]}")
    options = ("--target", str(target), "--budget", "0.1", "--until", "1e-9", "--json")
    assert run(monkeypatch, *files, *options) == INCONCLUSIVE
    (at,) = json.loads(capsys.readouterr().out)
    assert at["batch"] == 2
    assert "asked was" in at["inconclusive"]


def test_batch_sizes_that_are_no_numbers_are_refused(
    files: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *files, "--batches", "1;8") == 1
    assert "batches: expected numbers by comma, such as 1,4,8, got '1;8'" in capsys.readouterr().err
