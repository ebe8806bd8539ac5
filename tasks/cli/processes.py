"""Starts, recognises and stops the processes of the local stack, and never touches any other.

Every process started here carries two marks in its environment, and so do its own children: the state folder's path, and
the piece's name with a random word of that very start. The marks, and not a bare process id, are the proof of ownership:
ids are reused, and the time at which a process was created moves with the system's clock.
"""

import contextlib
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MARK = "SECATEUR_STACK"
PIECE_MARK = "SECATEUR_STACK_PIECE"
_MARKED_WITHIN = 5.0
_ROUNDS = 5


@dataclass(frozen=True)
class Started:
    """A started process: its id, when it was started (epoch seconds), and the mark of this start."""

    pid: int
    created: float
    mark: str


def start(argv: Sequence[str], *, env: Mapping[str, str], log: Path, folder: Path, piece: str) -> Started:
    """Start `argv` in a session of its own, its output appended to `log`, marked as `piece` of the stack in `folder`."""
    started = time.time()
    mark = f"{piece}:{secrets.token_hex(8)}"
    with log.open("ab") as sink:
        process = subprocess.Popen(
            list(argv),
            env=_marked(env, folder, mark),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    # For a moment after its start a process shows no environment yet.
    deadline = time.monotonic() + _MARKED_WITHIN
    while process.poll() is None and not _environment(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return Started(process.pid, started, mark)


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


def _marked(env: Mapping[str, str], folder: Path, mark: str) -> dict[str, str]:
    # setproctitle, which Airflow uses, would otherwise overwrite the memory in which the mark is read.
    return {**env, MARK: str(folder), PIECE_MARK: mark, "SPT_NOENV": "1"}


def alive(started: Started, folder: Path) -> bool:
    """True when the very process that was started still runs (a reused id or a zombie does not count)."""
    environment = _environment(started.pid)
    return environment.get(MARK) == str(folder) and environment.get(PIECE_MARK) == started.mark


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
        if not found:
            time.sleep(0.05)  # one that was just being started showed no mark yet
            found = owned(folder, names)
    return len(first)


def _is_ours(process: psutil.Process, folder: Path, names: Collection[str] | None) -> bool:
    environment = _environment(process.pid) if process.pid != os.getpid() else {}
    if environment.get(MARK) != str(folder):
        return False
    return names is None or environment.get(PIECE_MARK, "").partition(":")[0] in names


def _environment(pid: int) -> dict[str, str]:
    """The environment of a running process of ours; empty for a zombie, for somebody else's, and for none."""
    try:
        process = psutil.Process(pid)
        return dict(process.environ()) if _runs(process) else {}
    except (psutil.Error, OSError):
        return {}


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
