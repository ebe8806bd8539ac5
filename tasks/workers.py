"""A training of a step, shared by several processes of this machine that train as one (`recovery.processes`).

Each of them is `python -m tasks.workers FOLDER`; the folder holds the order as JSON, and later the answer or the first error.
They find each other through a file there and talk over loopback alone, so nothing listens that another machine could reach
(torchrun's meeting point would). A worker ends when its standard input does: whatever ends the task ends its workers.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter

from secateur.errors import InputError
from tasks.faults import is_io_fault

ORDER, ANSWER, ERROR = "order.json", "answer.json", "error.json"
LOOK_SECONDS = 0.1
END_SECONDS = 30
SENTENCES = (InputError, FloatingPointError)  # meant for the user as they are

T = TypeVar("T")


def cache_folder() -> Path:
    """Where a worker keeps what spares it work: nothing depends on it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "secateur"


def share(function: Callable[..., T | None], processes: int, **arguments: Any) -> T:
    """Call a module's function in so many processes, each within `secateur.distributed.joined`; the first one's answer.

    One process is this one. For several, arguments and answer travel as JSON, by the types of the function's signature.

    Raises:
        InputError, FloatingPointError: what the function raised, in its own words.
        OSError: a fault of the wire, or a worker that was killed; worth a retry.
        RuntimeError: anything else; the traceback is in the log.
    """
    if processes == 1:
        return typing.cast(T, function(**arguments))
    with tempfile.TemporaryDirectory(prefix="secateur-") as name:
        folder = Path(name)
        (folder / ORDER).write_text(json.dumps(order(function, arguments)), encoding="utf-8")
        codes = _run(folder, processes)
        _raise_first(folder, codes)
        return answered(function, json.loads((folder / ANSWER).read_text(encoding="utf-8")))


def order(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A call of a module's function, as JSON."""
    hints = typing.get_type_hints(function)
    given = {name: TypeAdapter(hints[name]).dump_python(value, mode="json") for name, value in arguments.items()}
    return {"module": function.__module__, "function": function.__name__, "arguments": given}


def carry_out(order: Mapping[str, Any]) -> Any:
    """Call what was ordered; its answer as JSON."""
    function = getattr(importlib.import_module(order["module"]), order["function"])
    hints = typing.get_type_hints(function)
    arguments = {name: TypeAdapter(hints[name]).validate_python(value) for name, value in order["arguments"].items()}
    return TypeAdapter(hints["return"]).dump_python(function(**arguments), mode="json")


def answered(function: Callable[..., T | None], plain: Any) -> T:
    """The answer of a function, from JSON."""
    return typing.cast(T, TypeAdapter(typing.get_type_hints(function)["return"]).validate_python(plain))


def _run(folder: Path, count: int) -> list[int | None]:
    """Start the workers and wait for all, or for the first that fails; their exit codes then, None of those still at work."""
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    common = {
        **{"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count))},
        **os.environ,
        **{"GLOO_SOCKET_IFNAME": loopback, "NCCL_SOCKET_IFNAME": loopback},
        **{"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "WORLD_SIZE": str(count)},
    }
    workers: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(count):
            variables = common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "tasks.workers", str(folder)]
            workers.append(subprocess.Popen(command, env=variables, stdin=subprocess.PIPE))
        while True:
            codes = [worker.poll() for worker in workers]
            if all(code == 0 for code in codes) or any(codes):
                return codes
            time.sleep(LOOK_SECONDS)
    finally:
        _end(workers)


def _end(workers: list[subprocess.Popen[bytes]]) -> None:
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.close()
    for worker in workers:
        try:
            worker.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def _raise_first(folder: Path, codes: list[int | None]) -> None:
    if not any(codes):
        return
    for rank, code in enumerate(codes):
        if code is not None and code < 0:  # the others only found their partner gone
            raise ChildProcessError(
                f"recovery.processes: expected {len(codes)} processes to train to the end, number {rank} was ended by "
                f"{signal.Signals(-code).name}; a retry goes on from the last checkpoint; if it was for memory, set "
                "recovery.accumulate or fewer processes"
            )
    if not (folder / ERROR).exists():
        raise RuntimeError(
            f"recovery.processes: expected {len(codes)} processes to train to the end, they ended with {codes} before they "
            "met; what they printed is in the log"
        )
    raise_told(json.loads((folder / ERROR).read_text(encoding="utf-8")))


def told(error: Exception) -> dict[str, Any]:
    """An error for another process, as JSON."""
    return {"kind": type(error).__name__, "message": str(error), "io": is_io_fault(error)}


def raise_told(error: Mapping[str, Any]) -> NoReturn:
    """Raise what another process told: in its own words what is meant for the user, as one of the wire what a retry may mend."""
    if error["io"]:
        raise ConnectionError(error["message"])
    for kind in SENTENCES:
        if error["kind"] == kind.__name__:
            raise kind(error["message"])
    raise RuntimeError(f"recovery: {error['kind']}: {error['message']}")


def main(folder: Path) -> int:
    """A worker's whole life; the exit status is 1 when anything was raised, here or in another worker first."""
    threading.Thread(target=_end_with_input, daemon=True).start()
    from secateur import distributed

    try:
        with distributed.joined(f"file://{folder}/group"):
            try:
                answer = carry_out(json.loads((folder / ORDER).read_text(encoding="utf-8")))
            except Exception as error:
                return _tell(folder, error)  # before the others find this process gone
            if distributed.rank() == 0:
                (folder / ANSWER).write_text(json.dumps(answer), encoding="utf-8")
    except InputError as error:  # it cannot take part
        return _tell(folder, error)
    return 0


def _end_with_input() -> None:
    os.read(0, 1)
    os._exit(1)


def _tell(folder: Path, error: Exception) -> int:
    """Leave an error for the task, if it is the first; the exit status."""
    beside = folder / f"{os.getpid()}.json"
    beside.write_text(json.dumps(told(error)), encoding="utf-8")
    try:
        os.link(beside, folder / ERROR)  # whole, and only once
    except FileExistsError:
        return 1
    if not isinstance(error, SENTENCES):
        traceback.print_exc()
    return 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
