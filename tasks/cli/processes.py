"""Starts, recognises and stops the processes of the local stack, and never touches any other.

Every process started here carries the state folder's path in its environment, and so do its own children. That mark, and
not a bare process id, is the proof of ownership: ids are reused, the environment of a running process is not.
"""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "SECATEUR_STACK"
PIECE_MARK = "SECATEUR_STACK_PIECE"
_SAME_START_SECONDS = 1.0
_ROUNDS = 5


@dataclass(frozen=True)
class Started:
    """A started process: its id and the time the system says it was created."""

    pid: int
    created: float


def start(argv: Sequence[str], *, env: Mapping[str, str], log: Path, folder: Path, piece: str) -> Started:
    """Start `argv` in a session of its own, its output appended to `log`, marked as `piece` of the stack in `folder`."""
    with log.open("ab") as sink:
        process = subprocess.Popen(
            list(argv),
            env=_marked(env, folder, piece),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:
        created = 0.0
    return Started(process.pid, created)


def run(argv: Sequence[str], *, env: Mapping[str, str], log: Path, folder: Path, piece: str) -> int:
    """Like `start`, but waits for the end and returns the exit status; an interrupted wait kills the process."""
    with log.open("ab") as sink:
        return subprocess.run(
            list(argv),
            env=_marked(env, folder, piece),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
        ).returncode


def _marked(env: Mapping[str, str], folder: Path, piece: str) -> dict[str, str]:
    # setproctitle, which Airflow uses, would otherwise overwrite the memory in which the mark is read.
    return {**env, MARK: str(folder), PIECE_MARK: piece, "SPT_NOENV": "1"}


def alive(started: Started, folder: Path) -> bool:
    """True when the very process that was started still runs (a reused id or a zombie does not count)."""
    try:
        process = psutil.Process(started.pid)
        same = abs(process.create_time() - started.created) < _SAME_START_SECONDS
        return same and _is_ours(process, folder, None)
    except psutil.Error:
        return False


def owned(folder: Path, names: Collection[str] | None = None) -> list[psutil.Process]:
    """Every running process of the stack in `folder` (of these pieces of it), orphans included."""
    return [process for process in psutil.process_iter() if _is_ours(process, folder, names)]


def stop(folder: Path, names: Collection[str] | None = None, *, grace: float = 8.0) -> int:
    """Stop the stack's processes (of these pieces of it): a request first, and after `grace` seconds by force.

    Returns how many there were. What was born while the others were stopping is found by looking again.
    """
    first = owned(folder, names)
    found = first
    for _ in range(_ROUNDS):
        if not found:
            break
        _terminate(found, grace)
        grace = 0.0
        found = owned(folder, names)
    return len(first)


def _is_ours(process: psutil.Process, folder: Path, names: Collection[str] | None) -> bool:
    try:
        environment = process.environ() if process.pid != os.getpid() and _runs(process) else {}
    except (psutil.Error, OSError):
        return False
    if environment.get(MARK) != str(folder):
        return False
    return names is None or environment.get(PIECE_MARK) in names


def _runs(process: psutil.Process) -> bool:
    """False for a zombie too: it runs no more, and where nobody reaps it, it stays for ever."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _terminate(processes: list[psutil.Process], grace: float) -> None:
    # The leaders first: each winds up its own children, and what it leaves is stopped after it.
    ours = {process.pid for process in processes}
    if grace:
        _signal([process for process in processes if _parent(process) not in ours], signal.SIGTERM)
        _wait(processes, grace)
    _signal([process for process in processes if _runs(process)], signal.SIGKILL)
    _wait(processes, 5.0)


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None


def _signal(processes: list[psutil.Process], number: int) -> None:
    for process in processes:
        # psutil compares the creation time before it sends, so a reused id is safe here too.
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)


def _wait(processes: list[psutil.Process], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(_runs(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.1)
