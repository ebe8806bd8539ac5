"""`secateur env`: secrets of a deployment, written once."""

import stat
from pathlib import Path

import pytest

from secateur.errors import InputError
from tasks.cli import dotenv


def test_every_file_has_secrets_of_its_own_that_only_its_owner_reads(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    assert dotenv.write(one)
    assert dotenv.write(other)
    assert stat.S_IMODE(one.stat().st_mode) == 0o600
    secrets = [set(path.read_text().splitlines()) for path in (one, other)]
    shared = {line for line in secrets[0] & secrets[1] if not line.startswith("#")}
    assert shared == {"TORCH_INDEX="}


def test_a_file_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("MINE=1\n")
    assert not dotenv.write(path)
    assert path.read_text() == "MINE=1\n"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no folder"):
        dotenv.write(tmp_path / "nowhere" / ".env")
