"""Celery, where Airflow runs its steps by it: is there a broker, and does a worker listen on every queue that steps go to?"""

import os
from collections.abc import Iterator

from secateur.errors import InputError
from tasks import placement
from tasks.cli.doctor import asking
from tasks.cli.doctor.finding import Finding

BROKER = "AIRFLOW__CELERY__BROKER_URL"
_TARGET = "target "
_ASKED_S = 2.0  # workers answer within


def check() -> Iterator[Finding]:
    """The queues of the placement, the broker, and through it the workers; nothing where another executor is."""
    if "CeleryExecutor" not in os.environ.get("AIRFLOW__CORE__EXECUTOR", ""):
        return
    yield from _shared()
    url = os.environ.get(BROKER)
    if not url:
        if not any(os.environ.get(BROKER + end) for end in ("_CMD", "_SECRET")):
            yield Finding(
                "fail",
                f"the executor is Celery's, and {BROKER} is not set",
                "set it to the broker's address, such as redis://:password@redis:6379/0, on every part of Airflow",
            )
        return
    from celery import Celery  # type: ignore[import-untyped]
    from kombu.exceptions import OperationalError

    shown = asking.shown(url)
    app = Celery(broker=url)
    try:
        with app.connection_for_read() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=asking.PATIENCE_S)
        answers = app.control.inspect(timeout=_ASKED_S).active_queues() or {}
    except (OperationalError, OSError, ValueError) as error:
        yield Finding(
            "fail",
            f"the broker at {shown} does not let us in ({type(error).__name__})",
            f"start it, or correct {BROKER}",
        )
        return
    yield Finding("ok", f"the broker at {shown} answers, and {len(answers)} workers through it")
    yield from _unheard({queue["name"] for queues in answers.values() for queue in queues})


def _unheard(heard: set[str]) -> Iterator[Finding]:
    """The queues that steps go to and no worker takes them from."""
    for queue, places in _wanted().items():
        if queue not in heard:
            yield Finding(
                "fail",
                f"no worker listens on queue {queue}, where steps of {', '.join(places)} go",
                f"start one: `airflow celery worker --queues {queue}`",
            )


def _shared() -> Iterator[Finding]:
    """The targets whose steps a worker of something else could take."""
    for queue, places in _wanted().items():
        for target in (place for place in places if place.startswith(_TARGET)):
            if others := [place for place in places if place != target]:
                yield Finding(
                    "fail",
                    f"{target} has no queue of its own: steps of {', '.join(others)} go to {queue} too, and its measurements "
                    "could be another device's",
                    f"name a queue for it alone in the file of {placement.VARIABLE}, and start its worker",
                )


def _wanted() -> dict[str, list[str]]:
    default = os.environ.get("AIRFLOW__OPERATORS__DEFAULT_QUEUE", "default")
    try:
        placed = placement.load()
    except InputError:  # another check says so
        return {default: ["every kind"]}
    places = {"control": placed.control, "train": placed.train, "bench": placed.bench}
    places |= {f"{_TARGET}{name}": place for name, place in placed.targets.items()}
    wanted: dict[str, list[str]] = {}
    for name, place in places.items():
        wanted.setdefault(place.queue or default, []).append(name)
    return wanted
