"""`secateur doctor`: looks at a deployment end to end; what it would stumble over in the middle of a run is found at once.

A check is a function that yields findings; all of them run at the same time, each by itself.
"""

import threading
import time
from collections.abc import Iterator, Mapping

from secateur.errors import InputError
from tasks.cli.doctor import clocks, environment, exposure, machine, orchestration, queues, recipes, registry, storage
from tasks.cli.doctor.finding import Check, Finding, refused

WITHIN_S = 12.0
CHECKS: Mapping[str, Check] = {
    "environment": environment.check,
    "machine": machine.check,
    "MLflow": registry.check,
    "MLflow's database": registry.database,
    "bucket": storage.check,
    "Airflow": orchestration.check,
    "Airflow's database": orchestration.database,
    "queues": queues.check,
    "recipes": recipes.check,
    "recipes that models ask for": recipes.asked_for,
    "placement": recipes.placed,
    "clocks": clocks.check,
    "exposure": exposure.check,
}


def examine(checks: Mapping[str, Check] = CHECKS, within_s: float = WITHIN_S) -> Iterator[Finding]:
    """The findings of all checks, in their order, as each of them ends; one that fails or hangs keeps no other back."""
    end = time.monotonic() + within_s
    running: list[tuple[str, threading.Thread, list[Finding]]] = []
    for name, check in checks.items():
        found: list[Finding] = []
        # a daemon: one that hangs does not keep the command from ending
        thread = threading.Thread(target=_gather, args=(name, check, found), daemon=True)
        thread.start()
        running.append((name, thread, found))
    for name, thread, found in running:
        thread.join(max(end - time.monotonic(), 0.0))
        yield from list(found)
        if thread.is_alive():
            yield Finding("fail", f"{name}: no answer within {within_s:g} s", "see whether that server hangs")


def _gather(name: str, check: Check, found: list[Finding]) -> None:
    try:
        for finding in check():
            found.append(finding)
    except InputError as error:
        found.append(refused(error))
    except ImportError as error:
        where = "run it where steps run: on a worker, or as docs/deploying.md and docs/kubernetes.md say"
        found.append(Finding("warn", f"{name} cannot be checked here, {error.name or error} is not installed", where))
    except Exception as error:  # whatever it is, the other checks go on
        found.append(Finding("fail", f"{name} could not be checked", f"{type(error).__name__}: {_one_line(error)}"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
