"""The data section of a recipe as splits, fetched from the bucket where the recipe says so."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks.recipe import Recipe
from tasks.sections.data import TABLES, Data

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

    from secateur.data import Dataset, Split

WHOLE = "whole"  # the part that is read where the splits are not named
SHIFTED = "shifted"  # the part that the gate reads beside them
HUB_PART = "train"  # what is read of a data set on the hub where its parts are not named

Places = Mapping[str, str]  # by part: WHOLE, or train, test and, if it is named, validation


def load(recipe: Recipe, names: Sequence[str] = ("inputs",)) -> Dataset:
    """Read the recipe's data and split it where it is not; the same recipe gives the same splits.

    Args:
        recipe: its `data` section says where the examples are.
        names: the program's inputs in order.

    Raises:
        InputError: the data are missing or unreadable, or cannot be split as asked.
    """
    from secateur import data

    wanted, shares = _with_texts(recipe), recipe.data.split
    # what is mapped stays readable after its file is gone, until nothing refers to it
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        parts = {
            part: data.labelled_for(split, recipe.objective)
            for part, split in _read(wanted, _places(wanted), names, Path(folder)).items()
        }
    if WHOLE in parts:
        made = data.split(parts[WHOLE], shares, recipe.seed)
    elif "validation" in parts:
        train = _blank(parts["train"], parts["test"]) if wanted.labels == "none" else parts["train"]
        made = data.Dataset(train, parts["validation"], parts["test"])
    else:
        train, validation = data.carve(parts["train"], shares[1] / (shares[0] + shares[1]), recipe.seed)
        made = data.Dataset(train, validation, parts["test"])
    return replace(made, train=data.proxy(made.train, wanted.proxy, recipe.seed)) if wanted.proxy else made


def shifted(recipe: Recipe, place: str, names: Sequence[str]) -> Split:
    """Another set of examples, read as the recipe's test split is.

    Raises:
        InputError: as `load`, naming `gate.robustness.shifted`.
    """
    from secateur import data

    # what a label or a column stands for is said by the first part, so that one is read with it
    first = list(_places(recipe.data).items())[:1] if recipe.data.source in (*TABLES, "images") else []
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        try:
            split = _read(recipe.data, {**dict(first), SHIFTED: place}, names, Path(folder))[SHIFTED]
        except InputError as error:
            raise InputError(str(error).replace(f"data.splits.{SHIFTED}:", "gate.robustness.shifted:", 1)) from error
        return data.labelled_for(split, recipe.objective)


def encoder(recipe: Recipe, names: Sequence[str]) -> Callable[[Sequence[str]], list[np.ndarray]]:
    """What makes the program's inputs of texts, as `load` does."""
    from secateur.readers import tables

    text = recipe.data.text
    assert text is not None
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        tokenizer = _local(text.tokenizer, Path(folder) / "tokenizer", "data.text.tokenizer")
        encode = tables.encoder_of(tokenizer, text.max_length, names)
    return lambda texts: list(encode(texts).columns)


def check(recipe: Recipe, dataset: Dataset, program: ExportedProgram) -> None:
    """Raise InputError unless the data fit the program and the recipe, and the splits can be believed.

    Equal examples on both sides are refused in splits that were named; what the seed drew is not looked through for them.
    """
    from secateur import data_checks
    from secateur.calibration import GRADIENTS, MOVEMENT
    from secateur.importance import CRITERIA

    data_checks.check_fits(dataset, program, recipe.objective)
    unlabelled = recipe.data.labels == "none"
    if recipe.objective == "classification":
        data_checks.check_every_class(
            {part: split for part, split in dataset.splits.items() if not (unlabelled and part == "train")}
        )
    if recipe.data.splits is not None:
        pairs = [("train", "test"), ("validation", "test")]
        named = recipe.data.splits.validation is not None
        data_checks.check_separate(dataset.splits, [("train", "validation"), *pairs] if named else pairs)
    data_checks.check_enough(dataset.train, recipe.recovery.batch)
    criterion = CRITERIA.get(recipe.prune.criterion)
    learns = criterion is not None and criterion.needs & {GRADIENTS, MOVEMENT}
    if unlabelled and (learns or recipe.prune.allocation == "sensitivity"):
        raise InputError(
            f"data.labels: none goes with criteria and allocations that need no label, got {recipe.prune.criterion} and "
            f"{recipe.prune.allocation}; choose others, or label the training split"
        )


def _with_texts(recipe: Recipe) -> Data:
    """The data section, with the texts themselves as metadata where the gate corrupts them."""
    data, robustness = recipe.data, recipe.gate.robustness
    if data.text is None or robustness is None or not robustness.corruptions:
        return data
    return data.model_copy(update={"metadata": tuple(dict.fromkeys((*data.metadata, data.text.column)))})


def _blank(unlabelled: Split, like: Split) -> Split:
    """The examples with labels of zeros, in the shape and type of those of another split."""
    import numpy as np

    return replace(unlabelled, labels=np.zeros((len(unlabelled), *like.labels.shape[1:]), like.labels.dtype))


def _places(wanted: Data) -> Places:
    if wanted.splits is not None:
        return wanted.splits.model_dump(exclude_none=True)
    return {WHOLE: HUB_PART if wanted.source == "huggingface" else wanted.path or ""}


def _read(wanted: Data, places: Places, names: Sequence[str], folder: Path) -> dict[str, Split]:
    if wanted.source == "digits":
        from secateur.readers import arrays

        return {WHOLE: arrays.digits()}
    if wanted.source in TABLES:
        return _tables(wanted, places, names, folder)
    if wanted.source == "images":
        return _images(wanted, places, folder)
    return _arrays(wanted, places, names, folder)


def _arrays(wanted: Data, places: Places, names: Sequence[str], folder: Path) -> dict[str, Split]:
    from secateur.readers import arrays

    parts = {}
    for part, place in places.items():
        labelled = _labelled(wanted, part)
        with _naming(part):
            if wanted.source == "npz":
                local = _local(place, folder / part)
                parts[part] = arrays.npz(local, names, labelled=labelled, metadata=wanted.metadata)
            else:
                stored = arrays.files(names, labelled=labelled, metadata=wanted.metadata)
                local = _local_folder(place, stored, folder / part)
                parts[part] = arrays.npy(local, names, labelled=labelled, metadata=wanted.metadata)
    return parts


def _tables(wanted: Data, places: Places, names: Sequence[str], folder: Path) -> dict[str, Split]:
    from secateur.readers import tables

    assert wanted.table is not None  # filled in by the recipe
    read, label, text = {}, wanted.table.label, wanted.text
    for part, place in places.items():
        with _naming(part):
            if wanted.source == "huggingface":
                read[part] = tables.huggingface(wanted.path or "", place)
            else:
                read[part] = tables.table(_local(place, folder / part), wanted.source, text.column if text else None)
    labels = {part: label if _labelled(wanted, part) else None for part in read}
    if text is not None:
        tokenizer = _local(text.tokenizer, folder / "tokenizer", "data.text.tokenizer")
        made = {
            part: tables.text(table, labels[part], text.column, tokenizer, text.max_length, names)
            for part, table in read.items()
        }
    else:
        # one order for all splits, whatever the order in their files
        columns = wanted.table.features or tables.feature_columns(next(iter(read.values())), label, wanted.metadata)
        made = {part: tables.features(table, labels[part], columns) for part, table in read.items()}
    return {part: replace(made[part], metadata=tables.metadata(table, wanted.metadata)) for part, table in read.items()}


def _images(wanted: Data, places: Places, folder: Path) -> dict[str, Split]:
    from secateur.readers import images

    assert wanted.images is not None  # filled in by the recipe
    parts, classes = {}, {}
    for part, place in places.items():
        with _naming(part):
            if place.startswith("s3://") and not place.endswith(".zip"):
                raise InputError(f"data.path: expected a .zip of the folder in a bucket, got {place}; archive it first")
            local, labelled = _local(place, folder / part), _labelled(wanted, part)
            parts[part] = images.images(local, labelled=labelled, **wanted.images.model_dump())
            if labelled:
                classes[part] = images.class_folders(local)
    first = next(iter(classes))
    for part, seen in classes.items():
        if differing := sorted(set(seen) ^ set(classes[first])):
            raise InputError(
                f"data.splits.{part}: expected the class folders of {first}, for a label is a folder's position; "
                f"{', '.join(differing)} is only in one of them"
            )
    return parts


def _labelled(wanted: Data, part: str) -> bool:
    return wanted.labels == "given" or part != "train"


@contextlib.contextmanager
def _naming(part: str) -> Iterator[None]:
    """What a reader says of `data.path` is said of the setting that named the place."""
    try:
        yield
    except InputError as error:
        if part == WHOLE:
            raise
        raise InputError(str(error).replace("data.path:", f"data.splits.{part}:", 1)) from error


def _local(place: str, folder: Path, setting: str = "data.path") -> Path:
    """The file itself, or a copy of the object in a folder of its own, under its own name."""
    if not place.startswith("s3://"):
        return Path(place)
    from tasks import bucket

    folder.mkdir(exist_ok=True)
    local = folder / place.rsplit("/", 1)[-1]
    try:
        bucket.download(place, local)
    except FileNotFoundError as error:
        raise InputError(f"{setting}: {error}; upload the file or mend the address") from error
    return local


def _local_folder(place: str, files: Sequence[str], folder: Path) -> Path:
    if not place.startswith("s3://"):
        return Path(place)
    for file in files:
        _local(f"{place.rstrip('/')}/{file}", folder)
    return folder
