"""The pictures of a report: values in, inline SVG out. Colours are classes of the page, so that a picture is light or dark as it is.

Every picture is drawn 360 units wide, which is a phone's width: on a wide screen two stand side by side, never one stretched.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from tasks.report.gather import Bound, ClassChange, Curve, Interval, Point, Promise

WIDTH = 360
LETTER = 6.2  # of a label, on average, at its size of 11
ROW = 26
Write = Callable[[float], str]


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` on the units from `start` to `end` of a picture."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def inside(self, value: float) -> float:
        """The place of a value, of one beyond an end that end."""
        return self(min(max(value, self.low), self.high))

    @property
    def ticks(self) -> list[float]:
        """Round values, three to five of them as a rule, in between."""
        if self.log:
            return _round_in_decades(self.low, self.high)
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _round_step(rough: float) -> float:
    size = 10.0 ** math.floor(math.log10(rough))
    return next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * (1 - 1e-9))


def _round_in_decades(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    wide = high / low > 30
    found = [
        factor * 10.0**decade
        for decade in decades
        for factor in ((1,) if high / low > 1000 else (1, 3) if wide else (1, 2, 5))
    ]
    inside = [value for value in found if low <= value <= high]
    return inside if len(inside) > 2 else Scale(low, high, 0, 1).ticks


def spanning(values: Sequence[float], start: float, end: float, *, room: float = 0.08, log: bool = False) -> Scale:
    """A scale that holds all of these, with some room at either end. Of one single value it is a little wider than nothing."""
    low, high = min(values), max(values)
    if log:
        factor = max(high / low, 1.2) ** room
        return Scale(low / factor, high * factor, start, end, log=True)
    gap = room * (high - low) or abs(high) * room or room
    return Scale(low - gap, high + gap, start, end)


def bound(rule: Bound, write: Write) -> Markup:
    """A rule's interval against its limit, where it has one; the side that passes is tinted, as far as the outcome tells."""
    values = (rule.estimate, rule.low, rule.high)
    if not all(map(math.isfinite, values)):
        return Markup("")
    asked = math.isfinite(rule.limit)
    scale, middle = spanning([*values, rule.limit] if asked else values, 14, WIDTH - 14, room=0.18), 20
    title = f"{rule.name}: {write(rule.estimate)}, interval {write(rule.low)} to {write(rule.high)}"
    parts, labels = [], {write(rule.estimate): scale(rule.estimate)}
    if asked:
        limit, said = scale(rule.limit), f"limit {write(rule.limit)}"
        if side := _side(rule):
            start, end = (limit, WIDTH) if side == "above" else (0.0, limit)
            parts.append(_rect("allowed", start, 6, end - start, 28))
        parts.append(_line("limit", limit, 3, limit, 37))
        near = abs(scale(rule.estimate) - limit) < LETTER * 14
        labels, title = ({} if near else labels) | {said: limit}, f"{title}, {said}"
    parts += _whisker(scale, (rule.low, rule.high), rule.estimate, middle, rule.outcome)
    parts += [_text("tick large", _held(at, label), 51, label, "middle") for label, at in labels.items()]
    return _svg(54, title, parts)


def _side(rule: Bound) -> str:
    """On which side of its limit the rule passes, as far as its outcome tells."""
    if rule.outcome == "pass":
        return "above" if rule.low >= rule.limit else "below"
    if rule.outcome == "fail" and (rule.high < rule.limit or rule.low > rule.limit):
        return "above" if rule.high < rule.limit else "below"
    return ""


def tradeoff(
    points: Sequence[Point], *, saving: bool, metric: str, least: float, write: Write, saved: str = "parameters removed"
) -> Markup:
    """The metric of every model against the share that is gone (`saving`) or else against latency, and the budget's floor.

    A line joins the points that no other beats in both.
    """
    shown = [((point.sparsity or 0.0) if saving else point.latency_ms, point) for point in points]
    spans = [point.latency_interval for _, point in shown if point.latency_interval and not saving]
    heights = [height for _, point in shown for height in (point.accuracy, *(point.accuracy_interval or ()))]
    x = spanning([*(at for at, _ in shown), *(end for span in spans for end in span)], 52, WIDTH - 14, room=0.1)
    y = spanning([*heights, least], 206, 20)
    title, tick = (saved, percent) if saving else ("latency p50, ms", plain)
    parts = [*_across(x, 206, title, tick), *_up(y, 52, WIDTH - 14, f"{metric}, validation", write)]
    parts.append(_line("budget", 52, y(least), WIDTH - 14, y(least)))
    middle = (52 + WIDTH - 14) / 2
    parts.append(_text("note", middle, y(least) - 4, "budget", "middle"))
    parts.append(_steps([(x(at), y(accuracy)) for at, accuracy in front(shown, saving=saving)]))
    taken = [(middle - 3 * LETTER, y(least) - 14, middle + 3 * LETTER, y(least))]
    taken += [(x(at) - 6, y(point.accuracy) - 6, x(at) + 6, y(point.accuracy) + 6) for at, point in shown]
    for at, point in shown:
        parts += _spot(point, x, y, at, across=None if saving else point.latency_interval)
    parts += [_label(x(at), y(point.accuracy), point.name, taken) for at, point in shown]
    return _svg(250, f"{metric} against {title}", parts)


def plain(value: float) -> str:
    """A number of a tick, without zeros that say nothing."""
    return f"{value:.4g}"


def percent(value: float) -> str:
    """A share as whole percents, where they are whole."""
    return f"{100 * value:.4g}%"


def front(shown: Sequence[tuple[float, Point]], *, saving: bool) -> list[tuple[float, float]]:
    """The points that no other beats in both, from left to right (Pareto)."""
    best, found = -math.inf, []
    for at, point in sorted(shown, key=lambda one: (-one[0] if saving else one[0], -one[1].accuracy)):
        if point.accuracy > best:
            best = point.accuracy
            found.append((at, point.accuracy))
    return found[::-1] if saving else found


def _steps(corners: Sequence[tuple[float, float]]) -> Markup:
    """A line through the front, in steps: between two of its points nothing was measured, so none is better than the worse one."""
    path = f"M{corners[0][0]:.1f} {corners[0][1]:.1f}"
    for (before_x, before_y), (x, y) in itertools.pairwise(corners):
        bend = (x, before_y) if before_y > y else (before_x, y)
        path += f"L{bend[0]:.1f} {bend[1]:.1f}L{x:.1f} {y:.1f}"
    return Markup('<path class="front" d="{}"/>').format(path)


def _spot(point: Point, x: Scale, y: Scale, at: float, across: Interval | None) -> Iterator[Markup]:
    """A square for the dense model, a diamond for a lower precision, a disc for a cycle, each with its intervals; a ring around what was chosen."""
    left, top = x(at), y(point.accuracy)
    if point.accuracy_interval:
        yield _line(f"whisker {point.kind}", left, y(point.accuracy_interval[0]), left, y(point.accuracy_interval[1]))
    if across:
        yield _line(f"whisker {point.kind}", x(across[0]), top, x(across[1]), top)
    if point.chosen:
        yield Markup('<circle class="ring" cx="{:.1f}" cy="{:.1f}" r="8.5"/>').format(left, top)
    if point.kind == "cycle":
        yield Markup('<circle class="mark cycle" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(left, top)
    else:
        turned = Markup(' transform="rotate(45 {:.1f} {:.1f})"').format(left, top) if point.kind == "converted" else ""
        yield Markup('<rect class="mark {}" x="{:.1f}" y="{:.1f}" width="8" height="8"{}/>').format(
            point.kind, left - 4, top - 4, turned
        )


def _label(x: float, y: float, name: str, taken: list[tuple[float, float, float, float]]) -> Markup:
    """A name beside its point, where it covers neither another name nor a point."""
    width = LETTER * len(name)
    places = [(x + dx if dx > 0 else x + dx - width, y + dy) for dy in (-8, 16, 4, -20, 28, -32, 40) for dx in (9, -9)]
    inside = [(left, base) for left, base in places if left > 52 and left + width < WIDTH and 12 < base < 204]
    for left, base in inside or places:
        box = (left, base - 10, left + width, base + 2)
        if not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in taken):
            taken.append(box)
            return _text("label", left, base, name, "start")
    return _text("label", *(inside or places)[0], name, "start")


def distributions(curves: Sequence[Curve], write: Write) -> Markup:
    """The share of requests that were answered within a time, of every file."""
    x = spanning([ms for curve in curves for _, ms in curve.points], 40, WIDTH - 14, room=0.05, log=True)
    y = Scale(0, 100, 206, 24)
    parts = [
        *_across(x, 206, "milliseconds, logarithmic", write),
        *_up(y, 40, WIDTH - 14, "requests", lambda p: f"{p:.0f}%"),
    ]
    for number, curve in enumerate(curves):
        line = " ".join(f"{x(ms):.1f},{y(percent):.1f}" for percent, ms in curve.points)
        parts.append(Markup('<polyline class="curve line{}" points="{}"/>').format(number, line))
    return _svg(250, "latency distributions", parts)


def promises(bars: Sequence[Promise]) -> Markup:
    """How many times less or faster, by every account, on one scale from 1."""
    ends = [max(one.times, one.interval[1] if one.interval else 0) for one in bars]
    x = Scale(0, 1.12 * max(1.0, *ends), 4, WIDTH - 44)
    parts, top = [], 4
    for one in bars:
        parts.append(_text("label", 4, top + 10, one.name, "start"))
        parts.append(_rect(f"bar {'real' if one.interval else 'theory'}", x(0), top + 15, x(one.times) - x(0), 13))
        parts.append(_line("limit", x(1), top + 13, x(1), top + 30))
        end = x(one.times)
        if one.interval:
            parts.append(_line("whisker over", x(one.interval[0]), top + 21.5, x(one.interval[1]), top + 21.5))
            end = x(one.interval[1])
        parts.append(_text("label strong", max(end, x(1)) + 6, top + 26, f"{one.times:.2f}x", "start"))
        top += 38
    parts.append(_text("tick", x(1), top + 12, "1x: as the dense model", "start"))
    return _svg(top + 18, "theoretical against realised speedup", parts)


def changes(classes: Sequence[ClassChange]) -> Markup:
    """The change of every class's accuracy in points, with its interval, around no change."""
    ends = [100 * end for one in classes for end in (one.low, one.high)]
    x = spanning([*ends, 0.0], 70, WIDTH - 14, room=0.05)
    bottom = 12 + ROW * len(classes)
    parts = _across(x, bottom, "points of accuracy, what ships minus dense", lambda v: f"{v:+g}" if v else "0")
    parts.append(_line("limit", x(0), 6, x(0), bottom))
    for number, one in enumerate(classes):
        middle = 12 + ROW * (number + 0.5)
        label = one.label if len(one.label) <= 9 else f"{one.label[:8]}…"
        parts.append(_text("label", 62, middle + 4, label, "end"))
        kind = "fail" if one.high < 0 else "pass" if one.low > 0 else "plain"
        parts += _whisker(x, (100 * one.low, 100 * one.high), 100 * one.estimate, middle, kind)
    return _svg(bottom + 42, "change of accuracy by class", parts)


def timeline(
    title: str, values: Sequence[tuple[int, float]], levels: Sequence[tuple[int, float]], write: Write
) -> Markup:
    """A figure look by look, and the level that it must not rise above, which may change from look to look."""
    x = spanning([look for look, _ in values], 48, WIDTH - 14, room=0.02)
    y = spanning([0.0, *(value for _, value in (*values, *levels))], 150, 26)
    parts = [*_across(x, 150, "look", lambda look: f"{look:.0f}"), *_up(y, 48, WIDTH - 14, title, write)]
    for kind, line in (("budget", levels), ("curve line1", values)):
        points = " ".join(f"{x(look):.1f},{y(value):.1f}" for look, value in line)
        parts.append(Markup('<polyline class="{}" points="{}"/>').format(kind, points))
    look, value = values[-1]
    parts.append(Markup('<circle class="mark cycle" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(x(look), y(value)))
    return _svg(190, f"{title} by look", parts)


# --- parts


def _whisker(scale: Scale, interval: Interval, estimate: float, y: float, kind: str) -> list[Markup]:
    low, high = map(scale.inside, interval)
    ends = [_line(f"whisker {kind}", at, y - 5, at, y + 5) for at in (low, high)]
    dot = Markup('<circle class="mark {}" cx="{:.1f}" cy="{:.1f}" r="4.5"/>').format(kind, scale.inside(estimate), y)
    return [_line(f"whisker {kind}", low, y, high, y), *ends, dot]


def _across(scale: Scale, y: float, title: str, write: Write) -> list[Markup]:
    """The axis from left to right, its title below."""
    parts = [_line("axis", scale.start, y, scale.end, y)]
    for value in scale.ticks:
        parts.append(_line("axis", scale(value), y, scale(value), y + 4))
        parts.append(_text("tick", scale(value), y + 16, write(value), "middle"))
    parts.append(_text("title", (scale.start + scale.end) / 2, y + 34, title, "middle"))
    return parts


def _up(scale: Scale, left: float, right: float, title: str, write: Write) -> list[Markup]:
    """The axis upwards, with a faint line at every tick, its title on top."""
    parts = [_text("title", 4, 10, title, "start")]
    for value in scale.ticks:
        parts.append(_line("grid", left, scale(value), right, scale(value)))
        parts.append(_text("tick", left - 5, scale(value) + 4, write(value), "end"))
    return parts


def _held(at: float, label: str) -> float:
    """Where the middle of a label may lie so that all of it is inside."""
    half = LETTER * len(label) / 2
    return min(max(at, half + 1), WIDTH - half - 1)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(kind, x1, y1, x2, y2)


def _rect(kind: str, x: float, y: float, width: float, height: float) -> Markup:
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
        kind, x, y, max(width, 0.0), height
    )


def _text(kind: str, x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, text)


def _svg(height: float, title: str, parts: Sequence[Markup]) -> Markup:
    return Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, title, Markup("").join(map(escape, parts))
    )
