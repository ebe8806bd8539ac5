"""Ends a sweep: who won and why, and a page that shows all candidates side by side."""

from __future__ import annotations

import tempfile
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tasks import precisions, sweep, tracking
from tasks.references import Dense, GateResult, Standing, Standings, Sweeping, Swept
from tasks.report import FOLDER, PAGE, pictures, render
from tasks.report.gather import Point

SIZE = "bytes of the file removed"


def run(sweeping: Sweeping, standings: Standings) -> Swept:
    """Say in the sweep's run what came of it, and write the page there; a page that cannot be written changes no result."""
    verdicts = sweep.judged(sweeping, standings)
    won, reason = sweep.winner(sweeping, standings, verdicts)
    print(f"{won or 'no winner'}: {reason}", flush=True)
    place = tracking.page_of(sweeping.run_id)
    address = f"{tracking.address()}{place}/artifacts/{FOLDER}/{PAGE}"
    try:
        _write(sweeping, standings, won, reason, verdicts)
    except Exception:  # whatever goes wrong in telling of a result is no fault of the result
        traceback.print_exc()
        address = f"{tracking.address()}{place}"
    tracking.describe(
        sweeping.run_id, f"**{won or 'no winner'}** · {reason}\n\nReport: [{PAGE}]({place}/artifacts/{FOLDER}/{PAGE})"
    )
    tracking.log(sweeping.run_id, _metrics(standings, won), winner=won or "")
    tracking.finish(sweeping.run_id)
    return Swept(
        name=sweeping.name,
        winner=won,
        reason=reason,
        judged=verdicts,
        candidates=standings.candidates,
        metric=sweeping.metric,
        run_id=sweeping.run_id,
        address=address,
    )


def _metrics(standings: Standings, won: str | None) -> dict[str, float | None]:
    """What the sweep's row says in a table of runs."""
    counts = {state: sum(one.state == state for one in standings.candidates) for state in ("measured", "failed")}
    best = next((one for one in standings.candidates if one.name == won), None)
    return {"candidates": len(standings.candidates), **counts, "speedup": best.speedup[0] if best else None}


def _write(
    sweeping: Sweeping, standings: Standings, won: str | None, reason: str, verdicts: dict[str, GateResult]
) -> None:
    text = page(sweeping, standings, _dense(sweeping, standings), won, reason, verdicts)
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / PAGE
        path.write_text(text, encoding="utf-8")
        tracking.put(sweeping.run_id, path, FOLDER)


def _dense(sweeping: Sweeping, standings: Standings) -> Dense | None:
    """The dense model, by the figures of the first candidate that was measured."""
    first = next((one for one in standings.candidates if one.state == "measured"), None)
    if first is None:
        return None
    metrics = tracking.client().get_run(first.run_id).data.metrics
    return Dense(
        metric=metrics[f"dense.validation_{sweeping.metric}"],
        p50_ms=metrics["dense.latency_p50_ms"],
        p99_ms=metrics.get("dense.latency_p99_ms"),
        size_bytes=metrics["dense.size_bytes"],
    )


def page(
    sweeping: Sweeping,
    standings: Standings,
    dense: Dense | None,
    won: str | None,
    reason: str,
    verdicts: dict[str, GateResult],
) -> str:
    """HTML without a script, a font or a picture from elsewhere; of the same sweep always the same bytes."""
    rungs = sorted({one.rung for one in standings.candidates}, reverse=True)
    shown = [(number, one) for number, one in enumerate(standings.candidates, 1)]
    finalists = sweep.finalists(sweeping, standings)
    return (
        render.templates()
        .get_template("sweep.html.j2")
        .render(
            sweep=sweeping,
            dense=dense,
            winner=won,
            reason=reason,
            verdicts=verdicts,
            finalists=finalists,
            tiles=_tiles(sweeping, standings, won, verdicts),
            rungs=[(rung, [(number, one) for number, one in shown if one.rung == rung]) for rung in rungs],
            pictures=_pictures(sweeping, shown, dense, won) if dense else [],
            metric=render.metric_writer(sweeping.metric),
            points=_change_writer(sweeping.metric),
            percent=lambda value: f"{100 * value:.4g}%",
            jobs=f"{tracking.address()}#/experiments/{sweeping.experiment_id}/runs/",
        )
    )


def _change_writer(metric: str) -> Any:
    return (lambda value: f"{100 * value:+.2f}") if metric == "accuracy" else (lambda value: f"{value:+.4f}")


def _tiles(
    sweeping: Sweeping, standings: Standings, won: str | None, verdicts: dict[str, GateResult]
) -> list[tuple[str, str, str]]:
    """The figures to see first."""
    states = [one.state for one in standings.candidates]
    beside = ", ".join(
        f"{states.count(state)} {state}" for state in ("measured", "not pruned", "failed") if state in states
    )
    tiles = [("candidates", str(len(states)), beside)]
    if best := next((one for one in standings.candidates if one.name == won), None):
        write = _change_writer(sweeping.metric)
        tiles.append(("speedup", f"{best.speedup[0]:.2f}x", f"{best.speedup[1]:.2f} to {best.speedup[2]:.2f}"))
        ends = f"{write(best.change[1])} to {write(best.change[2])}"
        unit = " points" if sweeping.metric == "accuracy" else ""
        tiles.append((f"{sweeping.metric}, validation", write(best.change[0]) + unit, ends))
        tiles.append(("parameters removed", f"{best.sparsity:.0%}", precisions.spoken(best.ships, ", ")))
    tiles.append(("looks at the test split", str(len(verdicts)), f"at most {sweeping.finalists}"))
    return tiles


def _pictures(sweeping: Sweeping, shown: Sequence[tuple[int, Standing]], dense: Dense, won: str | None) -> list[Any]:
    """The metric against latency, and against the size of the file; a line joins what nothing else beats in both."""
    write = pictures.percent if sweeping.metric == "accuracy" else pictures.plain
    found = [(number, one) for number, one in shown if one.state == "measured"]
    least = dense.metric - sweeping.drop
    draw = partial(pictures.tradeoff, metric=sweeping.metric, least=least, write=write)
    by_time = [Point("dense", "dense", dense.metric, None, 0.0, dense.p50_ms, None, False)]
    by_size = list(by_time)
    for number, one in found:
        estimate, low, high = (dense.p50_ms / times for times in (one.speedup[0], one.speedup[2], one.speedup[1]))
        around = (dense.metric + one.change[1], dense.metric + one.change[2])
        gone = 1 - one.size_bytes / dense.size_bytes
        of = (str(number), "cycle", one.metric, around)
        by_time.append(Point(*of, one.sparsity, estimate, (low, high), one.name == won))
        by_size.append(Point(*of, gone, estimate, None, one.name == won))
    return [
        draw(by_time, saving=False),
        draw(by_size, saving=True, saved=SIZE),
    ]
