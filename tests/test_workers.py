"""Workers that share a training: one answer, the first error in its own words, and none that outlives its task."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from secateur import distributed
from secateur.errors import InputError
from tasks import workers

COUNT = 2
SLEEP_S = 120.0
PATIENCE_S = 60.0


@dataclass(frozen=True)
class Asked:
    """What goes to the workers and comes back."""

    path: Path
    numbers: tuple[int, ...]


def add_up(asked: Asked) -> Asked | None:
    """The sum of every process's rank and number."""
    total = distributed.summed(torch.tensor([distributed.rank() + asked.numbers[0]]))
    return Asked(asked.path, (int(total), distributed.size())) if distributed.rank() == 0 else None


def fail(kind: str) -> None:
    """The last process fails; the first waits for it."""
    if distributed.rank() == COUNT - 1:
        if kind == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        errors = {"input": InputError("batch: expected 4, got 3"), "diverged": FloatingPointError("loss nan")}
        raise {**errors, "wire": ConnectionResetError("reset"), "bug": KeyError("gone")}[kind]
    distributed.summed(torch.zeros(1))


def sleep(folder: Path) -> None:
    """Say which process this is, then wait for long."""
    (folder / str(distributed.rank())).write_text(str(os.getpid()))
    time.sleep(SLEEP_S)


@pytest.mark.parametrize(("count", "total"), [(1, 7), (COUNT, 7 + 8)])
def test_arguments_and_the_first_processs_answer_keep_their_types(count: int, total: int, tmp_path: Path) -> None:
    assert workers.share(add_up, count, asked=Asked(tmp_path, (7,))) == Asked(tmp_path, (total, count))


slow = pytest.mark.slow  # a start of two processes that import torch takes seconds


@pytest.mark.parametrize(
    ("kind", "error", "sentence"),
    [
        ("input", InputError, "^batch: expected 4, got 3$"),
        ("killed", ChildProcessError, "expected 2 processes to train to the end, number 1 was ended by SIGKILL"),
        pytest.param("diverged", FloatingPointError, "^loss nan$", marks=slow),
        pytest.param("wire", ConnectionError, "^reset$", marks=slow),
        pytest.param("bug", RuntimeError, "^recovery: KeyError: 'gone'$", marks=slow),
    ],
)
def test_the_first_error_is_raised_as_it_was(kind: str, error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        workers.share(fail, COUNT, kind=kind)


TASK = "import sys, pathlib, test_workers as t; t.workers.share(t.sleep, t.COUNT, folder=pathlib.Path(sys.argv[1]))"


def test_a_machine_with_fewer_gpus_than_processes_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(workers, "_end_with_input", lambda: None)
    assert workers.main(tmp_path) == 1
    with pytest.raises(InputError, match=r"^processes: expected at most one for each of the 1 GPUs .*, got 2"):
        workers._raise_first(tmp_path, [1, 1])


@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=slow)])
def test_workers_end_with_their_task_however_it_ends(how: signal.Signals, tmp_path: Path) -> None:
    variables = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    task = subprocess.Popen([sys.executable, "-c", TASK, str(tmp_path)], env=variables)
    pids = [int(until_written(tmp_path / str(rank))) for rank in range(COUNT)]
    task.send_signal(how)
    task.wait()
    deadline = time.monotonic() + PATIENCE_S
    while any(map(runs, pids)):
        assert time.monotonic() < deadline, "a worker outlived its task"
        time.sleep(0.05)


def until_written(path: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.05)
    return path.read_text()


def runs(pid: int) -> bool:
    """Whether a process is there and is not only waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
