"""The section `data` of a recipe: where the examples come from, and what they are made of."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from tasks.sections.section import Section, Share

TABLES = ("parquet", "csv", "tsv", "huggingface")
COMPUTED_SLICES = ("label", "mean", "deviation", "length")  # that need no metadata


class Splits(Section):
    """Where each split is: a place as `path` would be, or with source huggingface the name of a part."""

    train: str
    validation: str | None = None  # without, carved out of train, in the proportion of `split`
    test: str


class Table(Section):
    """Which columns of a table count."""

    label: str = "label"
    features: tuple[str, ...] | None = None  # every other column, in the order of the first table


class Text(Section):
    """A column of texts in place of features."""

    column: str = "text"
    tokenizer: str  # a tokenizer.json, a file on every worker or s3://bucket/key
    max_length: int = Field(ge=1)  # tokens, special ones included


class Images(Section):
    """How an image becomes an array: pixels in 0..1, less the mean, over the deviation."""

    channels: Literal[1, 3] = 3
    size: tuple[PositiveInt, PositiveInt] | None = None  # height and width to resize to; without, all have one size
    mean: tuple[float, ...] = (0.0,)  # for each channel, or one for all
    deviation: tuple[PositiveFloat, ...] = (1.0,)

    @model_validator(mode="after")
    def _consistent(self) -> Images:
        for name in ("mean", "deviation"):
            if len(getattr(self, name)) not in (1, self.channels):
                raise ValueError(
                    f"{name} needs one number or one for each of {self.channels} channels, has {len(getattr(self, name))}"
                )
        return self


class Data(Section):
    """Where the examples come from, and how they are split."""

    source: Literal["digits", "npz", "npy", "parquet", "csv", "tsv", "images", "huggingface"]
    path: str | None = None  # a file (npy, images: a folder) on every worker, s3://bucket/key, or a name on the hub
    split: tuple[Share, Share, Share] = (0.5, 0.15, 0.35)  # train, validation, test
    splits: Splits | None = None  # in place of path
    labels: Literal["given", "none"] = "given"  # of the training split
    proxy: Share | None = None  # of the training split, that stands in for it
    metadata: tuple[str, ...] = ()  # columns of a table, or arrays, that no model sees: the gate slices by them
    table: Table | None = None
    text: Text | None = None
    images: Images | None = None

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        """The source's own section, where nothing of it is set."""
        if isinstance(given, dict):
            source = given.get("source")
            section = "images" if source == "images" else "table" if source in TABLES else None
            if section and given.get(section) is None:
                return {**given, section: {}}
        return given

    @model_validator(mode="after")
    def _placed(self) -> Data:
        if abs(sum(self.split) - 1) > 1e-9:
            raise ValueError(f"split must sum to 1, sums to {sum(self.split):g}")
        places = f"path {'given' if self.path else 'missing'}, splits {'given' if self.splits else 'missing'}"
        if self.source == "digits" and (self.path or self.splits):
            raise ValueError(f"source digits needs neither path nor splits, {places}")
        if self.source == "huggingface" and not self.path:
            raise ValueError(f"source huggingface needs a path, the data set's name; splits name its parts; {places}")
        if self.source not in ("digits", "huggingface") and bool(self.path) == bool(self.splits):
            raise ValueError(f"source {self.source} needs either a path or splits, {places}")
        if self.labels == "none" and (self.splits is None or self.splits.validation is None):
            raise ValueError("labels none is of the training split alone: name train, validation and test in splits")
        return self

    @model_validator(mode="after")
    def _sections(self) -> Data:
        for section, sources in (("table", TABLES), ("text", TABLES), ("images", ("images",))):
            if getattr(self, section) is not None and self.source not in sources:
                raise ValueError(f"{section} goes with source {', '.join(sources)}, source is {self.source}")
        if self.text is not None and self.table is not None and self.table.features is not None:
            raise ValueError("text and table.features exclude each other: a model is given texts or numbers")
        return self

    @model_validator(mode="after")
    def _about(self) -> Data:
        if self.metadata and self.source not in (*TABLES, "npz", "npy"):
            raise ValueError(f"metadata goes with source {', '.join(TABLES)}, npz or npy, source is {self.source}")
        seen = (self.table.label, *(self.table.features or ())) if self.table else ("inputs", "labels")
        if given := sorted({*seen, *COMPUTED_SLICES} & set(self.metadata)):
            raise ValueError(f"metadata is what no model sees and no other name of a slice, got {', '.join(given)}")
        return self
