"""Changing what serves: alias, pointer and journal say the same in the end, wherever it was interrupted."""

import hashlib
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from services import BUCKET, registered_onnx

from secateur.errors import InputError
from tasks import bucket, champion, journal, registry
from tasks.references import Promotion

pytestmark = pytest.mark.usefixtures("services")

PARTS: list[tuple[ModuleType, str]] = [
    (bucket, "publish"),
    (bucket, "check_serves"),
    (registry, "set_champion"),
    (bucket, "point"),
    (journal, "append"),
]


def move(model: str, version: str, evidence: str = "evidence", first_from: str | None = None) -> Promotion:
    """Promote a version."""
    words = {"action": "promote", "reason": "because", "who": "test"}
    return champion.move(model, version, evidence=evidence, first_from=first_from, **words)


def serving(model: str) -> tuple[str | None, str | None, str | None]:
    """What the alias, the pointer and the head of the journal say."""
    pointer, written = bucket.pointer(registry.onnx_name(model)), journal.entries(model)
    return registry.champion(model), pointer and pointer["version"], written[-1].to_version if written else None


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
    assert move("moved", dense, "").previous == pruned
    assert serving("moved") == (dense, dense, dense)


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
    move("proven", pruned, "first proof", first_from=dense)
    move("proven", pruned, "second proof", first_from=dense)
    assert all(entry.from_version != entry.to_version for entry in journal.entries("proven"))
