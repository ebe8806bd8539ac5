"""The candidates of a sweep: what its file names, as complete recipes, each checked before anything starts."""

from __future__ import annotations

import copy
import itertools
import math
import re
from collections.abc import Mapping
from typing import Any

from secateur.errors import InputError
from tasks import recipe as recipes
from tasks.recipe import Recipe
from tasks.sections.sweep import Sweep, Trial

MOST = 32  # candidates
LONGEST = 60  # characters of a name
SHARED = ("model", "data", "objective", "target", "also_on", "gate", "approval", "seed")


def of_sweep(name: str) -> tuple[Sweep, dict[str, Recipe]]:
    """A sweep and its candidates by their names, in the order of the file.

    Raises:
        InputError: no such sweep, or it is not one; a candidate is no recipe, the same as another, or not comparable with it.
    """
    sweep, contents = _read(name)
    found = {one: _checked(name, one, content, sweep, len(contents)) for one, content in contents.items()}
    first, *others = found
    for other in others:
        _check_comparable(name, (first, found[first]), (other, found[other]))
    for one, two in itertools.combinations(found, 2):
        if found[one] == found[two]:
            raise InputError(f"sweep {name}: candidates {one} and {two} are the same recipe; leave one of them out")
    return sweep, found


def load(name: str) -> Recipe:
    """A candidate's recipe by `SWEEP:CANDIDATE`, or `SWEEP:CANDIDATE:RUNG` where the sweep has rungs.

    Raises:
        InputError: no such candidate, or its recipe is wrong.
    """
    sweep_name, candidate, rung = (*name.split(":"), "", "")[:3]
    sweep, contents = _read(sweep_name)
    if candidate not in contents:
        raise InputError(
            f"recipe {name[:200]}: expected a candidate of sweep {sweep_name}, {', '.join(contents)}, got {candidate[:100]!r}"
        )
    found = _checked(sweep_name, candidate, contents[candidate], sweep, len(contents))
    if not rung and name.count(":") == 1:
        return found
    rungs = sweep.halving.rungs if sweep.halving else 0
    if name.count(":") > 2 or rung not in map(str, range(1, rungs + 1)):
        raise InputError(
            f"recipe {name[:200]}: expected a rung of sweep {sweep_name}, which has {rungs or 'none'}, got {rung[:100]!r}"
        )
    return at_rung(found, sweep, int(rung))


def at_rung(candidate: Recipe, sweep: Sweep, rung: int) -> Recipe:
    """A candidate's recipe in a rung of its sweep; what it is without, where the sweep has none."""
    if not sweep.halving:
        return candidate
    assert candidate.trial
    place = {"rung": rung, "rungs": sweep.halving.rungs, "eta": sweep.halving.eta}
    return candidate.model_copy(update={"trial": candidate.trial.model_copy(update=place)})


def _read(name: str) -> tuple[Sweep, dict[str, dict[str, Any]]]:
    """A sweep, and what each of its candidates would be as a file."""
    said = recipes.read(name)
    if "model" in said:
        raise InputError(f"sweep {name}: expected base with matrix, or recipes; this is one recipe")
    sweep = recipes.checked(Sweep, said, f"sweep {name}")
    if sweep.recipes:
        contents = {one: recipes.read(one) for one in sweep.recipes}
        if len(contents) < len(sweep.recipes):
            raise InputError(f"sweep {name}: recipes: expected each of them once, got {', '.join(sweep.recipes)}")
    else:
        count = math.prod(map(len, sweep.matrix.values()))
        if count > MOST:
            raise InputError(f"sweep {name}: matrix: expected at most {MOST} candidates, got {count}; make it smaller")
        contents = _of_matrix(name, sweep)
    if not 2 <= len(contents) <= MOST:
        raise InputError(f"sweep {name}: expected from 2 to {MOST} candidates to compare, got {len(contents)}")
    return sweep, contents


def _of_matrix(name: str, sweep: Sweep) -> dict[str, dict[str, Any]]:
    """The base, changed by every combination; each is called by the values that vary."""
    base = recipes.read(str(sweep.base))
    varying = [key for key, values in sweep.matrix.items() if len(values) > 1] or list(sweep.matrix)
    contents: dict[str, dict[str, Any]] = {}
    for values in itertools.product(*sweep.matrix.values()):
        chosen = dict(zip(sweep.matrix, values, strict=True))
        candidate = _unused("-".join(_spoken(chosen[key]) for key in varying), contents)
        contents[candidate] = copy.deepcopy(base)
        for key, value in chosen.items():
            _put(contents[candidate], key, value, f"sweep {name}, candidate {candidate}")
    return contents


def _spoken(value: Any) -> str:
    """A value as a part of a name."""
    if isinstance(value, Mapping):
        return "-".join(f"{key}-{_spoken(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return "-".join(map(_spoken, value))
    return re.sub(r"[^a-z0-9._]+", "-", str(value).lower())


def _unused(wanted: str, taken: Mapping[str, Any]) -> str:
    """This name, or with a number where another candidate has it."""
    name = wanted.strip("-._")[:LONGEST] or "candidate"
    numbered = (f"{name}-{number}" for number in itertools.count(2))
    return next(one for one in itertools.chain([name], numbered) if one not in taken)


def _put(content: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set a setting by its dotted name."""
    *sections, last = key.split(".")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"{where}: matrix.{key}: expected {section} of the base to be a section, it is {inner!r}")
        content = inner
    content[last] = copy.deepcopy(value)


def _checked(name: str, candidate: str, content: dict[str, Any], sweep: Sweep, count: int) -> Recipe:
    found = recipes.plain(content, f"sweep {name}, candidate {candidate}")
    trial = Trial(candidates=count, finalists=min(sweep.finalists, count))
    return found.model_copy(update={"trial": trial})


def _check_comparable(name: str, one: tuple[str, Recipe], two: tuple[str, Recipe]) -> None:
    """Raise InputError unless both are judged on the same examples, by the same bounds, on the same hardware."""
    other = [section for section in SHARED if getattr(one[1], section) != getattr(two[1], section)]
    if one[1].budget.accuracy_drop != two[1].budget.accuracy_drop:
        other.append("budget.accuracy_drop")
    if other:
        raise InputError(
            f"sweep {name}: candidates {one[0]} and {two[0]} differ in {', '.join(other)}, and what is judged otherwise cannot be "
            "compared; sweep over the rest, or make two sweeps"
        )
