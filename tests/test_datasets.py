"""The data section of a recipe: every source ends as three splits, and what cannot be believed is refused by its setting."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
import yaml
from PIL import Image
from services import BUCKET
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

from secateur.data import Dataset, Split
from secateur.errors import InputError
from secateur.program import input_specs
from tasks import datasets
from tasks.recipe import Recipe, parse

COUNTS = {"train": 30, "validation": 12, "test": 18}
WORDS = ("zero", "one", "two")


def recipe(data: dict[str, Any], **changes: Any) -> Recipe:
    """A recipe with this data section, as it would be read from a file; two batches of training are few."""
    content = {"model": "m", "goal": {"sparsity": 0.5}, "recovery": {"batch": 4}, "data": data}
    return parse(yaml.safe_dump(content | changes), "test")


def vectors(part: str) -> Split:
    """Random examples of every class, other ones in each part."""
    count = COUNTS[part]
    return Split(models.vectors(count, seed=count), np.arange(count) % models.CLASSES)


def write_npz(folder: Path, part: str) -> Path:
    split = vectors(part)
    np.savez(folder / f"{part}.npz", inputs=split.inputs, labels=split.labels)
    return folder / f"{part}.npz"


def write_npy(folder: Path, part: str) -> Path:
    (folder / part).mkdir()
    np.save(folder / part / "inputs.npy", vectors(part).inputs)
    np.save(folder / part / "labels.npy", vectors(part).labels)
    return folder / part


def as_table(part: str) -> pa.Table:
    split = vectors(part)
    return pa.table({**{f"x{i}": split.inputs[:, i] for i in range(models.FEATURES)}, "label": split.labels})


def write_parquet(folder: Path, part: str) -> Path:
    pyarrow.parquet.write_table(as_table(part), folder / f"{part}.parquet")
    return folder / f"{part}.parquet"


def write_csv(folder: Path, part: str) -> Path:
    pyarrow.csv.write_csv(as_table(part), folder / f"{part}.csv")
    return folder / f"{part}.csv"


WRITERS: dict[str, Callable[[Path, str], Path]] = {
    "npz": write_npz,
    "npy": write_npy,
    "parquet": write_parquet,
    "csv": write_csv,
}


def named(folder: Path, source: str = "npz", *parts: str) -> dict[str, Any]:
    """A data section that names its splits."""
    return {"source": source, "splits": {part: str(WRITERS[source](folder, part)) for part in parts or COUNTS}}


def assert_same(first: Dataset, second: Dataset) -> None:
    for one, other in zip(first.splits.values(), second.splits.values(), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one.columns, other.columns, strict=True))
        assert np.array_equal(one.labels, other.labels)


def check(wanted: Recipe) -> Dataset:
    """Load and check against the perceptron."""
    program = models.exported("perceptron")
    loaded = datasets.load(wanted, tuple(input_specs(program)))
    datasets.check(wanted, loaded, program)
    return loaded


def refusal(data: dict[str, Any], **changes: Any) -> str:
    """The sentence with which a data section is refused."""
    with pytest.raises(InputError) as caught:
        check(recipe(data, **changes))
    return str(caught.value)


@pytest.mark.parametrize("source", WRITERS)
def test_named_splits_are_read_as_they_are(tmp_path: Path, source: str) -> None:
    assert_same(check(recipe(named(tmp_path, source))), Dataset(*map(vectors, COUNTS)))


@pytest.mark.parametrize("source", WRITERS)
def test_a_single_place_is_split_by_the_seed(tmp_path: Path, source: str) -> None:
    place = str(WRITERS[source](tmp_path, "train"))
    wanted = {"source": source, "path": place, "split": [0.6, 0.2, 0.2]}
    first, again = check(recipe(wanted)), check(recipe(wanted))
    assert [len(split) for split in first.splits.values()] == [18, 6, 6]
    assert_same(first, again)
    assert check(recipe(wanted, seed=1)).digest != first.digest


@pytest.mark.parametrize("source", ["npz", "npy", "csv"])
def test_metadata_is_read_beside_what_the_model_sees_and_split_with_it(tmp_path: Path, source: str) -> None:
    inputs, labels, site = vectors("train").inputs, vectors("train").labels, vectors("train").inputs[:, 0] > 0
    if source == "csv":
        table = as_table("train").append_column("site", pa.array(np.where(site, "north", "south")))
        pyarrow.csv.write_csv(table, tmp_path / "data")
    elif source == "npz":
        np.savez(tmp_path / "data.npz", inputs=inputs, labels=labels, site=np.where(site, "north", "south"))
        (tmp_path / "data.npz").rename(tmp_path / "data")
    else:
        (tmp_path / "data").mkdir()
        for name, array in {"inputs": inputs, "labels": labels, "site": np.where(site, "north", "south")}.items():
            np.save(tmp_path / "data" / f"{name}.npy", array)
    read = datasets.load(recipe({"source": source, "path": str(tmp_path / "data"), "metadata": ["site"]}))
    for split in read.splits.values():
        assert split.inputs.shape[1:] == inputs.shape[1:]
        assert split.metadata["site"].tolist() == np.where(split.inputs[:, 0] > 0, "north", "south").tolist()
    without = datasets.load(recipe({"source": "npz", "path": str(tmp_path / "data")})) if source == "npz" else None
    assert without is None or without.digest != read.digest


def test_metadata_that_is_missing_or_given_to_the_model_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", inputs=vectors("train").inputs, labels=vectors("train").labels, site=np.ones(3))
    place = {"source": "npz", "path": str(tmp_path / "data.npz")}
    for names, said in (
        (["region"], "region is missing"),
        (["site"], r"data.metadata: expected a value of site for each of 30 examples"),
    ):
        with pytest.raises(InputError, match=said):
            datasets.load(recipe(place | {"metadata": names}))
    with pytest.raises(InputError, match=r"^data.metadata: expected arrays that no model sees, left is given to it"):
        datasets.load(recipe(place | {"metadata": ["left"]}), ("left", "right"))


@pytest.mark.parametrize("source", ["npz", "csv"])
def test_another_set_is_read_as_the_test_split_is(tmp_path: Path, source: str) -> None:
    wanted = recipe(named(tmp_path, source, "train", "test"))
    place = WRITERS[source](tmp_path, "validation")
    other = datasets.shifted(wanted, str(place), ("inputs",))
    assert np.allclose(other.inputs, vectors("validation").inputs)
    assert np.array_equal(other.labels, vectors("validation").labels)
    with pytest.raises(InputError, match=r"^gate\.robustness\.shifted: expected a readable "):
        datasets.shifted(wanted, str(tmp_path / "nowhere"), ("inputs",))


def test_a_validation_split_that_is_not_named_comes_out_of_train(tmp_path: Path) -> None:
    wanted = named(tmp_path, "npz", "train", "test") | {"split": [0.4, 0.2, 0.4]}
    loaded = check(recipe(wanted))
    assert [len(split) for split in loaded.splits.values()] == [20, 10, COUNTS["test"]]
    whole = np.concatenate([loaded.train.inputs, loaded.validation.inputs])
    assert np.array_equal(np.sort(whole, axis=0), np.sort(vectors("train").inputs, axis=0))


def test_a_proxy_stands_in_for_the_training_split_alone(tmp_path: Path) -> None:
    wanted = named(tmp_path)
    loaded, proxied = (check(recipe(wanted | extra)) for extra in ({}, {"proxy": 0.5}))
    assert len(proxied.train) == len(loaded.train) / 2
    assert set(map(bytes, proxied.train.inputs)) < set(map(bytes, loaded.train.inputs))
    assert_same(dataclasses.replace(proxied, train=loaded.train), loaded)


def unlabelled(folder: Path) -> dict[str, Any]:
    """Named splits, the labels of train missing."""
    wanted = named(folder)
    np.savez(folder / "train.npz", inputs=vectors("train").inputs)
    return wanted | {"labels": "none"}


TAUGHT = {"recovery": {"batch": 4, "distillation": 1.0}}


def test_a_training_split_without_labels_gets_blank_ones_of_the_objectives_shape(tmp_path: Path) -> None:
    wanted = unlabelled(tmp_path)
    for part in ("validation", "test"):
        of = np.eye(models.CLASSES)[vectors(part).labels]  # float64, as numbers are in tables
        np.savez(tmp_path / f"{part}.npz", inputs=vectors(part).inputs, labels=of)
    loaded = check(recipe(wanted, **TAUGHT, objective="regression"))
    assert {split.labels.dtype for split in loaded.splits.values()} == {np.dtype(np.float32)}
    assert loaded.train.labels.shape == (COUNTS["train"], models.CLASSES)


def test_a_training_split_without_labels_is_read_where_the_dense_model_teaches(tmp_path: Path) -> None:
    loaded = check(recipe(unlabelled(tmp_path), **TAUGHT))
    assert np.array_equal(loaded.train.inputs, vectors("train").inputs)
    assert not loaded.train.labels.any()
    assert np.array_equal(loaded.test.labels, vectors("test").labels)


@pytest.mark.parametrize(
    "prune", [{"criterion": "taylor"}, {"criterion": "movement"}, {"allocation": "sensitivity"}], ids=str
)
def test_what_learns_from_labels_is_refused_without_them(tmp_path: Path, prune: dict[str, str]) -> None:
    said = refusal(unlabelled(tmp_path), **TAUGHT, prune=prune)
    assert said.startswith("data.labels: none goes with criteria and allocations that need no label")
    assert next(iter(prune.values())) in said


def test_features_have_one_order_in_all_splits(tmp_path: Path) -> None:
    wanted = named(tmp_path, "csv")
    names = as_table("test").column_names
    pyarrow.csv.write_csv(as_table("test").select(names[::-1]), tmp_path / "test.csv")
    assert_same(check(recipe(wanted)), Dataset(*map(vectors, COUNTS)))


def test_texts_are_read_with_their_tokenizer(tmp_path: Path) -> None:
    encoder = Tokenizer(WordLevel({"[PAD]": 0, **{word: i + 1 for i, word in enumerate(WORDS)}}, unk_token="[PAD]"))
    encoder.pre_tokenizer = Whitespace()
    encoder.save(str(tmp_path / "tokenizer.json"))
    of = np.arange(COUNTS["train"]) % models.CLASSES
    rows = "".join(f'"{WORDS[label]} {WORDS[number % 2]}"\t{label}\n' for number, label in enumerate(of))
    (tmp_path / "reviews.tsv").write_text(f"review\tkind\n{rows}")
    text = {"column": "review", "tokenizer": str(tmp_path / "tokenizer.json"), "max_length": models.LENGTH}
    wanted = recipe({"source": "tsv", "path": str(tmp_path / "reviews.tsv"), "table": {"label": "kind"}, "text": text})
    program = models.exported("encoder")
    loaded = datasets.load(wanted, tuple(input_specs(program)))
    datasets.check(wanted, loaded, program)
    assert np.array_equal(loaded.train.inputs[:, 0], loaded.train.labels + 1)
    assert loaded.train.inputs.shape[1] == models.LENGTH


class Two(nn.Module):
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left + right


def test_a_model_of_several_inputs_is_read_for_by_name(tmp_path: Path) -> None:
    split = vectors("train")
    np.savez(tmp_path / "two.npz", left=split.inputs, right=split.inputs + 1, labels=split.labels)
    wanted = recipe({"source": "npz", "path": str(tmp_path / "two.npz")})
    program = models.export(Two(), torch.zeros(2, models.FEATURES), torch.zeros(2, models.FEATURES))
    loaded = datasets.load(wanted, tuple(input_specs(program)))
    assert np.array_equal(loaded.test.columns[0] + 1, loaded.test.columns[1])
    datasets.check(wanted, loaded, program)


def draw(folder: Path, classes: tuple[str, ...] = WORDS, count: int = 8) -> Path:
    """A folder of noisy images per class, the same ones for the same folder's name."""
    rng = np.random.default_rng(len(folder.name))
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 255, (*models.IMAGE[1:], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_images_are_read_from_class_folders(tmp_path: Path) -> None:
    splits = {part: str(draw(tmp_path / part)) for part in COUNTS}
    wanted = recipe({"source": "images", "splits": splits, "images": {"mean": [0.5], "deviation": [0.5]}})
    loaded = datasets.load(wanted)
    datasets.check(wanted, loaded, models.exported("residual"))
    assert -1 <= loaded.train.inputs.min() < 0 < loaded.train.inputs.max() <= 1


def test_other_class_folders_in_another_split_are_refused(tmp_path: Path) -> None:
    splits = {"train": str(draw(tmp_path / "train")), "test": str(draw(tmp_path / "test", ("one", "three", "two")))}
    with pytest.raises(InputError, match=r"^data.splits.test: expected the class folders of train, .*; three, zero is"):
        datasets.load(recipe({"source": "images", "splits": splits}))


def test_an_example_in_two_named_splits_is_refused(tmp_path: Path) -> None:
    wanted = named(tmp_path)
    shutil.copy(tmp_path / "validation.npz", tmp_path / "test.npz")
    assert "data.splits: expected no example in two splits, found 12 in both validation and test" in refusal(wanted)


def test_equal_examples_in_a_split_that_was_drawn_are_not_looked_for(tmp_path: Path) -> None:
    twice = [np.concatenate([array, array]) for array in (vectors("train").inputs, vectors("train").labels)]
    np.savez(tmp_path / "twice.npz", inputs=twice[0], labels=twice[1])
    assert len(check(recipe({"source": "npz", "path": str(tmp_path / "twice.npz")})).train) == COUNTS["train"]


def test_a_class_that_a_split_lacks_is_refused(tmp_path: Path) -> None:
    wanted = named(tmp_path)
    np.savez(tmp_path / "test.npz", inputs=vectors("test").inputs, labels=vectors("test").labels % 2)
    assert "expected examples of each of 3 classes in the test split, found none of 2" in refusal(wanted)


def test_too_few_batches_are_refused(tmp_path: Path) -> None:
    assert refusal(named(tmp_path), recovery={"batch": 64}).startswith("recovery.batch: expected at least two batches")


@pytest.mark.parametrize("source", WRITERS)
def test_what_is_missing_is_refused_by_the_setting_that_named_it(tmp_path: Path, source: str) -> None:
    wanted = named(tmp_path, source)
    wanted["splits"]["test"] = str(tmp_path / "nowhere")
    said = refusal(wanted)
    assert said.startswith("data.splits.test: expected")
    assert "nowhere" in said
    assert refusal({"source": source, "path": str(tmp_path / "nowhere")}).startswith("data.path: expected")


def upload(local: Path, key: str) -> str:
    import boto3

    boto3.client("s3").upload_file(str(local), BUCKET, key)
    return f"s3://{BUCKET}/{key}"


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize("source", WRITERS)
def test_splits_in_the_bucket_are_the_same_splits(tmp_path: Path, source: str) -> None:
    local = named(tmp_path, source)
    remote = {"source": source, "splits": {}}
    for part, place in local["splits"].items():
        path = Path(place)
        for file in path.iterdir() if path.is_dir() else [path]:
            upload(file, f"splits/{file.relative_to(tmp_path)}")
        remote["splits"][part] = f"s3://{BUCKET}/splits/{path.name}"
    assert_same(check(recipe(remote)), check(recipe(local)))


@pytest.mark.usefixtures("services")
def test_images_in_the_bucket_are_an_archive(tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "images"), "zip", draw(tmp_path / "train")))
    loaded = datasets.load(recipe({"source": "images", "path": upload(archive, "splits/images.zip")}))
    assert_same(loaded, datasets.load(recipe({"source": "images", "path": str(tmp_path / "train")})))
    with pytest.raises(InputError, match=r"^data.path: expected a .zip of the folder in a bucket, got s3://.*/images;"):
        datasets.load(recipe({"source": "images", "path": f"s3://{BUCKET}/images"}))


@pytest.mark.usefixtures("services")
@pytest.mark.parametrize(("source", "file"), [("npz", ""), ("npy", "/inputs.npy"), ("csv", "")])
def test_an_object_that_is_not_there_is_named(source: str, file: str) -> None:
    place = f"s3://{BUCKET}/gone"
    with pytest.raises(InputError, match=rf"^data.path: expected an object at {place}{file}, there is none; upload"):
        datasets.load(recipe({"source": source, "path": place}))
