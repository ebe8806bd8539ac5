"""The journal's copy in the bucket: one object per entry that has ended, beside the model's files, never written over."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from secateur.errors import InputError
from tasks import bucket, registry
from tasks.journal import Entry, Journal, written

_NAME = re.compile(r"(\d{6})\.json")


def keep(model: str, entry: Entry) -> None:
    """Copy an entry that has ended, once.

    Raises:
        InputError: a copy of that number is there and says something else.
    """
    place = _place(model, entry.number)
    there = bucket.read_json(*place)
    if there is None:
        bucket.write_json(_copy(entry), *place)
    elif there != _copy(entry):
        raise InputError(
            f"journal: expected the bucket's copy of entry {entry.number} to be that of MLflow, it is another; "
            f"`secateur history {model} --verify` shows what is wrong"
        )


def copies(model: str) -> dict[int, dict[str, Any]]:
    """Every copy by its number; what cannot be read is an empty one."""
    name = registry.onnx_name(model)
    numbers = [int(found[1]) for one in bucket.names(name, "journal") if (found := _NAME.fullmatch(one))]
    return {number: bucket.read_json(*_place(model, number)) or {} for number in numbers}


def findings(journal: Journal, there: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Where the copies differ from what MLflow holds. An entry that is not ended has no copy yet."""
    ended = {entry.number: _copy(entry) for entry in journal.entries if entry.outcome}
    missing = [f"entry {number} is not in the bucket" for number in ended if number not in there]
    other = [
        f"entry {number} is another in the bucket"
        for number in ended
        if number in there and there[number] != ended[number]
    ]
    surplus = [
        f"entry {number} is in the bucket, not in MLflow; was MLflow restored from an older backup?"
        for number in there
        if number > journal.length
    ]
    return missing + other + surplus


def mend(journal: Journal, there: Mapping[int, Mapping[str, Any]]) -> None:
    """Write every copy that is missing or another: what MLflow holds counts."""
    for entry in journal.entries:
        if entry.outcome and there.get(entry.number) != _copy(entry):
            bucket.write_json(_copy(entry), *_place(journal.model, entry.number))


def _copy(entry: Entry) -> dict[str, Any]:
    return {"entry": written(entry), "outcome": entry.outcome}


def _place(model: str, number: int) -> tuple[str, str, str]:
    return registry.onnx_name(model), "journal", f"{number:06d}.json"
