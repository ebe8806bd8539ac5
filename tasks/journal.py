"""The promotion journal: what serves, by whom and why; append-only, each entry bound to the one before.

It is the parameters of one run in MLflow, because a parameter is the one thing there that is written once and never
changed: whoever writes `000012` first has made entry 12, and nobody else has. So the journal is also the lock under which
alias and pointer move; `docs/registry.md` has the argument.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from secateur.errors import InputError
from tasks import tracking

DONE, UNDONE = "done", "undone"
REPAIR = "repair"
RUN = "secateur.journal"  # the tag that names the run
LONGEST = 6000  # characters of an entry: MLflow would cut off the rest without a word
_CLAIM = re.compile(r"\d{6}")
_STEP = re.compile(r"(\d{6})\.(\d+)")
_HOLDER, _RELEASED = "holder ", "released"


@dataclass(frozen=True)
class Entry:
    """One change of what serves. `evidence` is the digest of the verdict, of a repair that of the findings it accepts.

    `claimant` and `holder` are the random words of the process that began the change and of the one that may end it.
    """

    number: int
    when: str
    who: str
    action: str  # promote, rollback or repair
    from_version: str | None
    to_version: str
    reason: str
    evidence: str
    request: str  # who asks again with the same words is answered by the same entry
    claimant: str
    previous: str  # the link of the entry before
    digest: str  # of all of the above
    outcome: str = ""  # done, undone, or nothing as long as it is not ended
    holder: str = ""
    link: str = ""  # digest of what was written and of the outcome


@dataclass(frozen=True)
class Journal:
    """A model's journal as it was read; `findings` is what is wrong with it and was not accepted by a repair."""

    model: str
    run_id: str | None
    entries: tuple[Entry, ...]
    findings: tuple[str, ...]
    length: int  # the highest number
    steps: int  # that were taken after the last entry was begun
    link: str  # of the last entry

    @property
    def pending(self) -> Entry | None:
        """The change that is begun and not ended."""
        last = self.entries[-1] if self.entries else None
        return last if last is not None and last.number == self.length and not last.outcome else None

    @property
    def head(self) -> Entry | None:
        """The last change that was done: its version serves."""
        return next((entry for entry in reversed(self.entries) if entry.outcome == DONE), None)

    @property
    def served(self) -> tuple[str, ...]:
        """Every version that served, the last one first, each once; at the end what served before the journal began."""
        done = [entry for entry in reversed(self.entries) if entry.outcome == DONE]
        first = [done[-1].from_version] if done and done[-1].from_version else []
        return tuple(dict.fromkeys([entry.to_version for entry in done] + first))


def read(model: str) -> Journal:
    """The journal of a model; reading writes nothing.

    Raises:
        InputError: its run or its place was deleted in MLflow.
    """
    run_id = _run(model)
    return _parsed(model, run_id, _parameters(model, run_id) if run_id else {})


def again(journal: Journal) -> Journal:
    """The same journal as it is now."""
    return read(journal.model) if journal.run_id is None else _reread(journal)


def claim(
    journal: Journal,
    claimant: str,
    *,
    who: str,
    action: str,
    from_version: str | None,
    to_version: str,
    reason: str,
    evidence: str,
    request: str,
) -> Journal | None:
    """Begin the next entry; None where another process was faster, whoever it was.

    Raises:
        InputError: the entry is longer than MLflow keeps.
    """
    content: dict[str, Any] = {
        "number": journal.length + 1,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "who": who,
        "action": action,
        "from_version": from_version,
        "to_version": to_version,
        "reason": reason,
        "evidence": evidence,
        "request": request,
        "claimant": claimant,
        "previous": journal.link,
    }
    text = json.dumps({**content, "digest": tracking.digest(content)}, ensure_ascii=False)
    if len(text) > LONGEST:
        raise InputError(
            f"reason: expected one that fits into a journal entry of {LONGEST} characters, it has {len(text)}; shorten it"
        )
    begun = dataclasses.replace(journal, run_id=journal.run_id or _begin(journal.model))
    now = _write_once(begun, f"{journal.length + 1:06d}", text)
    return now if now.pending is not None and now.pending.claimant == claimant else None


def take_over(journal: Journal, holder: str) -> Journal | None:
    """Become the one who ends the pending entry; None where another process was faster."""
    now = _step(journal, _HOLDER + holder)
    return now if now.pending is not None and now.pending.holder == holder else None


def release(journal: Journal) -> None:
    """Let whoever comes next end the pending entry at once."""
    _step(journal, _RELEASED)


def end(journal: Journal, outcome: str) -> Journal | None:
    """Write how the pending entry ended; None where another process took it over first, or ended it."""
    now = _step(journal, outcome)
    ended = next(entry for entry in now.entries if entry.number == journal.length)
    return now if (ended.outcome, ended.holder) == (outcome, journal.entries[-1].holder) else None


def entries(model: str) -> list[Entry]:
    """The whole journal, oldest first."""
    return list(read(model).entries)


def written(entry: Entry) -> dict[str, Any]:
    """What an entry says, as it was written when it was begun."""
    return {
        name: value for name, value in dataclasses.asdict(entry).items() if name not in ("outcome", "holder", "link")
    }


def restore(journal: Journal, copies: Mapping[int, Mapping[str, Any]]) -> Journal:
    """Write the entries that MLflow lost at its end from their copies, as far as each follows from the one before."""
    for number in sorted(number for number in copies if number > journal.length):
        entry, outcome = copies[number].get("entry", {}), copies[number].get("outcome")
        if number != journal.length + 1 or entry.get("previous") != journal.link or outcome not in (DONE, UNDONE):
            break
        journal = dataclasses.replace(journal, run_id=journal.run_id or _begin(journal.model))
        journal = _write_once(journal, f"{number:06d}", json.dumps(entry, ensure_ascii=False))
        journal = _step(journal, outcome)
    return journal


def _step(journal: Journal, what: str) -> Journal:
    # Ending an entry and taking it over are written under the same number: only one of them happens.
    return _write_once(journal, f"{journal.length:06d}.{journal.steps + 1}", what)


def _write_once(journal: Journal, key: str, value: str) -> Journal:
    """Write a parameter unless it is there; the journal afterwards tells who was first."""
    assert journal.run_id is not None
    tracking.write_once(journal.run_id, key, value)
    return _reread(journal)


def _place(model: str) -> str:
    return f"{tracking.experiment_name(model)}/journal"


def _run(model: str) -> str | None:
    """The id of the journal's run, or None before its first entry."""
    place = tracking.client().get_experiment_by_name(_place(model))
    if place is None:
        return None
    if place.lifecycle_stage != "active" or RUN not in place.tags:
        raise InputError(
            f"journal: expected the experiment {place.name} with the tag {RUN}, it is {place.lifecycle_stage} and has "
            f"{', '.join(sorted(place.tags)) or 'none'}; restore it in MLflow"
        )
    return str(place.tags[RUN])


def _begin(model: str) -> str:
    """Make the journal's run. An experiment's name exists once, and its tags come with it: the first one's run is it."""
    from mlflow.exceptions import MlflowException

    mlflow = tracking.client()
    tags = {tracking.KEY: f"journal:{model}", "secateur.kind": "journal"}
    run_id = mlflow.create_run(tracking.experiment_of(model), run_name="promotion journal", tags=tags).info.run_id
    note = "Holds nothing: its tag names the run that is the promotion journal. See docs/registry.md."
    try:
        mlflow.create_experiment(_place(model), tags={RUN: run_id, "mlflow.note.content": note})
    except MlflowException:
        found = _run(model)
        if found is None:
            raise
        if found != run_id:
            mlflow.delete_run(run_id)
        return found
    return run_id


def _reread(journal: Journal) -> Journal:
    assert journal.run_id is not None
    return _parsed(journal.model, journal.run_id, _parameters(journal.model, journal.run_id))


def _parameters(model: str, run_id: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        run = tracking.client().get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise InputError(f"journal: expected the run {run_id} of {model}, MLflow has it no more") from error
    if run.info.lifecycle_stage != "active":
        raise InputError(f"journal: expected the run {run_id} of {model}, it is deleted; restore it in MLflow")
    return dict(run.data.params)


def _parsed(model: str, run_id: str | None, parameters: Mapping[str, str]) -> Journal:
    claims = {int(key): value for key, value in parameters.items() if _CLAIM.fullmatch(key)}
    steps: dict[int, list[str]] = {}
    for number, _, value in sorted(_steps(parameters)):
        steps.setdefault(number, []).append(value)
    length = max(claims, default=0)
    found: list[Entry] = []
    findings: list[str] = []
    link = ""
    for number in range(1, length + 1):
        text = claims.get(number, "")
        outcome = next((step for step in steps.get(number, []) if step in (DONE, UNDONE)), "")
        entry, wrong = _entry(number, text, link)
        findings += wrong
        if not outcome and number < length:
            findings.append(f"entry {number} was never ended, and others follow")
        link = tracking.digest([text if entry is None else written(entry), outcome])
        if entry is None:
            continue
        if entry.action == REPAIR and entry.evidence == tracking.digest(findings):
            findings = []
        holder = _holder(entry.claimant, steps.get(number, []))
        found.append(dataclasses.replace(entry, outcome=outcome, holder=holder, link=link))
    return Journal(model, run_id, tuple(found), tuple(findings), length, len(steps.get(length, [])), link)


def _steps(parameters: Mapping[str, str]) -> Iterator[tuple[int, int, str]]:
    for key, value in parameters.items():
        if place := _STEP.fullmatch(key):
            yield int(place[1]), int(place[2]), value


def _holder(claimant: str, steps: list[str]) -> str:
    holder = claimant
    for step in steps:
        if step == _RELEASED:
            holder = ""
        elif step.startswith(_HOLDER):
            holder = step.removeprefix(_HOLDER)
    return holder


def _entry(number: int, text: str, link: str) -> tuple[Entry | None, list[str]]:
    """An entry as it stands under a number, and what is wrong with it."""
    if not text:
        return None, [f"entry {number} is missing"]
    try:
        entry = Entry(**json.loads(text))
        content = {name: value for name, value in json.loads(text).items() if name != "digest"}
    except (TypeError, ValueError):
        return None, [f"entry {number} cannot be read"]
    wrong = []
    if entry.number != number:
        wrong.append(f"entry {number} says that it is number {entry.number}: the order was changed")
    if entry.digest != tracking.digest(content):
        wrong.append(f"entry {number} was altered: its digest is another")
    if entry.previous != link:
        wrong.append(f"entry {number} does not follow from the one before it, as that now stands")
    return entry, wrong
