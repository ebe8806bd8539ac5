"""Providers are tried, not believed: each on a tiny model."""

import signal
import sys
from pathlib import Path

import pytest
from test_runtime import AZURE, needs_azure

from secateur import InputError, probe
from secateur.probe import try_provider
from secateur.runtime import CPU


def test_the_provider_of_the_cpu_works_everywhere() -> None:
    try_provider(CPU)


def test_a_provider_that_is_not_installed_is_refused() -> None:
    with pytest.raises(InputError, match=r"^target.provider: expected one of .*, got NoProvider$"):
        try_provider("NoProvider")


@needs_azure
def test_a_provider_that_is_installed_and_leaves_the_work_to_the_cpu_is_refused() -> None:
    with pytest.raises(InputError, match=r"2 of 2 nodes fell back to the CPU \(MatMul, Relu\); choose another"):
        try_provider(AZURE)


def stand_in(tmp_path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script in the place of the fresh process, for providers that cannot be installed here."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(probe, "check_provider", lambda target: None)


def test_a_provider_that_kills_its_process_is_refused_and_kills_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, "kill -SEGV $$", monkeypatch)
    with pytest.raises(InputError, match=rf"Crashing ended the process that tried it \(status -{signal.SIGSEGV:d}\)"):
        try_provider("Crashing")


def test_the_library_that_a_provider_misses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = "[E:onnxruntime] Failed to load library libcuda_provider.so with error: libcublas.so.13: no such file"
    stand_in(tmp_path, f"echo '{logged}' >&2; echo 'target.provider: X fell back'; exit 1", monkeypatch)
    with pytest.raises(InputError, match=r"^target.provider: X fell back \(libcublas.so.13: no such file\)$"):
        try_provider("X")


def test_a_provider_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "exec sleep 60", monkeypatch)
    monkeypatch.setattr(probe, "PATIENCE_S", 0.2)
    with pytest.raises(InputError, match=r"expected Hanging to run a tiny model, it had not after 0.2 seconds"):
        try_provider("Hanging")
