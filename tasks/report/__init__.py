"""Ends a run with what people read: a page that stands alone, the same in short as Markdown, and the card of what was registered."""

from __future__ import annotations

import tempfile
import traceback
from pathlib import Path

from secateur.errors import NothingToDo
from tasks import tracking
from tasks.faults import is_io_fault
from tasks.references import GateResult, Pinned, Reported

FOLDER, PAGE, SUMMARY = "report", "report.html", "summary.md"
_LINKED = "\n\nReport: "


def run(pinned: Pinned) -> Reported:
    """Write the report of this run and link it from its description, also where the gate let nothing through.

    Not remembered like other steps: what it tells of may have changed since, and it takes a second.

    Raises:
        NothingToDo: it could not be written; the verdict stands whatever becomes of a picture of it.
    """
    try:
        reported = write(pinned.run_id)
    except Exception as error:  # whatever goes wrong in telling of a result is no fault of the result
        traceback.print_exc()
        raise NothingToDo(
            f"no report: {type(error).__name__}: {error}; `secateur report {pinned.run_id}` tries again"
        ) from error
    print(f"report: {reported.address}", flush=True)
    return reported


def write(run_id: str) -> Reported:
    """Write the report of a parent run into it.

    Raises:
        InputError: there is no such run, or it is not one of a whole job.
    """
    from tasks.report import gather, render

    evidence = gather.gather(run_id)
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / PAGE
        path.write_text(render.page(evidence), encoding="utf-8")
        page = tracking.put(run_id, path, FOLDER)
    tracking.put_text(run_id, render.summary(evidence), f"{FOLDER}/{SUMMARY}")
    place = tracking.page_of(run_id)
    links = [f"[{name}]({place}/artifacts/{FOLDER}/{name})" for name in (PAGE, SUMMARY)]
    before = tracking.description(run_id).partition(_LINKED)[0]
    tracking.describe(run_id, f"{before}{_LINKED}{', '.join(links)}")
    return Reported(page, f"{tracking.address()}{place}/artifacts/{FOLDER}/{PAGE}")


def page(run_id: str) -> bytes:
    """The page of a parent run, made where the run has none yet.

    Raises:
        InputError: there is no such run, or it is not one of a whole job.
    """
    from tasks.report import gather

    gather.job(run_id)
    found = tracking.get_bytes(run_id, f"{FOLDER}/{PAGE}")
    if found is None:
        with tracking.fetched(write(run_id).page) as path:
            return path.read_bytes()
    return found


def card(run_id: str, title: str, verdict: GateResult, who: str) -> str:
    """The description of a version that the verdict let through; a single line where the rest cannot be told.

    Args:
        run_id: of the parent run.
        title: what the version is, such as "Pruned, INT8".
        verdict: on the file that is registered.
        who: registers it.
    """
    from tasks.report import gather, render

    try:
        return render.card(gather.gather(run_id), title, verdict, who)
    except Exception as error:
        if is_io_fault(error):
            raise
        traceback.print_exc()
        return f"{title}. {verdict.reason}"
