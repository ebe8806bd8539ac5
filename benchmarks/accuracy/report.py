"""The results as one page of Markdown, a table and its words per row, and the curves that belong to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.accuracy.remarks import mean_by
from benchmarks.accuracy.study import Ask, Study
from benchmarks.context import Row
from benchmarks.engine.report import table

Stored = dict[str, Any]
HEAD = ("part", "asked", "dense", "after cut", "after recovery", "change", "sparsity", "MACs", "minutes", "")
NOTES = (
    "Accuracies are of the test split (dev for SST-2), of the epoch that validation chose, validation being carved out of "
    "train. `after cut` is right after the last cut. `sparsity` is the share of the dense program's parameters that are gone or "
    "zero. `minutes` are those of one seed. With several seeds: mean ± standard deviation."
)
SHORT = (
    " The protocol is short: fewer epochs and one seed. What was asked is asked of the full one; here it is said only where it "
    "is met all the same."
)


def markdown(rows: dict[str, Stored], studies: dict[str, Study], scale: str) -> str:
    """The page."""
    pieces = [
        f"# What recipes keep of the accuracy, scale {scale}",
        f"Written by `make bench-accuracy SCALE={scale}`; the numbers are in `accuracy-{scale}.json`, the constants in "
        "`benchmarks/accuracy/scales.py`.",
        NOTES + (SHORT if scale != "gpu" else ""),
    ]
    for name, stored in rows.items():
        pieces += _row(name, stored, studies[name], scale)
    return "\n\n".join(pieces) + "\n"


def _row(name: str, stored: Stored, study: Study, scale: str) -> list[str]:
    pieces = [f"## {study.title}", f"`make bench-accuracy DATA=<folder> SCALE={scale} ROWS={name}`. {study.about}"]
    if "skipped" in stored:
        return [*pieces, f"Skipped: {stored['skipped']}."]
    parts = stored["parts"]
    by_label: dict[str, list[Row]] = {}
    for part in parts:
        by_label.setdefault(part["label"], []).append(part)
    pieces.append(table(HEAD, [_line(label, same, study, scale) for label, same in by_label.items()]))
    if study.curves:
        pieces.append(f"![{study.title}]({figure_name(name, scale)})")
    if study.remark and (said := study.remark(parts)):
        pieces.append(said)
    beside = [f"{part['label']}: {part['published']}" for part in parts if part["published"]]
    published = [*study.published, *(f"{line}." for line in dict.fromkeys(beside))]
    pieces.append("\n".join(["Published:", *(f"- {line}" for line in published)]) if published else "")
    pieces.append("\n".join(["Settings:", *(f"- {line}" for line in dict.fromkeys(_settings(part) for part in parts))]))
    pieces.append("\n".join(dict.fromkeys(_made(part) for part in parts)))
    missing = stored["asked"] - len(parts)
    return [
        piece for piece in [*pieces, f"{missing} of {stored['asked']} parts are missing." if missing else ""] if piece
    ]


def _line(label: str, parts: Sequence[Row], study: Study, scale: str) -> list[str]:
    first = parts[0]
    dense, cut, recovered = (_scores([part[what] for part in parts], study) for what in ("dense", "cut", "recovered"))
    extra = [f"speedup {_spread([part['speedup'] for part in parts], '{:.2f}')}x"] if "speedup" in first else []
    extra += [f"learnt {_scores([part['learnt'] for part in parts], study)}"] if "learnt" in first else []
    return [
        "; ".join([label, *extra]),
        str(Ask(**first["ask"])) if first["ask"] else "reported",
        dense,
        cut,
        recovered,
        _change(parts, study),
        f"{fmean(part['sparsity'] for part in parts):.1%}",
        f"{fmean(part['macs'] for part in parts):,.0f} ({fmean(part['macs_ratio'] for part in parts):.2f}x fewer)",
        f"{fmean(part['seconds'] for part in parts) / 60:.1f}",
        verdict(parts, scale),
    ]


def verdict(parts: Sequence[Row], scale: str) -> str:
    """Whether the mean over seeds is what was asked; empty where nothing was."""
    if not parts[0]["ask"]:
        return ""
    dense, recovered = (fmean(part[what] for part in parts) for what in ("dense", "recovered"))
    if Ask(**parts[0]["ask"]).met(dense, recovered):
        return "met"
    return "not met" if scale == "gpu" else "short protocol: n/a"


def _scores(values: Sequence[float], study: Study) -> str:
    """Percents, or perplexities of log-likelihoods."""
    if study.metric == "log_likelihood":
        return _spread([math.exp(-value) for value in values], "{:.2f}")
    return _spread([100 * value for value in values], "{:.2f}") + "%"


def _change(parts: Sequence[Row], study: Study) -> str:
    if study.metric == "log_likelihood":
        return _spread([100 * math.expm1(part["dense"] - part["recovered"]) for part in parts], "{:+.1f}") + "%"
    return _spread([100 * (part["recovered"] - part["dense"]) for part in parts], "{:+.2f}")


def _spread(values: Sequence[float], form: str) -> str:
    mean = form.format(fmean(values))
    return f"{mean} ± {stdev(values):.2f}" if len(values) > 1 else mean


def _settings(part: Row) -> str:
    return ", ".join(_words(part["settings"]))


def _words(settings: Row) -> list[str]:
    """A nested record as words; what is nested keeps the name of what it is in, but for the recipe's own."""
    said = []
    for name, value in settings.items():
        if isinstance(value, dict):
            inner = ", ".join(_words(value))
            said.append(inner if name in ("recipe", "training") else f"{name.replace('_', ' ')} ({inner})")
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            said.append(f"{name.replace('_', ' ')} {shown}")
    return said


def _made(part: Row) -> str:
    made = part["made"]
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    return f"On {made['date']}, code {made['code']}. {made['machine']}; {versions}."


def figure_name(name: str, scale: str) -> str:
    """The file of a row's curves, beside the page."""
    return f"accuracy-{scale}-{name}.svg"


def draw(name: str, parts: Sequence[Row], study: Study, scale: str, folder: Path) -> None:
    """Accuracy against the share that is gone, one-shot and iterative, seeds as dots."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.hashsalt": name}):  # the same file from the same numbers
        figure, axes = pyplot.subplots(figsize=(6, 4))
        for way, colour in (("oneshot", "tab:orange"), ("iterative", "tab:blue")):
            rows = sorted((part for part in parts if part["way"] == way), key=lambda part: part["share"])
            if rows:
                means = mean_by(rows, "share", "recovered")
                axes.plot(
                    [100 * share for share in means], [100 * value for value in means.values()], color=colour, label=way
                )
                axes.scatter([100 * r["share"] for r in rows], [100 * r["recovered"] for r in rows], color=colour, s=12)
        axes.axhline(100 * fmean(part["dense"] for part in parts), color="gray", linestyle=":", label="dense")
        axes.set(xlabel="% gone", ylabel="test accuracy after recovery, %", title=study.title)
        axes.legend()
        figure.tight_layout()
        figure.savefig(folder / figure_name(name, scale), metadata={"Date": None})
        pyplot.close(figure)
