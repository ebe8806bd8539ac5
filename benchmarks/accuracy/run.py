"""Runs rows and writes `accuracy-<scale>.json`, `accuracy-<scale>.md` and their figures.

python -m benchmarks.accuracy --data FOLDER [--scale cpu|gpu] [--rows resnet20-structured ...] [--jobs 3]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.accuracy import report
from benchmarks.accuracy.rows import STUDIES
from benchmarks.accuracy.scales import SCALES, Scale
from benchmarks.accuracy.study import Trial
from benchmarks.context import Context, Row, Skipped, say


def main() -> None:
    """Run what is missing of each row and write the files after every part."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder with cifar10/, cifar_resnet/, sst2/, stories260k/")
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--rows", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--jobs", type=int, default=1, help="parts at a time, each in a process of its own")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument(
        "--cache", type=Path, default=Path(".bench"), help="keeps trained models and trainings under way"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the validation split and of what rows start from")
    asked = parser.parse_args()
    asked.cache.mkdir(exist_ok=True)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in asked.rows:
        run_row(name, SCALES[asked.scale], Context(asked.data, asked.cache, asked.seed), asked.out, asked.jobs)


def run_row(name: str, scale: Scale, context: Context, out: Path, jobs: int = 1) -> None:
    """Add a row's missing parts to the results, one after the other."""
    trials = STUDIES[name].trials(scale)
    parts = current(trials, read(out, scale).get(name, {}).get("parts", []))
    missing = [trial for trial in trials if not _done(trial, parts)]
    say(f"{name}: {len(missing)} of {len(trials)} parts to do" + guess(name, scale, len(missing) / len(trials)))
    try:
        for trial, made in _made(name, missing, scale, context, jobs):
            parts.append(as_part(trial, made))
            say(f"{name}: {trial.label}, seed {trial.seed}: {made['dense']:.4f} -> {made['recovered']:.4f}")
            store(out, scale, name, {"parts": current(trials, parts), "asked": len(trials)})
    except Skipped as reason:
        say(f"{name}: skipped: {reason}")
        if not parts:
            store(out, scale, name, {"skipped": str(reason)})


def guess(name: str, scale: Scale, share: float) -> str:
    """How long it will take, where that is known."""
    return f", about {STUDIES[name].minutes * share:.0f} minutes on two cores" if scale.name == "cpu" and share else ""


def current(trials: list[Trial], parts: list[Row]) -> list[Row]:
    """The stored parts that are of these trials and their settings, in the trials' order."""
    return [part for trial in trials for part in parts if _is(trial, part)]


def _done(trial: Trial, parts: list[Row]) -> bool:
    return any(_is(trial, part) for part in parts)


def _is(trial: Trial, part: Row) -> bool:
    settings = json.loads(json.dumps(trial.settings))
    return (part["label"], part["seed"], part["settings"]) == (trial.label, trial.seed, settings)


def as_part(trial: Trial, made: Row) -> Row:
    """What is stored of a trial."""
    said: Row = {"label": trial.label, "seed": trial.seed, "settings": json.loads(json.dumps(trial.settings))}
    said |= {"ask": asdict(trial.ask) if trial.ask else None, "published": trial.published}
    where = {"date": datetime.date.today().isoformat(), "code": machine.commit(), "versions": machine.versions()}
    gpu = f"{torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""
    return said | made | {"made": where | {"machine": gpu + machine.in_words()}}


def _made(name: str, trials: list[Trial], scale: Scale, context: Context, jobs: int) -> Iterator[tuple[Trial, Row]]:
    """Each trial with its result as it is done; several at a time keep a GPU busy that one alone does not."""
    if jobs == 1:
        for trial in trials:
            yield trial, trial.run(context)
        return
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, mp_context=spawn) as pool:
        running = {pool.submit(_in_process, name, scale, trial.label, trial.seed, context): trial for trial in trials}
        for done in concurrent.futures.as_completed(running):
            yield running[done], done.result()


def _in_process(name: str, scale: Scale, label: str, seed: int, context: Context) -> Row:
    """A trial found again in a fresh process: what it runs cannot be sent there."""
    trials = STUDIES[name].trials(scale)
    return next(trial for trial in trials if (trial.label, trial.seed) == (label, seed)).run(context)


def read(folder: Path, scale: Scale) -> dict[str, Any]:
    """The rows that are stored."""
    path = folder / f"accuracy-{scale.name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def store(folder: Path, scale: Scale, name: str, row: dict[str, Any]) -> None:
    """Put a row beside the others and write the page."""
    rows = {**read(folder, scale), name: row}
    rows = {key: rows[key] for key in STUDIES if key in rows}
    path = folder / f"accuracy-{scale.name}.json"
    path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if STUDIES[name].curves and row.get("parts"):
        report.draw(name, row["parts"], STUDIES[name], scale.name, folder)
    (folder / f"accuracy-{scale.name}.md").write_text(report.markdown(rows, STUDIES, scale.name), encoding="utf-8")
