"""Rolling back: an earlier version serves again, everywhere, and the journal says why."""

import json
from pathlib import Path

import pytest
from services import Servers, registered_onnx, using, write_onnx
from test_bucket import store
from test_champion import interrupted_after, move, quick, serving

from secateur.errors import InputError
from tasks import bucket, champion, journal, registry, rollback, tracking

__all__ = ["quick"]  # a fixture

pytestmark = pytest.mark.usefixtures("services")


def promoted(name: str) -> str:
    """A model whose version 1, the dense one, gave way to version 2."""
    dense, pruned = registered_onnx(name, 1.0), registered_onnx(name, 2.0)
    tracking.client().set_model_version_tag(registry.onnx_name(name), dense, registry.KIND, "dense")
    tracking.client().set_model_version_tag(registry.onnx_name(name), pruned, registry.DENSE, dense)
    move(name, pruned, first_from=dense)
    return name


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A promoted model that a test may roll back."""
    return promoted(f"rolled-{abs(hash(request.node.name))}")


@pytest.fixture(scope="module")
def resting(servers: Servers) -> str:
    """A promoted model that no test changes."""
    with using(servers):
        name = promoted("resting")
        registered_onnx(name, 3.0)  # never promoted
        return name


def back(model: str, to: str, reason: str = "it misbehaves", request: str = "") -> str:
    """Roll back; the version that serves then."""
    return rollback.run(model, to, reason, "a person", request).version


def test_the_dense_version_serves_again_right_after_the_first_promotion(model: str) -> None:
    assert back(model, "dense") == "1"
    assert serving(model) == ("1", "1", "1")
    entry = journal.entries(model)[-1]
    assert (entry.action, entry.from_version, entry.to_version) == ("rollback", "2", "1")
    assert (entry.who, entry.reason) == ("a person", "it misbehaves")


def test_previous_is_what_served_last_not_the_newest_number(model: str) -> None:
    assert back(model, "1") == "1"
    assert back(model, "previous") == "2"
    move(model, registered_onnx(model, 3.0))
    assert back(model, "previous") == "2"


def test_a_request_made_again_after_it_was_done_is_answered_and_not_turned_round(model: str) -> None:
    assert back(model, "previous", request="rollback_model run 1") == "1"
    assert back(model, "previous", request="rollback_model run 1") == "1"
    assert len(journal.entries(model)) == 2
    assert back(model, "2", request="rollback_model run 2") == "2"
    with pytest.raises(
        InputError, match=r"run 1 let version 1 serve in entry 2, and version 2 serves \(entry 3\) since"
    ):
        back(model, "previous", request="rollback_model run 1")


def test_a_version_whose_file_was_damaged_in_the_bucket_is_published_again_from_the_registry(model: str) -> None:
    store(f"{model}-onnx/1/model.onnx", b"damaged")
    assert back(model, "1") == "1"
    bucket.check_serves(registry.onnx_name(model), "1")


@pytest.mark.slow
def test_a_version_whose_file_is_damaged_everywhere_is_refused_and_nothing_moves(model: str, tmp_path: Path) -> None:
    damaged = tracking.put(journal.read(model).run_id or "", write_onnx(tmp_path / "other.onnx", 9.0), "damaged")
    tracking.client().set_model_version_tag(registry.onnx_name(model), "1", "secateur.file", damaged.uri)
    store(f"{model}-onnx/1/model.onnx", b"damaged")
    with pytest.raises(OSError, match=r"^rollback of .* to version 1: not done, .*expected SHA-256"):
        back(model, "1")
    assert serving(model) == ("2", "2", "2")
    assert len(journal.entries(model)) == 1


def test_a_version_whose_target_is_not_here_is_refused(model: str) -> None:
    target = json.dumps({"provider": "NoSuchProvider"})
    tracking.client().set_model_version_tag(registry.onnx_name(model), "1", registry.TARGET, target)
    with pytest.raises(InputError, match=r"^target.provider: expected one of .*, got NoSuchProvider"):
        back(model, "1")
    assert serving(model) == ("2", "2", "2")


@pytest.mark.parametrize(
    ("to", "reason", "sentence"),
    [
        ("7", "why", "version: expected one of 1, 2, 3 of .*-onnx, or latest, got '7'"),
        ("newest", "why", "version: expected one of 1, 2"),
        ("3", "why", "to: expected a version of .*-onnx that served before \\(2, 1\\), or dense; version 3 never did"),
        ("2", "why", "to: .*-onnx version 2 serves already"),
        ("1", " ", "reason: expected a sentence"),
        ("1", "two\nlines", "reason: expected one line of 1000 characters at most"),
        ("1", "\x1b[2Jgone", "reason: expected one line"),
        ("1", "x" * 1001, "reason: expected one line of 1000 characters at most, .* got 1001 characters"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(resting: str, to: str, reason: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        back(resting, to, reason)
    assert serving(resting) == ("2", "2", "2")
    assert len(journal.entries(resting)) == 1


def test_a_version_that_does_not_name_its_dense_one_is_refused(model: str) -> None:
    tracking.client().delete_model_version_tag(registry.onnx_name(model), "2", registry.DENSE)
    with pytest.raises(
        InputError, match=r"secateur\.dense what it was pruned from, version 2 does not; name a version"
    ):
        back(model, "dense")


def test_a_model_without_a_champion_is_refused() -> None:
    with pytest.raises(InputError, match="'unheard-of' has none; promote a version first"):
        back("unheard-of", "1")


def test_a_name_that_no_model_has_is_refused() -> None:
    with pytest.raises(InputError, match="model: expected a registered model's name"):
        back("../resting", "1")


@pytest.mark.usefixtures("quick")
def test_interrupted_and_run_again_with_the_same_words_it_ends_as_it_would_have(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted_after(bucket, "point", patch)
        with pytest.raises(KeyboardInterrupt):
            back(model, "previous")
    assert back(model, "previous") == "1", "ended, not turned round"
    assert serving(model) == ("1", "1", "1")
    assert [entry.to_version for entry in journal.entries(model)] == ["2", "1"]


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_what_another_process_ended_is_told_to_who_asks_with_the_same_words(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted_after(journal, "claim", patch)
        with pytest.raises(KeyboardInterrupt):
            back(model, "previous")
    champion.at_rest(model)
    assert back(model, "previous") == "1"
    assert [entry.to_version for entry in journal.entries(model)] == ["2", "1"]
    assert back(model, "previous", "a new wish") == "2"
