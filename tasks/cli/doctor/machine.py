"""This machine: has it room for the files of a run?"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from tasks.cli.doctor.finding import Finding
from tasks.workers import cache_folder

LEAST_BYTES = 2 << 30


def check() -> Iterator[Finding]:
    """Space where files of a run go, and memory; where steps run, run this there."""
    for use, folder in {"temporary files": Path(tempfile.gettempdir()), "the cache": cache_folder()}.items():
        there = next(path for path in (folder, *folder.parents) if path.is_dir())
        free = shutil.disk_usage(there).free
        if free < LEAST_BYTES:
            yield Finding(
                "warn",
                f"{free / 2**30:.1f} GiB are free for {use} in {there}; models, checkpoints and data go there",
                "make room, or let TMPDIR and XDG_CACHE_HOME lead elsewhere",
            )
    memory = psutil.virtual_memory().available
    if memory < LEAST_BYTES:
        yield Finding("warn", f"{memory / 2**30:.1f} GiB of memory are free here", "give steps more, or other machines")
