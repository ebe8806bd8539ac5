"""Reports as plain text: the same on a terminal, in a log and in a file."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

WIDTH = 120


def as_text(*tables: Table) -> str:
    """The tables that have rows, one below the other, without colours."""
    console = Console(width=WIDTH, color_system=None)
    with console.capture() as capture:
        for table in tables:
            if table.row_count:
                console.print(table)
    return capture.get()
