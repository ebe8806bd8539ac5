"""Changing what serves: alias, pointer and journal say the same in the end, wherever it was interrupted."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from services import BUCKET, Servers, registered_onnx

from secateur.errors import InputError
from tasks import bucket, champion, journal, mirror, registry
from tasks.references import Promotion

pytestmark = pytest.mark.usefixtures("services")

# Killed between the others, the whole promotion is tried in test_pipeline.py.
PARTS: list[tuple[ModuleType, str]] = [(bucket, "check_serves"), (registry, "archive"), (mirror, "keep")]


def move(model: str, version: str, request: str = "", **more: Any) -> Promotion:
    """Promote a version."""
    words = {"action": "promote", "reason": "because", "who": "test", "evidence": "evidence"}
    return champion.move(model, version, request=request or f"promote {version}", **{**words, **more})


def serving(model: str) -> tuple[str | None, str | None, str | None]:
    """What the alias, the pointer and the head of the journal say."""
    pointer, head = bucket.pointer(registry.onnx_name(model)), journal.read(model).head
    return registry.champion(model), pointer and pointer["version"], head.to_version if head else None


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is gone is not waited for long."""
    monkeypatch.setattr(champion, "LEASE_S", 0.2)
    monkeypatch.setattr(champion, "LOOK_S", 0.1)


def model_of(request: pytest.FixtureRequest) -> str:
    """A name of its own for a test."""
    return f"m-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]}"


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model of versions 1 and 2, the first of which serves."""
    name = model_of(request)
    move(name, registered_onnx(name, 1.0))
    registered_onnx(name, 2.0)
    return name


def interrupted_after(module: ModuleType, name: str, patch: pytest.MonkeyPatch) -> None:
    """From now on `module.name` does its work, and then the process would be gone."""
    work: Callable[..., Any] = getattr(module, name)

    def worked(*args: Any, **kwargs: Any) -> None:
        work(*args, **kwargs)
        raise KeyboardInterrupt

    patch.setattr(module, name, worked)


def test_alias_pointer_and_journal_move_together() -> None:
    dense, pruned = registered_onnx("moved", 1.0), registered_onnx("moved", 2.0)
    promotion = move("moved", pruned, first_from=dense)
    assert promotion == Promotion("moved", pruned, dense, f"s3://{BUCKET}/moved-onnx/{pruned}/model.onnx")
    assert serving("moved") == (pruned, pruned, pruned)
    (entry,) = journal.entries("moved")
    assert (entry.from_version, entry.to_version, entry.who, entry.reason) == (dense, pruned, "test", "because")
    assert move("moved", dense).previous == pruned
    assert serving("moved") == (dense, dense, dense)
    assert champion.findings(journal.read("moved")) == []


def test_the_pointer_names_the_file_that_the_alias_means() -> None:
    import boto3

    version = registered_onnx("pointed", 1.0)
    move("pointed", version)
    key = (bucket.pointer("pointed-onnx") or {"uri": ""})["uri"].removeprefix(f"s3://{BUCKET}/")
    served = boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()
    manifest = json.loads(
        boto3.client("s3").get_object(Bucket=BUCKET, Key=key.replace("model.onnx", "manifest.json"))["Body"].read()
    )
    assert hashlib.sha256(served).hexdigest() == manifest["sha256"] == registry.onnx_file("pointed", version).sha256


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("module", "name"), PARTS, ids=lambda value: getattr(value, "__name__", value))
def test_interrupted_anywhere_and_run_again_it_ends_as_it_would_have(
    module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = f"stopped-after-{name.replace('_', '-')}"
    first, second = registered_onnx(model, 1.0), registered_onnx(model, 2.0)
    with monkeypatch.context() as patch:
        interrupted_after(module, name, patch)
        with pytest.raises(KeyboardInterrupt):
            move(model, second, first_from=first)
    promotion = move(model, second, first_from=first)
    assert serving(model) == (second, second, second)
    (entry,) = journal.entries(model)
    assert (entry.from_version, entry.to_version) == (first, second)
    assert promotion.previous == first
    assert champion.findings(journal.read(model)) == []


@pytest.mark.usefixtures("quick")
def test_what_one_process_left_begun_another_s_change_ends_first(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupted_after(bucket, "point", patch)
        with pytest.raises(KeyboardInterrupt):
            move(model, "2")
    assert champion.findings(journal.read(model)), "it is begun and not ended"
    move(model, "1", "another")
    assert serving(model) == ("1", "1", "1")
    assert [entry.to_version for entry in journal.entries(model)] == ["1", "2", "1"]
    assert {entry.outcome for entry in journal.entries(model)} == {journal.DONE}


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_a_process_that_lost_its_entry_writes_nothing_more_and_tells_how_it_ended(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    point, set_alias, moved = bucket.point, registry.set_alias, []

    def taken_over_meanwhile(name: str, version: str) -> None:
        point(name, version)
        monkeypatch.setattr(bucket, "point", point)
        assert journal.take_over(journal.read(model), "somebody")

    def seen(name: str, alias: str, version: str | None) -> None:
        pending = journal.read(model).pending
        assert pending is not None
        moved.append(pending.holder)
        set_alias(name, alias, version)

    monkeypatch.setattr(bucket, "point", taken_over_meanwhile)
    monkeypatch.setattr(registry, "set_alias", seen)
    assert move(model, "2").version == "2"
    last = journal.entries(model)[-1]
    assert last.claimant not in [*moved, "somebody", last.holder]
    assert serving(model) == ("2", "2", "2")


@pytest.mark.slow
def test_what_cannot_be_done_is_undone_and_says_so(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    point = bucket.point

    def refused(name: str, version: str) -> None:
        point(name, version)
        if version == "2":
            raise OSError("no space left")

    monkeypatch.setattr(bucket, "point", refused)
    monkeypatch.setattr(champion, "FORWARD_S", 0.5)
    with pytest.raises(
        champion.ChangeError,
        match=r"version 2: not done, it was undone and version 1 serves \(entry 1\): no space left",
    ):
        move(model, "2")
    assert serving(model) == ("1", "1", "1")
    assert [entry.outcome for entry in journal.entries(model)] == [journal.DONE, journal.UNDONE]
    monkeypatch.setattr(bucket, "point", point)
    assert move(model, "2").previous == "1"
    assert champion.findings(journal.read(model)) == []


@pytest.mark.slow
def test_a_first_promotion_that_cannot_be_done_leaves_nothing_serving(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(request)
    registered_onnx(model, 1.0)
    archive = registry.archive
    monkeypatch.setattr(champion, "FORWARD_S", 0.5)

    def fails_once(*_: Any) -> None:
        raise OSError("down")

    def undoing(held: Any, version: str | None, outcome: str) -> Any:
        monkeypatch.setattr(registry, "archive", archive if outcome == journal.UNDONE else fails_once)
        return bring(held, version, outcome)

    bring = champion._bring
    monkeypatch.setattr(champion, "_bring", undoing)
    with pytest.raises(champion.ChangeError, match="not done, it was undone and nothing serves: down"):
        move(model, "1")
    assert serving(model) == (None, None, None)
    assert bucket.names(registry.onnx_name(model)) == []


def test_the_same_request_again_is_answered_and_after_something_else_refused(model: str) -> None:
    first = move(model, "2", "run 7")
    assert move(model, "2", "run 7") == first
    move(model, "1", "a person")
    with pytest.raises(
        InputError,
        match=r"^promote: run 7 let version 2 serve in entry 2, and version 1 serves \(entry 3\) since; .* --to 2",
    ):
        move(model, "2", "run 7")
    assert len(journal.entries(model)) == 3


@pytest.mark.slow
def test_a_choice_that_followed_from_what_served_is_refused_when_something_else_serves(model: str) -> None:
    chosen = champion.at_rest(model)
    registered_onnx(model, 3.0)
    move(model, "2")
    with pytest.raises(InputError, match=r"^to: version 3 followed from .*, meanwhile version 2 serves \(entry 2\)"):
        move(model, "3", chosen=chosen)


@pytest.mark.slow
@pytest.mark.parametrize("moved", ["alias", "pointer"])
def test_what_someone_moved_by_hand_is_said_and_refused_until_it_is_repaired(model: str, moved: str) -> None:
    move(model, "2")
    if moved == "alias":
        registry.set_alias(model, registry.CHAMPION, "1")
    else:
        bucket.point(registry.onnx_name(model), "1")
    says = {"alias": "the alias names 1, the pointer 2", "pointer": "the alias names 2, the pointer 1"}[moved]
    with pytest.raises(InputError, match=rf"version 2 serves \(entry 2\), {says}; see `secateur history .* --verify`"):
        move(model, "1", "back")
    assert len(journal.entries(model)) == 2
    assert champion.repair(model, "somebody clicked", "test").version == "2"
    assert serving(model) == ("2", "2", "2")
    assert [(e.action, e.reason) for e in journal.entries(model)][-1] == ("repair", "somebody clicked")
    assert move(model, "1", "back").previous == "2"


@pytest.mark.slow
def test_an_alias_that_points_nowhere_is_named_and_repaired_to_what_served_before(model: str, servers: Servers) -> None:
    move(model, "2")
    database = Path(servers["SECATEUR_RECIPES"]).with_name("mlflow.db")
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as store, store:
        store.execute("DELETE FROM model_version_tags WHERE name = ? AND version = 2", (registry.onnx_name(model),))
        store.execute("DELETE FROM model_versions WHERE name = ? AND version = 2", (registry.onnx_name(model),))
    sentence = rf"alias: expected champion of {model}-onnx to name a version that exists, it names 2, which is gone"
    with pytest.raises(InputError, match=sentence):
        registry.champion(model)
    with pytest.raises(InputError, match=sentence):
        move(model, "1")
    assert champion.repair(model, "version 2 was deleted", "test").version == "1"
    assert serving(model) == ("1", "1", "1")


@pytest.mark.slow
def test_an_alias_from_before_the_journal_is_adopted_by_a_repair(request: pytest.FixtureRequest) -> None:
    model = model_of(request)
    for shift in (1.0, 2.0):
        registered_onnx(model, shift)
    registry.set_alias(model, registry.CHAMPION, "1")
    with pytest.raises(InputError, match="the journal says that nothing serves, the alias names 1, the pointer none"):
        move(model, "2")
    champion.repair(model, "promoted by hand last year", "test")
    assert serving(model) == ("1", "1", "1")
    assert champion.findings(journal.read(model)) == []


def test_a_repair_of_what_is_whole_is_refused(model: str) -> None:
    with pytest.raises(InputError, match=r"nothing is wrong with the journal of .*, version 1 serves \(entry 1\)"):
        champion.repair(model, "to be sure", "test")


@pytest.mark.slow
def test_an_altered_copy_stops_the_next_change_and_a_repair_writes_it_again(model: str) -> None:
    place = registry.onnx_name(model), "journal", "000001.json"
    copy = bucket.read_json(*place)
    assert copy is not None
    bucket.write_json({**copy, "outcome": "undone"}, *place)
    with pytest.raises(InputError, match="the bucket's copy of entry 1 to be that of MLflow, it is another"):
        move(model, "2")
    champion.repair(model, "the bucket was restored", "test")
    assert bucket.read_json(*place) == copy
    assert move(model, "2").previous == "1"


@pytest.mark.slow
def test_what_an_older_backup_of_mlflow_lacks_comes_back_from_the_copies(model: str, servers: Servers) -> None:
    move(model, "2")
    before = journal.entries(model)
    database = Path(servers["SECATEUR_RECIPES"]).with_name("mlflow.db")
    with contextlib.closing(sqlite3.connect(database, timeout=30)) as store, store:
        store.execute("DELETE FROM params WHERE run_uuid = ? AND key LIKE '000002%'", (journal.read(model).run_id,))
    registry.set_alias(model, registry.CHAMPION, "1")
    assert [one for one in champion.findings(journal.read(model)) if "older backup" in one]
    assert champion.repair(model, "MLflow was restored from Monday's backup", "test").version == "2"
    assert journal.entries(model)[:2] == [replace(one, holder=one.claimant) for one in before]
    assert serving(model) == ("2", "2", "2")
    assert champion.findings(journal.read(model)) == []


@pytest.mark.parametrize(
    "name", ["", "../up", "a/b", "a\n", "a\nb", "modèle", "a b", "a'b", "-rf", "$(id)", "x" * 10_000], ids=repr
)
def test_a_name_that_could_leave_its_place_is_refused_in_a_short_sentence(name: str) -> None:
    for refuse in (lambda: move(name, "1"), lambda: champion.repair(name, "because", "test")):
        with pytest.raises(InputError, match=r"^model: expected a registered model's name") as refused:
            refuse()
        assert len(str(refused.value)) < 250
        assert "\n" not in str(refused.value)


def test_nothing_moves_to_a_file_that_does_not_answer() -> None:
    good, nan = registered_onnx("careful", 1.0), registered_onnx("careful", float("nan"))
    move("careful", good)
    with pytest.raises(OSError, match="not finite"):
        move("careful", nan)
    assert serving("careful") == (good, good, good)


def test_nothing_moves_to_a_version_that_does_not_exist() -> None:
    move("known", registered_onnx("known", 1.0))
    with pytest.raises(InputError, match="version: expected one of 1"):
        move("known", "2")
    assert serving("known") == ("1", "1", "1")


def test_what_serves_already_is_no_change_whatever_proves_it_again() -> None:
    dense, pruned = registered_onnx("proven", 1.0), registered_onnx("proven", 2.0)
    move("proven", pruned, "first run", first_from=dense)
    assert move("proven", pruned, "second run", first_from=dense).previous == dense
    assert len(journal.entries("proven")) == 1
