"""A run's evidence as a page that stands alone, as a Markdown summary, and as the card of the version that was registered."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2
import yaml

from tasks import precisions
from tasks.references import GateResult
from tasks.report import pictures
from tasks.report.gather import Bound, ClassChange, Evidence, Measured

MOST_CLASSES = 24  # told; of more, those that lost most
MOST_AXES = 30  # shown at once
LONGEST_CARD = 5000  # characters of a description that MLflow's databases hold
_MARKDOWN = re.compile(r"([\\`*_\[\]|#~])")


def page(evidence: Evidence) -> str:
    """HTML without a script, a font or a picture from elsewhere; of the same evidence always the same bytes."""
    return templates().get_template("page.html.j2").render(_told(evidence))


def summary(evidence: Evidence) -> str:
    """The same in short, as Markdown."""
    return templates().get_template("summary.md.j2").render(_told(evidence))


def card(evidence: Evidence, title: str, verdict: GateResult, who: str) -> str:
    """What a registered version came from, what was removed, what was proven and what was not, who let it through."""
    precision = precisions.of(verdict.ships)
    told = {"title": title, "verdict": verdict, "who": who, "removed": _removed(evidence), "precision": precision}
    text = templates().get_template("card.md.j2").render({**_told(evidence), **told}).strip()
    return text if len(text) <= LONGEST_CARD else f"{text[: LONGEST_CARD - 1]}…"


def templates() -> jinja2.Environment:
    """The templates of the pages. HTML escapes itself; Markdown is escaped by the filter `md`, which its templates put on whatever a user wrote."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tasks.report", "templates"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: Mapping[str, Callable[..., str]] = {
        "md": markdown,
        "ms": _or_dash(lambda value: f"{value:.3f}"),
        "kib": _or_dash(lambda value: f"{value / 1024:,.0f} KiB"),
        "count": _or_dash(lambda value: f"{value:,.0f}"),
        "times": _or_dash(lambda value: f"{value:.2f}x"),
        "share": _or_dash(lambda value: f"{value:.0%}"),
        "spoken": precisions.spoken,
    }
    made.filters.update(filters)
    return made


def markdown(text: str) -> str:
    """A text as Markdown shows it literally, on one line."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\1", flat)


def _or_dash(write: Callable[[float], str]) -> Callable[[float | None], str]:
    return lambda value: "–" if value is None else write(value)


def _told(evidence: Evidence) -> dict[str, Any]:
    """What the templates name: the evidence, its pictures, and how its numbers are written."""
    write, classes = metric_writer(evidence.metric), _classes(evidence)
    return {
        "run": evidence,
        "tiles": _tiles(evidence),
        "metric": lambda value: "–" if value is None else write(value),
        "bounds": [(rule, pictures.bound(rule, bound_writer(rule, evidence.metric))) for rule in evidence.rules],
        "tradeoffs": _tradeoffs(evidence),
        "distributions": pictures.distributions(evidence.curves, pictures.plain) if evidence.curves else None,
        "promises": pictures.promises(evidence.promises) if evidence.promises else None,
        "classes": classes,
        "changes": pictures.changes(classes) if classes else None,
        "most_axes": MOST_AXES,
        "widest": max((axis.before for axis in evidence.widths), default=1),
        "recipe": yaml.safe_dump(dict(evidence.recipe), sort_keys=False, allow_unicode=True),
    }


def metric_writer(metric: str) -> Callable[[float], str]:
    """How a value of a metric is written: an accuracy in percent, others as they are."""
    return (lambda value: f"{value:.2%}") if metric == "accuracy" else (lambda value: f"{value:.4f}")


def bound_writer(rule: Bound, metric: str) -> Callable[[float], str]:
    """How a rule's numbers are written."""
    if rule.name == "speedup":
        return lambda value: f"{value:.2f}x"
    if rule.name == metric == "accuracy":
        return lambda value: f"{100 * value:+.2f} points"
    if rule.name == metric:
        return lambda value: f"{value:+.4f}"
    return lambda value: f"{value:.3g}"


def _tradeoffs(evidence: Evidence) -> list[Any]:
    """Against what is gone, and against latency; nothing before a first cycle or a file in lower precision stands beside the dense model."""
    drop = (evidence.recipe.get("budget") or {}).get("accuracy_drop", 0.0)
    write = pictures.percent if evidence.metric == "accuracy" else pictures.plain
    pictured = []
    finite = [
        point for point in evidence.points if math.isfinite(point.accuracy)
    ]  # the others are in no picture's range
    for saving in (True, False):
        points = [point for point in finite if not saving or point.sparsity is not None]
        if len(points) > 1:
            least = points[0].accuracy - drop
            pictured.append(pictures.tradeoff(points, saving=saving, metric=evidence.metric, least=least, write=write))
    return pictured


def _classes(evidence: Evidence) -> tuple[ClassChange, ...]:
    """Those that are told: of many the ones that lost most."""
    if len(evidence.classes) <= MOST_CLASSES:
        return evidence.classes
    return tuple(sorted(evidence.classes, key=lambda one: (one.estimate, one.low))[:MOST_CLASSES])


def _tiles(evidence: Evidence) -> list[tuple[str, str, str]]:
    """The figures to see first: a title, the figure, and its interval or what it was before."""
    shipped, dense = evidence.shipped, evidence.dense
    if shipped is None or dense is None:
        return []
    found = []
    if shipped.speedup and shipped.speedup_interval:
        low, high = shipped.speedup_interval
        found.append(
            ("speedup", f"{shipped.speedup:.2f}x", f"{evidence.confidence:.0%} interval {low:.2f} to {high:.2f}")
        )
    rule = evidence.rule(evidence.metric)
    if rule and math.isfinite(rule.estimate):
        write = bound_writer(rule, evidence.metric)
        low_end = write(rule.low).removesuffix(" points")
        found.append((f"{evidence.metric}, test", write(rule.estimate), f"{low_end} to {write(rule.high)}"))
    found += [
        (title, f"{now / before - 1:+.0%}" if before else "–", f"{write(before)} to {write(now)}")
        for title, before, now, write in _costs(dense, shipped)
        if before is not None and now is not None
    ]
    return found


def _costs(dense: Measured, shipped: Measured) -> list[tuple[str, float | None, float | None, Callable[[float], str]]]:
    return [
        ("size of the file", dense.size_bytes, shipped.size_bytes, lambda value: f"{value / 1024:,.0f} KiB"),
        ("parameters", dense.params, shipped.params, lambda value: f"{value:,.0f}"),
        ("multiply-accumulates", dense.macs, shipped.macs, lambda value: f"{value:,.0f}"),
    ]


def _removed(evidence: Evidence) -> list[tuple[str, int, int, int]]:
    """Of every kind of axis how many were cut, and their units before and after, all together."""
    kinds = dict.fromkeys(axis.kind for axis in evidence.widths)
    found = []
    for kind in kinds:
        axes = [axis for axis in evidence.widths if axis.kind == kind]
        found.append((kind, len(axes), sum(axis.before for axis in axes), sum(axis.after for axis in axes)))
    return found
