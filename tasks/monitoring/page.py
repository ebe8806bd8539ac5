"""A version's page: how it does, look by look, in one file without a script or a picture from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup

from secateur.monitoring.judging import ACCURACY, DISAGREEMENT, LATENCY, LESS_SURE, SURER, UNEXPLAINED, WRONG
from tasks.report import pictures, render

SHOWN = 240  # looks: ten days of one an hour
DRAWN = (DISAGREEMENT, UNEXPLAINED, ACCURACY, WRONG, LESS_SURE, SURER, LATENCY)


def page(model: str, version: str, looks: Sequence[Mapping[str, Any]]) -> str:
    """HTML of every look at a version, the oldest first; of the same looks always the same bytes."""
    shown = looks[-SHOWN:]
    environment = render.templates()
    environment.filters |= {"moment": _moment, "percent": _percent, "looks": _looks}
    return environment.get_template("monitor.html.j2").render(
        model=model,
        version=version,
        looks=shown,
        last=shown[-1],
        tiles=_tiles(shown[-1]),
        pictures=_pictures(shown),
    )


def _tiles(last: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    found = {one["name"]: one for one in last["findings"]}
    tiles = [
        ("requests", f"{last['requests']:,}", "since the look before"),
        ("labels", f"{last['labels']:,}", "that came"),
    ]
    for name in (DISAGREEMENT, UNEXPLAINED, ACCURACY):
        if name in found and found[name]["examples"]:
            tiles.append((name, _percent(found[name]["mean"]), f"level {_percent(found[name]['level'])}"))
    drifted = sum(one["drifted"] for one in last["drift"])
    return [*tiles, ("features drifted", str(drifted), f"of {len(last['drift'])}")] if last["drift"] else tiles


def _pictures(looks: Sequence[Mapping[str, Any]]) -> list[Markup]:
    drawn = []
    for name in DRAWN:
        seen = [(one["number"], finding) for one in looks for finding in one["findings"] if finding["name"] == name]
        seen = [(number, finding) for number, finding in seen if finding["examples"]]
        if len(seen) > 1:
            values = [(number, 100 * finding["mean"]) for number, finding in seen]
            levels = [(number, 100 * finding["level"]) for number, finding in seen]
            drawn.append(pictures.timeline(f"{name}, %", values, levels, lambda value: f"{value:g}"))
    return drawn


def _moment(text: str) -> str:
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M}"


def _percent(value: float) -> str:
    return f"{value:.2%}"


def _looks(value: float) -> str:
    return "–" if value < 1 else f"{value:,.0f}"
