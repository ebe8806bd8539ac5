"""`secateur serve`, `secateur log` and `secateur look`: what comes after a promotion, from the shell."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import InputError, NothingToDo
from tasks.cli import files
from tasks.cli.settings import export_settings

if TYPE_CHECKING:
    from tasks.monitoring.look import Look

TRITON = "triton"


@dataclass(frozen=True)
class Serve:
    """What is served, where, and how much of it is kept."""

    models: tuple[str, ...]
    host: str
    port: int
    target: Path | None
    parallel: int
    body_mb: float
    wait_s: float
    receive_s: float
    waiting: int
    log: bool
    sample: float
    drop: tuple[str, ...]
    flush_s: float
    poll_s: float
    tls_cert: Path | None = None
    tls_key: Path | None = None
    auth: bool = True


def serve(asked: Serve, say: Callable[[str], None]) -> None:
    """Serve until it is asked to end.

    Raises:
        InputError: a setting that cannot be.
    """
    from secateur.inference_log.writer import Settings
    from tasks import certificates
    from tasks.monitoring import observe
    from tasks.serving import main
    from tasks.serving.app import Limits

    for name in ("parallel", "waiting", "body_mb", "wait_s", "receive_s", "flush_s", "poll_s"):
        if getattr(asked, name) <= 0:
            raise InputError(f"--{name.replace('_', '-')}: expected more than 0, got {getattr(asked, name)}")
    certificate = certificates.own(asked.tls_cert, asked.tls_key)
    token = main.token_for(asked.host, os.environ.get(main.TOKEN, ""), asks=asked.auth)
    export_settings()
    limits = Limits(
        body_bytes=int(asked.body_mb * 1e6),
        receive_s=asked.receive_s,
        wait_s=asked.wait_s,
        waiting=asked.waiting,
        parallel=asked.parallel,
        poll_s=asked.poll_s,
    )
    settings = Settings(sample=asked.sample, drop=asked.drop, flush_s=asked.flush_s)
    root = observe.log_root() if asked.log else None
    target = files.target_from(asked.target)
    main.run(asked.models, asked.host, asked.port, target, limits, root, settings, say, certificate, token)


def look(model: str) -> Look:
    """Take one look from this process, of which nothing is kept; what would follow from it is only told.

    Raises:
        InputError: there is nothing to look at.
    """
    from tasks.monitoring import look

    export_settings()
    try:
        return look.run(model, keep=False)
    except NothingToDo as reason:
        raise InputError(str(reason)) from reason


def convert(source: Path, form: str, model: str, version: str, name: str) -> tuple[int, dict[str, int]]:
    """Bring what another server has kept into the inference log; how many requests, and what could not be used.

    Raises:
        InputError: no such form, or a file that is not of it.
    """
    from secateur.inference_log import converters, writer
    from tasks import registry, tracking
    from tasks.monitoring import observe

    if form not in (*converters.FORMATS, TRITON):
        raise InputError(f"--form: expected one of {', '.join((*converters.FORMATS, TRITON))}, got {form!r}")
    if not source.is_file():
        raise InputError(f"source: expected a file that another server wrote, there is none at {source}")
    export_settings()
    name_of_model = registry.onnx_name(model)
    text = source.read_text(encoding="utf-8", errors="replace")
    if form == TRITON:
        found = converters.triton(text, name_of_model, datetime.fromtimestamp(source.stat().st_mtime, UTC))
    else:
        found = converters.FORMATS[form](text.splitlines(), name_of_model, version, name)
    kept = writer.keep(observe.log_root(), found.records, f"{form}-{tracking.sha256_of(source)[:16]}")
    return kept, found.problems


def export(model: str, since: str, output: Path) -> int:
    """Write what a model was asked since a moment as an `.npz`, to calibrate with or to learn from; returns how many examples.

    Raises:
        InputError: no such moment, nothing was asked, or the inputs are not kept.
    """
    import numpy as np

    from secateur.inference_log import reader
    from tasks import registry
    from tasks.monitoring import observe

    try:
        begun = datetime.fromisoformat(since)
    except ValueError as error:
        raise InputError(f"--since: expected a moment such as 2026-01-31T23:00, got {since!r}") from error
    begun = begun if begun.tzinfo else begun.replace(tzinfo=UTC)
    export_settings()
    window = reader.read(observe.log_root(), registry.onnx_name(model), begun, datetime.now(UTC))
    columns = observe.columns_of(window.records)
    if not columns:
        raise InputError(f"model: expected requests of {model} with their inputs since {since}, the log has none")
    only = next(iter(columns.values())) if len(columns) == 1 else None
    np.savez_compressed(output, allow_pickle=False, **({"inputs": only} if only is not None else columns))
    return len(next(iter(columns.values())))


def told(looked: Look) -> Sequence[str]:
    """A look as lines."""
    lines = [looked.sentence, f"Every look before: {looked.page}"]
    if looked.ours:
        lines.append(f"`secateur rollback {looked.model} --to dense --reason ...` lets the dense model serve again.")
    return lines
