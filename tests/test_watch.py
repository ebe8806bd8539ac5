"""The watch: every version of a model that asks for it gets one run, in order, whatever is interrupted on the way."""

import asyncio
import importlib
import os
import re
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from services import LOOPBACK, free_ports

from secateur.errors import InputError
from tasks import tracking, watch
from tasks.watch import RECIPE, SEEN, Arrival

pytestmark = pytest.mark.usefixtures("services")

RUN_ID = re.compile(r"^[A-Za-z0-9_.~:+-]{1,250}$")  # what Airflow allows


@pytest.fixture
def register() -> Iterator[Callable[..., None]]:
    """Registers a number of empty versions of a model, made with these tags; nothing of them stays after the test."""
    client = tracking.client()
    run_id = tracking.find_or_create_run(tracking.experiment_of("files"), "nothing", "nothing", {})
    made: set[str] = set()

    def versions(model: str, count: int, **tags: str) -> None:
        if model not in made:
            client.create_registered_model(model, tags={f"secateur.{name}": value for name, value in tags.items()})
            made.add(model)
        for _ in range(count):
            client.create_model_version(model, f"runs:/{run_id}/nothing", run_id)

    yield versions
    for model in made:
        client.delete_registered_model(model)


@pytest.fixture
def runs() -> dict[str, Arrival]:
    """The runs that were started, as Airflow keeps them: one by id."""
    return {}


def starting(runs: dict[str, Arrival]) -> Callable[[Arrival], bool]:
    """Start a run as Airflow does: an id that is taken is refused."""

    def start(arrival: Arrival) -> bool:
        assert RUN_ID.match(arrival.run_id)
        return runs.setdefault(arrival.run_id, arrival) is arrival

    return start


def versions(runs: dict[str, Arrival]) -> list[tuple[str, int]]:
    """What was started, in its order."""
    return [(arrival.model, arrival.version) for arrival in runs.values()]


def tag(model: str, name: str) -> str | None:
    """A tag of a registered model."""
    return tracking.client().get_registered_model(model).tags.get(name)


def test_ten_versions_at_once_give_ten_runs_in_order_each_once(
    register: Callable[..., None], runs: dict[str, Arrival]
) -> None:
    register("flock", 0, recipe="digits")
    assert watch.pending() == []
    register("flock", 10)
    assert watch.run(starting(runs)) == list(runs)
    assert versions(runs) == [("flock", number) for number in range(1, 11)]
    assert {arrival.recipe for arrival in runs.values()} == {"digits"}
    assert watch.pending() == watch.run(starting(runs)) == []
    assert tag("flock", SEEN) == "10"


def test_a_model_with_a_history_begins_with_its_latest_version(
    register: Callable[..., None], runs: dict[str, Arrival]
) -> None:
    register("old", 3)
    assert watch.pending() == []
    tracking.client().set_registered_model_tag("old", RECIPE, "digits")
    assert [arrival.version for arrival in watch.pending()] == [3]
    register("old", 1)
    watch.run(starting(runs))
    assert versions(runs) == [("old", 3), ("old", 4)]


def test_the_whole_history_is_pruned_only_where_it_is_asked_for(
    register: Callable[..., None], runs: dict[str, Arrival]
) -> None:
    register("history", 0, recipe="digits", seen="0")
    register("history", 3)
    watch.run(starting(runs))
    assert versions(runs) == [("history", 1), ("history", 2), ("history", 3)]


@pytest.mark.parametrize("marked", [False, True], ids=["before its run is noted", "right after"])
def test_a_watch_killed_in_the_middle_loses_none_and_repeats_none(
    register: Callable[..., None], runs: dict[str, Arrival], marked: bool
) -> None:
    register("interrupted", 0, recipe="digits", seen="0")
    register("interrupted", 4)
    start = starting(runs)

    def killed(arrival: Arrival) -> bool:
        if arrival.version == 3 and marked:
            raise KeyboardInterrupt
        start(arrival)
        if arrival.version == 2 and not marked:
            raise KeyboardInterrupt
        return True

    with pytest.raises(KeyboardInterrupt):
        watch.run(killed)
    assert [run.partition("__2")[0] for run in watch.run(start)] == [
        "registry__interrupted__3",
        "registry__interrupted__4",
    ]
    assert versions(runs) == [("interrupted", number) for number in (1, 2, 3, 4)]


def test_models_take_turns_as_they_were_registered(register: Callable[..., None], runs: dict[str, Arrival]) -> None:
    for model in ("zebra", "ant"):
        register(model, 0, recipe="digits", seen="0")
    for model in ("zebra", "ant", "zebra"):
        register(model, 1)
        time.sleep(0.002)  # MLflow's clock has milliseconds
    watch.run(starting(runs))
    assert versions(runs) == [("zebra", 1), ("ant", 1), ("zebra", 2)]


def test_what_the_pipeline_made_is_not_pruned_again(register: Callable[..., None]) -> None:
    register("made-onnx", 0, recipe="digits", seen="0", source="made")
    register("made-onnx", 1)
    assert watch.pending() == []


def test_a_tag_that_names_no_recipe_is_said_once_and_holds_nobody_up(
    register: Callable[..., None], runs: dict[str, Arrival]
) -> None:
    register("mistaken", 0, recipe="Digits!", seen="0")
    register("o'hara", 0, recipe="digits", seen="0")
    register("fine", 0, recipe="digits", seen="0")
    for model in ("mistaken", "o'hara", "fine"):
        register(model, 1)
    with pytest.raises(InputError, match=r"mistaken version 1: expected the name of a recipe .* got 'Digits!'") as said:
        watch.run(starting(runs))
    assert "o'hara" in str(said.value)
    assert versions(runs) == [("fine", 1)]
    assert watch.pending() == []


def test_a_damaged_mark_begins_anew_with_the_latest(register: Callable[..., None]) -> None:
    register("damaged", 0, recipe="digits", seen="three")
    register("damaged", 2)
    assert [arrival.version for arrival in watch.pending()] == [2]
    assert tag("damaged", SEEN) == "1"


def test_a_model_that_is_deleted_and_made_again_is_another(
    register: Callable[..., None], runs: dict[str, Arrival]
) -> None:
    register("phoenix", 0, recipe="digits", seen="0")
    register("phoenix", 1)
    watch.run(starting(runs))
    client = tracking.client()
    client.delete_registered_model("phoenix")
    client.create_registered_model("phoenix", tags={RECIPE: "digits"})
    register("phoenix", 1)
    watch.run(starting(runs))
    assert versions(runs) == [("phoenix", 1), ("phoenix", 1)]


# --- the trigger


@pytest.fixture(scope="module")
def glue(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """The module with the trigger, with an Airflow home that is nobody's."""
    os.environ.setdefault("AIRFLOW_HOME", str(tmp_path_factory.mktemp("airflow")))
    return importlib.import_module("tasks.airflow_glue")


def made(glue: ModuleType, seconds: float) -> Any:
    """The trigger as the triggerer makes it."""
    path, options = glue.NewVersions(seconds).serialize()
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**options)


async def listen(trigger: Any, said: list[list[str]]) -> None:
    """Note what the trigger says, for ever."""
    async for event in trigger.run():
        said.append(event.payload)


async def rings(trigger: Any, enough: Callable[[list[list[str]]], bool], seconds: float) -> list[list[str]]:
    """What the trigger says until it is enough, or the time is over."""
    said: list[list[str]] = []
    listening, end = asyncio.create_task(listen(trigger, said)), time.monotonic() + seconds
    while not enough(said) and time.monotonic() < end:
        await asyncio.sleep(0.01)
    listening.cancel()
    return said


def test_the_trigger_rings_once_for_what_waits_and_again_when_it_still_does(
    glue: ModuleType, register: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    register("ringing", 0, recipe="digits", seen="0")
    register("ringing", 2)
    told = ["models:/ringing/1", "models:/ringing/2"]
    assert asyncio.run(rings(made(glue, 0.02), lambda said: len(said) > 1, 0.6)) == [told]
    monkeypatch.setattr(glue, "RING_AGAIN", 0.0)
    assert asyncio.run(rings(made(glue, 0.02), lambda said: len(said) > 1, 30)) == [told, told]


def test_while_the_registry_is_down_the_trigger_asks_ever_more_rarely_and_then_goes_on(
    glue: ModuleType, register: Callable[..., None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    register("patient", 0, recipe="digits", seen="0")
    register("patient", 1)
    uri = os.environ["MLFLOW_TRACKING_URI"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://{LOOPBACK}:{free_ports(1)[0]}")

    def failed() -> list[float]:
        return [record.created for record in caplog.records if "cannot be read" in record.message]

    def enough(said: list[list[str]]) -> bool:
        if len(failed()) == 3:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        return said != []

    assert asyncio.run(rings(made(glue, 0.05), enough, 30)) == [["models:/patient/1"]]
    first, second, third = failed()[:3]
    assert second - first >= 0.05
    assert third - second >= 0.1
