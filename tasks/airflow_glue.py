"""Turns a plain step function into an Airflow task: the one module outside `dags/` that knows Airflow.

A step takes and returns small dataclasses. Between tasks they travel as plain JSON, so that a reader of the UI, of the
REST API or of another version of this code can read them without importing ours.
"""

import functools
import json
import logging
import typing
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from airflow.sdk import RetryPolicy, task
from airflow.sdk.definitions.retry_policy import RetryDecision
from airflow.sdk.exceptions import AirflowSkipException

from secateur.errors import NothingToDo
from tasks.faults import is_io_fault

log = logging.getLogger("secateur.step")

# What a registered model may be called, as a param's pattern: Python's $ alone would let a line break follow.
MODEL_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,194}$(?!\n)"

RETRIES = 3
FIRST_DELAY = timedelta(seconds=5)
LONGEST_DELAY = timedelta(minutes=2)
_LOGGED_CHARACTERS = 500


class StepRetries(RetryPolicy):
    """Retries with back-off what another try can mend, an I/O fault; anything else would only fail again, later.

    A killed process raises nothing and is not asked about here: Airflow retries it by the task's `retries`.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: object | None = None
    ) -> RetryDecision:
        """Decide by the kind of the exception and of those that it wraps."""
        del max_tries, context  # Airflow's signature
        sentence = f"{type(exception).__name__}: {exception}"
        if not is_io_fault(exception):
            return RetryDecision.fail(reason=f"not retried, the next try would end the same: {sentence}")
        return RetryDecision.retry(delay=delay_before(try_number + 1), reason=sentence)


def delay_before(attempt: int) -> timedelta:
    """The pause before try number `attempt` (2, 3, ...): 5 s, doubling each time."""
    return min(FIRST_DELAY * 2 ** (attempt - 2), LONGEST_DELAY)


def step(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Make an Airflow task of `function`, named after its module (`tasks.baseline` becomes `baseline`).

    What it gets from other tasks is checked and turned into the types of its signature; a task that was skipped gives
    None. What it returns travels as plain JSON. `NothingToDo` skips the task. `options` are Airflow's own.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return call(function, *args, **kwargs)

    settings: dict[str, Any] = {
        "task_id": function.__module__.rpartition(".")[2],
        "doc_md": function.__doc__,
        "multiple_outputs": False,
        "show_return_value_in_logs": False,  # `call` logs it, in one line of bounded length
        "retries": RETRIES,
        "retry_delay": FIRST_DELAY,
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": LONGEST_DELAY,
        "retry_policy": StepRetries(),
    }
    return typing.cast(Callable[..., Any], task(**{**settings, **options})(run))


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a step with values from XCom; return what goes into XCom."""
    import inspect

    from pydantic import TypeAdapter

    hints = typing.get_type_hints(function)
    bound = inspect.signature(function).bind(*args, **kwargs)
    given = {name: TypeAdapter(hints[name]).validate_python(value) for name, value in bound.arguments.items()}
    try:
        result = function(**given)
    except NothingToDo as reason:
        log.info("Skipped: %s", reason)
        raise AirflowSkipException(str(reason)) from None
    plain = TypeAdapter(hints["return"]).dump_python(result, mode="json")
    log.info("Result: %s", _one_line(plain))
    return plain


def _one_line(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LOGGED_CHARACTERS else f"{text[:_LOGGED_CHARACTERS]}... ({len(text)} characters)"
