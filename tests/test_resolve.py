"""Resolving: everything is pinned, and all bad input dies here, in seconds, with one sentence and without a trace."""

import io
import json
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from services import EXAMPLES, MODEL, SIDE, Servers, examples, free_ports, network, recipe_for, runs_since, write_recipe
from test_runtime import AZURE, needs_azure
from wire import wire

from secateur.errors import InputError
from tasks import recipe as recipes
from tasks import resolve, tracking
from tasks.references import SCHEMA

pytestmark = pytest.mark.usefixtures("services", "tiny")

LIMIT_S = 15
INPUTS, LABELS = examples()


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The good data, in a folder where a test may put bad ones."""
    path = tmp_path_factory.mktemp("data") / "good.npz"
    np.savez(path, inputs=INPUTS, labels=LABELS)
    return path


def refused(model: str, version: str, recipe: str, kind: type[Exception] = InputError) -> str:
    """The sentence with which `resolve` refuses, after it is seen to be quick and to leave no run behind."""
    started = time.time()
    with pytest.raises(kind) as caught:
        resolve.run(model, version, recipe, False, "bad input")
    assert time.time() - started < LIMIT_S
    assert runs_since(started) == []
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def refused_recipe(npz: Path, **changes: Any) -> str:
    """The sentence with which a recipe is refused that is good but for `changes`."""
    return refused(MODEL, "latest", write_recipe("bad", recipe_for(npz, **changes)))


def refused_data(npz: Path, **arrays: Any) -> str:
    """The sentence with which data are refused that hold these arrays."""
    path = npz.with_name("bad.npz")
    np.savez(path, **arrays)
    return refused_recipe(path)


def assert_names(sentence: str, *parts: str) -> None:
    """The sentence holds all of it."""
    for part in parts:
        assert part in sentence


# --- what is pinned


def test_the_latest_version_and_its_number_are_the_same_job() -> None:
    latest = resolve.run(MODEL, "latest", "tiny", False, "a")
    assert latest.version == "1"
    assert resolve.run(MODEL, "1", "tiny", False, "b").run_id == latest.run_id


def test_fresh_is_another_job_and_its_retry_the_same_one() -> None:
    usual = resolve.run(MODEL, "1", "tiny", False, "a")
    fresh = resolve.run(MODEL, "1", "tiny", True, "a")
    assert fresh.run_id != usual.run_id
    assert resolve.run(MODEL, "1", "tiny", True, "a") == fresh
    assert resolve.run(MODEL, "1", "tiny", True, "b").run_id != fresh.run_id


def test_another_setting_is_another_job(npz: Path) -> None:
    jobs = {
        resolve.run(MODEL, "1", write_recipe("changed", recipe_for(npz, **changes)), False, "a").run_id
        for changes in ({}, {"seed": 1}, {"goal": {"sparsity": 0.51}}, {"gate": {"speedup": 0.21}})
    }
    assert len(jobs) == 4


def test_other_data_under_the_same_path_are_another_job(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    name = write_recipe("moving", recipe_for(path))
    pinned = []
    for seed in (0, 1):
        inputs, labels = examples(seed)
        np.savez(path, inputs=inputs, labels=labels)
        pinned.append(resolve.run(MODEL, "1", name, False, "a"))
    assert pinned[0].data_digest != pinned[1].data_digest
    assert pinned[0].run_id != pinned[1].run_id


def test_the_parent_run_holds_the_whole_recipe_and_where_everything_came_from() -> None:
    pinned = resolve.run(MODEL, "latest", "tiny", False, "a")
    run = tracking.client().get_run(pinned.run_id)
    assert run.data.tags["secateur.source"] == f"models:/{MODEL}/1"
    assert run.data.tags["secateur.program"] == pinned.program_digest
    assert run.data.tags["secateur.schema"] == str(pinned.schema) == str(SCHEMA)
    assert run.data.params["model_version"] == "1"
    assert run.data.params["schema"] == str(recipes.SCHEMA)
    assert run.data.params["goal.sparsity"] == "0.5"
    assert run.data.params["gate.confidence"] == "0.95"  # a default
    stored = json.loads(Path(tracking.client().download_artifacts(pinned.run_id, "recipe.json")).read_text())
    wanted = recipes.load("tiny").model_dump(mode="json")
    assert "monitor" in wanted, "what is done after a promotion is no part of the job"
    assert stored == pinned.recipe == {name: part for name, part in wanted.items() if name != "monitor"}


def test_data_in_the_bucket_are_the_same_data(npz: Path) -> None:
    import boto3

    boto3.client("s3").upload_file(str(npz), "models", "data/good.npz")
    remote = resolve.run(MODEL, "1", write_recipe("remote", recipe_for("s3://models/data/good.npz")), False, "a")
    assert remote.data_digest == resolve.run(MODEL, "1", "tiny", False, "a").data_digest


def test_the_same_recipe_under_another_name_is_the_same_job() -> None:
    content = recipes.load("tiny").model_dump(mode="json")
    first = resolve.run(MODEL, "1", "tiny", False, "a")
    assert resolve.run(MODEL, "1", write_recipe("tiny-copy", content), False, "b").run_id == first.run_id


# --- model and version


def test_an_unknown_model_is_answered_with_the_known_ones(npz: Path) -> None:
    name = write_recipe("nobody", recipe_for(npz, model="nobody"))
    assert_names(
        refused("nobody", "latest", name), "model: expected a registered model", "'nobody'", "registered and readable: "
    )


def test_a_name_that_no_model_can_have_is_refused(npz: Path) -> None:
    name = "x' OR name LIKE '%"
    assert_names(refused(name, "1", write_recipe("odd", recipe_for(npz, model=name))), "model: expected", "got")


@pytest.mark.parametrize("version", ["7", "-1", "first", ""])
def test_an_unknown_version_is_answered_with_the_known_ones(version: str) -> None:
    assert_names(refused(MODEL, version, "tiny"), "version: expected one of 1 of tiny, or latest", f"got {version!r}")


def test_a_recipe_for_another_model_is_refused(npz: Path) -> None:
    name = write_recipe("other", recipe_for(npz, model="digits-cnn"))
    assert_names(refused(MODEL, "1", name), "recipe other", "'digits-cnn'", f"got model '{MODEL}'")


def register(model: str, example: np.ndarray | None, made: Any = None, **options: Any) -> str:
    """Log an untrained network, the usual one unless another is given, as a version of `model`."""
    import mlflow

    with mlflow.start_run(experiment_id=tracking.client().get_experiment_by_name("models of the tests").experiment_id):
        mlflow.pytorch.log_model(
            (made or network()).eval(),
            name="model",
            input_example=example,
            registered_model_name=model,
            pip_requirements=["torch"],
            **options,
        )
    return model


def test_a_pickled_version_is_refused_unread(npz: Path) -> None:
    model = register("pickled", None, serialization_format="pickle")
    sentence = refused(model, "1", write_recipe("pickled", recipe_for(npz, model=model)))
    assert_names(sentence, "version: expected pickled version 1 to hold data/model.pt2", "found", "pth", "pt2 format")


def test_a_fixed_batch_is_refused_with_the_way_out(npz: Path) -> None:
    model = register("static", INPUTS[:1])
    sentence = refused(model, "1", write_recipe("static", recipe_for(npz, model=model)))
    assert_names(sentence, "expected a dynamic batch dimension", "fixed at 1", "batch size two or more")


def test_a_version_of_another_flavour_is_refused(npz: Path) -> None:
    client = tracking.client()
    run = client.create_run(client.get_experiment_by_name("models of the tests").experiment_id)
    client.log_text(run.info.run_id, "no model", "kit/note.txt")
    client.create_registered_model("flat")
    client.create_model_version("flat", f"runs:/{run.info.run_id}/kit", run.info.run_id)
    sentence = refused("flat", "1", write_recipe("flat", recipe_for(npz, model="flat")))
    assert_names(sentence, "version: expected flat version 1 to hold data/model.pt2", "found nothing")


# --- recipe


@pytest.mark.parametrize("name", ["nowhere", "../tiny"])
def test_an_unknown_recipe_is_refused(name: str) -> None:
    assert_names(refused(MODEL, "1", name), "recipe: expected", f"got {name!r}")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"budgett": {"accuracy_drop": 0.1}}, ["budgett: unknown setting", "budget"]),
        ({"gate": {"speedupp": 2}}, ["gate.speedupp: unknown setting", "speedup"]),
        ({"goal": {"sparsity": 1.2}}, ["goal.sparsity", "less than 1", "1.2"]),
        ({"goal": {"sparsity": 0.5, "macs": 0.5}}, ["goal", "exactly one", "sparsity, macs"]),
        ({"prune": {"kinds": ["chanel"]}}, ["kinds: expected some of", "channel", "chanel"]),
        ({"prune": {"kinds": ["head"]}}, ["kinds: expected", "head", "the program has channel"]),
        ({"prune": {"criterion": "l3"}}, ["criterion: expected one of", "l2", "'l3'"]),
        ({"prune": {"method": "unstructured"}, "goal": {"speedup": 2}}, ["prune.method: unstructured", "buy disk"]),
        ({"prune": {"method": "depth"}}, ["kind: expected branches of kind block", "found none"]),
        (
            {"target": {"provider": "CPUExecutionProvidr"}},
            ["target.provider", "CPUExecutionProvider", "CPUExecutionProvidr"],
        ),
        ({"target": {"length": 3}}, ["target.length: expected inputs whose second dimension", "fixed at 1"]),
        ({"target": {"batch": EXAMPLES}}, ["target.batch", str(EXAMPLES)]),  # more than validation has
        ({"target": {"batches": [2, EXAMPLES]}}, ["target.batches", str(EXAMPLES)]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_an_impossible_setting_is_refused(npz: Path, changes: dict[str, Any], parts: list[str]) -> None:
    assert_names(refused_recipe(npz, **changes), *parts)


@needs_azure
def test_a_provider_that_does_not_work_here_is_refused(npz: Path) -> None:
    assert_names(
        refused_recipe(npz, target={"provider": AZURE}), f"target.provider: expected {AZURE} to run", "fell back"
    )


def test_a_penalty_that_finds_nothing_to_shrink_is_refused(npz: Path) -> None:
    from torch import nn

    model = register("normless", INPUTS[:2], nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.Linear(8, 3)))
    changes = {"prune": {"sparse_learning": {"method": "slimming"}}}
    sentence = refused(model, "1", write_recipe("normless", recipe_for(npz, model=model, **changes)))
    assert_names(sentence, "method slimming: 1:width has no batch norm with a scale", "another method")


# --- data


@pytest.mark.parametrize(
    ("arrays", "parts"),
    [
        (
            {"inputs": np.zeros((EXAMPLES, 1, SIDE + 1, SIDE + 1), np.float32), "labels": LABELS},
            ["expected examples of 1x4x4", "got 1x5x5"],
        ),
        ({"inputs": INPUTS.astype(np.float64), "labels": LABELS}, ["torch.float32", "got 1x4x4 (float64)"]),
        ({"inputs": INPUTS.astype(str), "labels": LABELS}, ["data: expected numbers", "float32"]),
        ({"inputs": INPUTS, "labels": LABELS + 1}, ["labels in 0..2", "got 1..3"]),
        ({"inputs": INPUTS, "labels": LABELS[:-1]}, ["one label for each input", "240 inputs and 239 labels"]),
        (
            {"inputs": INPUTS, "labels": LABELS[:, None]},
            ["expected labels [N], one class number", "(120, 1) in the train"],
        ),
        ({"inputs": INPUTS, "labels": LABELS + 0.5}, ["labels", "integer"]),
        ({"inputs": INPUTS}, ["data.path", "'inputs' and 'labels'", "labels is missing"]),
        ({"inputs": np.where(INPUTS > 1, np.nan, INPUTS), "labels": LABELS}, ["finite", "NaN"]),
    ],
    ids=[
        *("shape", "dtype", "text", "label-above", "lengths", "label-column", "label-fraction"),
        *("no-labels", "nan"),
    ],
)
def test_data_that_do_not_fit_are_refused(npz: Path, arrays: dict[str, np.ndarray], parts: list[str]) -> None:
    assert_names(refused_data(npz, **arrays), *parts)


def half_a_file(npz: Path) -> bytes:
    return npz.read_bytes()[: npz.stat().st_size // 2]


def a_bare_array(_: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, INPUTS)
    return buffer.getvalue()


@pytest.mark.parametrize("content", [lambda _: b"", half_a_file, a_bare_array], ids=["empty", "half", "npy"])
def test_a_file_that_is_no_npz_is_refused(npz: Path, content: Callable[[Path], bytes]) -> None:
    path = npz.with_name("broken.npz")
    path.write_bytes(content(npz))
    assert_names(refused_recipe(path), "data.path: expected", ".npz", "broken.npz")


def test_a_missing_file_is_named(npz: Path) -> None:
    assert_names(refused_recipe(npz.with_name("gone.npz")), "data.path", "gone.npz")


def test_a_missing_object_is_named() -> None:
    name = write_recipe("bad", recipe_for("s3://models/gone.npz"))
    assert_names(refused(MODEL, "1", name), "data.path", "s3://models/gone.npz")


# --- bucket


def test_a_bucket_that_could_not_be_promoted_to_is_named_before_anything_is_trained(
    services: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    with wire(services["AWS_ENDPOINT_URL_S3"]) as s3:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3.address)
        s3.become("read-only")
        assert_names(refused(MODEL, "latest", "tiny"), "s3://models", "s3:PutObject")


# --- registry


def test_a_registry_that_is_down_is_named_with_its_address(services: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    started = time.time()
    with pytest.raises(
        tracking.RegistryDownError,
        match=rf"MLFLOW_TRACKING_URI: expected an MLflow server at http://127.0.0.1:{port}, got",
    ):
        resolve.run(MODEL, "1", "tiny", False, "down")
    assert time.time() - started < LIMIT_S
    monkeypatch.setenv("MLFLOW_TRACKING_URI", services["MLFLOW_TRACKING_URI"])
    assert runs_since(started) == []


def test_a_registry_that_hangs_is_found_out_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{mute.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(tracking.RegistryDownError, match=re.compile("timed out", re.IGNORECASE)):
            resolve.run(MODEL, "1", "tiny", False, "mute")
        assert time.monotonic() - started < LIMIT_S
