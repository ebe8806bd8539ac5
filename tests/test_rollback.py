"""Rolling back: an earlier version serves again, everywhere, and the journal says why."""

import pytest
from services import Servers, registered_onnx, using
from test_champion import interrupted_after, move, serving

from secateur.errors import InputError
from tasks import bucket, journal, registry, rollback

pytestmark = pytest.mark.usefixtures("services")


def promoted(name: str) -> str:
    """A model whose version 1, the dense one, gave way to version 2."""
    dense, pruned = registered_onnx(name, 1.0), registered_onnx(name, 2.0)
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
        return promoted("resting")


def back(model: str, to: str, reason: str = "it misbehaves") -> str:
    """Roll back; the version that serves then."""
    return rollback.run(model, to, reason, "a person").version


def test_the_dense_version_serves_again_right_after_the_first_promotion(model: str) -> None:
    assert back(model, "1") == "1"
    assert serving(model) == ("1", "1", "1")
    entry = journal.entries(model)[-1]
    assert (entry.action, entry.from_version, entry.to_version) == ("rollback", "2", "1")
    assert (entry.who, entry.reason) == ("a person", "it misbehaves")


def test_previous_is_what_served_before(model: str) -> None:
    assert back(model, "previous") == "1"
    assert back(model, "previous") == "2"
    assert serving(model) == ("2", "2", "2")
    assert [entry.to_version for entry in journal.entries(model)] == ["2", "1", "2"]


def test_previous_is_what_served_before_also_when_the_same_file_was_promoted_again(model: str) -> None:
    move(model, "2", evidence="measured again")
    assert back(model, "previous") == "1"


@pytest.mark.parametrize(
    ("to", "reason", "sentence"),
    [
        ("7", "why", "version: expected one of 1, 2 of .*-onnx, or latest, got '7'"),
        ("dense", "why", "version: expected one of 1, 2"),
        ("2", "why", "to: .*-onnx version 2 serves already"),
        ("1", " ", "reason: expected a sentence"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(resting: str, to: str, reason: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        back(resting, to, reason)
    assert serving(resting) == ("2", "2", "2")
    assert len(journal.entries(resting)) == 1


def test_a_model_without_a_champion_is_refused() -> None:
    with pytest.raises(InputError, match="'unheard-of' has none; promote a version first"):
        back("unheard-of", "1")


def test_a_version_that_does_not_answer_never_serves(resting: str) -> None:
    broken = registered_onnx(resting, float("inf"))
    with pytest.raises(OSError, match="not finite"):
        back(resting, broken)
    assert serving(resting) == ("2", "2", "2")


@pytest.mark.parametrize(
    ("part", "to"),
    [("set_champion", "1"), ("point", "1"), ("append", "1"), ("point", "previous"), ("append", "previous")],
)
def test_interrupted_anywhere_and_run_again_it_ends_as_it_would_have(
    model: str, part: str, to: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = {"set_champion": registry, "append": journal}.get(part, bucket)
    with monkeypatch.context() as patch:
        interrupted_after(module, part, patch)
        with pytest.raises(KeyboardInterrupt):
            back(model, to)
    assert back(model, to) == "1"
    assert serving(model) == ("1", "1", "1")
    assert [entry.to_version for entry in journal.entries(model)] == ["2", "1"]
