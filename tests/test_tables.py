"""Tables: columns of numbers become a matrix, a column of texts becomes tokens, and whatever is missing is named."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from secateur import InputError
from secateur.readers import tables

CSV = "height,label,width\n1,0,0.5\n2,1,0.25\n3,0,0.125\n"
MATRIX = np.array([[1, 0.5], [2, 0.25], [3, 0.125]], dtype=np.float32)
WORDS = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "good": 4, "bad": 5, "film": 6}
LENGTH = 5


def written(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def tokenizer(path: Path, vocabulary: dict[str, int] | None = None) -> Path:
    """A tokenizer of whole words that puts [CLS] before and [SEP] behind."""
    made = Tokenizer(models.WordLevel(vocabulary or WORDS, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if vocabulary is None:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[(token, WORDS[token]) for token in ("[CLS]", "[SEP]")]
        )
    made.save(str(path / "tokenizer.json"))
    return path / "tokenizer.json"


def texts(*given: str | None, label: str = "label") -> pa.Table:
    return pa.table({"text": pa.array(given, pa.string()), label: [i % 2 for i in range(len(given))]})


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_every_column_but_the_label_is_a_feature(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path / f"data.{kind}", CSV.replace(",", tables.SEPARATORS.get(kind, ",")))
    if kind == "parquet":
        pyarrow.parquet.write_table(tables.table(path, "csv"), path)
    table = tables.table(path, kind)
    read = tables.features(table, "label", tables.feature_columns(table, "label"))
    assert read.inputs.dtype == np.float32
    assert np.array_equal(read.inputs, MATRIX)
    assert read.labels.tolist() == [0, 1, 0]


def test_named_features_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    table = tables.table(written(tmp_path / "data.csv", CSV), "csv")
    assert np.array_equal(tables.features(table, "label", ["width", "height"]).inputs, MATRIX[:, ::-1])


def test_without_a_label_column_labels_are_zeros(tmp_path: Path) -> None:
    table = tables.table(written(tmp_path / "data.csv", CSV), "csv")
    assert tables.features(table, None, ["width"]).labels.tolist() == [0, 0, 0]


def test_a_column_of_whole_numbers_may_turn_out_not_to_be_far_down(tmp_path: Path) -> None:
    rows = 400_000
    table = tables.table(written(tmp_path / "data.csv", "x,label\n" + "1,0\n" * rows + "1.5,1\n"), "csv")
    assert tables.features(table, "label", ["x"]).inputs[-1] == 1.5
    assert table.num_rows == rows + 1


@pytest.mark.parametrize("column", ["depth", "class"])
def test_a_missing_column_is_refused_with_those_there_are(tmp_path: Path, column: str) -> None:
    table = tables.table(written(tmp_path / "data.csv", CSV), "csv")
    with pytest.raises(
        InputError, match=rf"^data.table.*: expected a column '{column}', .* found height, label, width"
    ):
        tables.features(table, "class" if column == "class" else "label", [column])


def test_a_table_of_labels_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.table.features: expected at least one column beside the label"):
        tables.features(tables.table(written(tmp_path / "data.csv", "label\n0\n"), "csv"), "label", [])


@pytest.mark.parametrize(("cell", "refusal"), [("", "1 are empty, the first in row 1"), ("tall", "'tall'")])
def test_a_cell_that_is_no_number_is_refused_with_its_column(tmp_path: Path, cell: str, refusal: str) -> None:
    table = tables.table(written(tmp_path / "data.csv", f"height,label\n1,0\n{cell},1\n"), "csv")
    with pytest.raises(InputError, match=rf"^data: expected .* column 'height', .*{refusal}"):
        tables.features(table, "label", ["height"])


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"], ids=["empty", "bytes"])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, kind: str, content: bytes) -> None:
    path = tmp_path / f"data.{kind}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^data.path: expected .*data.{kind}"):
        tables.table(path, kind)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_missing_file_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(InputError, match=rf"^data.path: expected a readable {kind} file, got .*nowhere"):
        tables.table(tmp_path / "nowhere", kind)


def test_a_header_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.path: expected at least one row"):
        tables.table(written(tmp_path / "data.csv", "height,label\n"), "csv")


def test_rows_of_different_lengths_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^data.path: expected a readable csv file.*Expected 2 columns, got 3"):
        tables.table(written(tmp_path / "data.csv", "height,label\n1,0\n1,0,5\n"), "csv")


def test_texts_become_tokens_cut_and_padded_to_one_length(tmp_path: Path) -> None:
    read = tables.text(
        texts("good film", "bad bad bad bad"),
        "label",
        "text",
        tokenizer(tmp_path),
        LENGTH,
        ["input_ids", "attention_mask"],
    )
    assert read.inputs.tolist() == [[2, 4, 6, 3, 0], [2, 5, 5, 5, 3]]
    assert read.more[0].tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert {column.dtype for column in read.columns} == {np.dtype(np.int64)}
    assert read.labels.tolist() == [0, 1]


def test_tokens_come_in_the_order_of_the_programs_inputs(tmp_path: Path) -> None:
    names = ["attention_mask", "token_type_ids", "input_ids"]
    read = tables.text(texts("good"), "label", "text", tokenizer(tmp_path), LENGTH, names)
    assert [column[0].tolist() for column in read.columns] == [[1, 1, 1, 0, 0], [0, 0, 0, 0, 0], [2, 4, 3, 0, 0]]


def test_a_program_of_one_input_is_given_the_ids_whatever_its_name(tmp_path: Path) -> None:
    read = tables.text(texts("good"), "label", "text", tokenizer(tmp_path), LENGTH, ["tokens"])
    assert [column.tolist() for column in read.columns] == [[[2, 4, 3, 0, 0]]]


def test_the_tokenizers_own_padding_is_kept_but_for_its_length(tmp_path: Path) -> None:
    path = tokenizer(tmp_path)
    made = Tokenizer.from_file(str(path))
    made.enable_padding(direction="left", pad_id=1, pad_token="[UNK]", pad_to_multiple_of=8)
    made.save(str(path))
    assert tables.text(texts("good"), "label", "text", path, LENGTH).inputs.tolist() == [[1, 1, 2, 4, 3]]


def test_more_texts_than_are_encoded_at_once_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TEXTS", 2)
    read = tables.text(texts("good", "bad", "film", "bad", "good"), "label", "text", tokenizer(tmp_path), LENGTH)
    assert read.inputs[:, 1].tolist() == [4, 5, 6, 5, 4]


def test_a_text_that_looks_like_a_number_or_like_nothing_stays_a_text(tmp_path: Path) -> None:
    table = tables.table(written(tmp_path / "data.csv", "text,label\n007,0\n1e3,1\nNA,1\n"), "csv", "text")
    assert table["text"].to_pylist() == ["007", "1e3", "NA"]
    lines = tables.table(written(tmp_path / "data.csv", 'text,label\n"one\ntwo",0\n'), "csv", "text")
    assert lines["text"].to_pylist() == ["one\ntwo"]


def refused_text(refusal: str, table: pa.Table, path: Path, length: int = LENGTH, **changes: Any) -> None:
    arguments: dict[str, Any] = {"label": "label", "column": "text", "names": ["input_ids"]} | changes
    with pytest.raises(InputError, match=refusal):
        tables.text(table, tokenizer=path, max_length=length, **arguments)


def test_texts_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    path = tokenizer(tmp_path)
    refused_text(r"^data.text.column: expected a column 'review', it is missing", texts("good"), path, column="review")
    refused_text(r"^data.text.column: expected text in column 'label', got int64", texts("good"), path, column="label")
    refused_text(r"^data: expected a value in every row of column 'text', 1 are empty", texts("good", None), path)
    refused_text(
        r"^data.table.label: expected class numbers in column 'text', got text such as 'good'",
        texts("good"),
        path,
        label="text",
    )


def test_inputs_that_no_text_has_are_refused_by_name(tmp_path: Path) -> None:
    refused_text(
        r"^data.text: expected a model whose inputs are some of input_ids, .*, got position_ids",
        texts("good"),
        tokenizer(tmp_path),
        names=["input_ids", "position_ids"],
    )


def test_a_missing_or_broken_tokenizer_is_refused(tmp_path: Path) -> None:
    refused_text(
        r"^data.text.tokenizer: expected a tokenizer.json, .*nowhere.json does not exist",
        texts("good"),
        tmp_path / "nowhere.json",
    )
    path = written(tmp_path / "tokenizer.json", "{}")
    refused_text(r"^data.text.tokenizer: expected a tokenizer.json, .* cannot be read", texts("good"), path)


def test_a_tokenizer_that_cannot_pad_is_refused_with_the_way_out(tmp_path: Path) -> None:
    refused_text(
        r"^data.text.tokenizer: expected .* to say how it pads, or a token \[PAD\] or <pad>.*enable_padding",
        texts("good"),
        tokenizer(tmp_path, {"[UNK]": 0, "good": 1}),
    )


def test_fewer_tokens_than_the_special_ones_are_refused(tmp_path: Path) -> None:
    refused_text(
        r"^data.text.max_length: expected more than the 2 special tokens .*, got 2",
        texts("good"),
        tokenizer(tmp_path),
        length=2,
    )


INSTALLED = importlib.util.find_spec("datasets") is not None


@pytest.mark.skipif(INSTALLED, reason="datasets is installed")
def test_without_the_package_a_data_set_of_the_hub_is_refused_with_what_to_install() -> None:
    with pytest.raises(InputError, match=r"^data.source: huggingface needs .* `pip install 'secateur\[huggingface\]'`"):
        tables.huggingface("org/name", "train")


@pytest.mark.skipif(not INSTALLED, reason="datasets is not installed")
def test_a_folder_laid_out_like_a_data_set_of_the_hub_is_read_by_part(tmp_path: Path) -> None:
    for part, rows in (("train", 3), ("test", 2)):
        pyarrow.parquet.write_table(pa.table({"x": [0.5] * rows, "label": [1] * rows}), tmp_path / f"{part}.parquet")
    read = tables.features(tables.huggingface(str(tmp_path), "test"), "label", ["x"])
    assert (read.inputs.tolist(), read.labels.tolist()) == ([[0.5]] * 2, [1, 1])
    with pytest.raises(InputError, match=r"^data.path: expected part 'dev' of a data set"):
        tables.huggingface(str(tmp_path), "dev")


@pytest.mark.skipif(not INSTALLED, reason="datasets is not installed")
def test_a_data_set_that_is_nowhere_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"^data.path: expected part 'train' of a data set .*store the data set as parquet"
    ):
        tables.huggingface(str(tmp_path / "nowhere"), "train")
