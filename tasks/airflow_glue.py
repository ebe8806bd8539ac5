"""What is Airflow's but must be importable everywhere. Outside `dags/` only `tasks/airflow_*.py` know Airflow.

It turns a plain step function into a task, asks a person, watches the registry and starts runs. A step takes and returns
small dataclasses. Between tasks they travel as plain JSON, so that a reader of the UI, of the REST API or of another
version of this code can read them without importing ours.
"""

import asyncio
import functools
import html
import json
import logging
import time
import typing
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseNotifier, BaseOperator, BaseOperatorLink, Param, RetryPolicy, task
from airflow.sdk.definitions.retry_policy import RetryDecision
from airflow.sdk.exceptions import AirflowSkipException
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from secateur.errors import InputError, NothingToDo
from tasks import references
from tasks.faults import is_io_fault

if TYPE_CHECKING:
    from tasks.watch import Arrival

log = logging.getLogger("secateur.step")

RETRIES = 3
FIRST_DELAY = timedelta(seconds=5)
LONGEST_DELAY = timedelta(minutes=2)
LOOK_SECONDS = 5.0  # between two looks at whether a run has ended
RING_AGAIN = 60.0  # seconds after which versions that still wait are told once more
URGENT = {"priority_weight": 1000}  # of DAGs whose steps are short and wait behind no pruning
# Of `evaluate` and `validate`: behind every cut, which has 4 at least and a recovery waits for, before a baseline, which has 2.
BEHIND_CUTS = {"weight_rule": "absolute", "priority_weight": 3}
_LOGGED_CHARACTERS = 500
_LONGEST_SENTENCE = 4000  # characters


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
        try:
            return call(function, *args, **kwargs)
        except AirflowSkipException:
            _skip_what_follows()
            raise
        except Exception as error:
            _leave_why(error)
            raise

    settings: dict[str, Any] = {
        "task_id": function.__module__.rpartition(".")[2],
        "doc_md": function.__doc__,
        "multiple_outputs": False,
        "show_return_value_in_logs": False,  # `call` logs it, in one line of bounded length
        "on_failure_callback": _tell_sweep,
    }
    return typing.cast(Callable[..., Any], task(**{**settings, **_common(), **options})(run))


def _leave_why(error: Exception) -> None:
    """Keep what a step failed of beside its results: its log may be gone with its pod."""
    from airflow.sdk import get_current_context

    try:
        get_current_context()["ti"].xcom_push(references.WHY, _sentence(error))
    except Exception as fault:  # whatever ails the server: what the step raised is what counts
        log.warning("Why the step failed is in this log alone: %s", fault)


def _sentence(error: BaseException | None) -> str:
    kind = "" if isinstance(error, InputError) else f"{type(error).__name__}: "
    return f"{kind}{error}"[:_LONGEST_SENTENCE]


def _skip_what_follows() -> None:
    """Skip all that can only be skipped where this task is, at once: the scheduler would take a turn for each one of them in a row."""
    from airflow.sdk import get_current_context
    from airflow.sdk.exceptions import AirflowRuntimeError
    from airflow.sdk.execution_time.comms import SkipDownstreamTasks
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    if following := only_after(get_current_context()["task"]):
        try:
            SUPERVISOR_COMMS.send(SkipDownstreamTasks(tasks=following))
        except AirflowRuntimeError as error:  # then the scheduler skips them, in its own time
            log.warning("What follows is not skipped at once: %s", error)


def only_after(operator: Any) -> list[str]:
    """The tasks that are skipped where this one is, whatever else happens: those that need it, or such a one, to succeed; sorted names.

    One that also needs a task of another branch is not among them: that one may have failed, which Airflow must see.
    """
    decided = {operator.task_id, *operator.get_flat_relative_ids(upstream=True)}
    found: set[str] = set()
    reached = [operator]
    while reached:
        for one in reached.pop().downstream_list:
            if one.trigger_rule == "all_success" and one.task_id not in found and one.upstream_task_ids <= decided:
                found.add(one.task_id)
                decided.add(one.task_id)
                reached.append(one)
    return sorted(found)


def each(
    function: Callable[..., Any], given: Mapping[str, Any] | None = None, *, pool: str | None = None, **values: Any
) -> Any:
    """A task like `step`'s for every one of some values, each by itself: one that fails keeps no other from being done.

    `given` are the arguments that all of them share.
    """
    options = {"pool": pool} if pool else {}
    return typing.cast(Any, step(function, **options)).partial(**(given or {})).expand(**values)


def _tell_sweep(context: Any) -> None:
    """A run that is a part of a sweep leaves the reason of its failure there, where alone other tasks can read it."""
    conf = context["dag_run"].conf or {}
    if sweep_run := conf.get("sweep_run"):
        from tasks import sweep

        sweep.note_failure(sweep_run, conf["recipe"], f"{context['ti'].task_id}: {_sentence(context.get('exception'))}")


def runs(task_id: str, dag: str, starts: Any, at_once: int) -> Any:
    """A run of another DAG for each of these (`tasks.references.Start`), so many at once at most; gives how they ended.

    Meanwhile no worker waits: the triggerer looks. A run that failed is an answer, not a failure.
    """
    wanted = _Run.partial(
        task_id=task_id,
        trigger_dag_id=dag,
        max_active_tis_per_dagrun=at_once,
        map_index_template="{{ task.run_id }}",
        **_common(),
    )
    return wanted.expand_kwargs(starts).output


class _Run(BaseOperator):
    """A run of another DAG, started and waited for. Tried again it finds its run; cleared, it has one that failed go on.

    Airflow's `TriggerDagRunOperator` fails where the run exists, or clears it whatever it is doing.
    """

    def __init__(self, *, trigger_dag_id: str, run_id: str, conf: Mapping[str, Any], **options: Any) -> None:
        super().__init__(**options)
        self.trigger_dag_id, self.run_id, self.conf = trigger_dag_id, run_id, conf

    def execute(self, context: Any) -> None:
        """Start it, unless it is there, and sleep until it has ended."""
        from airflow.providers.standard.triggers.external_task import DagStateTrigger
        from airflow.utils.state import DagRunState

        del context  # Airflow's signature
        if not start_run(self.trigger_dag_id, self.run_id, self.conf):
            _go_on(self.trigger_dag_id, self.run_id)
        states = [DagRunState.SUCCESS, DagRunState.FAILED]
        self.defer(
            trigger=DagStateTrigger(
                self.trigger_dag_id, states=states, run_ids=[self.run_id], poll_interval=LOOK_SECONDS
            ),
            method_name="ended",
        )

    def ended(self, context: Any, event: tuple[str, Mapping[str, Any]]) -> dict[str, str]:
        """How it ended (`tasks.references.Ended`)."""
        del context
        return {"run_id": self.run_id, "state": str(event[1][self.run_id])}


def _common() -> dict[str, Any]:
    """What every task has: how it is retried, and that where runs compete, the later step goes first, so that what is begun ends."""
    return {
        "weight_rule": "upstream",
        "retries": RETRIES,
        "retry_delay": FIRST_DELAY,
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": LONGEST_DELAY,
        "retry_policy": StepRetries(),
    }


def approval(questions: Any) -> Any:
    """The task `approve`: each of these questions (`tasks.references.Question`) is put to a person; gives the answers.

    It is mapped, and so skipped where there is no question, and what follows hears a no: Airflow would skip it if the
    task were not mapped, and nothing could then say why.
    """
    from airflow.providers.standard.operators.hitl import ApprovalOperator

    words = Param("", type="string", title="Your words", description="They are kept in the promotion journal.")
    asked = ApprovalOperator.partial(
        task_id="approve", defaults=ApprovalOperator.REJECT, params={"words": words}, **_common()
    )
    return asked.expand_kwargs(questions.map(_for_a_person)).output


def _for_a_person(question: Mapping[str, Any]) -> dict[str, Any]:
    """A question, from XCom, in the operator's words."""
    return {
        "subject": question["subject"],
        "body": question["body"],
        "assigned_users": [{"id": user, "name": user} for user in question["users"]],
        "response_timeout": timedelta(hours=question["hours"]),
    }


class Notifier(BaseNotifier):
    """Tells people: in the log, through a Slack-compatible webhook and by e-mail, as far as the installation names them."""

    template_fields = ("text",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text

    def notify(self, context: Any) -> None:
        """Airflow's callback."""
        del context  # the text was rendered with it
        self.send()

    def send(self) -> None:
        """Tell it everywhere; a channel that fails keeps no other from being told, and is said at the end."""
        from tasks.monitoring import notify

        failed: list[Exception] = []
        for channel in (notify.say, self._write):
            try:
                channel(self.text)
            except Exception as error:
                failed.append(error)
        if failed:
            raise ExceptionGroup("not everybody was told", failed)

    @staticmethod
    def _write(text: str) -> None:
        from tasks.monitoring import notify

        people = notify.recipients()
        if people:
            from airflow.providers.smtp.hooks.smtp import SmtpHook

            with SmtpHook() as hook:
                subject = f"Secateur: {text.partition(chr(10))[0][:80]}"  # a line break would end the head of the mail
                hook.send_email_smtp(
                    to=people, subject=subject, html_content=f'<p style="white-space: pre-wrap">{html.escape(text)}</p>'
                )


class NewVersions(BaseEventTrigger):
    """Rings when the registry holds versions that wait for a run: one poll for all models, every `seconds`.

    It keeps nothing: what waits is in the registry (`tasks.watch`), so it may be stopped and started anywhere. While MLflow
    does not answer it asks ever more rarely, at last every two minutes.
    """

    def __init__(self, seconds: float = 5.0) -> None:
        super().__init__()
        self.seconds = seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How the triggerer makes it."""
        return f"{type(self).__module__}.{type(self).__qualname__}", {"seconds": self.seconds}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Poll for ever; an event for versions that were not told of before, or that still wait a minute after."""
        from tasks import watch

        told: set[Arrival] = set()
        told_at, delay = 0.0, 0.0
        while True:
            try:
                waiting = await asyncio.to_thread(watch.pending)  # MLflow's client would block all other triggers
            except Exception as error:  # whatever it is, the watch goes on
                delay = min(2 * delay or self.seconds, LONGEST_DELAY.total_seconds())
                log.warning(
                    "The registry cannot be read, next try in %.0f s: %s: %s", delay, type(error).__name__, error
                )
                waiting = []
            else:
                delay = 0.0
            if set(waiting) - told or (waiting and time.monotonic() - told_at > RING_AGAIN):
                told, told_at = set(waiting), time.monotonic()
                yield TriggerEvent([f"models:/{arrival.model}/{arrival.version}" for arrival in waiting])
            await asyncio.sleep(delay or self.seconds)


def start_run(dag: str, run_id: str, conf: Mapping[str, Any]) -> bool:
    """Start a run of another DAG, from inside a task; False where a run of this id exists already.

    What Airflow's own `TriggerDagRunOperator` asks its supervisor, but for many runs, in order, by one task.
    """
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse, TriggerDagRun
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    answer = SUPERVISOR_COMMS.send(TriggerDagRun(dag_id=dag, run_id=run_id, conf=dict(conf)))
    if not isinstance(answer, ErrorResponse):
        return True
    if answer.error == ErrorType.DAGRUN_ALREADY_EXISTS:
        return False
    raise AirflowRuntimeError(answer)


def _go_on(dag: str, run_id: str) -> None:
    """Clear a run that failed: its steps remember what they did."""
    from airflow.sdk.execution_time.comms import DagRunStateResult, GetDagRunState, TriggerDagRun
    from airflow.sdk.execution_time.task_runner import SUPERVISOR_COMMS

    found = SUPERVISOR_COMMS.send(GetDagRunState(dag_id=dag, run_id=run_id))
    if isinstance(found, DagRunStateResult) and found.state == "failed":
        SUPERVISOR_COMMS.send(TriggerDagRun(dag_id=dag, run_id=run_id, reset_dag_run=True))


def linked(result: Any, name: str) -> Any:
    """Let the task that gives `result` carry a button of this name, which leads to the `address` in what it returned."""
    result.operator.operator_extra_links = (_Link(name),)
    return result


class _Link(BaseOperatorLink):
    """A link whose address the worker keeps as an XCom when the task ends; the server needs no code of ours to show it."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def name(self) -> str:
        return self._name

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        # what the runner gives is the task instance itself
        found = ti_key.xcom_pull(task_ids=operator.task_id) or {}
        return str(found.get("address", ""))


def call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a step with values from XCom; return what goes into XCom.

    Raises:
        InputError: a value is of another release, and this one cannot read it.
    """
    import inspect

    from pydantic import TypeAdapter

    hints = typing.get_type_hints(function)
    bound = inspect.signature(function).bind(*args, **kwargs)
    given = {name: references.read(hints[name], _listed(value), name) for name, value in bound.arguments.items()}
    try:
        result = function(**given)
    except NothingToDo as reason:
        log.info("Skipped: %s", reason)
        raise AirflowSkipException(str(reason)) from None
    plain = TypeAdapter(hints["return"]).dump_python(result, mode="json")
    log.info("Result: %s", _one_line(plain))
    return plain


def _listed(value: Any) -> Any:
    """What a mapped task returned comes as a sequence that reads one by one: all of it, as a list."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str | list | tuple) else value


def _one_line(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LOGGED_CHARACTERS else f"{text[:_LOGGED_CHARACTERS]}... ({len(text)} characters)"
