"""`secateur inspect` and `secateur cut` as a shell sees them: files in, files and tables out, no server anywhere."""

import json
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from secateur import InputError, replay
from secateur import program as programs
from tasks.cli import app as cli
from tasks.cli.programs import Order, cut


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "encoder.pt2"
    torch.export.save(models.exported("encoder"), path)
    return path


def run(*arguments: object) -> str:
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(model: Path, output: Path, **order: object) -> str:
    with pytest.raises(InputError) as error:
        cut(model, output, Order(**order), None, print)  # type: ignore[arg-type]
    assert not output.exists()
    return str(error.value)


def test_inspect_prints_tables(model: Path) -> None:
    assert "kv_group" in run("inspect", model)


def test_inspect_prints_json_that_holds_the_same(model: Path) -> None:
    seen = json.loads(run("inspect", model, "--json"))
    assert {axis["kind"] for axis in seen["axes"] if axis["frozen"] is None} >= {"kv_group", "width", "embedding"}


def test_a_cut_file_is_smaller_and_runs(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.pt2"
    printed = run("cut", model, "--ratio", 0.5, "--kind", "kv_group,width", "-o", output)
    dense, small = (programs.load(path) for path in (model, output))
    assert count(small) < count(dense)
    assert "kv_group" in printed
    assert small.module(check_guards=False)(torch.from_numpy(models.tokens(3))).shape == (3, models.CLASSES)


def count(program: torch.export.ExportedProgram) -> int:
    return sum(parameter.numel() for _, parameter in program.named_parameters())


def test_the_lineage_in_the_file_replays_to_the_same_program(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.pt2"
    run("cut", model, "--parameters", 0.3, "--seed", 5, "--criterion", "random", "-o", output)
    lineage = programs.lineage(output)
    dense = programs.load(model)
    assert lineage["parent"] == lineage["origin"] == programs.digest(dense)
    (record,) = lineage["cuts"]
    assert (record["criterion"], record["seed"]) == ("random", 5)
    again, _ = replay(dense, record["kept"])
    assert programs.digest(again) == programs.digest(programs.load(output))


def test_layers_units_and_weights_go_in_one_command_and_each_leaves_its_record(tmp_path: Path) -> None:
    model, output = tmp_path / "residual.pt2", tmp_path / "out.pt2"
    torch.export.save(models.exported("residual"), model)
    run("cut", model, "--layers", 0.9, "--layer-kind", "block", "--ratio", 0.5, "--weights", 0.5, "-o", output)
    dropped, units, zeros = programs.lineage(output)["cuts"]
    assert len(dropped["dropped"]) == 1
    assert all(len(kept) < models.CHANNELS for kept in units["kept"].values())
    assert "0.5" in zeros["pattern"]
    stem = programs.load(output).state_dict["stem.weight"]
    assert (stem == 0).float().mean() == pytest.approx(0.5, abs=0.02)


def test_branches_and_widths_go_together_where_a_knapsack_weighs_them(tmp_path: Path) -> None:
    model, output = tmp_path / "layers.pt2", tmp_path / "out.pt2"
    torch.export.save(models.layers()[1], model)
    order = ("--parameters", 0.7, "--kind", "head,width,attention,mlp", "--allocation", "knapsack")
    printed = run("cut", model, *order, "-o", output)
    gone = [name for name, units in programs.lineage(output)["cuts"][0]["kept"].items() if not units]
    assert gone
    assert all(name in printed for name in gone)
    dense, small = (json.loads(run("inspect", path, "--json")) for path in (model, output))
    assert 1 - small["parameters"] / dense["parameters"] == pytest.approx(0.7, abs=0.02)
    assert len(dense["branches"]) - len(small["branches"]) >= len(gone)


def test_criteria_that_need_data_read_it_from_a_file(model: Path, tmp_path: Path) -> None:
    data, output = tmp_path / "data.npz", tmp_path / "out.pt2"
    np.savez(data, inputs=models.tokens(40), labels=np.arange(40) % models.CLASSES)
    run("cut", model, "--ratio", 0.5, "--kind", "width", "--criterion", "taylor", "--calibration", data, "-o", output)
    assert programs.lineage(output)["cuts"][0]["criterion"] == "taylor"


def test_curves_of_a_sensitivity_are_kept_beside_and_used_again(tmp_path: Path) -> None:
    model, data, curves = tmp_path / "residual.pt2", tmp_path / "data.npz", tmp_path / "curves.json"
    torch.export.save(models.exported("residual"), model)
    np.savez(data, inputs=models.images(12), labels=np.arange(12) % models.CLASSES)
    arguments = ("cut", model, "--macs", 0.4, "--allocation", "sensitivity", "--calibration", data, "--curves", curves)
    run(*arguments, "-o", tmp_path / "first.pt2")
    measured = curves.stat().st_mtime_ns
    run(*arguments, "-o", tmp_path / "second.pt2")
    assert curves.stat().st_mtime_ns == measured
    first, second = (programs.load(tmp_path / f"{name}.pt2") for name in ("first", "second"))
    assert programs.digest(first) == programs.digest(second)


def test_orders_that_contradict_themselves_are_refused(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.pt2"
    assert "at least one of --ratio" in refused(model, output)
    assert "ratio and macs" in refused(model, output, ratio=0.5, macs=0.5)
    assert "got both" in refused(model, output, weights=0.5, nm="2:4")
    assert "such as 2:4" in refused(model, output, nm="two of four")
    assert "ends in .pt2" in refused(model, tmp_path / "out.onnx", ratio=0.5)
    assert "create it first" in refused(model, tmp_path / "nowhere" / "out.pt2", ratio=0.5)


def test_the_dense_file_is_never_written_over(model: Path) -> None:
    before = model.read_bytes()
    with pytest.raises(InputError, match="another file than the model"):
        cut(model, model, Order(ratio=0.5), None, print)
    assert model.read_bytes() == before


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        run("inspect", tmp_path / "none.pt2")


@pytest.fixture
def lesson(model: Path, tmp_path: Path) -> list[str]:
    """What `secateur recover` is given: the dense program, and examples that it gets right."""
    tokens = models.tokens(400)
    with torch.no_grad():
        labels = models.exported("encoder").module(check_guards=False)(torch.from_numpy(tokens)).argmax(1)
    np.savez(tmp_path / "examples.npz", inputs=tokens, labels=labels.numpy())
    (tmp_path / "recovery.yaml").write_text("{batch: 32, learning_rate: 0.05}")
    given = {"--teacher": model, "--data": tmp_path / "examples.npz", "--settings": tmp_path / "recovery.yaml"}
    return [str(part) for pair in given.items() for part in pair]


def test_a_cut_program_is_recovered_and_what_was_kept_is_said(model: Path, lesson: list[str], tmp_path: Path) -> None:
    small, output = tmp_path / "small.pt2", tmp_path / "out.pt2"
    run("cut", model, "--ratio", 0.5, "--kind", "embedding", "-o", small)
    printed = run("recover", small, *lesson, "--epochs", 4, "-o", output)
    assert "epoch 4: loss" in printed
    assert "Training helped: validation accuracy was" in printed
    assert count(programs.load(output)) == count(programs.load(small))
    lineage = programs.lineage(output)
    assert lineage["epoch"] >= 1
    assert len(lineage["data"]) == 64
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_single_weights_that_were_cut_stay_zero(model: Path, lesson: list[str], tmp_path: Path) -> None:
    sparse, output = tmp_path / "sparse.pt2", tmp_path / "out.pt2"
    run("cut", model, "--weights", 0.5, "-o", sparse)
    run("recover", sparse, *lesson, "--epochs", 2, "-o", output)
    before, after = (programs.load(path).state_dict for path in (sparse, output))
    changed = [name for name, weight in before.items() if not torch.equal(weight, after[name])]
    assert changed
    for name, weight in before.items():
        if weight.dim() > 1 and bool((weight == 0).any()):
            assert torch.equal(weight == 0, after[name] == 0), name


def test_torchrun_shares_the_work_and_one_process_writes(model: Path, lesson: list[str], tmp_path: Path) -> None:
    small = tmp_path / "small.pt2"
    run("cut", model, "--ratio", 0.5, "--kind", "width", "-o", small)
    run("recover", small, *lesson, "--epochs", 2, "-o", tmp_path / "alone.pt2")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    order = ["recover", str(small), *lesson, "--epochs", "2", "-o", str(tmp_path / "two.pt2")]
    done = subprocess.run([*launch, "-m", "tasks.cli.app", *order], capture_output=True, text=True, check=True)
    assert done.stdout.count("Written:") == 1
    alone, two = (programs.load(tmp_path / name).state_dict for name in ("alone.pt2", "two.pt2"))
    for name, weight in alone.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-3, atol=1e-5)


def test_a_setting_of_recovery_that_does_not_exist_is_refused(model: Path, lesson: list[str], tmp_path: Path) -> None:
    (tmp_path / "recovery.yaml").write_text("{learning_rat: 0.05}")
    with pytest.raises(
        InputError, match=r"recovery\.yaml: learning_rat: unknown setting; known here: .*, learning_rate, "
    ):
        run("recover", model, *lesson, "-o", tmp_path / "out.pt2")
