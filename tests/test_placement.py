"""Where steps run: the installation's file of places, and what is refused in it."""

from pathlib import Path

import pytest
import yaml

from secateur.errors import InputError
from tasks import placement
from tasks.placement import HERE, VARIABLE

PLACES = {
    "train": {"queue": "train", "gpus": 1},
    "bench": {"queue": "bench"},
    "targets": {"edge-cpu": {"queue": "edge", "node_selector": {"kubernetes.io/arch": "arm64"}}},
}


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "placement.yaml"
    path.write_text(yaml.safe_dump(PLACES))
    monkeypatch.setenv(VARIABLE, str(path))
    return path


@pytest.mark.parametrize(
    ("step", "target", "queue", "pool"),
    [
        ("resolve", "edge-cpu", None, None),
        ("recover", "edge-cpu", "train", None),
        ("validate", "edge-cpu", "edge", "bench-edge-cpu"),
        ("validate_on", "edge-cpu", "edge", "bench-edge-cpu"),
        ("validate", None, "bench", "bench"),
        ("cut", "a name of no machine", "bench", "bench"),
    ],
)
def test_a_step_runs_where_its_kind_does_and_measures_on_the_target(
    places: Path, step: str, target: str | None, queue: str | None, pool: str | None
) -> None:
    found = placement.load()
    assert found.of(step, target).queue == queue
    assert found.pool_of(step, target) == pool


def test_every_device_has_a_pool_of_its_own(places: Path) -> None:
    assert set(placement.load().pools) == {"bench", "bench-edge-cpu"}


def test_without_a_file_nothing_is_placed_and_any_name_of_a_target_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert placement.load() == placement.Placement()
    assert not placement.check_target("edge-cpu")


def test_a_target_that_the_installation_does_not_have_is_refused(places: Path) -> None:
    assert placement.check_target("edge-cpu")
    assert not placement.check_target(None)
    with pytest.raises(
        InputError, match=r"^also_on.0.name: expected one of the targets .*, edge-cpu, got edge-gpu; add it"
    ):
        placement.check_target("edge-gpu", "also_on.0.name")


def test_a_changed_file_counts_at_once(places: Path) -> None:
    assert placement.load().targets
    places.write_text("bench: {queue: slow}\n")
    assert placement.load().bench.queue == "slow"
    assert not placement.load().targets


def test_a_device_measures_for_itself_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(HERE, raising=False)
    placement.check_here("edge-cpu")
    monkeypatch.setenv(HERE, "edge-cpu")
    placement.check_here("edge-cpu")
    for other in ("edge-gpu", None):
        with pytest.raises(InputError, match=r"^target.name: expected edge-cpu, the device of this worker"):
            placement.check_here(other)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("banch: {}", "banch: unknown setting; known here: control, train, bench, targets"),
        ("bench: {cpu: 1}", "bench.cpu: unknown setting"),
        ("bench: {cpus: 0}", "bench.cpus: input should be greater than 0, got 0"),
        ("targets: {Edge_1: {}}", "targets: a target's name must be of small letters"),
        ("bench: {tolerations: [{keys: x}]}", "unknown setting; known here: key, operator, value, effect"),
        ("- bench", "expected a mapping of settings, got list"),
        ("bench: [", "not valid YAML"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(places: Path, text: str, said: str) -> None:
    places.write_text(text)
    with pytest.raises(InputError, match=f"^{VARIABLE} .*placement.yaml") as error:
        placement.load()
    assert said in str(error.value)


def test_a_file_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match=r"expected a YAML file of places, got .*none.yaml.*; mend it"):
        placement.load()
