"""The data section of a recipe as arrays, fetched from the bucket where the recipe says so."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks.recipe import Recipe

if TYPE_CHECKING:
    from secateur.data import Dataset


def load(recipe: Recipe) -> Dataset:
    """Read and split the recipe's data; the same recipe gives the same splits."""
    from secateur import data
    from secateur.readers import arrays

    if recipe.data.source == "digits":
        read = arrays.digits()
    elif str(recipe.data.path).startswith("s3://"):
        from tasks import bucket

        with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
            local = Path(folder) / "data.npz"
            try:
                bucket.download(str(recipe.data.path), local)
            except FileNotFoundError as error:
                raise InputError(f"data.path: {error}; upload the file or mend the address") from error
            read = arrays.npz(local)
    else:
        read = arrays.npz(str(recipe.data.path))
    return data.split(data.class_numbers(read), recipe.data.split, recipe.seed)
