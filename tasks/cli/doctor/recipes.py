"""Recipes and the placement: does each load, and is there one for every model that asks for it?"""

import os
from collections.abc import Iterator
from pathlib import Path

from secateur.errors import InputError
from tasks import placement, watch
from tasks import recipe as recipes
from tasks.cli.doctor import registry
from tasks.cli.doctor.finding import Finding

_PAGE = 100


def check() -> Iterator[Finding]:
    """Every recipe of the folder."""
    folder = Path(os.environ.get("SECATEUR_RECIPES", "recipes"))
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if not names:
        yield Finding(
            "fail",
            f"there is no recipe in {folder}",
            "let SECATEUR_RECIPES name the folder of recipes, here and wherever steps run",
        )
        return
    loaded = 0
    for name in names:
        try:
            wanted = recipes.load(name)
            for target in (wanted.target, *wanted.also_on):
                placement.check_target(target.name)
            loaded += 1
        except InputError as error:
            yield Finding("fail", str(error), f"mend {folder / name}.yaml")
    yield Finding("ok", f"{loaded} of {len(names)} recipes in {folder} can be used")


def asked_for() -> Iterator[Finding]:
    """Every registered model that is pruned by itself: its recipe is there, and is its own."""
    answer = registry.ask(
        "registered-models/search", {"filter": f"tags.`{watch.RECIPE}` LIKE '%'", "max_results": str(_PAGE)}
    )
    if not answer.is_success:  # another check says so
        return
    for model in answer.json().get("registered_models", []):
        asked = next(tag["value"] for tag in model["tags"] if tag["key"] == watch.RECIPE).strip()
        try:
            found = recipes.load(asked).model
        except InputError as error:
            yield Finding(
                "fail",
                f"model {model['name']} asks for recipe {asked!r} in its tag {watch.RECIPE}: {error}",
                "correct the tag, or add the recipe",
            )
            continue
        if found != model["name"]:
            yield Finding(
                "fail",
                f"model {model['name']} asks for recipe {asked!r}, which is for model {found}",
                f"correct the tag {watch.RECIPE}, or the recipe",
            )


def placed() -> Iterator[Finding]:
    """The file that says where steps run."""
    path = os.environ.get(placement.VARIABLE)
    if not path:
        return
    try:
        found = placement.load()
    except InputError as error:
        yield Finding("fail", str(error), f"mend it, or unset {placement.VARIABLE}")
    else:
        yield Finding("ok", f"{path} places steps, targets: {', '.join(found.targets) or 'none'}")
