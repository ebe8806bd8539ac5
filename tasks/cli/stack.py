"""The local stack: `secateur up` starts Airflow, MLflow and an S3 endpoint on loopback, `secateur down` stops them.

Everything it knows lives in one folder (`.stack` in the repository): secrets, databases, artifacts, logs, and a record of
the processes it started. It is safe to repeat: what runs is left alone, what died is started again.
"""

import contextlib
import fcntl
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import httpx

from secateur.errors import InputError
from tasks.cli import airflow_api, pieces, processes
from tasks.cli.pieces import Piece, Stack
from tasks.cli.processes import Started
from tasks.cli.settings import REPOSITORY, state_folder
from tasks.placement import Placement

Say = Callable[[str], None]

_ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_HEALTHY_WITHIN = 240.0
_DAGS_WITHIN = 60.0
_LOG_TAIL_LINES = 20


class StackError(RuntimeError):
    """The stack could not be started; the message holds the end of the log that says why."""


class _GoneError(Exception):
    """A piece that ran when we looked does not any more: a large process takes a moment to die."""


@dataclass(frozen=True)
class Record:
    """What was started, by the name of the piece, and on which ports."""

    ports: Mapping[str, int]
    started: Mapping[str, Started]


def up(say: Say = print) -> None:
    """Start the stack, or what is missing of it, and wait until all of it serves."""
    folder = _prepare_folder()
    with _lock(folder):
        stack = None
        while stack is None:
            try:
                stack = _up(folder, say)
            except _GoneError as gone:
                say(f"{gone} has died meanwhile; looking again.")
        pieces.write_private(folder / "env.json", json.dumps(pieces.client_environment(stack), indent=2))
    _introduce(stack, say)


def down(say: Say = print) -> int:
    """Stop every process of the stack and nothing else; its data stays. Returns how many processes there were."""
    folder = state_folder()
    if not folder.is_dir():
        say("No stack was ever started here.")
        return 0
    with _lock(folder):
        count = processes.stop(folder)
        (folder / "processes.json").unlink(missing_ok=True)
        (folder / "env.json").unlink(missing_ok=True)
    say(f"The stack is stopped; its data stays in {folder}." if count else "The stack was not running.")
    return count


@contextlib.contextmanager
def running(say: Say = print) -> Iterator[None]:
    """The stack for the length of a `with` block; one that ran already is left running after it."""
    was_up = is_up()
    # Asked to end, by whatever signal: through the same door as Ctrl-C, so that the stack is stopped.
    before = {number: signal.signal(number, signal.default_int_handler) for number in _ENDINGS}
    try:
        up(say)
        yield
    finally:
        # A second one (make and the terminal each send theirs) would leave the stack half stopped.
        for number in _ENDINGS:
            signal.signal(number, signal.SIG_IGN)
        if not was_up:
            down(say)
        for number, handler in before.items():
            signal.signal(number, handler)


def is_up() -> bool:
    """True when any process that the stack started still runs."""
    folder = state_folder()
    return any(processes.alive(started, folder) for started in _read_record(folder).started.values())


def _prepare_folder() -> Path:
    if not (REPOSITORY / "dags").is_dir():
        raise InputError(
            f"The local stack runs from a clone of the repository: there is no folder `dags` in {REPOSITORY}."
        )
    folder = state_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    (folder / "logs").mkdir(exist_ok=True)
    return folder


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Two commands on one stack take turns."""
    with (folder / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _choose_ports(record: Record, running: set[str], say: Say) -> dict[str, int]:
    ports: dict[str, int] = {}
    for server, default in pieces.DEFAULT_PORTS.items():
        owner = "airflow-api-server" if server == "airflow" else server
        wanted = record.ports.get(server, default)
        # A killed server's threads may hold its port for a moment after it.
        patience = 3.0 if server in record.ports else 0.0
        ports[server] = wanted if owner in running else pieces.free_port(wanted, set(ports.values()), patience=patience)
        if ports[server] != wanted:
            say(f"Port {wanted} is taken by another program: {server} uses {ports[server]}.")
    return ports


def _up(folder: Path, say: Say) -> Stack:
    record = _read_record(folder)
    kept = {name: started for name, started in record.started.items() if processes.alive(started, folder)}
    # What a killed piece left behind (forked workers, running tasks) would hold its port and work beside its successor.
    processes.stop(folder, set(pieces.NAMES) - set(kept), grace=0.0)
    stack = Stack(folder, _choose_ports(record, set(kept), say), pieces.credentials(folder))
    if kept and stack.ports != record.ports:
        say("An address of the stack changes: its other parts start again, to learn of it.")
        processes.stop(folder)
        kept = {}
    _start_and_wait(stack, kept, say)
    return stack


def _start_and_wait(stack: Stack, kept: Mapping[str, Started], say: Say) -> None:
    missing = [piece for piece in pieces.pieces(stack) if piece.name not in kept]
    try:
        started = {**kept, **_start(stack, missing, kept, say)} if missing else kept
        _await_all(stack, started, missing, say)
        _prepare_airflow(stack, say)
    except BaseException:
        # A start that failed, or that Ctrl-C ended, leaves nothing behind; what ran before it goes on.
        processes.stop(stack.folder, {piece.name for piece in missing}, grace=3.0)
        raise
    if not missing:
        say("The stack is up already.")


def _start(stack: Stack, missing: list[Piece], kept: Mapping[str, Started], say: Say) -> dict[str, Started]:
    say(f"Starting {', '.join(piece.name for piece in missing)} (logs in {stack.folder / 'logs'}).")
    pieces.write_configuration(stack)
    started: dict[str, Started] = {}
    migrated = False
    # Those that wait for Airflow's database come last: the others start while it is made.
    for piece in sorted(missing, key=lambda piece: piece.needs_database):
        if piece.needs_database and not migrated:
            _migrate(stack, say)
            migrated = True
        log = _log(stack.folder, piece.name)
        log.unlink(missing_ok=True)
        started[piece.name] = processes.start(piece.argv, env=piece.env, log=log, folder=stack.folder, piece=piece.name)
        _write_record(stack.folder, Record(stack.ports, {**kept, **started}))
    return started


def _migrate(stack: Stack, say: Say) -> None:
    """Create or upgrade Airflow's database, once per version of Airflow."""
    stamp = stack.folder / "airflow" / "database-version"
    wanted = version("apache-airflow-core")
    if stamp.is_file() and stamp.read_text() == wanted and (stack.folder / "airflow" / "airflow.db").is_file():
        return
    log = _log(stack.folder, "airflow-database")
    begun = time.monotonic()
    argv = (sys.executable, "-m", "airflow", "db", "migrate")
    environment = pieces.airflow_environment(stack)
    if processes.run(argv, env=environment, log=log, folder=stack.folder, piece="airflow-database"):
        raise StackError(f"Airflow's database could not be created; the end of {log}:\n{_tail(log)}")
    stamp.write_text(wanted)
    say(f"  airflow's database is ready ({time.monotonic() - begun:.0f} s)")


def _await_all(stack: Stack, started: Mapping[str, Started], missing: list[Piece], say: Say) -> None:
    fresh = {piece.name for piece in missing}
    waiting = pieces.pieces(stack)
    begun = time.monotonic()
    while waiting:
        for piece in waiting:
            if not processes.alive(started[piece.name], stack.folder):
                raise (
                    StackError(_with_log(stack, piece, "stopped right after its start"))
                    if piece.name in fresh
                    else _GoneError(piece.name)
                )
        ready = [piece for piece in waiting if piece.ready(started[piece.name].created)]
        for piece in ready:
            if piece.name in fresh:
                say(f"  {piece.name} is ready ({time.monotonic() - begun:.0f} s)")
        waiting = [piece for piece in waiting if piece not in ready]
        if waiting and time.monotonic() - begun > _HEALTHY_WITHIN:
            raise StackError(
                _with_log(stack, waiting[0], f"is not ready after {_HEALTHY_WITHIN:.0f} s; try `make down` first")
            )
        if waiting:
            time.sleep(0.2)


def _with_log(stack: Stack, piece: Piece, what: str) -> str:
    log = _log(stack.folder, piece.name)
    return f"{piece.name} {what}; the end of {log}:\n{_tail(log)}"


def _prepare_airflow(stack: Stack, say: Say) -> None:
    credentials = {"username": pieces.USER, "password": stack.credentials.airflow_password}
    with airflow_api.open_client(stack.url("airflow"), credentials) as client:
        # One slot for measurements: two at once would measure each other.
        for name, description in Placement().pools.items():
            airflow_api.ensure_pool(client, name, slots=1, description=description)
        _await_dags(client, say)


def _await_dags(client: httpx.Client, say: Say) -> None:
    """Wait until Airflow has read the DAG files; say which of them it could not import."""
    deadline = time.monotonic() + _DAGS_WITHIN
    expected = len(list((REPOSITORY / "dags").glob("*.py")))
    errors: Mapping[str, str] = {}
    while len(airflow_api.dags(client)) + len(errors) < expected and time.monotonic() < deadline:
        time.sleep(0.3)
        errors = airflow_api.import_errors(client)
    for file, trace in errors.items():
        say(f"  Airflow cannot import {file}: {trace.strip().splitlines()[-1]}")


def _introduce(stack: Stack, say: Say) -> None:
    say(f"Airflow  {stack.url('airflow')}  (user {pieces.USER}, password {stack.credentials.airflow_password})")
    say(f"MLflow   {stack.url('mlflow')}")
    say(f"Server   {stack.url('serve')}/v2/models/...  (what was promoted, by the Open Inference Protocol)")
    say(f"S3       {stack.url('s3')}  (bucket {pieces.BUCKET}, keys in {stack.folder / 'env.json'})")


def _log(folder: Path, piece: str) -> Path:
    return folder / "logs" / f"{piece}.log"


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    return "\n".join(lines[-_LOG_TAIL_LINES:]) or "(empty)"


def _read_record(folder: Path) -> Record:
    try:
        kept = json.loads((folder / "processes.json").read_text())
        return Record(kept["ports"], {name: Started(**item) for name, item in kept["started"].items()})
    except (OSError, ValueError, KeyError, TypeError):
        # Never written, or cut short by a full disk: the marks in the processes still tell what is ours.
        return Record({}, {})


def _write_record(folder: Path, record: Record) -> None:
    pieces.write_private(folder / "processes.json", json.dumps(asdict(record), indent=2))
