"""Whether the gate's rules keep what they promise: models that are truly too bad, truly equal ones, and those between, simulated.

`make bench-gate` runs it and writes `gate.json`, `gate.md` and `gate.png`. Effect 0 is a model as good as the dense one, effect 1
one that lies exactly at the limit, where a rule that is right lets 5 % pass.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

from benchmarks import machine
from benchmarks.context import Row, say
from benchmarks.engine.report import table as markdown_table
from secateur import compare
from secateur.gate import bounds, rules
from secateur.gate.judging import Asked
from secateur.gate.verdict import PASS, Rule, confidence_at
from secateur.objectives import OBJECTIVES

matplotlib.use("Agg")
from matplotlib import pyplot  # after the backend that needs no display

CONFIDENCE, ALPHA = 0.95, 0.05
ALLOWED = ALPHA + 0.01
MODELS, ON_CURVE = 2000, 300
SIZES = (500, 2000, 10_000)
EFFECTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
FREE = Asked.looks  # at a test set, by the recipe's default
RESAMPLES, LEFT_OUT = 400, 100  # of a bootstrap, whose bounds more of them make steadier, not narrower
RATIO = OBJECTIVES["causal_lm"].score
Judge = Callable[[float, int, np.random.Generator], Rule]  # effect, test examples


def changes(effect: float, drop: float, n: int, rng: np.random.Generator) -> tuple[int, int]:
    """How many of `n` answers are gained and lost: 2 % by chance each, where the loss does not need more."""
    loss = effect * drop
    lost = max(0.02 + loss / 2, loss)
    gained, seen, _ = rng.multinomial(n, [lost - loss, lost, 1 - 2 * lost + loss])
    return int(gained), int(seen)


def accuracy(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """2 points may be lost."""
    gained, lost = changes(effect, 0.02, n, rng)
    counts = (gained, lost, n - gained - lost)
    return rules.accuracy_rule(
        np.repeat([False, True, True], counts), np.repeat([True, False, True], counts), 0.02, CONFIDENCE
    )


def metric(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """0.05 nats of log-likelihood may be lost, most of it by few examples."""
    ones = np.ones(n)
    dense, lost = -rng.exponential(1.0, n), rng.normal(0, 0.1, n) + skewed(0.05 * effect, n, rng)
    return rules.metric_rule("log_likelihood", (dense, ones), (dense - lost, ones), RATIO, 0.05, CONFIDENCE)


def documents(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """The same, of four parts of each document that share half of what is lost."""
    ones, document = np.ones(n), np.repeat(np.arange(n // 4), 4)
    lost = (skewed(0.05 * effect, n, rng) + np.repeat(skewed(0.05 * effect, n // 4, rng), 4)) / 2
    lost += rng.normal(0, 0.1, n)
    dense = -rng.exponential(1.0, n)
    pair = (dense, ones), (dense - lost, ones)
    return rules.metric_rule("log_likelihood", *pair, RATIO, 0.05, CONFIDENCE, documents=document)


def skewed(mean: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Gamma numbers of shape 0.3: most are near 0, a few carry the mean."""
    return rng.gamma(0.3, mean / 0.3, n) if mean else np.zeros(n)


def floor(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """Accuracy 95 %, floor 92 %."""
    right = rng.random(n) < 0.95 - 0.03 * effect
    return rules.floor_rule("accuracy", (right, np.ones(n, bool)), RATIO, 0.92, CONFIDENCE, right_or_wrong=True)


def part(effect: float, n: int, rng: np.random.Generator) -> rules.Part:
    """A slice or a corruption; 5 points may be lost."""
    return n, functools.partial(bounds.discordant_difference, *changes(effect, 0.05, n, rng), n)


def slices(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """Ten classes, one of them as bad as the effect says."""
    parts = {str(i): part(effect if i == 0 else 0.0, n // 10, rng) for i in range(10)}
    return rules.worst_rule("slices", "accuracy", parts, 0.05, CONFIDENCE)


def robustness(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """Four corruptions, one of them as bad as the effect says."""
    parts = {str(i): part(effect if i == 0 else 0.0, n, rng) for i in range(4)}
    return rules.worst_rule("robustness", "accuracy", parts, 0.05, CONFIDENCE)


def exemplars(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """1 % of the examples are lost by chance, 4 % may be."""
    lost = rng.random(n) < 0.01 + 0.03 * effect
    return rules.exemplars_rule(np.ones(n, bool), ~lost, 0.04, CONFIDENCE)


def agreement(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """98 % are answered alike by chance, 95 % must be."""
    other = rng.random(n) >= 0.98 - 0.03 * effect
    return rules.agreement_rule(np.zeros(n), other.astype(float), 0.95, CONFIDENCE)


def ece(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """0.05 is allowed; too modest by as much everywhere, where nothing makes up for chance. Right 9 times of 10."""
    truth = 1 - 0.5 * rng.uniform(0, 1, n) ** 4
    pair = truth - 0.05 * effect, rng.random(n) < truth
    return rules.calibration_rule(pair, pair, 0.05, CONFIDENCE)


def brier(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """0.02 more is allowed, most of it of few examples."""
    dense = rng.uniform(0, 0.5, n)
    return rules.brier_rule(dense, dense + rng.normal(0, 0.1, n) + skewed(0.02 * effect, n, rng), 0.02, CONFIDENCE)


def confidence_shift(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """0.02 either way is allowed."""
    dense = rng.uniform(0.5, 0.8, n)
    return rules.certainty_rule(dense, dense - 0.02 * effect + rng.normal(0, 0.15, n), 0.02, CONFIDENCE)


def speedup(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """1.5x is asked, effect 0 has 1.65x; a round of processes varies by 3 %. `n` is their number."""
    logs = np.log(1.65) + effect * np.log(1.5 / 1.65) + rng.normal(0, 0.03, n)
    low, high = np.exp(compare.interval(logs, CONFIDENCE))
    return rules.speedup_rule(float(np.exp(np.median(logs))), float(low), float(high), 1.5, CONFIDENCE)


def costs(effect: float, n: int, rng: np.random.Generator) -> Rule:
    """p99 and memory: 10 are allowed, effect 0 has 9; a process varies by 3 %. `n` is their number."""
    values = (9 + effect) * np.exp(rng.normal(0, 0.03, n))
    seen = (float(np.median(values)), *compare.interval(values, CONFIDENCE))
    return rules.ceiling_rule("p99_ms", seen, 10.0, "ms", CONFIDENCE)


@dataclass(frozen=True)
class Case:
    """A rule, what it is asked of, and how many models are simulated at each size."""

    judge: Judge
    sizes: tuple[int, ...] = SIZES
    models: tuple[int, ...] = (MODELS,) * 3
    of: str = "examples"


ROUNDS = (6, 9, 13)
CASES = {
    "accuracy": Case(accuracy),
    "metric": Case(metric, SIZES[:2], (MODELS, MODELS // 4)),
    "metric by document": Case(documents, SIZES[:1], (4 * MODELS,)),
    "floor": Case(floor),
    "slices": Case(slices),
    "robustness": Case(robustness),
    "exemplars": Case(exemplars),
    "agreement": Case(agreement),
    "ece": Case(ece),
    "brier": Case(brier, models=(4 * MODELS,) * 3),
    "confidence_shift": Case(confidence_shift, models=(4 * MODELS,) * 3),
    "speedup": Case(speedup, ROUNDS, of="rounds"),
    "p99_ms, memory_mb": Case(costs, ROUNDS, of="processes"),
}
TOLD = ("size_mb", "parity", "qps")  # a file's size and its parity are not drawn; LoadGen judges its runs itself


def passed(case: Case, effect: float, n: int, models: int, seed: int) -> int:
    """How many models pass."""
    rng = np.random.default_rng([seed, n, round(100 * effect)])
    return sum(case.judge(effect, n, rng).outcome == PASS for _ in range(models))


def simulated(name: str, seed: int) -> list[Row]:
    """A row for each effect and size."""
    case, found = CASES[name], []
    for n, models in zip(case.sizes, case.models, strict=True):
        for effect in EFFECTS:
            if effect not in (0.0, 1.0) and name == "metric by document":
                continue  # as `metric`, and each takes long
            count = models if effect in (0.0, 1.0) else min(models, ON_CURVE)
            share, low, high = bounds.share(passed(case, effect, n, count, seed), count, 0.975)
            found.append(
                {"rule": name, "n": n, "effect": effect, "models": count, "share": share, "low": low, "high": high}
            )
    return found


def looked(seed: int, series: int = 500, looks: int = 40, free: int = FREE) -> list[Row]:
    """Files at the limit, one after the other on one test set each time drawn anew: how often some file of a series has passed."""
    rng, first = (
        np.random.default_rng(seed),
        {"free": np.full(series, looks + 1), "corrected": np.full(series, looks + 1)},
    )
    for one in range(series):
        for look in range(looks, 0, -1):
            counts = (*changes(1.0, 0.02, 2000, rng), 2000)
            for how, confidence in (("free", CONFIDENCE), ("corrected", confidence_at(CONFIDENCE, look, free))):
                if bounds.discordant_difference(*counts, confidence)[1] > -0.02:
                    first[how][one] = look
    return [
        {"looks": look, **{how: float((seen <= look).mean()) for how, seen in first.items()}}
        for look in (1, 10, 20, 40)
    ]


def main() -> None:
    """Simulate, and write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rules", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    bounds.RESAMPLES, bounds.LEFT_OUT = RESAMPLES, LEFT_OUT
    for name in ("discordant_difference", "share"):  # of counts, which come again and again
        setattr(bounds, name, functools.cache(getattr(bounds, name)))
    rows, began = kept(asked.out / "gate.json", asked.rules), time.process_time()
    for name in asked.rules:
        rows = sorted([*rows, *simulated(name, asked.seed)], key=lambda row: list(CASES).index(row["rule"]))
        say(f"{name}: {worst(rows, name)['share']:.1%} of the models at the limit pass")
    store(asked.out, rows, looked(asked.seed), asked.seed, time.process_time() - began)
    draw(asked.out / "gate.png", rows)


def kept(path: Path, asked: Sequence[str]) -> list[Row]:
    """The rows of the last run, but for the rules that are simulated now."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    return [row for row in rows if row["rule"] not in asked]


def at(rows: Sequence[Row], name: str, effect: float) -> list[Row]:
    """The rows of a rule at an effect, by size."""
    return [row for row in rows if (row["rule"], row["effect"]) == (name, effect)]


def worst(rows: Sequence[Row], name: str) -> Row:
    """Where most of the models at the limit passed."""
    return max(at(rows, name, 1.0), key=lambda row: row["share"])


def cells(rows: Sequence[Row], name: str, effect: float) -> list[str]:
    """Shares that passed, at every size."""
    found = [f"{row['share']:.1%} ({row['low']:.1%} to {row['high']:.1%})" for row in at(rows, name, effect)]
    return found + ["-"] * (len(SIZES) - len(found))


def store(out: Path, rows: Sequence[Row], looks: Sequence[Row], seed: int, seconds: float) -> None:
    """Write all of it as JSON and as a page of Markdown."""
    used = machine.versions()
    said: Row = {
        "command": "make bench-gate",
        "date": datetime.date.today().isoformat(),
        "seed": seed,
        "code": machine.commit(),
        "machine": machine.in_words(),
        "versions": used,
        "confidence": CONFIDENCE,
    }
    content = said | {"rows": list(rows), "looks": list(looks)}
    (out / "gate.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    head = ["rule", *(f"n = {n:,}" for n in SIZES)]
    of_examples = [name for name, case in CASES.items() if case.of == "examples"]
    of_rounds = [name for name in CASES if name not in of_examples]
    late = [name for name in CASES if worst(rows, name)["share"] > ALLOWED]
    page = [
        "# What the gate lets pass",
        "Written by `make bench-gate`; the numbers are in `gate.json`.",
        f"Simulated models, judged by the rules themselves with {CONFIDENCE:.0%} confidence. In brackets the 95 % interval of each "
        f"share. What is simulated, and each limit, is said in `benchmarks/gate.py`.",
        "## Truly too bad",
        f"{MODELS:,} models, or more where they cost little, exactly at the limit; of those beyond it fewer pass. Promised is {ALPHA:.0%}, allowed {ALLOWED:.0%}: "
        f"{'kept by every rule' if not late else 'exceeded by ' + ', '.join(late)}.",
        markdown_table(head, [[name, *cells(rows, name, 1.0)] for name in of_examples]),
        "## Truly equal",
        f"{MODELS:,} models or more that are as good as the dense one: how often they pass, so what a test set of this size can prove.",
        markdown_table(head, [[name, *cells(rows, name, 0.0)] for name in of_examples]),
        "## Measured in fresh processes",
        markdown_table(
            ["rule", "models", *(f"n = {n}" for n in ROUNDS)],
            [
                [name, what, *cells(rows, name, effect)]
                for name in of_rounds
                for what, effect in (("at the limit", 1.0), ("10 % better", 0.0))
            ],
        ),
        f"Not simulated: {', '.join(TOLD)}, where nothing is drawn, or LoadGen judges. `incumbent` is the rule of the metric again. "
        "Of the bootstrap (`metric`) fewer models are simulated at n = 2,000, since each takes long: "
        f"{', '.join(str(count) for count in CASES['metric'].models)}.",
        "## Looks at one test set",
        "Files at the limit (2 points of accuracy, n = 2,000), one after the other: how often at least one of them has passed, with "
        f"the same confidence at every look, and corrected after the first {FREE}, which the recipe's default leaves free.",
        markdown_table(
            ["looks", "same confidence", f"corrected after {FREE}"],
            [[str(row["looks"]), f"{row['free']:.0%}", f"{row['corrected']:.0%}"] for row in looks],
        ),
        "![Power against the effect](gate.png)",
        f"`{said['command']}` on {said['date']}, code {said['code']}, seed {seed}; the rules that were simulated last took {seconds:.0f} s of one core. {said['machine']}; "
        + ", ".join(f"{name} {version}" for name, version in used.items())
        + ".",
    ]
    (out / "gate.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")


def draw(path: Path, rows: Sequence[Row]) -> None:
    """How often models pass, against how bad they are."""
    figure, axes = pyplot.subplots(3, 5, figsize=(15, 8), sharey=True, layout="constrained")
    for axis, (name, case) in zip(axes.flat, CASES.items(), strict=False):
        for n, colour in zip(case.sizes, ("#4477aa", "#ee7733", "#228833"), strict=False):
            curve = [row for row in rows if (row["rule"], row["n"]) == (name, n)]
            x, y = [row["effect"] for row in curve], [row["share"] for row in curve]
            line = "-" if len(x) > 2 else ""  # two effects are no curve
            axis.plot(x, y, marker="o", markersize=3, linestyle=line, color=colour, label=f"n = {n:,}")
            if line:
                ends = ([row[end] for row in curve] for end in ("low", "high"))
                axis.fill_between(x, *ends, color=colour, alpha=0.15)
        axis.axvline(1, color="grey", linewidth=0.8, linestyle=":")
        axis.axhline(ALPHA, color="grey", linewidth=0.8, linestyle=":")
        axis.set_title(name, fontsize=10)
        axis.set_ylim(-0.02, 1.02)
        axis.set_xlim(-0.05, EFFECTS[-1] + 0.05)
    empty = list(axes.flat)[len(CASES) :]
    for axis in empty:
        axis.set_axis_off()
    for axis, of_rounds in zip(empty, (False, True), strict=False):
        shown = next(
            (
                drawn
                for drawn, case in zip(axes.flat, CASES.values(), strict=False)
                if (case.of != "examples") == of_rounds
            )
        )
        title = "rounds of processes" if of_rounds else "test examples"
        axis.legend(*shown.get_legend_handles_labels(), title=title, frameon=False, loc="center")
    figure.supxlabel("how bad the model is (0: as good as the dense one, 1: exactly at the limit)", fontsize=10)
    figure.supylabel("share that passes", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    main()
