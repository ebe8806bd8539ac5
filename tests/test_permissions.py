"""A registry that asks who one is: what Secateur needs there, what it says when it is refused, and that no secret leaves it."""

import contextlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from services import MODEL, Job, Servers, lead_to, register_tiny, serving, using, walk

from secateur.errors import InputError
from tasks import journal, resolve, rollback

pytestmark = pytest.mark.slow  # every question to the registry costs a password's hash

ADMINISTRATOR, TRAINER, SECATEUR = "administrator", "trainer", "secateur"
SECRETS = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD")


@dataclass(frozen=True)
class Guarded:
    """Servers that know three people; `variables` lead to them as Secateur."""

    folder: Path
    variables: Servers
    passwords: dict[str, str]

    def acting_as(self, name: str) -> dict[str, str]:
        return {
            **self.variables,
            "MLFLOW_TRACKING_USERNAME": name,
            "MLFLOW_TRACKING_PASSWORD": self.passwords[name],
        }


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """A registry where a trainer has registered a model and Secateur, who is no administrator, may read it."""
    from mlflow.server import get_app_client

    folder = tmp_path_factory.mktemp("guarded")
    passwords = {name: secrets.token_urlsafe(16) for name in (ADMINISTRATOR, TRAINER, SECATEUR)}
    with serving(folder, (ADMINISTRATOR, passwords[ADMINISTRATOR])) as variables:
        made = Guarded(folder, variables, passwords)
        with using(made.acting_as(ADMINISTRATOR)):
            users = get_app_client("basic-auth", tracking_uri=variables["MLFLOW_TRACKING_URI"])
            for name in (TRAINER, SECATEUR):
                users.create_user(name, passwords[name])
        with using(made.acting_as(TRAINER)):
            register_tiny(tmp_path_factory.mktemp("data"))
        yield made


@pytest.fixture(scope="module")
def job(guarded: Guarded) -> Job:
    """The whole pipeline as Secateur, promoted; what its steps print is kept."""
    with (
        using(guarded.acting_as(SECATEUR)),
        (guarded.folder / "steps.log").open("w") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        return walk(MODEL, "tiny")


def test_to_read_the_source_is_all_that_pruning_and_the_way_back_need(
    guarded: Guarded, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert job.promotion is not None
    lead_to(guarded.acting_as(SECATEUR), monkeypatch)
    assert rollback.run(MODEL, "dense", "a drill", SECATEUR).version != job.promotion.version
    assert [entry.action for entry in journal.entries(MODEL)][-1] == "rollback"


def test_a_wrong_password_is_told_at_once_and_not_repeated(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    lead_to({**guarded.acting_as(SECATEUR), "MLFLOW_TRACKING_PASSWORD": "not-it"}, monkeypatch)
    with pytest.raises(InputError, match="MLFLOW_TRACKING_USERNAME") as refused:
        resolve.run(MODEL, "latest", "tiny", False, "stranger")
    assert "not-it" not in str(refused.value)


def test_what_one_may_not_read_is_refused_before_anything_is_done(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.server import get_app_client

    lead_to(guarded.acting_as(ADMINISTRATOR), monkeypatch)
    users = get_app_client("basic-auth", tracking_uri=guarded.variables["MLFLOW_TRACKING_URI"])
    users.grant_user_permission(SECATEUR, "registered_model", MODEL, "DENY")
    lead_to(guarded.acting_as(SECATEUR), monkeypatch)
    with pytest.raises(InputError, match=r"got 'tiny'; registered and readable: (none|tiny-onnx)$"):
        resolve.run(MODEL, "latest", "tiny", True, "shut out")
    lead_to(guarded.acting_as(ADMINISTRATOR), monkeypatch)
    users.revoke_user_permission(SECATEUR, "registered_model", MODEL)


def test_no_secret_is_in_anything_that_a_run_leaves(guarded: Guarded, job: Job) -> None:
    del job
    planted = [guarded.acting_as(SECATEUR)[name].encode() for name in SECRETS]
    kept = ("mlflow.db", "artifacts", "s3", "mlflow.log", "s3.log", "steps.log")
    places = [guarded.folder / name for name in kept]
    assert all(place.exists() for place in places)
    files = [file for place in places for file in ([place] if place.is_file() else place.rglob("*")) if file.is_file()]
    assert len(files) > 30
    assert [file for file in files if any(secret in file.read_bytes() for secret in planted)] == []
