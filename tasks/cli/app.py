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
    dotenv,
    file_commands,
    follow,
    production,
    registry_commands,
    sample,
    show,
    stack,
    webhook,
)
from tasks.cli.airflow_api import AirflowError
from tasks.cli.file_commands import INCONCLUSIVE, Json
from tasks.cli.mlflow_api import MlflowError
from tasks.cli.sample import SampleError
from tasks.cli.settings import export_settings
from tasks.cli.stack import StackError
from tasks.faults import is_io_fault

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
app.add_typer(file_commands.app)

Model = Annotated[str, typer.Argument(help="Name of the registered model, such as digits-cnn.")]

TlsCert = Annotated[
    Path | None, typer.Option(help="PEM file of the certificate to show, with those between it and its authority.")
]
TlsKey = Annotated[Path | None, typer.Option(help="PEM file of its key, without a password.")]

Collect = Callable[[httpx.Client, str, str, str], follow.Outcome]

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


@app.command("env")
def write_env(path: Annotated[Path, typer.Argument(help="Where it goes, such as docker/.env.")]) -> None:
    """Write fresh secrets for docker/compose.yaml; a file that is there already stays as it is."""
    typer.echo(f"Written: {path}" if dotenv.write(path) else f"{path} is there already; it stays as it is.")


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
    raise typer.Exit(0 if seen.outcome == "healthy" else INCONCLUSIVE)


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
