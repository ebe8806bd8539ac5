"""Where steps run: what each needs, and which machines the installation has for it.

`SECATEUR_PLACEMENT` names a YAML file of places; without one every step runs where its executor puts it. A place's queue counts
with the CeleryExecutor, all else of it with the KubernetesExecutor; the LocalExecutor has one place only.
"""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from secateur.errors import InputError
from tasks.recipe import Recipe, section
from tasks.sections.section import Section

VARIABLE = "SECATEUR_PLACEMENT"
HERE = "SECATEUR_DEVICE"  # on a worker: the name of the target that it is
BENCH = "bench"  # a pool with one slot: two measurements at once would measure each other
MAPPED = "validate_on"  # the step that runs once on each target of a recipe's `also_on`
TRAINED = "recover"  # the step that takes the GPUs of a recipe's `resources`
TARGET_NAME = r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?"

Kind = Literal["control", "train", "bench"]
NEEDS: dict[str, Kind] = {  # of each step that computes much, all of prune_model; every other one is control
    "baseline": "bench",
    "cut": "bench",
    TRAINED: "train",
    "evaluate": "bench",
    "export": "train",
    "validate": "bench",
    MAPPED: "bench",
    "gate": "bench",
}


class Toleration(Section):
    """As Kubernetes writes it."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    tolerationSeconds: int | None = None  # noqa: N815


class Place(Section):
    """Machines of one kind, and what a step takes of one."""

    queue: str | None = Field(None, pattern=r"^[A-Za-z0-9._-]{1,100}$")  # of Celery; None: the default queue
    cpus: float | None = Field(None, gt=0)
    memory_gb: float | None = Field(None, gt=0)  # 2^30 bytes
    gpus: int = Field(0, ge=0)
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()


class Placement(Section):
    """The installation's places."""

    control: Place = Place()
    train: Place = Place()
    bench: Place = Place()
    targets: dict[str, Place] = Field(default_factory=dict)  # by the name that recipes give a target

    @field_validator("targets")
    @classmethod
    def _named(cls, targets: dict[str, Place]) -> dict[str, Place]:
        for name in targets:
            if not re.fullmatch(TARGET_NAME, name):
                raise ValueError(
                    f"a target's name must be of small letters, digits and dashes, at most 50; it is {name!r}"
                )
        return targets

    def device_of(self, step: str, target: str | None) -> str | None:
        """The named target that a step runs on; None for the places that have no name."""
        return target if NEEDS.get(step) == "bench" and target in self.targets else None

    def of(self, step: str, target: str | None) -> Place:
        """Where a step runs, where its recipe's target has this name."""
        device = self.device_of(step, target)
        place: Place = self.targets[device] if device else getattr(self, NEEDS.get(step, "control"))
        return place

    def pool_of(self, step: str, target: str | None) -> str | None:
        """The pool with the one slot of the device that a step measures on; None where it measures nothing."""
        device = self.device_of(step, target)
        return f"{BENCH}-{device}" if device else BENCH if NEEDS.get(step) == "bench" else None

    @property
    def pools(self) -> dict[str, str]:
        """Every device's pool and what it is for."""
        of_targets = {f"{BENCH}-{name}": f"One measurement at a time on {name}" for name in self.targets}
        return {BENCH: "One latency measurement at a time", **of_targets}


def load() -> Placement:
    """The installation's placement.

    Raises:
        InputError: the file is missing or not one.
    """
    path = os.environ.get(VARIABLE)
    return _read(path, Path(path).stat().st_mtime_ns if Path(path).is_file() else 0) if path else Placement()


@functools.lru_cache(maxsize=1)
def _read(path: str, _changed: int) -> Placement:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{VARIABLE}: expected a YAML file of places, got {error}; mend it, or unset the variable"
        ) from error
    return section(Placement, text, f"{VARIABLE} {path}")


def check_target(name: str | None, setting: str = "target.name") -> bool:
    """Whether a target of this name is another machine than the one that asks.

    Raises:
        InputError: the installation places its targets, and knows none of this name.
    """
    known = load().targets
    if name is None or not known:
        return False
    if name not in known:
        raise InputError(
            f"{setting}: expected one of the targets of this installation, {', '.join(sorted(known))}, got {name}; add it to "
            f"the file that {VARIABLE} names, or leave the name out to measure on its default bench"
        )
    return True


def check_here(name: str | None) -> None:
    """Raise InputError where this worker says that it is another device than the one that is to be measured."""
    here = os.environ.get(HERE)
    if here and name != here:
        raise InputError(
            f"target.name: expected {here}, the device of this worker ({HERE}), got {name or 'none'}: the step came to the wrong "
            "machine; look at the queues of the workers and at the recipe, which may have changed while the run went on"
        )


def asked(places: Placement, step: str, recipe: Recipe | None, index: int = -1) -> tuple[Place, str | None]:
    """Where a step of a recipe runs, and the pool of the device that it measures on.

    Args:
        index: of a step that runs once on each target of `also_on`, the how-manieth it is, from 0.
    """
    if recipe is None:
        return places.of(step, None), places.pool_of(step, None)
    # Airflow's task instance that waits to be mapped has index -1, and becomes that of index 0
    targets = recipe.also_on[max(index, 0) :] if step == MAPPED else (recipe.target,)
    target = next((one.name for one in targets), None)
    place = places.of(step, target)
    gpus, several = recipe.resources.gpus, recipe.resources.nodes > 1
    if step == TRAINED and (gpus or several):  # of several machines each has its own, the step itself none
        place = place.model_copy(update={"gpus": 0 if several else gpus})
    return place, places.pool_of(step, target)
