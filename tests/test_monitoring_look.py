"""A look at what serves, on real servers: what the log holds decides, and what it does not hold is never healthy."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from services import MODEL, Job, Servers, examples

from secateur.errors import NothingToDo
from secateur.inference_log.schema import Label, Record
from secateur.inference_log.writer import keep
from tasks import bucket, registry, tracking
from tasks.monitoring import look, observe
from tasks.sections.monitor import Monitor

NAME = registry.onnx_name(MODEL)


class Traffic:
    """What a server would have logged: examples, answered by the version that serves."""

    def __init__(self, root: Path, job: Job) -> None:
        from secateur.runtime import Target, open_session

        self.root, self.number, self.version = str(root), 0, registry.champion(MODEL) or ""
        with tracking.fetched(registry.onnx_file(MODEL, self.version)) as path:
            self.session = open_session(path, Target())
        self.name = self.session.get_inputs()[0].name
        self.labels: list[tuple[str, int]] = []

    def serve(
        self, count: int, *, lost: float = 0.0, noise: float = 0.0, version: str = "", labelled: bool = False
    ) -> None:
        """Requests of one example; a share `lost` gets another answer than the file's."""
        self.number += 1
        rng = np.random.default_rng(self.number)
        inputs, labels = examples(100 + self.number)
        chosen = rng.integers(0, len(inputs), count)
        images = (inputs[chosen] + noise * rng.normal(size=inputs[chosen].shape)).astype(np.float32)
        logits = self.session.run(None, {self.name: images})[0]
        wrong = rng.random(count) < lost
        logits[wrong] = np.roll(logits[wrong], 1, axis=1)
        now = datetime.now(UTC)
        records = [
            Record(
                now,
                f"{self.number}-{i}",
                NAME,
                version or self.version,
                {self.name: images[i : i + 1]},
                {"logits": logits[i : i + 1]},
                0.01,
            )
            for i in range(count)
        ]
        keep(self.root, records, f"traffic-{self.number}")
        if labelled:
            truth = [Label(now, one.request_id, NAME, labels[chosen[i : i + 1]]) for i, one in enumerate(records)]
            keep_labels(self.root, truth, f"labels-{self.number}")


def keep_labels(root: str, labels: list[Label], name: str) -> None:
    from secateur.inference_log.schema import LABELS, as_labels, partition, place
    from secateur.inference_log.writer import write_file

    files, path = place(root)
    write_file(files, partition(path, LABELS, NAME, labels[0].time), f"{name}.parquet", as_labels(labels))


@pytest.fixture
def traffic(services: Servers, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Traffic:
    """A log of its own, read at once, and a journal entry of its own, so that looks begin anew."""
    assert job.promotion
    monkeypatch.setenv(observe.ROOT, str(tmp_path / "log"))
    monkeypatch.setattr(look, "SETTLES", timedelta())
    monkeypatch.setattr(look, "_entry", lambda model, version: None)
    monkeypatch.setattr(look, "_run", lambda *_: _run_of(tmp_path.name))
    return Traffic(tmp_path / "log", job)


def _run_of(name: str) -> str:
    return tracking.find_or_create_run(tracking.experiment_of(MODEL), f"look {name}", f"look {name}", {})


def test_clean_traffic_is_healthy_and_kept_in_mlflow(traffic: Traffic, tmp_path: Path) -> None:
    traffic.serve(200, labelled=True)
    first = look.run(MODEL)
    traffic.serve(200)
    second = look.run(MODEL)
    assert (first.outcome, second.outcome) == ("healthy", "healthy"), (first.reason, second.reason)
    assert (first.number, second.number) == (1, 2)
    run = tracking.client().get_run(_run_of(tmp_path.name))
    history = tracking.client().get_metric_history(run.info.run_id, "monitor.disagreement")
    assert [point.step for point in history] == [1, 2]
    assert run.data.metrics["monitor.requests"] == 200
    page = (tracking.get_bytes(run.info.run_id, look.PAGE) or b"").decode()
    assert "<svg" in page
    assert "<script" not in page
    assert bucket.read_json(NAME, "monitor.json")["outcome"] == "healthy"  # type: ignore[index]
    assert tracking.client().get_model_version(NAME, first.version).tags[look.HEALTH] == "healthy"


def test_what_only_the_pruned_model_loses_is_a_breach_of_ours(traffic: Traffic) -> None:
    traffic.serve(200, labelled=True)
    look.run(MODEL)
    for _ in range(5):
        traffic.serve(300, lost=0.5, labelled=True)
        found = look.run(MODEL)
        if found.outcome == "breach":
            break
    assert (found.outcome, found.cause) == ("breach", "ours"), found.reason
    assert found.ours
    assert found.changed
    assert found.policy == "automatic"
    stored = bucket._key(NAME, "drifted.npz")
    import boto3

    assert boto3.client("s3").head_object(Bucket=stored[0], Key=stored[1])["ContentLength"] > 0


def test_noise_that_hurts_both_is_not_ours(traffic: Traffic) -> None:
    for _ in range(4):
        traffic.serve(300, noise=2.0, labelled=True)
        found = look.run(MODEL)
    assert found.outcome in ("breach", "watch")
    assert "the data are no longer those of the test set" in found.reason
    if found.outcome == "breach":
        assert found.cause == "the world's", found.reason


def test_requests_that_are_not_the_models_are_counted_and_stop_no_look(traffic: Traffic) -> None:
    traffic.serve(60)
    good = np.zeros((1, 1, 4, 4), np.float32)
    inputs = [
        good[0],
        good[:, :, :3],
        good.astype(np.int64),
        np.full_like(good, np.nan),
        np.zeros((0, 1, 4, 4), np.float32),
    ]
    answer = {"logits": np.zeros((1, 3), np.float32)}
    bad = [
        Record(datetime.now(UTC), f"bad-{i}", NAME, traffic.version, {traffic.name: x}, answer, 1.0)
        for i, x in enumerate(inputs)
    ]
    flat = Record(datetime.now(UTC), "flat", NAME, traffic.version, {traffic.name: good}, {"y": np.zeros(1)}, 1.0)
    keep(traffic.root, [*bad, flat], "bad")
    found = look.run(MODEL)
    assert found.outcome == "healthy", found.reason
    assert "6 requests without the model's inputs or an output, or with other types" in found.reason


def test_answers_of_another_shape_than_the_dense_models_are_unknown_and_not_read_again(traffic: Traffic) -> None:
    inputs = {traffic.name: np.zeros((1, 1, 4, 4), np.float32)}
    answer = {"logits": np.zeros((1, 7), np.float32)}
    keep(
        traffic.root,
        [Record(datetime.now(UTC), f"o{i}", NAME, traffic.version, inputs, answer, 1.0) for i in range(50)],
        "odd",
    )
    found = look.run(MODEL)
    assert found.outcome == "unknown"
    assert "50 examples that the dense model does not answer alike" in found.reason
    traffic.serve(60)
    assert look.run(MODEL).outcome == "healthy"


def test_a_look_of_which_nothing_is_kept_changes_nothing(traffic: Traffic) -> None:
    traffic.serve(100)
    for _ in range(2):
        assert (look.run(MODEL, keep=False).number, look.run(MODEL, keep=False).outcome) == (1, "healthy")
    assert tracking.get_json(_run_of(Path(traffic.root).parent.name), look.STATE) is None
    assert look.run(MODEL).outcome == "healthy"
    assert look.run(MODEL).outcome == "unknown"


def test_no_log_is_unknown(traffic: Traffic) -> None:
    found = look.run(MODEL)
    assert found.outcome == "unknown"
    assert "nothing was observed" in found.reason


def test_what_is_left_out_is_said(traffic: Traffic) -> None:
    traffic.serve(60)
    traffic.serve(7, version="99")
    keep_labels(traffic.root, [Label(datetime.now(UTC), "nobody's", NAME, np.array([1]))], "unknown")
    reason = look.run(MODEL).reason
    assert f"7 requests that another version than {traffic.version} answered" in reason
    assert "1 labels of requests that are not in the log" in reason


def test_labels_that_come_later_find_their_requests(traffic: Traffic) -> None:
    traffic.serve(100)
    look.run(MODEL)
    _, labels = examples(101)
    chosen = np.random.default_rng(1).integers(0, len(labels), 100)
    late = [Label(datetime.now(UTC), f"1-{i}", NAME, labels[chosen[i : i + 1]]) for i in range(100)]
    keep_labels(traffic.root, late, "late")
    found = look.run(MODEL)
    state = tracking.get_json(_run_of(Path(traffic.root).parent.name), look.STATE)
    assert state["looks"][-1]["labels"] == 100
    accuracy = next(one for one in state["looks"][-1]["findings"] if one["name"] == "accuracy lost")
    assert accuracy["examples"] == 100, found.reason


def test_labels_of_this_looks_own_requests_are_told_from_those_of_earlier_ones(traffic: Traffic) -> None:
    began = datetime.now(UTC)
    traffic.serve(50)
    later = datetime.now(UTC)
    truth = [Label(datetime.now(UTC), f"1-{i}", NAME, np.array([0])) for i in range(50)]
    keep_labels(traffic.root, truth, "truth")
    dense, until = registry.dense(MODEL, traffic.version), datetime.now(UTC) + timedelta(seconds=1)
    for since, own in ((began, True), (later, False)):
        seen = observe.observe(MODEL, traffic.version, dense, since, until, None, Monitor(), 0).observed
        assert seen
        assert seen.labelled
        assert seen.labelled.own.tolist() == [own] * 50


def test_a_dense_version_that_is_gone_is_unknown_and_reads_the_same_hours_again(
    traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur.errors import InputError

    traffic.serve(100)

    def gone(model: str, version: str) -> str:
        raise InputError("version: the dense one is gone")

    with monkeypatch.context() as patch:
        patch.setattr(registry, "dense", gone)
        found = look.run(MODEL)
    assert found.outcome == "unknown"
    assert "the dense one is gone" in found.reason
    after = look.run(MODEL)
    assert after.outcome == "healthy", after.reason


def test_a_missing_reference_is_said_and_the_rest_is_judged(traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tracking.get_bytes
    monkeypatch.setattr(tracking, "get_bytes", lambda run, path: None if "reference" in path else real(run, path))
    traffic.serve(100)
    found = look.run(MODEL)
    assert "the reference of this version is missing" in found.reason
    monkeypatch.setattr(tracking, "get_bytes", lambda run, path: None if "npz" in path else real(run, path))
    found = look.run(MODEL)
    assert found.outcome == "unknown"
    assert "what the gate saw of this version is missing" in found.reason


def test_a_slice_may_lose_what_the_gate_allowed_it(traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tracking.get_json

    def with_slices(run: str, path: str) -> Any:
        said = real(run, path)
        return {**said, "gate": {"slices": {"drop": 0.07, "fewest": 2}}} if path == "recipe.json" and said else said

    monkeypatch.setattr(tracking, "get_json", with_slices)
    traffic.serve(100, labelled=True)
    look.run(MODEL)
    found = {
        one["name"]: one for one in real(_run_of(Path(traffic.root).parent.name), look.STATE)["looks"][-1]["findings"]
    }
    levels = [one["level"] for name, one in found.items() if name.startswith("slice label ") and one["examples"]]
    assert levels == pytest.approx([0.07] * len(np.unique(examples()[1])))


def test_the_policy_is_the_recipes_of_now(traffic: Traffic, services: Servers) -> None:
    path = Path(services["SECATEUR_RECIPES"]) / "tiny.yaml"
    before = path.read_text()
    try:
        path.write_text(yaml.safe_dump({**yaml.safe_load(before), "monitor": {"policy": "ask", "users": ["ada"]}}))
        traffic.serve(60)
        found = look.run(MODEL)
        assert (found.policy, found.users) == ("ask", ("ada",))
    finally:
        path.write_text(before)


def test_nothing_to_watch_where_the_dense_model_serves(
    services: Servers, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job.promotion
    dense = registry.dense(MODEL, job.promotion.version)
    monkeypatch.setattr(registry, "champion", lambda model: dense)
    with pytest.raises(NothingToDo, match="the dense model, serves"):
        look.run(MODEL)
    monkeypatch.setattr(registry, "champion", lambda model: None)
    with pytest.raises(NothingToDo, match="nothing serves"):
        look.run(MODEL)


def test_the_models_that_serve_are_listed(services: Servers, job: Job) -> None:
    assert job.promotion
    assert MODEL in look.models()
    assert NAME in bucket.serving()
