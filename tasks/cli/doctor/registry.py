"""MLflow: does it answer, does it know us, is it of our version, is its database of its own?"""

import os
from collections.abc import Iterator
from importlib.metadata import version
from urllib.parse import urlsplit

import httpx

from tasks import certificates
from tasks.cli.doctor import asking
from tasks.cli.doctor.finding import Finding

URI = "MLFLOW_TRACKING_URI"
DATABASE = "MLFLOW_BACKEND_STORE_URI"
_WRONG_HOST = "Invalid Host header"
_OLD_DATABASE = "out-of-date database schema"
_UPGRADE = "stop MLflow, back its database up, run `mlflow db upgrade`, start it again (docs/upgrading.md)"


def check() -> Iterator[Finding]:
    """Whether it answers the questions that every step begins with."""
    uri = asking.named(URI)
    if not uri.startswith(("http://", "https://")):
        yield Finding(
            "fail", f"{URI} is no address of a server, it is {asking.shown(uri) or 'not set'}", f"set {URI}=https://..."
        )
        return
    if (alone := asking.shown(uri)) != uri:
        yield Finding(
            "fail",
            f"{URI} holds a user, which would stand in links and logs: every step refuses it",
            f"set {URI}={alone} with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
        return
    try:
        told = _ask("/version").text.strip()[:20]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        yield _silent(uri, error)
        return
    refusal = _refusal(uri, ask("experiments/search", {"max_results": "1"}))
    yield refusal or Finding("ok", f"MLflow {told} at {asking.shown(uri)} answers")
    if not refusal:
        yield from _release(told)
    if os.environ.get("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false").lower() not in ("false", "0"):
        yield Finding(
            "fail",
            "MLFLOW_ALLOW_PICKLE_DESERIALIZATION allows models that run code when they are loaded",
            "set it to false, or leave it out: steps then set it",
        )


def ask(what: str, params: dict[str, str]) -> httpx.Response:
    """One question to MLflow's REST API, as the user of the environment."""
    return _ask(f"/api/2.0/mlflow/{what}", params)


def _ask(page: str, params: dict[str, str] | None = None) -> httpx.Response:
    name, password = (os.environ.get(f"MLFLOW_TRACKING_{end}") for end in ("USERNAME", "PASSWORD"))
    auth = (name, password) if name and password else None
    return asking.get(asking.named(URI) + page, certificates.MLFLOW, params=params, auth=auth).response


def database() -> Iterator[Finding]:
    """Where this machine knows MLflow's database: whether it is of the release that is installed here."""
    uri = os.environ.get(DATABASE)
    if not uri:
        return
    from pathlib import Path

    import mlflow
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine, make_url
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    try:
        url = make_url(uri)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            yield Finding("warn", f"{DATABASE}: there is no file {url.database} yet", "MLflow makes it when it starts")
            return
        with create_engine(url).connect() as connection:
            found = MigrationContext.configure(connection).get_current_revision()
    except (ArgumentError, SQLAlchemyError) as error:
        yield Finding(
            "fail",
            f"{DATABASE}: the database does not answer ({type(error).__name__})",
            "start it, or correct the address and its password",
        )
        return
    wanted = ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations")).get_current_head()
    if found == wanted:
        yield Finding("ok", f"MLflow's database is of MLflow {mlflow.__version__}")
    else:
        yield Finding(
            "fail",
            f"MLflow's database has schema {found or 'none'}, MLflow {mlflow.__version__} needs {wanted}",
            _UPGRADE,
        )


def _silent(uri: str, error: Exception) -> Finding:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return Finding(
            "fail",
            f"the certificate of MLflow at {asking.shown(uri)} is not trusted here ({asking.why(error)})",
            "name the file of its authority in REQUESTS_CA_BUNDLE (docs/security.md)",
        )
    return Finding(
        "fail",
        f"MLflow at {asking.shown(uri)} does not answer ({asking.why(error)})",
        f"start it, or correct {URI}; if it ends at once, its log says why: an older database asks for `mlflow db upgrade`",
    )


def _refusal(uri: str, answer: httpx.Response) -> Finding | None:
    text = " ".join(answer.text.split())[:200]
    if answer.is_success:
        return None
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        who = os.environ.get("MLFLOW_TRACKING_USERNAME") or "nobody"
        return Finding(
            "fail",
            f"MLflow at {asking.shown(uri)} does not know us (as {who})",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of a user it knows",
        )
    if _WRONG_HOST in text:
        host = urlsplit(asking.shown(uri)).netloc
        return Finding(
            "fail",
            f"MLflow at {asking.shown(uri)} refuses to be called {host}",
            f"start it with `--allowed-hosts {host}`, beside the names it has",
        )
    if _OLD_DATABASE in text:
        return Finding("fail", f"the database of MLflow at {asking.shown(uri)} is older than MLflow", _UPGRADE)
    return Finding("fail", f"MLflow at {asking.shown(uri)} answers {answer.status_code}: {text}", "its log says why")


def _release(theirs: str) -> Iterator[Finding]:
    ours = version("mlflow")
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        yield Finding(
            "warn",
            f"MLflow's server is {theirs}, the client here {ours}",
            "let both be of one release: the server first (docs/upgrading.md)",
        )
