"""`secateur load`: ONNX files under the load that MLPerf LoadGen makes, without any server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from secateur.errors import InputError
from tasks.cli import files

if TYPE_CHECKING:
    import numpy as np

    from secateur.load.rate import Gain, Probe, Rate
    from secateur.load.scenario import Arrivals, Run
    from secateur.noise import Noise
    from secateur.runtime import Target

SERVER = "server"


@dataclass(frozen=True)
class Load:
    """What is asked of a file, and of the one that it stands against; `p99_ms`, the price, `tolerance` and `budget_s` are for server alone."""

    model: Path
    against: Path | None = None
    scenario: str = SERVER
    p99_ms: float | None = None
    price_per_hour: float | None = None
    target: Path | None = None
    examples: Path | None = None
    length: int | None = None
    parallel: int = 1
    seconds: float = 5.0
    tolerance: float = 0.05
    budget_s: float = 300.0
    out: Path | None = None
    seed: int = 0

    @property
    def paths(self) -> list[Path]:
        """The dense file first, where there is one."""
        return [self.model] if self.against is None else [self.against, self.model]


@dataclass(frozen=True)
class Loaded:
    """What came of it, for each file of `Load.paths`: its rate for server, else its run."""

    target: Target
    rates: tuple[Rate, ...] = ()
    runs: tuple[Run, ...] = ()

    @property
    def gain(self) -> Gain | None:
        """Of the model over the other, where both have a bracket."""
        from secateur.load import rate

        return rate.gain(*self.rates) if len(self.rates) > 1 else None

    @property
    def doubts(self) -> list[str]:
        """Of each file why LoadGen calls its run INVALID, why its rate is not known, or why it has none; empty where all is well."""
        rates = [f"no rate keeps the limit: {one.too_slow}" if one.too_slow else one.inconclusive for one in self.rates]
        return [*rates, *("; ".join(one.reasons) for one in self.runs)]


def run(load: Load, console: Console) -> Loaded:
    """Put the files under load; a line for each run goes to the console.

    Raises:
        InputError: the settings contradict each other, or what the library refuses.
    """
    _check(load)
    target, columns = files.requests_of(load.paths, load.target, load.examples, load.length, load.seed)
    if load.scenario == SERVER:
        return Loaded(target, rates=_rates(load, target, columns, console))
    return Loaded(target, runs=_runs(load, target, columns, console))


def _check(load: Load) -> None:
    if load.scenario == SERVER and load.p99_ms is None:
        raise InputError("p99-ms: expected the limit in milliseconds that 99 % of the requests shall keep, got none")
    for_server = ("p99_ms", "price_per_hour", "tolerance", "budget_s")
    given = [name for name in for_server if getattr(load, name) != getattr(Load, name)]
    if load.scenario != SERVER and given:
        options = ", ".join(name.replace("budget_s", "budget").replace("_", "-") for name in given)
        raise InputError(f"{options}: expected for the scenario server alone, got {load.scenario}; leave it out")
    if load.price_per_hour is not None and not 0 < load.price_per_hour < float("inf"):
        raise InputError(f"price-per-hour: expected a number above 0, got {load.price_per_hour}")
    if load.out is not None and load.out.exists() and (not load.out.is_dir() or any(load.out.iterdir())):
        raise InputError(f"out: expected a folder that is empty or not there, got {load.out}; name another")


def _rates(load: Load, target: Target, columns: Sequence[np.ndarray], console: Console) -> tuple[Rate, ...]:
    from secateur.load import rate

    names = [escape(path.name) for path in load.paths]
    width = max(map(len, names))
    assert load.p99_ms is not None
    with console.status("starting") as shown:

        def on_start(side: int, arrivals: Arrivals | None, seconds: float) -> None:
            what = "one request after another" if arrivals is None else f"{arrivals.rate:,.4g} requests a second"
            shown.update(f"{names[side]}: {what} for {seconds:.0f} s")

        def on_probe(side: int, probe: Probe, low: float | None, high: float | None) -> None:
            ends = " to ".join("?" if end is None else f"{end:,.4g}" for end in (low, high))
            p99 = "hopeless" if probe.run.p99_ms is None else f"{probe.run.p99_ms:.3g} ms"  # LoadGen ended it early
            verdict = "[green]VALID[/]  " if probe.run.valid else "[red]INVALID[/]"
            console.print(
                f"{names[side]:{width}}  {probe.rate:>9,.4g}/s  p99 {p99:>8}  {verdict}  now {ends}",
                highlight=False,
                soft_wrap=True,
            )

        return rate.highest_rates(
            load.paths,
            target,
            columns,
            load.p99_ms,
            folder=load.out,
            seconds=load.seconds,
            tolerance=load.tolerance,
            budget_s=load.budget_s,
            parallel=load.parallel,
            seed=load.seed,
            on_start=on_start,
            on_probe=on_probe,
        )


def _runs(load: Load, target: Target, columns: Sequence[np.ndarray], console: Console) -> tuple[Run, ...]:
    from secateur.load import scenario

    runs = []
    with console.status("starting") as shown, scenario.kept(load.out) as folder:
        for number, path in enumerate(load.paths, 1):
            shown.update(f"{escape(path.name)}: {load.scenario} for at least {load.seconds:.0f} s")
            runs.append(
                scenario.run(
                    path,
                    target,
                    columns,
                    load.scenario,
                    folder / f"{number}-{path.stem}",
                    seconds=load.seconds,
                    parallel=load.parallel,
                    seed=load.seed,
                )
            )
    return tuple(runs)


def as_json(load: Load, seen: Loaded) -> dict[str, Any]:
    """All of it, with the cost of a million requests at both ends of each bracket."""
    return {**asdict(seen), "gain": seen.gain and asdict(seen.gain), "cost": _costs(load, seen), "doubts": seen.doubts}


def told(load: Load, seen: Loaded) -> list[RenderableType]:
    """Both files' figures, the gain between the brackets, where it was measured, and what is not known."""
    table = Table()
    table.add_column("")
    for path in load.paths:
        table.add_column(path.name, justify="right", overflow="fold")
    for row in _rate_rows(load, seen) if seen.rates else _run_rows(seen):
        table.add_row(*row)
    lines = [*_gain_line(load, seen), _circumstances(load, seen)]
    sides: list[Rate | Run] = [*seen.rates, *seen.runs]
    lines += [f"Noise beside {path.name}: {_noise(one)}" for path, one in zip(load.paths, sides, strict=True)]
    if load.out is not None:
        lines.append(f"LoadGen's settings and logs: {load.out}")
    lines += [f"{path.name}: {why}" for path, why in zip(load.paths, seen.doubts, strict=True) if why]
    return [table, *map(Text, lines)]


def _rate_rows(load: Load, seen: Loaded) -> Iterator[list[str]]:
    rates = seen.rates
    yield ["requests a second", *("none" if one.too_slow else _ends(one.low, one.high) for one in rates)]
    yield ["latency there, p50", *(_milliseconds(one.at_low.p50_ms if one.at_low else None) for one in rates)]
    yield ["latency there, p99", *(_milliseconds(one.at_low.p99_ms if one.at_low else None) for one in rates)]
    yield ["one alone, p50", *(_milliseconds(one.alone.p50_ms) for one in rates)]
    yield ["computing it", *(_milliseconds(one.alone.computing_ms) for one in rates)]
    if load.price_per_hour is not None:
        yield [
            f"a million, at {load.price_per_hour:g} an hour",
            *(_ends(*cost, form=",.4f") for cost in _costs(load, seen)),
        ]
    yield ["probes", *(f"{sum(p.run.valid for p in one.probes)} of {len(one.probes)} VALID" for one in rates)]


def _run_rows(seen: Loaded) -> Iterator[list[str]]:
    runs = seen.runs
    yield ["LoadGen says", *("VALID" if one.valid else "INVALID" for one in runs)]
    yield ["examples a second", *(f"{one.throughput:,.4g}" for one in runs)]
    if runs[0].scenario != "offline":
        for title, name in (("latency p50", "p50_ms"), ("latency p90", "p90_ms"), ("latency p99", "p99_ms")):
            yield [title, *(_milliseconds(getattr(one, name)) for one in runs)]
        percent = 90 if runs[0].scenario == "single_stream" else 99
        yield [f"p{percent}, at most (99 % sure)", *(_milliseconds(one.bound_ms) for one in runs)]
    yield ["queries", *(f"{one.queries:,}" for one in runs)]


def _costs(load: Load, seen: Loaded) -> list[tuple[float | None, float | None]]:
    """Of a million requests, the lower one first: at the higher rate."""
    from secateur.load import rate

    price = load.price_per_hour
    if price is None:
        return []
    return [
        (one.high and rate.cost_per_million(one.high, price), one.low and rate.cost_per_million(one.low, price))
        for one in seen.rates
    ]


def _gain_line(load: Load, seen: Loaded) -> list[str]:
    if seen.gain is None:
        return []
    gain, (first, second) = seen.gain, load.paths
    shown = [] if not gain.low <= 1 <= gain.high else ["The bracket holds 1: neither is shown to answer more."]
    return [
        f"{second.name} answers {gain.ratio:.2f} times the requests of {first.name}; the brackets leave {gain.low:.2f} to "
        f"{gain.high:.2f}.",
        *shown,
    ]


def _circumstances(load: Load, seen: Loaded) -> str:
    one = seen.rates[0].alone if seen.rates else seen.runs[0]
    limit = (
        f"99 % of the requests are answered within {load.p99_ms:g} ms of their arrival, which is at random times (Server): VALID "
        "at the lower end, INVALID at the upper. "
        if seen.rates
        else ""
    )
    threads = f"{seen.target.threads} thread{'s' * (seen.target.threads > 1)}" + " each" * (load.parallel > 1)
    return (
        f"{limit}A request is one example, computed {load.parallel} at a time with {threads} in batches of at most {seen.target.batch} "
        f"({one.cores}). LoadGen {one.loadgen.split()[0]}, seed {load.seed}."
    )


def _noise(seen: Rate | Run) -> Noise:
    from secateur import noise
    from secateur.load.rate import Rate

    runs = [seen.alone, *(probe.run for probe in seen.probes)] if isinstance(seen, Rate) else [seen]
    return noise.summed(one.counters for one in runs)


def _ends(low: float | None, high: float | None, form: str = ",.4g") -> str:
    return " to ".join("?" if end is None else format(end, form) for end in (low, high))


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} ms"
