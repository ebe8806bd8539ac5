"""The machine and the software that a result was measured with, in words."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess

from secateur.machine import processor

PACKAGES = ("torch", "torch-pruning", "lightning", "transformers", "numpy")


def in_words() -> str:
    """One sentence."""
    return (
        f"{processor()}, {os.cpu_count()} cores, {os.environ.get('OMP_NUM_THREADS', 'all')} thread(s) for torch, "
        f"{platform.system()}, Python {platform.python_version()}"
    )


def versions() -> dict[str, str]:
    """Of the packages that a result depends on; what is not installed is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the code, with a plus where files differ from it; results that a run writes are no code."""
    at = _git("describe", "--always")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benchmarks/results")
    return f"{at or 'unknown'}{'+' if changed else ''}"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()  # noqa: S607 (git is where PATH says)
