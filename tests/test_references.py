"""What steps hand on: read by this release as an older one wrote it."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import InputError
from tasks import references
from tasks.references import SCHEMA

# What a run of this schema's first release left in XCom and in MLflow: of each type the fields that it always had.
HANDED_ON = json.loads(Path(__file__).with_name(f"handed_on_{SCHEMA}.json").read_text())
KINDS = {name: kind for name, kind in vars(references).items() if dataclasses.is_dataclass(kind)}


@pytest.mark.parametrize("name", KINDS)
def test_what_the_first_release_of_this_schema_handed_on_is_read(name: str) -> None:
    found = references.read(KINDS[name], HANDED_ON[name], "handed")
    assert isinstance(found, KINDS[name])  # type: ignore[arg-type]


def test_nothing_is_kept_of_a_type_that_is_no_more() -> None:
    assert HANDED_ON.keys() == KINDS.keys()


def pinned(**changes: Any) -> dict[str, Any]:
    """What `resolve` of the first release handed on, but for `changes`."""
    return {**HANDED_ON["Pinned"], **changes}


@pytest.mark.parametrize(
    ("handed", "seen"),
    [
        ({name: value for name, value in pinned().items() if name != "metric"}, r"pinned\.metric: .* Field required"),
        (pinned(examples="many"), r"pinned\.examples: .* valid integer"),
        (pinned(schema=SCHEMA + 1), rf"pinned\.schema: expected at most {SCHEMA}, .* got {SCHEMA + 1}"),
        (pinned(recipe=pinned()["recipe"] | {"goals": {}}), r"pinned\.recipe\.goals: .* Extra inputs"),
    ],
    ids=["a value is missing", "another type", "a later schema", "another recipe"],
)
def test_what_cannot_be_read_says_where_to_clear_the_run_from(handed: dict[str, Any], seen: str) -> None:
    with pytest.raises(InputError, match=seen) as refused:
        references.read(references.Pinned, handed, "pinned")
    assert "clear it from its first step on, `resolve` in prune_model or `begin` in sweep_model" in str(refused.value)
    assert "\n" not in str(refused.value)
