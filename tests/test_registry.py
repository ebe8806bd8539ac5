"""The registry: versions found by number, ONNX files registered once per content, the champion's alias."""

from pathlib import Path

import pytest
from services import MODEL, registered_onnx, stored_onnx, versions_of, write_onnx

from secateur.errors import InputError
from tasks import registry, tracking
from tasks.journal import Entry

pytestmark = pytest.mark.usefixtures("services")


def made(name: str, versions: int) -> str:
    """A registered model with this many empty versions, made on first use."""
    client = tracking.client()
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
        run_id = tracking.find_or_create_run(tracking.experiment_of("files"), "nothing", "nothing", {})
        for _ in range(versions):
            client.create_model_version(name, f"runs:/{run_id}/nothing", run_id)
    return name


@pytest.fixture
def ten() -> str:
    """A registered model of ten versions."""
    return made("ten", 10)


def registered(model: str, shift: float) -> str:
    """Register an ONNX file that adds `shift`."""
    file = stored_onnx(shift)
    return registry.register_onnx(model, file.uri.split("/")[1], file, f"adds {shift}", {"kind": "test"})


def test_latest_is_the_highest_number_not_the_last_in_the_alphabet(ten: str) -> None:
    assert registry.number(ten, "latest") == "10"
    assert registry.number(ten, "9") == "9"
    assert registry.number(ten, " 07 ") == "7"


@pytest.mark.parametrize("version", ["11", "0", "-1", "1.5", "one", "", "²"])
def test_a_version_that_is_not_there_is_answered_with_those_that_are(ten: str, version: str) -> None:
    with pytest.raises(InputError, match=rf"version: expected one of 1, 2, .*10 of ten, or latest, got '{version}'"):
        registry.number(ten, version)


@pytest.mark.parametrize("name", ["", "a/b", "a:b", "x' OR name LIKE '%", "../up", "up\n", "modèle", "a" * 10_000])
def test_a_name_that_no_model_can_have_never_reaches_the_server(name: str) -> None:
    with pytest.raises(InputError, match="model: expected a registered model's name"):
        registry.number(name, "1")


def test_a_source_is_named_by_its_number_and_its_bytes(tiny: str) -> None:
    number, file = registry.source(tiny, "latest")
    assert (number, file.uri) == ("1", f"models:/{MODEL}/1/data/model.pt2")
    with tracking.fetched(file) as path:
        assert path.stat().st_size > 0


def test_a_content_is_registered_once_and_leads_back_to_its_file(tmp_path: Path) -> None:
    first, second = registered("once", 1.0), registered("once", 2.0)
    assert registered("once", 1.0) == first
    assert versions_of("once") == [first, second] == ["1", "2"]
    assert tracking.client().get_registered_model("once-onnx").tags[registry.SOURCE] == "once"
    with tracking.fetched(registry.onnx_file("once", second)) as path:
        assert path.read_bytes() == write_onnx(tmp_path / "same.onnx", 2.0).read_bytes()


def test_a_registered_version_is_an_onnx_model_that_mlflow_loads() -> None:
    import mlflow
    import numpy as np

    version = registered("loads", 4.0)
    answer = mlflow.pyfunc.load_model(f"models:/loads-onnx/{version}").predict(np.zeros((1, 2), np.float32))
    assert np.asarray(answer["y"]).tolist() == [[4.0, 4.0]]


def test_a_version_that_someone_else_registered_cannot_serve() -> None:
    made("foreign-onnx", 1)
    with pytest.raises(InputError, match="foreign-onnx version 1 was not registered by Secateur"):
        registry.onnx_file("foreign", "1")


def test_nothing_serves_before_the_alias_is_set() -> None:
    assert registry.champion("nobody-knows-it") is None
    version = registered_onnx("aliased", 5.0)
    assert registry.champion("aliased") is None
    registry.set_alias("aliased", registry.CHAMPION, version)
    assert registry.champion("aliased") == version
    registry.set_alias("aliased", registry.CHAMPION, None)
    assert registry.champion("aliased") is None


def test_a_model_whose_onnx_name_would_be_too_long_is_refused_before_it_is_pruned() -> None:
    with pytest.raises(InputError, match="model: expected a registered model's name"):
        registry.source("a" * 198, "1")


def test_of_a_content_that_two_registered_at_once_the_first_version_is_everybody_s() -> None:
    first = registered_onnx("at-once", 6.0)
    registered_onnx("at-once", 6.0)
    assert registered("at-once", 6.0) == first == "1"


def entry(number: int, before: str | None, to: str) -> Entry:
    """An entry of a journal."""
    words = {"who": "test", "action": "promote", "reason": "", "evidence": "", "request": "", "claimant": ""}
    return Entry(number=number, when="", from_version=before, to_version=to, previous="", digest="", **words)


def test_what_has_not_served_for_long_is_marked_never_deleted_and_loses_the_mark_when_it_serves_again() -> None:
    versions = [registered_onnx("retired", shift) for shift in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)]
    name = registry.onnx_name("retired")
    tracking.client().set_model_version_tag(name, "1", registry.KIND, "dense")
    registry.set_alias("retired", registry.CHALLENGER, "3")
    old = [entry(1, "1", "2"), entry(2, "2", "3"), entry(3, "3", "4")]
    recent = [entry(number, "4", "5") for number in range(4, 4 + registry.KEPT_ENTRIES - 1)]
    registry.archive("retired", [*old, *recent])
    assert archived(name) == ["2"], "1 is dense, 3 and 4 recent, 6 was never served"
    registry.archive("retired", [*old, *recent, *recent])
    assert archived(name) == ["2"], "4 is named by the last entries, 3 by an alias"
    registry.archive("retired", [*old, *recent, *recent, entry(40, "5", "2")])
    assert archived(name) == []
    assert versions_of("retired") == versions


def archived(name: str) -> list[str]:
    """The versions that bear the mark."""
    found = tracking.client().search_model_versions(f"name = '{name}'")
    return sorted(str(version.version) for version in found if registry.ARCHIVED in version.tags)
