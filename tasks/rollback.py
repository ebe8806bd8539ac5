"""Lets an earlier version serve again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks.references import Promotion

if TYPE_CHECKING:
    from tasks.journal import Journal

LONGEST_WHO, LONGEST_REASON = 200, 1000


def run(model: str, to: str, reason: str, who: str, request: str = "") -> Promotion:
    """Go to a version of `<model>-onnx` that served: its number, `previous`, the last one before the present, or `dense`.

    Killed at any point and run again, it is finished and not done a second time. `request` is a name that only tries of this one
    have, such as a DAG run's; without it the words themselves tell whether a change that was cut off is the same.

    Raises:
        InputError: no such version, none before, one that never served or serves already, no reason, or the journal
            disagrees with the alias.
        OSError: a server failed, or the version's file is damaged everywhere or does not answer; the message says which.
    """
    from tasks import champion, registry, tracking

    registry.check_name(model)
    check_words("reason", reason, LONGEST_REASON)
    check_words("who", who, LONGEST_WHO)
    tracking.client()
    asked = request or champion.request_of(to, reason, who)
    with champion.not_done(f"rollback of {model} to {to}"):
        book = champion.at_rest(model)
        if done := champion.answered(book, asked):
            return done
        version = _target(book, to)
    # `previous` and `dense` follow from what served when they were asked for
    chosen = None if to.isdecimal() else book
    words = {"action": "rollback", "reason": reason, "who": who, "evidence": "", "request": asked}
    return champion.move(model, version, chosen=chosen, **words)


def check_words(setting: str, text: str, longest: int) -> None:
    """Raise InputError unless a text can go into the journal: it is shown on terminals and in pages."""
    if not text.strip():
        raise InputError(f"{setting}: expected a sentence, got none; it is written into the journal")
    if len(text) > longest or not text.isprintable():
        raise InputError(
            f"{setting}: expected one line of {longest} characters at most, without control characters, got {len(text)} "
            f"characters: {text[:60]!r}; shorten it"
        )


def _target(book: Journal, to: str) -> str:
    """The version that is meant."""
    from tasks import registry

    name = registry.onnx_name(book.model)
    if book.head is None:
        raise InputError(
            f"model: expected one with a promoted version, {book.model!r} has none; promote a version first"
        )
    now = book.head.to_version
    if to == "previous":
        version = _previous(book)
    elif to == "dense":
        version = registry.dense(book.model, now)
    else:
        version = registry.number(name, to)
    if version == now:
        raise InputError(f"to: {name} version {version} serves already; see `secateur history {book.model}`")
    if version not in book.served and to != "dense":
        raise InputError(
            f"to: expected a version of {name} that served before ({', '.join(book.served)}), or dense; version {version} "
            "never did; a pruning run that passes its gate promotes it"
        )
    return version


def _previous(book: Journal) -> str:
    if len(book.served) == 1:
        raise InputError(
            f"to: expected a version before the present one, the journal of {book.model} has none; name a version"
        )
    return book.served[1]
