"""The inference log: what is written is read again, nothing that is wrong with it is read in silence, and serving never waits for it."""

import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from services import BUCKET

from secateur.errors import InputError
from secateur.inference_log import reader
from secateur.inference_log.schema import REQUEST_SCHEMA, REQUESTS, Label, Record, hours, partition, place
from secateur.inference_log.writer import Settings, Writer, keep, sampled

MODEL = "tiny-onnx"
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
ALL = Settings()
DAY = NOON - timedelta(hours=12), NOON + timedelta(hours=12)


def record(number: int = 0, at: datetime = NOON, **changes: Any) -> Record:
    values = {
        "time": at,
        "request_id": f"r{number}",
        "model": MODEL,
        "model_version": "2",
        "inputs": {"x": np.full((2, 3), number, np.float32), "ids": np.array([[1, 2], [3, 4]])},
        "outputs": {"y": np.array([[0.5, np.nan], [1, 2]], np.float32)},
        "latency_ms": 1.5,
        "metadata": {"country": "is"},
    }
    return Record(**(values | changes))


@pytest.fixture(params=["folder", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "log")
    request.getfixturevalue("services")
    return f"s3://{BUCKET}/log-{tmp_path.name}"


def written(root: str, *records: Record | Label, settings: Settings = ALL) -> Writer:
    writer = Writer(root, settings)
    for one in records:
        writer.write(one)
    writer.close()
    return writer


def test_what_is_written_is_read_again(root: str) -> None:
    counts = written(root, record(1), record(2, NOON + timedelta(hours=1))).counts
    window = reader.read(root, MODEL, *DAY)
    assert counts.written == len(window.records) == 2
    first = window.records[0]
    assert (first.time, first.request_id, first.model_version, first.latency_ms) == (NOON, "r1", "2", 1.5)
    assert first.metadata == {"country": "is"}
    for name, array in {**record(1).inputs, **record(1).outputs}.items():
        found = {**first.inputs, **first.outputs}[name]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)
    assert window.problems == {}


def test_a_time_in_any_zone_is_in_its_hour(tmp_path: Path) -> None:
    kolkata = timezone(timedelta(hours=5, minutes=30))
    written(str(tmp_path), record(1, datetime(2026, 1, 31, 17, 40, tzinfo=kolkata)))
    window = reader.read(str(tmp_path), MODEL, *DAY)
    assert [one.time for one in window.records] == [NOON + timedelta(minutes=10)]
    assert window.problems == {}


def test_labels_come_later_and_are_read_by_when_they_came(root: str) -> None:
    label = Label(NOON + timedelta(hours=3), "r1", MODEL, np.array([1, 0]))
    written(root, record(1), label)
    found, problems = reader.read_labels(root, MODEL, *DAY)
    assert [(one.request_id, one.label.tolist()) for one in found] == [("r1", [1, 0])]
    assert reader.read_labels(root, MODEL, DAY[0], NOON)[0] == []
    assert problems == {}


def test_only_the_asked_moments_are_read(root: str) -> None:
    written(root, *(record(i, NOON + timedelta(minutes=20 * i)) for i in range(6)))
    window = reader.read(root, MODEL, NOON + timedelta(minutes=20), NOON + timedelta(minutes=80))
    assert [one.request_id for one in window.records] == ["r1", "r2", "r3"]


def test_of_many_requests_some_are_drawn_and_all_are_counted(root: str) -> None:
    written(root, *(record(i, NOON + timedelta(minutes=i)) for i in range(100)), record(200, model_version="9"))
    window = reader.read(root, MODEL, *DAY, version="2", most=10)
    again = reader.read(root, MODEL, *DAY, version="2", most=10)
    assert (len(window.records), window.requests) == (10, 100)
    assert [one.request_id for one in window.records] == [one.request_id for one in again.records]
    assert window.problems == {"requests that another version than 2 answered": 1}
    assert len(reader.read(root, MODEL, *DAY, only={"r3", "r200", "no"}).records) == 2


def test_no_log_is_an_empty_window(root: str) -> None:
    assert reader.read(root, MODEL, *DAY).records == ()


def test_hours_without_a_request_between_others_are_gaps(root: str) -> None:
    written(root, record(1), record(2, NOON + timedelta(hours=3)))
    assert reader.read(root, MODEL, *DAY).gaps == (NOON + timedelta(hours=1), NOON + timedelta(hours=2))


def test_old_hours_expire_whole(root: str) -> None:
    from tasks import bucket

    written(root, record(1), record(2, NOON + timedelta(hours=2)), Label(NOON, "r1", MODEL, np.array([1])))
    old = reader.expired(root, MODEL, NOON + timedelta(hours=1, minutes=30))
    assert len(old) == 2
    for one in old:
        bucket.remove(one)
    assert [one.request_id for one in reader.read(root, MODEL, *DAY).records] == ["r2"]
    assert reader.read_labels(root, MODEL, *DAY)[0] == []
    assert reader.expired(root, MODEL, NOON + timedelta(hours=1, minutes=30)) == []


def test_what_is_personal_is_never_written(tmp_path: Path) -> None:
    root = str(tmp_path)
    written(root, record(1), settings=Settings(drop=("ids", "country")))
    (found,) = reader.read(root, MODEL, *DAY).records
    assert set(found.inputs) == {"x"}
    assert found.metadata == {}


def test_a_sample_is_of_the_same_requests_for_labels(tmp_path: Path) -> None:
    root, settings = str(tmp_path), Settings(sample=0.3)
    both = [one for i in range(400) for one in (record(i), Label(NOON, f"r{i}", MODEL, np.array([0, 1])))]
    counts = written(root, *both, settings=settings).counts
    kept = {one.request_id for one in reader.read(root, MODEL, *DAY).records}
    assert kept == {one.request_id for one in reader.read_labels(root, MODEL, *DAY)[0]}
    assert 80 < len(kept) < 160
    assert counts.written + counts.not_sampled == 800
    assert not sampled("r1", 0.0)


@pytest.fixture
def away(tmp_path: Path) -> str:
    """A root under which nothing can be made."""
    (tmp_path / "file").write_text("in the way")
    return str(tmp_path / "file" / "log")


def test_while_the_store_is_away_writing_neither_waits_nor_grows(away: str) -> None:
    writer = Writer(away, Settings(flush_s=0.05, buffer_bytes=10_000))
    begun = time.perf_counter()
    for number in range(2000):
        writer.write(record(number))
    assert time.perf_counter() - begun < 1
    counts = writer.close(1)
    assert counts.written == 0
    assert counts.dropped == 2000


@pytest.mark.parametrize(
    "bad",
    [{"inputs": {"x": np.array(["text"])}}, {"time": NOON.replace(tzinfo=None)}, {"request_id": 3}, {"outputs": None}],
)
def test_what_is_no_record_is_refused_and_keeps_no_other_from_being_written(
    tmp_path: Path, bad: dict[str, Any]
) -> None:
    writer = written(str(tmp_path), record(1), record(2, **bad), record(3))
    assert (writer.counts.written, writer.counts.refused) == (2, 1)


def test_what_could_not_be_written_is_not_there_twice_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from secateur.inference_log import writer as writers

    real, tries = writers.write_file, []

    def unsure(*arguments: Any) -> None:
        tries.append(arguments)
        if len(tries) != 2:
            real(*arguments)
        if len(tries) <= 2:  # the first was written and did not say so, the second was not
            raise OSError("the store went away")

    monkeypatch.setattr(writers, "write_file", unsure)
    writer = Writer(str(tmp_path), Settings(flush_s=0.05))
    for number in range(3):
        writer.write(record(number, NOON + timedelta(hours=number)))
    end = time.monotonic() + 10
    while writer.counts.written < 3 and time.monotonic() < end:
        time.sleep(0.02)
    writer.close()
    assert len(reader.read(str(tmp_path), MODEL, *DAY).records) == 3


def test_what_waited_is_written_when_the_store_comes_back(tmp_path: Path) -> None:
    blocked = tmp_path / "log"
    blocked.write_text("in the way")
    writer = Writer(str(blocked), Settings(flush_s=0.05))
    writer.write(record(1))
    time.sleep(0.3)
    blocked.unlink()
    end = time.monotonic() + 10
    while writer.counts.written < 1 and time.monotonic() < end:
        time.sleep(0.02)
    writer.close()
    assert len(reader.read(str(blocked), MODEL, *DAY).records) == 1


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    writer = Writer(str(tmp_path), Settings(flush_s=0.01))
    threads = [
        threading.Thread(target=lambda first=first: [writer.write(record(first + i)) for i in range(200)])
        for first in range(0, 1000, 200)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.close().written == 1000
    assert len({one.request_id for one in reader.read(str(tmp_path), MODEL, *DAY).records}) == 1000


def test_records_that_are_there_already_are_kept_once(tmp_path: Path) -> None:
    for _ in range(2):
        assert keep(str(tmp_path), [record(1), record(2)], "other") == 2
    assert len(reader.read(str(tmp_path), MODEL, *DAY).records) == 2


def spoilt(root: Path, name: str = "bad.parquet", hour: datetime = NOON) -> Path:
    folder = Path(partition(str(root), REQUESTS, MODEL, hour))
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def problems(root: Path) -> tuple[int, list[str]]:
    window = reader.read(str(root), MODEL, *DAY)
    return len(window.records), list(window.problems)


def test_a_file_that_is_no_parquet_or_cut_short_is_counted(tmp_path: Path) -> None:
    written(str(tmp_path), record(1))
    spoilt(tmp_path).write_bytes(b"nothing of the kind")
    whole = next(path for path in tmp_path.rglob("*.parquet") if path.name != "bad.parquet").read_bytes()
    spoilt(tmp_path, "short.parquet").write_bytes(whole[: len(whole) // 2])
    found, why = problems(tmp_path)
    assert found == 1
    assert why == ["files that are no Parquet, or cut short"]


def test_damaged_bytes_inside_a_file_are_counted(tmp_path: Path) -> None:
    written(str(tmp_path), *(record(i) for i in range(50)))
    path = next(tmp_path.rglob("*.parquet"))
    content = bytearray(path.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(content)
    found, why = problems(tmp_path)
    assert found == 0
    assert why


def test_the_schema_of_another_release_is_counted(tmp_path: Path) -> None:
    table = pa.table({"time": [NOON]}, pa.schema([("time", pa.timestamp("us", "UTC"))], {b"secateur.log": b"0"}))
    pq.write_table(table, spoilt(tmp_path))
    assert problems(tmp_path) == (0, ["files of another schema (0, expected 1)"])


def test_a_file_without_a_column_is_counted(tmp_path: Path) -> None:
    written(str(tmp_path), record(1))
    path = next(tmp_path.rglob("*.parquet"))
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["outputs"]), path)
    assert problems(tmp_path) == (0, ["files without outputs"])


def test_rows_of_another_model_are_counted(tmp_path: Path) -> None:
    written(str(tmp_path), record(1), record(2, model="other-onnx"))
    for path in tmp_path.rglob("model=other-onnx/**/*.parquet"):
        path.rename(spoilt(tmp_path, path.name))
    assert problems(tmp_path) == (1, ["rows of another model, such as other-onnx"])


def test_clocks_that_disagree_are_counted(tmp_path: Path) -> None:
    written(str(tmp_path), record(1), record(2, NOON + timedelta(hours=6)))
    late = next(tmp_path.rglob("hour=2026-01-31T18/*.parquet"))
    late.rename(spoilt(tmp_path, late.name))
    found, why = problems(tmp_path)
    assert found == 1
    assert why == ["rows whose time lies outside their hour: the clocks of writers disagree"]


def test_a_damaged_tensor_is_counted(tmp_path: Path) -> None:
    written(str(tmp_path), record(1))
    path = next(tmp_path.rglob("*.parquet"))
    rows = pq.read_table(path, partitioning=None).to_pylist()
    rows[0]["inputs"][0]["shape"] = [7, 7]
    rows.append({**rows[0], "inputs": [{"name": "x", "dtype": "object", "shape": [1], "data": b"x"}]})
    pq.write_table(pa.Table.from_pylist(rows, REQUEST_SCHEMA), path)
    assert problems(tmp_path) == (0, ["rows that are damaged"])


@pytest.mark.parametrize("bad", ["", "gs://bucket/x", "s3://"])
def test_a_root_that_is_none_is_refused(bad: str) -> None:
    with pytest.raises(InputError, match="log: expected a folder or an address"):
        place(bad)


@pytest.mark.parametrize("bad", [{"sample": 1.5}, {"flush_s": 0}, {"buffer_bytes": 0}])
def test_settings_that_cannot_be_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="log"):
        Settings(**bad)


def test_hours_are_those_that_have_a_moment_of_the_span() -> None:
    assert hours(NOON, NOON) == []
    assert hours(NOON + timedelta(minutes=59), NOON + timedelta(hours=1, minutes=1)) == [
        NOON,
        NOON + timedelta(hours=1),
    ]
