"""Checkpoints: whole or not at all, the last two kept, never those of another run."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.checkpoints import also, in_folder, newest, pack, unpack
from secateur.errors import InputError

KEY, OTHER = "a" * 64, "b" * 64


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": {"w": torch.full((3,), float(step))}, "history": [{"loss": 0.5}]}


def packed(step: int, key: str = KEY) -> bytes:
    return pack(key, step, state(step))


def test_what_was_packed_comes_back() -> None:
    back = unpack(KEY, newest([packed(7)]))
    assert back["step"] == 7
    assert torch.equal(back["weights"]["w"], torch.full((3,), 7.0))


def test_without_any_there_is_none() -> None:
    assert newest([]) == b""


def test_a_checkpoint_of_another_run_is_refused() -> None:
    with pytest.raises(InputError, match=r"^checkpoint: expected one of this program, these data and these settings"):
        unpack(KEY, newest([packed(1, OTHER)]))


@pytest.mark.parametrize("damage", ["cut short", "flipped", "empty"])
def test_a_damaged_one_falls_back_to_the_one_before_and_says_so(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    whole = packed(2)
    broken = {"cut short": whole[:-10], "flipped": whole[:-1] + bytes([whole[-1] ^ 1]), "empty": b""}[damage]
    with caplog.at_level(logging.WARNING):
        back = unpack(KEY, newest([broken, packed(1)]))
    assert back["step"] == 1
    assert "damaged" in caplog.text


def test_where_all_are_damaged_training_begins_again_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert newest([packed(2)[:-1], b""]) == b""
    assert "2 of 2 checkpoints damaged (checksum differs); none is whole, training begins again" in caplog.text


@pytest.mark.parametrize("steps", [(3, 12), (12, 3)])
def test_the_latest_step_is_gone_on_from_wherever_it_lies(steps: tuple[int, int]) -> None:
    assert unpack(KEY, newest(map(packed, steps)))["step"] == 12


@pytest.mark.parametrize(("seconds", "far_has"), [(0.0, [3, 2]), (1e9, [1])])
def test_the_far_place_is_written_at_its_own_interval(seconds: float, far_has: list[int], tmp_path: Path) -> None:
    near, far = in_folder(tmp_path / "near", 7.0), in_folder(tmp_path / "far", seconds)
    checkpoint = also(near, far)
    for step in (1, 2, 3):
        checkpoint.save(packed(step))
    assert [unpack(KEY, stored)["step"] for stored in far.load()] == far_has
    assert [unpack(KEY, stored)["step"] for stored in checkpoint.load()] == [3, 2, *far_has]
    assert checkpoint.seconds == near.seconds


def test_the_last_two_are_kept_the_newest_first(tmp_path: Path) -> None:
    checkpoint = in_folder(tmp_path / "run")
    for step in range(5):
        checkpoint.save(packed(step))
    steps = [unpack(KEY, newest([stored]))["step"] for stored in checkpoint.load()]
    assert steps == [4, 3]
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = in_folder(tmp_path)
    checkpoint.save(packed(1))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(os, "fsync", full)
        checkpoint.save(packed(2))
    assert "No space left" in caplog.text
    (stored,) = checkpoint.load()
    back = unpack(KEY, newest([stored]))
    assert back["step"] == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".ckpt"]
