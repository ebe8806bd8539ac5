"""The console command `secateur`: prune a model, roll back, read the history, run the local stack."""

import json
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, NoReturn

import httpx
import typer
from rich.console import Console
from rich.text import Text

from secateur.errors import InputError
from tasks import certificates, placement
from tasks.cli import (
    airflow_api,
    bar,
    decoders,
    files,
    follow,
    loading,
    production,
    programs,
    registry_commands,
    sample,
    show,
    stack,
    webhook,
)
from tasks.cli.airflow_api import AirflowError
from tasks.cli.mlflow_api import MlflowError
from tasks.cli.sample import SampleError
from tasks.cli.settings import export_settings
from tasks.cli.stack import StackError
from tasks.faults import is_io_fault

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)

Model = Annotated[str, typer.Argument(help="Name of the registered model, such as digits-cnn.")]
Program = Annotated[Path, typer.Argument(help="An exported program, such as model.pt2.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]

TlsCert = Annotated[
    Path | None, typer.Option(help="PEM file of the certificate to show, with those between it and its authority.")
]
TlsKey = Annotated[Path | None, typer.Option(help="PEM file of its key, without a password.")]

Collect = Callable[[httpx.Client, str, str, str], follow.Outcome]

_INCONCLUSIVE = 3
_INTERRUPTED = 130


def main() -> None:
    """The entry point: every foreseen error is one sentence and exit status 1."""
    try:
        app()
    except KeyboardInterrupt:
        _end("Interrupted.", _INTERRUPTED)
    except (InputError, AirflowError, MlflowError, SampleError, StackError) as error:
        _end(str(error), 1)
    except Exception as error:
        if not is_io_fault(error):
            raise
        _end(f"A server does not answer: {error}", 1)


@app.command()
def run(
    model: Model,
    recipe: Annotated[str, typer.Option(help="Name of the recipe, a file in the recipes folder.")],
    version: Annotated[str, typer.Option(help="Version of the registered model: a number, or latest.")] = "latest",
    fresh: Annotated[bool, typer.Option("--fresh", help="Do every step again, whatever earlier runs left.")] = False,
    as_json: Json = False,
) -> None:
    """Prune a registered model, prove the result, promote it. Exit status: 0 promoted, 3 refused by the gate, 1 error."""
    raise typer.Exit(_prune(model, version, recipe, fresh=fresh, as_json=as_json))


@app.command()
def sweep(
    model: Model,
    sweep: Annotated[str, typer.Option(help="Name of the sweep, a file in the recipes folder.")],
    version: Annotated[str, typer.Option(help="Version of the registered model: a number, or latest.")] = "latest",
    fresh: Annotated[bool, typer.Option("--fresh", help="Do every step again, whatever earlier sweeps left.")] = False,
    as_json: Json = False,
) -> None:
    """Prune a model in many ways, compare them on validation, promote the best. Exit status: 0 promoted, 3 nobody won, 1 error."""
    conf = {"model": model, "version": version, "sweep": sweep, "fresh": fresh}
    outcome = _trigger_and_follow("sweep_model", conf, follow.sweep_outcome)
    _print(outcome, as_json)
    raise typer.Exit(outcome.exit_code)


@app.command()
def rollback(
    model: Model,
    to: Annotated[str, typer.Option(help="Version of MODEL-onnx that shall serve: a number, previous, or dense.")],
    reason: Annotated[str, typer.Option(help="Why; it is kept in the promotion journal.")],
    direct: Annotated[
        bool, typer.Option("--direct", help="From here, without Airflow, by MLflow and S3 alone.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve an earlier version again: it is fetched, checked and tried before anything moves."""
    if direct:
        outcome = registry_commands.rollback(model, to, reason)
    else:
        outcome = _trigger_and_follow(
            "rollback_model", {"model": model, "to": to, "reason": reason}, follow.rollback_outcome
        )
    _print(outcome, as_json)
    raise typer.Exit(outcome.exit_code)


@app.command()
def history(
    model: Model,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the chain, its copy in the bucket, alias and pointer.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Put back what the journal says serves, and accept what is wrong with it.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Of a repair; it is kept in the journal.")] = None,
    as_json: Json = False,
) -> None:
    """Print the promotion journal: who moved the champion, when, why and on what evidence. Exit status 1 when it does not verify."""
    if repair:
        _print(registry_commands.repair(model, reason), as_json)
        raise typer.Exit(0)
    if reason is not None:
        raise InputError("--reason: expected beside --repair, got it alone; a history needs no reason")
    seen = registry_commands.history(model, verify=verify)
    if as_json:
        typer.echo(json.dumps(registry_commands.as_json(seen), indent=2))
    else:
        console = Console()
        console.print(show.history(model, [asdict(entry) for entry in seen.entries]))
        if verify:
            console.print(show.verified(model, seen.entries, seen.findings), soft_wrap=True)
    raise typer.Exit(1 if seen.findings else 0)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Id of the run in MLflow: the end of the address that `run` prints.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the page goes; by default report-RUN.html, here.")
    ] = None,
    show_it: Annotated[bool, typer.Option("--open", help="Show it in the browser too.")] = False,
) -> None:
    """Write the report of a run as one HTML file that needs no network; made first where the run has none."""
    from tasks import report  # brings MLflow, which the other commands do without

    export_settings()
    content = report.page(run)
    path = output or Path(f"report-{run}.html")
    if not path.parent.is_dir():
        raise InputError(f"output: expected a folder that exists, got {path.parent}; create it first")
    path.write_bytes(content)
    typer.echo(f"Written: {path}")
    if show_it and not webbrowser.open(path.resolve().as_uri()):
        raise InputError(f"open: expected a browser on this machine, found none; open {path} yourself")


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
    raise typer.Exit(_INCONCLUSIVE if any(at.compared.inconclusive for at in seen) else 0)


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
    raise typer.Exit(_INCONCLUSIVE if any(seen.doubts) else 0)


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


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check the deployment that the environment leads to, end to end, with a remedy for each finding. Exit status: 1 when something cannot work."""
    from tasks.cli import doctor

    export_settings()
    seen = []
    for finding in doctor.examine():
        seen.append(finding)
        if not as_json:
            typer.echo(str(finding))
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in seen], indent=2))
    raise typer.Exit(1 if any(finding.level == "fail" for finding in seen) else 0)


@app.command()
def pools() -> None:
    """Print the pools of the devices that are measured on, as `airflow pools import` reads them."""
    found = {
        name: {"slots": 1, "description": description, "include_deferred": False}
        for name, description in placement.load().pools.items()
    }
    print(json.dumps(found, indent=2))


@app.command()
def up() -> None:
    """Start the local stack (Airflow, MLflow, S3), or what is missing of it; its state lives in .stack."""
    stack.up(typer.echo)


@app.command()
def down() -> None:
    """Stop the local stack; its data stays."""
    stack.down(typer.echo)


@app.command("webhook")
def receive(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8787,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Receive MLflow's webhooks and tell Airflow to look at the registry; SECATEUR_WEBHOOK_SECRET is what both know."""
    webhook.serve(host, port, certificates.own(tls_cert, tls_key), typer.echo)


@app.command()
def serve(
    models: Annotated[
        list[str] | None, typer.Argument(help="Source models, such as digits-cnn; without, all that serve.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8500,
    target: Annotated[
        Path | None, typer.Option(help="YAML like the target section of a recipe: provider, threads.")
    ] = None,
    parallel: Annotated[int, typer.Option(help="Requests that are computed at once.")] = 1,
    waiting: Annotated[int, typer.Option(help="Requests that may wait; the next is told to come again.")] = 256,
    body_mb: Annotated[float, typer.Option(help="Largest body, 10^6 bytes.")] = 64.0,
    wait_s: Annotated[float, typer.Option(help="Seconds that a request may wait for its turn.")] = 10.0,
    receive_s: Annotated[float, typer.Option(help="Seconds that a body may take to come.")] = 30.0,
    log: Annotated[bool, typer.Option(help="Keep the inference log, in SECATEUR_LOG or the bucket.")] = True,
    sample: Annotated[float, typer.Option(help="Share of the requests that it keeps.")] = 1.0,
    drop: Annotated[list[str] | None, typer.Option(help="Input or metadata it never keeps; may be repeated.")] = None,
    flush_s: Annotated[float, typer.Option(help="Seconds between its files.")] = 10.0,
    poll_s: Annotated[float, typer.Option(help="Seconds between looks at what the bucket points to.")] = 2.0,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    auth: Annotated[
        bool, typer.Option(help="Ask for SECATEUR_SERVE_TOKEN; --no-auth where something before the server asks.")
    ] = True,
) -> None:
    """Serve champions over the Open Inference Protocol v2, follow them without dropping a request, keep the inference log.

    Where SECATEUR_SERVE_TOKEN is set, everything but its health asks for it; beyond loopback it has to be.
    """
    production.serve(
        production.Serve(
            tuple(models or ()),
            host,
            port,
            target,
            parallel,
            body_mb,
            wait_s,
            receive_s,
            waiting,
            log,
            sample,
            tuple(drop or ()),
            flush_s,
            poll_s,
            tls_cert,
            tls_key,
            auth,
        ),
        typer.echo,
    )


@app.command()
def look(model: Model, as_json: Json = False) -> None:
    """Take one look at what serves, without Airflow: nothing follows from it or is kept. Exit status: 0 healthy, 3 anything else, 1 error."""
    seen = production.look(model)
    if as_json:
        typer.echo(json.dumps(asdict(seen), indent=2))
    else:
        for line in production.told(seen):
            typer.echo(line)
    raise typer.Exit(0 if seen.outcome == "healthy" else _INCONCLUSIVE)


@app.command("convert-log")
def convert_log(
    source: Annotated[Path, typer.Argument(help="A file that another server wrote.")],
    model: Model,
    form: Annotated[str, typer.Option(help="kserve, sagemaker or triton.")],
    version: Annotated[str, typer.Option(help="Version of MODEL-onnx that answered; triton says it itself.")] = "",
    name: Annotated[str, typer.Option(help="Of the input, where the file gives it none.")] = "inputs",
) -> None:
    """Bring what KServe, SageMaker or Triton kept of their requests into the inference log."""
    kept, problems = production.convert(source, form, model, version, name)
    typer.echo(f"{kept} requests are in the log.")
    for why, count in problems.items():
        typer.echo(f"{count} {why}")


@app.command("export-log")
def export_log(
    model: Model,
    output: Annotated[Path, typer.Argument(help="Where the .npz goes.")],
    since: Annotated[
        str, typer.Option(help="The first moment, such as 2026-01-31T23:00, UTC unless it says otherwise.")
    ],
) -> None:
    """Write what a model was asked as an .npz: calibration data, or a proxy to recover with."""
    typer.echo(f"{production.export(model, since, output)} examples written: {output}")


@app.command()
def demo() -> None:
    """What `make run` does: start the stack, seed the sample model, prune it, print the result, stop the stack."""
    with stack.running(typer.echo):
        export_settings()
        sample.ensure_registered()
        status = _prune(sample.MODEL, "latest", sample.RECIPE, fresh=False, as_json=False)
    raise typer.Exit(status)


def _prune(model: str, version: str, recipe: str, *, fresh: bool, as_json: bool) -> int:
    conf = {"model": model, "version": version, "recipe": recipe, "fresh": fresh}
    outcome = _trigger_and_follow("prune_model", conf, follow.pruning_outcome)
    _print(outcome, as_json)
    return outcome.exit_code


def _trigger_and_follow(dag: str, conf: dict[str, Any], collect: Collect) -> follow.Outcome:
    # What moves goes to standard error: standard output holds the result alone.
    console = Console(stderr=True)
    with airflow_api.connect() as client:
        run_id = airflow_api.trigger(client, dag, conf)
        url = airflow_api.run_url(str(client.base_url), dag, run_id)
        console.print(f"{dag} started: {url}", style="dim", soft_wrap=True)
        try:
            with show.progress(console) as report:
                state = follow.follow(client, dag, run_id, report)
        except KeyboardInterrupt:
            console.print(f"This ends the watching, not the run: {url}", soft_wrap=True)
            raise
        return collect(client, dag, run_id, state)


def _print(outcome: follow.Outcome, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**asdict(outcome), "exit_code": outcome.exit_code}, indent=2))
    else:
        console = Console()
        for part in show.result(outcome):
            # An address broken over two lines is no address.
            console.print(part, soft_wrap=isinstance(part, Text))


def _end(sentence: str, status: int) -> NoReturn:
    Console(stderr=True).print(
        f"Error: {sentence}" if status == 1 else sentence, style="red", markup=False, soft_wrap=True
    )
    sys.exit(status)


if __name__ == "__main__":
    main()
