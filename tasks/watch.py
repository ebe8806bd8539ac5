"""Starts a pruning for every new version of the registered models that ask for it with the tag `secateur.recipe`.

The registry itself says what is pending: the versions above the number in the model's tag `secateur.seen`. Whoever rings
(the trigger that polls, a webhook) only says that it is worth a look, so nothing that gets lost on the way, and nothing
that restarts, loses a version. A run's id follows from its version, so that Airflow refuses to start one a second time.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks import recipe as recipes
from tasks import registry, tracking

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

log = logging.getLogger("secateur.watch")

RECIPE = "secateur.recipe"
SEEN = "secateur.seen"
_PAGE = 100


@dataclass(frozen=True)
class Arrival:
    """A version that waits for its run; `registered` is MLflow's time of it, in milliseconds since the epoch."""

    model: str
    version: int
    recipe: str
    registered: int

    @property
    def run_id(self) -> str:
        """The id of its run. The time is in it because a model that is deleted and made again counts from one again."""
        moment = datetime.fromtimestamp(self.registered / 1000, UTC)
        return f"registry__{self.model}__{self.version}__{moment:%Y%m%dT%H%M%S}.{self.registered % 1000:03d}"

    @property
    def conf(self) -> dict[str, str]:
        """The params of its run."""
        return {"model": self.model, "version": str(self.version), "recipe": self.recipe}

    @property
    def problem(self) -> str | None:
        """Why no run can be started for it, or None."""
        if not registry.MODEL_NAME.fullmatch(self.model):
            return (
                f"{self.model!r}: expected a name of letters, digits, dot, dash and underscore; register it under one"
            )
        if not recipes.NAME.fullmatch(self.recipe):
            return (
                f"{self.model} version {self.version}: expected the name of a recipe in the model's tag {RECIPE}, got "
                f"{self.recipe[:100]!r}; correct the tag, then run `secateur run` for this version"
            )
        return None


def run(start: Callable[[Arrival], bool]) -> list[str]:
    """Start a run for every version that waits, in order; returns the ids of those that were not there before.

    `start` returns False where the run exists. A version counts as seen once its run exists, so that wherever this is
    killed, it goes on from there.

    Raises:
        InputError: some could not be started at all, now or later; said when the others have been.
        RegistryDownError: MLflow does not answer.
    """
    started, problems = [], []
    for arrival in pending():
        if arrival.problem:
            problems.append(arrival.problem)
        elif start(arrival):
            started.append(arrival.run_id)
        tracking.client().set_registered_model_tag(arrival.model, SEEN, str(arrival.version))
    if problems:
        raise InputError("; ".join(problems))
    return started


def pending() -> list[Arrival]:
    """What waits for a run: of each model in the order of its versions, among models in the order of registration.

    A model that is looked at for the first time begins with its latest version, and what it has from then on; the tag
    `secateur.seen` keeps that. One request when nothing is new, one more for every model that has something new.
    """
    client = tracking.client()
    waiting = (_waiting(client, model) for model in _watched(client))
    return list(heapq.merge(*waiting, key=lambda arrival: arrival.registered))


def _watched(client: MlflowClient) -> Iterator[RegisteredModel]:
    """Every model with a recipe's tag, but for those that the pipeline made: a pruned model is not pruned again."""
    token = None
    while True:
        page = client.search_registered_models(f"tags.`{RECIPE}` LIKE '%'", max_results=_PAGE, page_token=token)
        yield from (model for model in page if registry.SOURCE not in model.tags)
        token = page.token
        if not token:
            return


def _waiting(client: MlflowClient, model: RegisteredModel) -> list[Arrival]:
    newest = max((int(version.version) for version in model.latest_versions), default=0)
    kept = model.tags.get(SEEN, "")
    if kept.isdecimal():
        seen = int(kept)
    else:
        if kept:
            log.warning("%s: expected a number in the tag %s, got %r; it begins anew", model.name, SEEN, kept[:100])
        seen = max(newest - 1, 0)
        client.set_registered_model_tag(model.name, SEEN, str(seen))
    if newest <= seen:
        return []
    if registry.MODEL_NAME.fullmatch(model.name):
        above = f"name = '{model.name}' AND version_number > {seen}"
        versions = list(client.search_model_versions(above, order_by=["version_number ASC"]))
    else:  # it has no run: its newest is enough to say so
        versions = [version for version in model.latest_versions if int(version.version) == newest]
    recipe = model.tags[RECIPE].strip()
    return [Arrival(model.name, int(v.version), recipe, int(v.creation_timestamp)) for v in versions]
