"""The commands of `secateur` on programs and files of this machine: no server is needed for any of them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from tasks.cli import bar, decoders, files, loading, programs

app = typer.Typer()

Program = Annotated[Path, typer.Argument(help="An exported program, such as model.pt2.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

INCONCLUSIVE = 3  # the exit status where noise, or too little, leaves the answer open


@app.command()
def inspect(program: Program, as_json: Json = False) -> None:
    """List what can be cut from a program: axes, kinds, sizes, branches, and why the rest cannot. Needs no server."""
    found = programs.inspect(program)
    typer.echo(json.dumps(asdict(found), indent=2) if as_json else str(found))


@app.command()
def targets(as_json: Json = False) -> None:
    """Show what this machine offers a target: processor, GPUs, providers that work, and what pruning can buy on each."""
    from tasks.cli import targets  # brings onnx

    found = targets.collect()
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        console = Console()
        for part in targets.picture(found):
            console.print(part)


@app.command()
def cut(
    program: Program,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the cut program goes.")],
    ratio: Annotated[float | None, typer.Option(help="Share of the units of every chosen axis to remove.")] = None,
    parameters: Annotated[float | None, typer.Option(help="Share of the parameters to remove.")] = None,
    macs: Annotated[float | None, typer.Option(help="Share of the multiply-accumulates to remove.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            help="Kinds of axes, by comma, such as head,width; with knapsack also of branches: attention, mlp, block, layer."
        ),
    ] = None,
    criterion: Annotated[str, typer.Option(help="How units are ranked, such as l2, taylor, wanda.")] = "l2",
    allocation: Annotated[str, typer.Option(help="uniform, global, grouped, sensitivity or knapsack.")] = "uniform",
    curves: Annotated[
        Path | None, typer.Option(help="JSON file that keeps the curves of allocation sensitivity; resumed from.")
    ] = None,
    align: Annotated[int, typer.Option(help="Widths stay multiples of this.")] = 1,
    include: Annotated[
        list[str] | None, typer.Option(help="Glob on names of axes and branches; may be repeated.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Glob on names of axes and branches; may be repeated.")
    ] = None,
    layers: Annotated[float | None, typer.Option(help="Share of the layers to drop whole.")] = None,
    layer_kind: Annotated[str, typer.Option(help="layer, attention, mlp or block.")] = "layer",
    layer_criterion: Annotated[
        str | None, typer.Option(help="influence, variance, last or random; influence with calibration, else last.")
    ] = None,
    weights: Annotated[
        float | None, typer.Option(help="Share of single weights to set to zero in every layer.")
    ] = None,
    nm: Annotated[str | None, typer.Option(help="Pattern of zeros, such as 2:4.")] = None,
    weight_criterion: Annotated[str, typer.Option(help="How weights are ranked, such as magnitude.")] = "magnitude",
    calibration: Annotated[
        Path | None, typer.Option(help="An .npz with labels and with inputs, or an array per input by its name.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of whatever is drawn.")] = 0,
) -> None:
    """Cut a program without any server: layers first, then units, then single weights. Prints what went."""
    order = programs.Order(
        layers=layers,
        layer_kind=layer_kind,
        layer_criterion=layer_criterion,
        ratio=ratio,
        parameters=parameters,
        macs=macs,
        kinds=tuple(kind.split(",")) if kind else None,
        criterion=criterion,
        allocation=allocation,
        curves=curves,
        align=align,
        include=tuple(include or ["*"]),
        exclude=tuple(exclude or []),
        weights=weights,
        nm=nm,
        weight_criterion=weight_criterion,
        seed=seed,
    )
    programs.cut(program, output, order, calibration, typer.echo)
    typer.echo(f"Written: {output}")


@app.command()
def recover(
    program: Program,
    teacher: Annotated[Path, typer.Option(help="The dense program, whose answers are learnt from too.")],
    data: Annotated[Path, typer.Option(help="An .npz with labels and with inputs, or an array per input by its name.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the recovered program goes.")],
    validation: Annotated[
        Path | None, typer.Option(help="An .npz to choose the best epoch by; without, a tenth of DATA.")
    ] = None,
    objective: Annotated[
        str, typer.Option(help="What is learnt: classification, causal_lm ... or module:function.")
    ] = "classification",
    settings: Annotated[
        Path | None, typer.Option(help="YAML like the recovery section of a recipe: batch, learning_rate ...")
    ] = None,
    epochs: Annotated[int, typer.Option(help="How often the examples are gone through.")] = 10,
    seed: Annotated[int, typer.Option(help="Of whatever is drawn.")] = 0,
) -> None:
    """Win accuracy back after a cut, without any server. Killed, the same command goes on. torchrun --no-python shares the work."""
    lesson = programs.Lesson(teacher, data, validation, objective, settings, epochs, seed)
    # what moves goes to standard error
    console = Console(stderr=True)
    recovered = programs.recover(program, output, lesson, lambda batch, metric: bar.watched(console, batch, metric))
    if recovered is not None:
        typer.echo(f"{recovered}\nWritten: {output}")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="An ONNX file, such as dense.onnx.")],
    second: Annotated[Path, typer.Argument(help="Another with the same inputs, such as pruned.onnx.")],
    target: Annotated[
        Path | None, typer.Option(help="YAML like the target section of a recipe: provider, threads, batch.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="An .npz with examples of every input by its name; without, they are made up.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Of inputs that are made up and have no fixed length.")] = None,
    batches: Annotated[str, typer.Option(help="Batch sizes, by comma, such as 1,8,32; without, the target's.")] = "",
    until: Annotated[
        float, typer.Option(help="Half-width of the interval to stop at, relative to the speedup.")
    ] = 0.01,
    budget: Annotated[
        float, typer.Option(help="Seconds at each batch size to stop after, once there is an interval at all.")
    ] = 60.0,
    confidence: Annotated[float, typer.Option(help="Of the interval.")] = 0.95,
    seed: Annotated[int, typer.Option(help="Of the order of the blocks, and of inputs that are made up.")] = 0,
    as_json: Json = False,
) -> None:
    """Time two ONNX files in turns until their ratio is known. Exit status: 0 known, 3 inconclusive, 1 error."""
    match = files.Match(first, second, target, inputs, length, batches, until, budget, confidence, seed)
    with files.watched(Console(stderr=True)) as on_round:
        seen = files.compare(match, on_round)
    if as_json:
        typer.echo(json.dumps([{**asdict(at), "inconclusive": at.compared.inconclusive} for at in seen], indent=2))
    else:
        for part in files.told(match, seen):
            Console().print(part, soft_wrap=isinstance(part, Text))
    raise typer.Exit(INCONCLUSIVE if any(at.compared.inconclusive for at in seen) else 0)


@app.command()
def explain(
    dense: Annotated[Path, typer.Argument(help="An ONNX file.")],
    pruned: Annotated[Path, typer.Argument(help="What was cut of it.")],
    target: Annotated[
        Path | None, typer.Option(help="YAML like the target section of a recipe: threads, batch.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="An .npz with examples of every input by its name; without, they are made up.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Of inputs that are made up and have no fixed length.")] = None,
    budget: Annotated[float, typer.Option(help="Seconds of running both files.")] = 10.0,
) -> None:
    """Say node by node what a cut promised, what it brought, and where they part, why."""
    match = files.Match(dense, pruned, target, inputs, length, budget_s=budget)
    for part in files.explained(match, files.explain(match)):
        Console().print(part, soft_wrap=isinstance(part, Text))


@app.command()
def load(
    model: Annotated[Path, typer.Argument(help="An ONNX file, such as pruned.onnx.")],
    against: Annotated[Path | None, typer.Option(help="Another with the same inputs, such as dense.onnx.")] = None,
    scenario: Annotated[str, typer.Option(help="server, single_stream, multi_stream or offline.")] = "server",
    p99_ms: Annotated[
        float | None, typer.Option(help="For server: milliseconds that 99 % of the requests may take.")
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(help="For server: of the machine, in any currency; gives the cost of a million requests."),
    ] = None,
    target: Annotated[
        Path | None, typer.Option(help="YAML like the target section of a recipe: provider, threads, batch at most.")
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help="An .npz with examples of every input by its name; without, they are made up.")
    ] = None,
    parallel: Annotated[int, typer.Option(help="Requests that are computed at once, each on its own cores.")] = 1,
    length: Annotated[int | None, typer.Option(help="Positions of each example, where the file fixes none.")] = None,
    seconds: Annotated[float, typer.Option(help="Of each run of LoadGen, at least.")] = 5.0,
    tolerance: Annotated[float, typer.Option(help="For server: between the ends of the bracket, of the lower.")] = 0.05,
    budget: Annotated[float, typer.Option(help="For server: seconds after which no probe is begun.")] = 300.0,
    out: Annotated[Path | None, typer.Option(help="An empty folder for LoadGen's settings and logs.")] = None,
    seed: Annotated[int, typer.Option(help="Of arrivals, order of examples, and inputs that are made up.")] = 0,
    as_json: Json = False,
) -> None:
    """Put ONNX files under MLPerf LoadGen's load: the highest rate within a p99, or another scenario. Exit status: 0 known, 3 inconclusive or no rate, 1 error."""
    order = loading.Load(
        model,
        against,
        scenario=scenario,
        p99_ms=p99_ms,
        price_per_hour=price_per_hour,
        target=target,
        examples=inputs,
        length=length,
        parallel=parallel,
        seconds=seconds,
        tolerance=tolerance,
        budget_s=budget,
        out=out,
        seed=seed,
    )
    seen = loading.run(order, Console(stderr=True))
    if as_json:
        typer.echo(json.dumps(loading.as_json(order, seen), indent=2))
    else:
        for part in loading.told(order, seen):
            Console().print(part, soft_wrap=isinstance(part, Text))
    raise typer.Exit(INCONCLUSIVE if any(seen.doubts) else 0)


@app.command()
def decode(
    program: Program,
    against: Annotated[Path | None, typer.Option(help="The dense program, timed in turns with the other.")] = None,
    prompt: Annotated[int, typer.Option(help="Tokens before the first that is asked for.")] = 128,
    tokens: Annotated[int, typer.Option(help="Tokens after the first, with a cache that grows.")] = 32,
    batches: Annotated[str, typer.Option(help="Batch sizes, by comma.")] = "1,4,8",
    threads: Annotated[int, typer.Option(help="Threads of ONNX Runtime, on as many cores.")] = 1,
    budget: Annotated[float, typer.Option(help="Seconds for each figure, once it has an interval at all.")] = 30.0,
    seed: Annotated[int, typer.Option(help="Of the order of the blocks, and of the cache that is made up.")] = 0,
    as_json: Json = False,
) -> None:
    """Time a language model token by token with a cache of keys and values: first token, each after it, bytes of the cache."""
    race = decoders.Race(program, against, prompt, tokens, batches, threads, budget, seed)
    console = Console(stderr=True)
    seen = decoders.decode(race, lambda line: console.print(line, style="dim", markup=False))
    if as_json:
        typer.echo(json.dumps(asdict(seen), indent=2))
    else:
        for part in decoders.told(race, seen):
            Console().print(part, soft_wrap=isinstance(part, Text))


@app.command()
def quantize(
    model: Annotated[Path, typer.Argument(help="An ONNX file, such as pruned.onnx.")],
    output: Annotated[Path, typer.Argument(help="Where its INT8 form goes.")],
    inputs: Annotated[Path, typer.Option(help="An .npz with examples of every input by its name, to calibrate with.")],
    target: Annotated[
        Path | None, typer.Option(help="YAML like the target section of a recipe: provider, threads, batch.")
    ] = None,
    calibration: Annotated[int, typer.Option(help="How many of the examples, drawn by the seed.")] = 256,
    method: Annotated[str, typer.Option(help="How ranges follow from them: minmax, entropy or percentile.")] = "minmax",
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Write the INT8 form of an ONNX file for this machine, calibrated on examples. What it buys, `compare` measures."""
    made = files.quantise(model, output, inputs, target, calibration, method, seed)
    typer.echo(json.dumps(asdict(made), indent=2, default=str) if as_json else f"{made}\nWritten: {output}")


@app.command()
def halve(
    model: Annotated[Path, typer.Argument(help="An ONNX file, such as pruned.onnx.")],
    output: Annotated[Path, typer.Argument(help="Where its FP16 form goes.")],
    inputs: Annotated[Path, typer.Option(help="An .npz with examples of every input by its name; some are answered.")],
    target: Annotated[
        Path | None, typer.Option(help="YAML like the target section of a recipe: provider, threads, batch.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write the FP16 form of an ONNX file, its inputs and outputs as they are. What it buys, `compare` measures."""
    made = files.halve(model, output, inputs, target)
    typer.echo(json.dumps(asdict(made), indent=2, default=str) if as_json else f"{made}\nWritten: {output}")
