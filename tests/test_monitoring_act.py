"""What follows from looks: by the recipe's policy, once, and people hear of it."""

import email
import email.policy
import http.server
import json
import socketserver
import threading
from collections.abc import Iterator, Mapping
from email.message import EmailMessage
from typing import Any

import pytest

from secateur.errors import InputError
from tasks.airflow_glue import Notifier
from tasks.monitoring import act, notify
from tasks.monitoring.look import Look
from tasks.references import Answer, Person

QUIET = Look("m", "3", "0123456789abcdef", 7, "healthy", "", "all is well", "http://page", "automatic", changed=False)


def breach(**changes: Any) -> Look:
    import dataclasses

    broken = {"outcome": "breach", "cause": "ours", "reason": "it lost 3 points", "changed": True}
    return dataclasses.replace(QUIET, **(broken | changes))


class Started:
    """Remembers what was started, and refuses an id twice as Airflow does."""

    def __init__(self) -> None:
        self.runs: dict[tuple[str, str], Mapping[str, Any]] = {}

    def __call__(self, dag: str, run_id: str, conf: Mapping[str, Any]) -> bool:
        new = (dag, run_id) not in self.runs
        self.runs.setdefault((dag, run_id), conf)
        return new


def test_a_breach_of_ours_rolls_back_to_dense_once() -> None:
    started = Started()
    first = act.run([QUIET, breach()], (), started)
    again = act.run([QUIET, breach()], (), started)
    ((dag, run_id), conf) = next(iter(started.runs.items()))
    assert len(started.runs) == 1
    assert (dag, run_id) == ("rollback_model", "monitor__m__v3__0123456789ab__look7")
    assert conf == {"model": "m", "to": "dense", "reason": "it lost 3 points", "who": "monitor_model"}
    assert "was started" in first[0]
    assert "was started before" in again[0]
    act.run([breach(run="fedcba9876543210")], (), started)
    assert len(started.runs) == 2, "the version came to serve again, and its seventh look is another one"


@pytest.mark.parametrize(
    "look", [QUIET, breach(cause="the world's"), breach(outcome="watch"), breach(outcome="unknown")]
)
def test_nothing_else_rolls_back(look: Look) -> None:
    started = Started()
    assert act.run([look], (), started) == []
    assert started.runs == {}


def test_who_wants_only_to_be_told_is_told_the_command() -> None:
    started = Started()
    (said,) = act.run([breach(policy="tell")], (), started)
    assert "secateur rollback m --to dense" in said
    assert started.runs == {}


def answer(chosen: str, user: str | None = "ada") -> Answer:
    return Answer((chosen,), Person(user, user) if user else None, {"words": "go on"})


@pytest.mark.parametrize(
    ("said", "rolls"), [(answer("Approve"), True), (answer("Reject"), False), (answer("Reject", None), False)]
)
def test_a_person_who_is_asked_decides(said: Answer, rolls: bool) -> None:
    started, look = Started(), breach(policy="ask", users=("ada",))
    (question,) = act.ask([QUIET, look, breach(policy="tell")])
    assert question.users == ("ada",)
    assert "it lost 3 points" in question.body
    (done,) = act.run([QUIET, look], (said,), started)
    assert bool(started.runs) == rolls
    if rolls:
        assert "Approved by ada: go on. it lost 3 points" in next(iter(started.runs.values()))["reason"]
    else:
        assert "goes on serving" in done


def test_answers_go_with_their_own_questions() -> None:
    started = Started()
    looks = [breach(model="a", policy="ask"), breach(model="b"), breach(model="c", policy="ask")]
    act.run(looks, (answer("Reject"), answer("Approve")), started)
    assert [conf["model"] for conf in started.runs.values()] == ["b", "c"]


def test_a_pruning_on_the_drifted_data_is_started_where_the_recipe_says_so() -> None:
    started = Started()
    act.run([breach(again="digits-again")], (), started)
    assert [dag for dag, _ in started.runs] == ["rollback_model", "prune_model"]
    assert list(started.runs.values())[1] == {"model": "m", "recipe": "digits-again", "version": "latest"}


def test_a_reason_is_one_line_that_the_journal_takes() -> None:
    started = Started()
    act.run([breach(reason="x\n\x1b[31m" * 1000)], (), started)
    reason = next(iter(started.runs.values()))["reason"]
    assert len(reason) <= act.LONGEST_REASON
    assert reason.isprintable()


def test_people_hear_of_changes_and_breaches_alone() -> None:
    assert act.told([QUIET], []) == []
    assert act.told([breach(changed=False)], ["done"]) == ["m-onnx version 3: breach (ours): it lost 3 points", "done"]


@pytest.fixture
def inbox() -> Iterator[tuple[str, list[Any], list[int]]]:
    """A webhook's address, what it took, and the statuses that it answers with from then on."""
    taken: list[Any] = []
    statuses = [200]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(statuses[-1])
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/hook/secret", taken, statuses
        server.shutdown()


def test_a_webhook_takes_slacks_form(inbox: tuple[str, list[Any], list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    address, taken, _ = inbox
    monkeypatch.setenv(notify.WEBHOOK, address)
    Notifier("m is in trouble").send()
    assert taken == [{"text": "m is in trouble"}]


def test_a_webhook_that_fails_is_said_without_its_address(
    inbox: tuple[str, list[Any], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, _, statuses = inbox
    statuses.append(500)
    monkeypatch.setenv(notify.WEBHOOK, address)
    with pytest.raises(ExceptionGroup) as failed:
        Notifier("text").send()
    (error,) = failed.value.exceptions
    assert "answered 500" in str(error)
    assert "secret" not in str(error)
    with pytest.raises(InputError, match=notify.WEBHOOK):
        notify.post("ftp://x/secret", "text")


def test_e_mail_goes_through_airflows_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notify.EMAIL, "ada@example.org, , bob@example.org")
    assert notify.recipients() == ["ada@example.org", "bob@example.org"]


@pytest.fixture
def mailbox() -> Iterator[tuple[int, list[EmailMessage]]]:
    """A mail server as simple as RFC 5321 lets it be: its port, and what it took."""
    taken: list[EmailMessage] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            while line := self.rfile.readline():
                verb = line[:4].upper()
                if verb == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    body = b"".join(iter(self.rfile.readline, b".\r\n"))
                    taken.append(email.message_from_bytes(body, EmailMessage, policy=email.policy.default))
                self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")
                if verb == b"QUIT":
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], taken
        server.shutdown()


def test_mail_goes_to_everybody_under_its_first_line(
    mailbox: tuple[int, list[EmailMessage]], monkeypatch: pytest.MonkeyPatch
) -> None:
    port, taken = mailbox
    monkeypatch.setenv(notify.EMAIL, "ada@example.org, bob@example.org")
    place = f"smtp://127.0.0.1:{port}?disable_ssl=true&disable_tls=true&from_email=secateur%40example.org"
    monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", place)
    Notifier("m-onnx version 3: breach (ours)\na rollback was <started>").send()
    (seen,) = taken
    assert seen["To"] == "ada@example.org, bob@example.org"
    assert seen["From"] == "secateur@example.org"
    assert seen["Subject"] == "Secateur: m-onnx version 3: breach (ours)"
    body = seen.get_body()
    assert body is not None
    assert "a rollback was &lt;started&gt;" in body.get_content()
