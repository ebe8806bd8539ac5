"""Tables with an example per row: columns of numbers as a matrix, or a column of texts as tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from secateur.data import Split
from secateur.errors import InputError

SEPARATORS = {"csv": ",", "tsv": "\t"}
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
PADS = ("[PAD]", "<pad>")  # where the tokenizer's file does not say how it pads
TEXTS = 1024  # encoded at once
_MOST = 2**31 - 1  # bytes that Arrow parses as one block


@dataclass(frozen=True)
class Encoded:
    """Texts as a program's inputs [N, length] in its order; how much of each is no padding [N], where a mask says so."""

    columns: tuple[np.ndarray, ...]
    lengths: np.ndarray | None


def table(path: str | Path, kind: str, text: str | None = None) -> pa.Table:
    """A table from a file of kind `parquet`, `csv` or `tsv`, read into memory; files of text have a header.

    The types of a text file's columns are found over all rows, but for the column `text`, which is taken as it stands.

    Raises:
        InputError: the file is missing, unreadable or empty.
    """
    try:
        read = pyarrow.parquet.read_table(path) if kind == "parquet" else _text_table(path, SEPARATORS[kind], text)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(f"data.path: expected a readable {kind} file, got {path}: {_line(error)}") from error
    if not read.num_rows:
        raise InputError(f"data.path: expected at least one row in {path}, got none")
    return read


def _text_table(path: str | Path, separator: str, text: str | None) -> pa.Table:
    size = Path(path).stat().st_size
    return pyarrow.csv.read_csv(
        path,
        pyarrow.csv.ReadOptions(block_size=min(max(size, 1), _MOST)),  # one block: types are found over all of it
        pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
        pyarrow.csv.ConvertOptions(column_types={text: pa.string()} if text else None),
    )


def huggingface(name: str, part: str) -> pa.Table:
    """One named part of a data set of the Hugging Face hub, or of a folder that is laid out like one.

    Raises:
        InputError: the package `datasets` is not installed, the hub does not answer, or there is no such data set or part.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "data.source: huggingface needs the package datasets, which is not installed; "
            "run `pip install 'secateur[huggingface]'` wherever steps run"
        ) from error
    try:
        read = datasets.load_dataset(name, split=part)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise InputError(
            f"data.path: expected part {part!r} of a data set {name!r} on the Hugging Face hub, got: {_line(error)}; mend "
            "the name or, without a way to the hub, store the data set as parquet and use that source"
        ) from error
    if not read.num_rows:
        raise InputError(f"data.path: expected at least one row in part {part!r} of {name!r}, got none")
    return read.with_format("arrow")[:]


def feature_columns(table: pa.Table, label: str | None, metadata: Sequence[str] = ()) -> list[str]:
    """Every column but the label and the metadata, in the table's order."""
    return [name for name in table.column_names if name != label and name not in metadata]


def metadata(table: pa.Table, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns [N] by name, numbers or texts, as what no model sees.

    Raises:
        InputError: a column is missing, or empty in some row.
    """
    found = {name: _column(table, name, "data.metadata") for name in columns}
    for name, column in found.items():
        _check_filled(column, name)
    return {name: column.to_numpy(zero_copy_only=False) for name, column in found.items()}


def features(table: pa.Table, label: str | None, columns: Sequence[str]) -> Split:
    """The columns as a float32 matrix [N, columns]; without a label column, labels are zeros that nothing may learn from.

    Raises:
        InputError: a column is missing, empty in some row, or holds what is no number.
    """
    if not columns:
        raise InputError(f"data.table.features: expected at least one column beside the label, got {_known(table)}")
    inputs = np.empty((table.num_rows, len(columns)), dtype=np.float32)
    for position, name in enumerate(columns):
        inputs[:, position] = _numbers(_column(table, name, "data.table.features"), name, pa.float32())
    return Split(inputs, _labels(table, label))


def text(
    table: pa.Table,
    label: str | None,
    column: str,
    tokenizer: str | Path,
    max_length: int,
    names: Sequence[str] = ("input_ids",),
) -> Split:
    """The texts of a column as the program's inputs, each [N, max_length] of int64: longer texts are cut, shorter padded.

    Args:
        table: an example per row.
        label: the label's column; without, labels are zeros that nothing may learn from.
        column: the texts.
        tokenizer: a `tokenizer.json`, as the library tokenizers saves it. It says how to pad; where it does not, its
            token [PAD] or <pad> is used.
        max_length: tokens per text, special ones included.
        names: the program's inputs in order, of input_ids, attention_mask and token_type_ids; a single one is given the
            input_ids, whatever its name.

    Raises:
        InputError: a column or the tokenizer is missing, a row has no text, or the program has inputs of other names.
    """
    encode = encoder_of(tokenizer, max_length, names)
    texts = _column(table, column, "data.text.column")
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise InputError(f"data.text.column: expected text in column {column!r}, got {texts.type}")
    _check_filled(texts, column)
    columns, lengths = [np.empty((len(texts), max_length), dtype=np.int64) for _ in names], []
    for start in range(0, len(texts), TEXTS):
        encoded = encode(texts[start : start + TEXTS].to_pylist())
        for whole, part in zip(columns, encoded.columns, strict=True):
            whole[start : start + len(part)] = part
        lengths.append(encoded.lengths)
    known = [one for one in lengths if one is not None]
    first, *more = columns
    return Split(first, _labels(table, label), tuple(more), np.concatenate(known) if known else None)


def encoder_of(tokenizer: str | Path, max_length: int, names: Sequence[str]) -> Callable[[Sequence[str]], Encoded]:
    """What makes a program's inputs of texts, with the arguments of `text`.

    Raises:
        InputError: the tokenizer is missing, or the program has inputs of other names.
    """
    names = ("input_ids",) if len(names) == 1 else names
    if unknown := [name for name in names if name not in TEXT_INPUTS]:
        raise InputError(
            f"data.text: expected a model whose inputs are some of {', '.join(TEXT_INPUTS)}, got {', '.join(unknown)}; "
            "export it with these names, or tokenize before and use source npz"
        )
    encoder = _tokenizer(tokenizer, max_length)
    ends_with_padding = "attention_mask" in names and encoder.padding["direction"] == "right"

    def encode(texts: Sequence[str]) -> Encoded:
        columns = {name: np.empty((len(texts), max_length), dtype=np.int64) for name in names}
        for row, encoded in enumerate(encoder.encode_batch(list(texts))):
            values = dict(zip(TEXT_INPUTS, (encoded.ids, encoded.attention_mask, encoded.type_ids), strict=True))
            for name in names:
                columns[name][row] = values[name]
        return Encoded(tuple(columns.values()), columns["attention_mask"].sum(1) if ends_with_padding else None)

    return encode


def _tokenizer(path: str | Path, max_length: int) -> Any:
    """The tokenizer of a file, set to give `max_length` tokens for any text."""
    from tokenizers import Tokenizer

    if not Path(path).is_file():
        raise InputError(
            f"data.text.tokenizer: expected a tokenizer.json, {path} does not exist; save the model's with tokenizer.save"
        )
    try:
        encoder = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower one
        raise InputError(
            f"data.text.tokenizer: expected a tokenizer.json, {path} cannot be read: {_line(error)}"
        ) from error
    padding = encoder.padding or next(
        (
            {"pad_id": encoder.token_to_id(pad), "pad_token": pad}
            for pad in PADS
            if encoder.token_to_id(pad) is not None
        ),
        None,
    )
    if padding is None:
        raise InputError(
            f"data.text.tokenizer: expected {path} to say how it pads, or a token {' or '.join(PADS)}, found neither; call "
            "tokenizer.enable_padding before saving it"
        )
    special = encoder.num_special_tokens_to_add(False)
    if max_length <= special:
        raise InputError(
            f"data.text.max_length: expected more than the {special} special tokens that {path} adds to a text, got {max_length}"
        )
    encoder.enable_truncation(max_length)
    encoder.enable_padding(**(padding | {"length": max_length, "pad_to_multiple_of": None}))
    return encoder


def _labels(table: pa.Table, label: str | None) -> np.ndarray:
    if label is None:
        return np.zeros(table.num_rows, dtype=np.int64)
    column = _column(table, label, "data.table.label")
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        raise InputError(
            f"data.table.label: expected class numbers in column {label!r}, got text such as {column[0].as_py()!r}; number "
            "the classes from 0 as the model does"
        )
    return _numbers(column, label, column.type)


def _column(table: pa.Table, name: str, setting: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise InputError(f"{setting}: expected a column {name!r}, it is missing; found {_known(table)}")
    return table[name]


def _numbers(column: pa.ChunkedArray, name: str, kind: pa.DataType) -> np.ndarray:
    _check_filled(column, name)
    try:
        return column.cast(kind, safe=False).to_numpy()
    except pa.ArrowException as error:
        raise InputError(f"data: expected numbers in column {name!r}, got {column.type}: {_line(error)}") from error


def _check_filled(column: pa.ChunkedArray, name: str) -> None:
    if column.null_count:
        row = pyarrow.compute.index(column.is_null(), True).as_py()
        raise InputError(
            f"data: expected a value in every row of column {name!r}, {column.null_count} are empty, the first in row {row}; "
            "fill or drop them"
        )


def _known(table: pa.Table) -> str:
    return ", ".join(table.column_names)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
