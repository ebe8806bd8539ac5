"""Checkpoints: whole or not at all, the last two kept, never those of another run."""

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.checkpoints import in_folder, newest, pack, unpack
from secateur.errors import InputError

KEY, OTHER = "a" * 64, "b" * 64


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": {"w": torch.full((3,), float(step))}, "history": [{"loss": 0.5}]}


def test_what_was_packed_comes_back() -> None:
    back = unpack(KEY, newest([pack(KEY, state(7))]))
    assert back["step"] == 7
    assert torch.equal(back["weights"]["w"], torch.full((3,), 7.0))


def test_without_any_there_is_none() -> None:
    assert newest([]) == b""


def test_a_checkpoint_of_another_run_is_refused() -> None:
    with pytest.raises(InputError, match="belongs to another program, other data or other settings"):
        unpack(KEY, newest([pack(OTHER, state(1))]))


@pytest.mark.parametrize("damage", ["cut short", "flipped", "empty"])
def test_a_damaged_one_falls_back_to_the_one_before_and_says_so(damage: str, caplog: pytest.LogCaptureFixture) -> None:
    whole = pack(KEY, state(2))
    broken = {"cut short": whole[:-10], "flipped": whole[:-1] + bytes([whole[-1] ^ 1]), "empty": b""}[damage]
    with caplog.at_level(logging.WARNING):
        back = unpack(KEY, newest([broken, pack(KEY, state(1))]))
    assert back["step"] == 1
    assert "damaged" in caplog.text


def test_the_last_two_are_kept_the_newest_first(tmp_path: Path) -> None:
    checkpoint = in_folder(tmp_path / "run")
    for step in range(5):
        checkpoint.save(pack(KEY, state(step)))
    steps = [unpack(KEY, newest([stored]))["step"] for stored in checkpoint.load()]
    assert steps == [4, 3]
    assert len(list((tmp_path / "run").iterdir())) == 2


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = in_folder(tmp_path)
    checkpoint.save(pack(KEY, state(1)))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, caplog.at_level(logging.WARNING):
        patched.setattr(os, "fsync", full)
        checkpoint.save(pack(KEY, state(2)))
    assert "No space left" in caplog.text
    (stored,) = checkpoint.load()
    back = unpack(KEY, newest([stored]))
    assert back["step"] == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".ckpt"]
