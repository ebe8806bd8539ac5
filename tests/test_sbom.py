"""The bill of materials: everything that the lock file holds, and the same bytes every time."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
LINE = re.compile(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ ;]+)")


def bill(folder: Path) -> str:
    """What `make sbom` writes, by the environment of the tests."""
    stamp, output = folder / "installed", folder / "secateur.cdx.json"
    stamp.touch()  # younger than the lock file: nothing is installed
    variables = [f"VENV={sys.prefix}", f"STAMP={stamp}", f"SBOM={output}"]
    subprocess.run(["make", "-s", "sbom", *variables], cwd=REPOSITORY, check=True, timeout=120)
    return output.read_text()


@pytest.mark.slow
def test_it_lists_every_line_of_the_lock_file_and_nothing_of_the_moment(tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    first = bill(tmp_path)
    assert first == bill(tmp_path / "again")
    assert not {"serialNumber", "timestamp"} & set(json.loads(first)) | {"timestamp"} & set(
        json.loads(first)["metadata"]
    )
    locked = [line for line in (REPOSITORY / "requirements.lock").read_text().splitlines() if line.strip()]
    wanted = {LINE.match(line).groups() for line in locked}  # type: ignore[union-attr]
    assert len(wanted) == len(locked)
    assert {(part["name"], part["version"]) for part in json.loads(first)["components"]} == wanted
