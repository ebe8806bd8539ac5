"""`secateur decode` as a shell sees it: programs in, a table or JSON out."""

import json
from io import StringIO
from pathlib import Path

import pytest
import torch
import zoo
from rich.console import Console
from typer.testing import CliRunner

from secateur import InputError
from secateur.decoding.speed import Figure, Pace, Report, Row
from tasks.cli import app as cli
from tasks.cli.decoders import Race, decode, told

FIGURE = Figure(1234.5, 1200, 1300)
PACE = Pace(Figure(8.25, 8, 8.5), Figure(0.5, 0.4, 0.6), FIGURE)


def printed(race: Race, seen: Report) -> str:
    console = Console(file=StringIO(), width=100)
    for part in told(race, seen):
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_table_has_every_figure_with_its_interval_and_the_cache() -> None:
    text = printed(Race(Path("model.pt2")), Report(128, 32, 384, None, (Row(4, PACE),)))
    for part in (
        "prompt of 128, 32 tokens after it",
        "8.25",
        "8 to 8.5",
        "1,234",
        "1,200 to 1,300",
        "384 bytes per token",
    ):
        assert part in text
    assert "speedup" not in text


def test_beside_a_dense_model_there_are_speedups_and_the_share_of_its_cache() -> None:
    row = Row(4, PACE, PACE, Figure(1.5, 1.4, 1.6), Figure(1.25, 1.2, 1.3))
    text = printed(Race(Path("half.pt2"), Path("dense.pt2")), Report(128, 32, 192, 384, (row,)))
    for part in ("half.pt2", "dense.pt2", "1.5x", "1.4 to 1.6", "1.25x", "384 in dense.pt2: 0.50 of it"):
        assert part in text


def test_batches_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(InputError, match=r"^batches: expected numbers by comma, such as 1,4,8, got '1;4'"):
        decode(Race(Path("model.pt2"), batches="1;4"), print)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_program_is_exported_and_timed(tmp_path: Path) -> None:
    path = tmp_path / "llama.pt2"
    torch.export.save(zoo.exported("llama"), path)
    arguments = ["decode", str(path), "--prompt", "6", "--tokens", "4", "--batches", "1", "--budget", "0.1", "--json"]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    seen = json.loads(result.stdout)
    assert seen["bytes_per_token"] == 2 * 2 * 2 * 12 * 4
    assert seen["rows"][0]["model"]["token_ms"]["value"] > 0
