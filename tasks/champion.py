"""Changes what serves: one protocol for a promotion, a rollback and a repair. `docs/registry.md` says why it is safe.

The file is published and has answered before anything moves. Then an entry of the journal is begun, which only one process
can; pointer and alias move and are read back; the entry is ended, last. Killed between any two steps, what is left is an
entry that is begun and not ended: the next change ends it before it begins its own.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from secateur.errors import InputError
from tasks import bucket, journal, mirror, registry, tracking
from tasks.faults import is_io_fault, persist, rest
from tasks.journal import DONE, UNDONE, Entry, Journal
from tasks.references import Promotion

T = TypeVar("T")

# Of the process that holds an entry, counted from before it began it: moving on, undoing, and no write after that. A write
# that is under way by then ends within its timeouts; so the lease, which others count from when they saw the entry, is longer.
FORWARD_S, HOLD_S, LEASE_S = 20.0, 30.0, 50.0
PATIENCE_S = 20.0  # with servers, before anything has begun
WAIT_S = 300.0  # for others
LOOK_S, LONGEST_LOOK_S = 0.2, 2.0
_WORDS = "words "


class ChangeError(OSError):
    """A change that a fault of a server kept from being done; the message says what serves. Worth a retry."""


class _LostError(Exception):
    """The entry is not ours to end any more."""


@dataclass(frozen=True)
class _Held:
    """An entry that this process holds, until a moment of `time.monotonic`."""

    book: Journal
    word: str
    since: float

    @property
    def entry(self) -> Entry:
        """The entry itself."""
        assert self.book.pending is not None
        return self.book.pending

    def check(self) -> None:
        """Raise _LostError unless a write that is begun now is still ours."""
        now = journal.again(self.book).pending
        if now is None or now.holder != self.word or now.number != self.entry.number:
            raise _LostError
        if time.monotonic() > self.since + HOLD_S:
            raise _LostError


def move(
    model: str,
    version: str,
    *,
    action: str,
    reason: str,
    who: str,
    evidence: str,
    request: str,
    first_from: str | None = None,
    chosen: Journal | None = None,
) -> Promotion:
    """Let a version of `<model>-onnx` serve.

    Killed at any point and run again, it ends as it would have. Where it serves already, an entry keeps the new evidence
    and reason. `request` names who asks, so that the same one that asks again is answered and nothing is done
    twice; `first_from` is what served before the journal began; `chosen` is the journal, at rest, that the choice of the
    version followed from: nothing else may have come to serve since.

    Raises:
        InputError: no such version, the journal disagrees with alias or pointer, or something else was done meanwhile.
        ChangeError: a server failed; the message says what serves.
        OSError: the version's file is damaged everywhere, or does not answer.
    """
    registry.check_name(model)
    ready, what = False, f"{action} of {model} to version {version}"
    book, until = chosen, time.monotonic() + WAIT_S
    while True:
        if book is None:
            with not_done(what):
                book = at_rest(model, until)
        if done := answered(book, request):
            return done
        if chosen is not None and chosen.head != book.head:
            raise InputError(
                f"to: version {version} followed from what served when it was asked for, meanwhile {_told(book)}; "
                f"see `secateur history {model}` and ask again"
            )
        head = book.head
        if head is not None and (head.to_version, head.evidence, head.reason) == (version, evidence, reason):
            return _promotion(book, head)  # nothing that the journal does not say already
        if not ready:
            with not_done(what):
                _prepare(model, version)
            ready = True  # what others did meanwhile, the claim finds
        words = {"who": who, "action": action, "reason": reason, "evidence": evidence, "request": request}
        before = head.to_version if head else first_from
        if ended := _change(book, from_version=before, to_version=version, **words):
            return ended
        book = None  # another was faster


def repair(model: str, reason: str, who: str) -> Promotion:
    """Make alias, pointer and the bucket's copies say what the journal says, and accept what is wrong with the journal itself.

    What the journal says serves counts; where that version is gone, the one that served before it; without a journal, what the
    alias says. The entry that is written keeps the reason and the digest of what it accepts.

    Raises:
        InputError: nothing is wrong, or nothing is left that could serve.
    """
    registry.check_name(model)
    until = time.monotonic() + WAIT_S
    while True:
        book = at_rest(model, until, agreeing=False)
        wrong = findings(book)
        if not wrong:
            raise InputError(f"repair: nothing is wrong with the journal of {model}, {_told(book)}")
        book = journal.restore(book, mirror.copies(model))
        alias = registry.alias(model, registry.CHAMPION)
        version = _servable(book, alias)
        _prepare(model, version)
        accepted = tracking.digest(list(book.findings)) if book.findings else ""
        words = {"who": who, "action": journal.REPAIR, "reason": reason, "evidence": accepted, "request": ""}
        if ended := _change(book, from_version=alias, to_version=version, **words):
            mirror.mend(journal.read(model), mirror.copies(model))
            return ended


def findings(book: Journal) -> list[str]:
    """All that is wrong with a journal, with its copies in the bucket, and with alias and pointer beside it."""
    pending = [f"entry {book.pending.number} is begun and not ended"] if book.pending else []
    return [*book.findings, *mirror.findings(book, mirror.copies(book.model)), *pending, *_disagreement(book)]


def at_rest(model: str, until: float | None = None, *, agreeing: bool = True) -> Journal:
    """The journal when no change is under way: waits for one that is, and ends one whose process is gone.

    Raises:
        InputError: `agreeing`, and alias, pointer and journal do not say the same.
        ChangeError: others were at work all the time, or what a dead process began cannot be ended.
    """
    until = time.monotonic() + WAIT_S if until is None else until
    seen, since, longest = ("", 0), time.monotonic(), LOOK_S
    book = _patiently(partial(journal.read, model))
    while True:
        if book.pending is None:
            if not agreeing or _patiently(partial(_agrees, book)):
                return book
        elif (state := (book.pending.holder, book.length)) != seen and book.pending.holder:
            seen, since = state, time.monotonic()
        elif not book.pending.holder or time.monotonic() > since + LEASE_S:
            _end_for_another(book)
        if time.monotonic() > until:
            raise ChangeError(
                f"{model}: not done: others have changed what serves for {WAIT_S:.0f} s; {_told(book)}; ask again"
            )
        rest(longest)
        longest = min(2 * longest, LONGEST_LOOK_S)  # many that wait leave the server to the one they wait for
        book = _patiently(partial(journal.again, book))


def request_of(*words: str) -> str:
    """A request of someone who has no name for it: the words themselves."""
    return f"{_WORDS}{tracking.digest(words)}"


def answered(book: Journal, request: str) -> Promotion | None:
    """What an earlier try of the same request did.

    The same words may also be a new wish: they are an earlier one only if another process had to end it, so that
    whoever asked was never told.

    Raises:
        InputError: it was done and something else serves since.
    """
    done = [entry for entry in book.entries if entry.request == request and entry.outcome == DONE]
    if not request or not done or book.head is None:
        return None
    last, unique = done[-1], not request.startswith(_WORDS)
    if last.number == book.head.number:
        return _promotion(book, last) if unique or last.holder != last.claimant else None
    if not unique:
        return None
    raise InputError(
        f"{last.action}: {request} let version {last.to_version} serve in entry {last.number}, and {_told(book)} since; to go "
        f"there again start a new run, or `secateur rollback {book.model} --to {last.to_version} --reason ...`"
    )


@contextmanager
def not_done(what: str) -> Iterator[None]:
    """Within it nothing is begun: a server's fault says so."""
    try:
        yield
    except (ChangeError, InputError):
        raise
    except Exception as error:
        if not is_io_fault(error):
            raise
        raise ChangeError(f"{what}: not done, what serves is unchanged: {error}") from error


def _change(book: Journal, **content: Any) -> Promotion | None:
    """Begin an entry, carry it out and end it; None where another process began one first."""
    word, since = secrets.token_hex(8), time.monotonic()
    what = f"{content['action']} of {book.model} to version {content['to_version']}"
    with tracking.impatient():
        with not_done(f"{what}, where the journal has it begun the next change ends it"):
            begun = persist(partial(journal.claim, book, word, **content), since + HOLD_S / 2)
        if begun is None:
            return None
        try:
            now, fault = _carry_out(_Held(begun, word, since))
        except _LostError:
            fault, now = None, at_rest(book.model, agreeing=content["action"] != journal.REPAIR)
        entry = next(entry for entry in now.entries if entry.claimant == word)
        if entry.outcome == UNDONE:
            told = f"{what}: not done, it was undone and {_told(now)}: {fault or 'another process undid it'}"
            raise ChangeError(told) from fault
        _copy(book.model, entry, since + HOLD_S)
    return _promotion(now, entry)


def _copy(model: str, entry: Entry, until: float) -> None:
    if entry.action == journal.REPAIR:  # it mends all copies after
        return
    try:
        persist(partial(mirror.keep, model, entry), until)
    except InputError:
        raise
    except Exception as error:
        raise ChangeError(
            f"{entry.action} of {model} to version {entry.to_version}: done (entry {entry.number}), only the journal's copy in the "
            f"bucket is behind, which the next change writes: {error}"
        ) from error


def _end_for_another(book: Journal) -> None:
    """End an entry whose process stands still or is gone."""
    word, since = secrets.token_hex(8), time.monotonic()
    with tracking.impatient(), suppress(_LostError):
        taken = persist(partial(journal.take_over, book, word), since + HOLD_S / 2)
        if taken is not None:
            _carry_out(_Held(taken, word, since))


def _carry_out(held: _Held) -> tuple[Journal, Exception | None]:
    """Do what an entry says, or undo it where that cannot be done; the journal after, and the fault that it was undone for.

    Raises:
        _LostError: another process ends it, or has ended it.
        ChangeError: neither could be done.
    """
    try:
        return persist(partial(_bring, held, held.entry.to_version, DONE), held.since + FORWARD_S), None
    except _LostError:
        raise
    except Exception as fault:
        return _undo(held, fault), fault


def _undo(held: _Held, fault: Exception) -> Journal:
    head = held.book.head
    first = held.entry.from_version if held.entry.action == journal.REPAIR else None
    before = head.to_version if head else first
    word, until = secrets.token_hex(8), held.since + HOLD_S
    try:
        # A word of its own: that it was done, should that still be under way to the server, comes too late from here on.
        taken = persist(partial(journal.take_over, held.book, word), until)
        if taken is None:
            raise _LostError
        held = _Held(taken, word, held.since)
        return persist(partial(_bring, held, before, UNDONE), until)
    except _LostError:
        raise
    except Exception as second:
        with suppress(Exception):
            journal.release(held.book)
        entry = held.entry
        raise ChangeError(
            f"{entry.action} of {held.book.model} to version {entry.to_version}: begun as entry {entry.number} of the journal and "
            f"neither done nor undone ({second}); the next change, or this one tried again, ends it; what stopped it: {fault}"
        ) from fault


def _bring(held: _Held, version: str | None, outcome: str) -> Journal:
    """Let pointer and alias name a version, read both back, end the entry; the journal after."""
    model = held.book.model
    name = registry.onnx_name(model)
    held.check()
    if version is None:
        bucket.unpoint(name)
    else:
        bucket.point(name, version)
    held.check()
    registry.set_alias(model, registry.CHAMPION, version)
    registry.archive(model, held.book.entries)
    seen = (bucket.pointer(name) or {}).get("version"), registry.alias(model, registry.CHAMPION)
    if seen != (version, version):
        raise OSError(f"{name}: pointer and alias read back as {seen[0]} and {seen[1]}, {version} was written")
    ended = journal.end(held.book, outcome)
    if ended is None:
        raise _LostError
    return ended


def _prepare(model: str, version: str) -> None:
    """See that the version's file is in the bucket, is the registered one, and answers on its target."""
    name, file, target = registry.onnx_name(model), registry.onnx_file(model, version), registry.target(model, version)
    if bucket.published(name, version) == file.sha256:
        with suppress(bucket.IncompleteError):  # it is published again
            return bucket.check_serves(name, version, target)
    with tracking.fetched(file) as path:
        bucket.publish(name, version, path)
    return bucket.check_serves(name, version, target)


def _agrees(book: Journal) -> bool:
    """True where alias, pointer and copy say what the journal says; False where it went on while we looked."""
    wrong = [*book.findings, *_disagreement(book)]
    now = journal.again(book)
    if (now.length, now.steps) != (book.length, book.steps):
        return False
    if wrong:
        raise InputError(
            f"journal: expected that of {book.model} to verify, and alias and pointer to say the same; {'; '.join(wrong[:3])}; "
            f'see `secateur history {book.model} --verify`, then `secateur history {book.model} --repair --reason "..."`'
        )
    if book.entries:
        mirror.keep(book.model, book.entries[-1])
    return True


def _disagreement(book: Journal) -> list[str]:
    try:
        alias = registry.champion(book.model)
    except InputError as nowhere:
        return [str(nowhere)]
    pointer = (bucket.pointer(registry.onnx_name(book.model)) or {}).get("version")
    says = book.head.to_version if book.head else None
    if alias == pointer == says:
        return []
    return [f"the journal says that {_told(book)}, the alias names {alias or 'none'}, the pointer {pointer or 'none'}"]


def _servable(book: Journal, alias: str | None) -> str:
    for version in book.served or filter(None, [alias]):
        with suppress(InputError):
            registry.onnx_file(book.model, version)
            return version
    raise InputError(
        f"repair: expected a version that served and is still registered, none of {', '.join(book.served) or alias or 'none'} is; "
        f"promote one of {book.model} after restoring it"
    )


def _promotion(book: Journal, entry: Entry) -> Promotion:
    uri = bucket.uri_of(registry.onnx_name(book.model), entry.to_version)
    return Promotion(book.model, entry.to_version, entry.from_version, uri)


def _told(book: Journal) -> str:
    return f"version {book.head.to_version} serves (entry {book.head.number})" if book.head else "nothing serves"


def _patiently(action: Callable[[], T]) -> T:
    with tracking.impatient():
        return persist(action, time.monotonic() + PATIENCE_S)
