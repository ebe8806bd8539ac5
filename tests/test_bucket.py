"""The bucket: a version is complete when its manifest is there, and nothing is believed that was not read back."""

import json
from pathlib import Path
from typing import Any

import pytest
from services import BUCKET, write_onnx

from secateur.errors import InputError
from tasks import bucket, tracking

pytestmark = pytest.mark.usefixtures("services")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """An ONNX file that answers."""
    return write_onnx(tmp_path / "any-name.onnx", 1.0)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A name of its own for every test."""
    return f"m-{abs(hash(request.node.name))}"


def stored(key: str) -> bytes:
    """An object's bytes."""
    import boto3

    return boto3.client("s3").get_object(Bucket=BUCKET, Key=key)["Body"].read()


def store(key: str, content: bytes) -> None:
    """Put an object past Secateur."""
    import boto3

    boto3.client("s3").put_object(Bucket=BUCKET, Key=key, Body=content)


def test_a_published_version_is_the_file_and_a_manifest_that_names_its_bytes(model: str, file: Path) -> None:
    assert bucket.publish(model, "3", file) == f"s3://{BUCKET}/{model}/3/model.onnx"
    assert stored(f"{model}/3/model.onnx") == file.read_bytes()
    assert json.loads(stored(f"{model}/3/manifest.json")) == {
        "file": "model.onnx",
        "sha256": tracking.sha256_of(file),
        "bytes": file.stat().st_size,
    }
    bucket.check_serves(model, "3")


def test_a_prefix_of_the_bucket_is_kept(model: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_BUCKET", f"s3://{BUCKET}/team/a/")
    assert bucket.publish(model, "1", file) == f"s3://{BUCKET}/team/a/{model}/1/model.onnx"
    bucket.check_serves(model, "1")
    bucket.point(model, "1")
    assert json.loads(stored(f"team/a/{model}/champion.json")) == bucket.pointer(model)


def test_a_publication_cut_off_before_its_manifest_does_not_count_and_is_completed(
    model: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "_write_json", cut_off)
        with pytest.raises(KeyboardInterrupt):
            bucket.publish(model, "1", file)
    assert stored(f"{model}/1/model.onnx") == file.read_bytes()
    with pytest.raises(OSError, match="has no manifest; it was not published completely"):
        bucket.check_serves(model, "1")
    bucket.publish(model, "1", file)
    bucket.check_serves(model, "1")


def test_a_file_damaged_in_the_bucket_does_not_serve(model: str, file: Path) -> None:
    bucket.publish(model, "1", file)
    store(f"{model}/1/model.onnx", file.read_bytes()[:-1] + b"\0")
    with pytest.raises(OSError, match="is not the file that its manifest names"):
        bucket.check_serves(model, "1")


def test_publishing_again_mends_a_damaged_file(model: str, file: Path) -> None:
    bucket.publish(model, "1", file)
    store(f"{model}/1/model.onnx", b"damaged")
    bucket.publish(model, "1", file)
    bucket.check_serves(model, "1")


def test_a_file_that_answers_nan_does_not_serve(model: str, tmp_path: Path) -> None:
    bucket.publish(model, "1", write_onnx(tmp_path / "nan.onnx", float("nan")))
    with pytest.raises(OSError, match="not finite"):
        bucket.check_serves(model, "1")


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "INT64", "INT32"])
def test_a_model_of_any_input_type_is_tried(model: str, tmp_path: Path, kind: str) -> None:
    bucket.publish(model, "1", write_onnx(tmp_path / "typed.onnx", 1, kind))
    bucket.check_serves(model, "1")


def test_the_pointer_is_none_until_something_serves(model: str) -> None:
    assert bucket.pointer(model) is None
    for version in ("1", "2"):
        bucket.point(model, version)
        assert bucket.pointer(model) == {"version": version, "uri": f"s3://{BUCKET}/{model}/{version}/model.onnx"}


def test_a_refused_signature_is_not_taken_for_an_empty_bucket(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from botocore.exceptions import ClientError

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-this-key")
    with pytest.raises(ClientError):
        bucket.pointer(model)


def test_a_missing_bucket_is_not_taken_for_an_empty_one(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore.exceptions import ClientError

    monkeypatch.setenv("SECATEUR_BUCKET", "s3://no-such-bucket")
    with pytest.raises(ClientError):
        bucket.pointer(model)


@pytest.mark.parametrize("address", ["", "models", "https://models", "s3://"])
def test_an_address_that_is_no_bucket_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_BUCKET", address)
    with pytest.raises(InputError, match=rf"SECATEUR_BUCKET: expected an address like s3://.*, got '{address}'"):
        bucket.pointer("any")


def test_an_object_comes_down_as_it_went_up(model: str, file: Path, tmp_path: Path) -> None:
    uri = bucket.publish(model, "1", file)
    bucket.download(uri, tmp_path / "back.onnx")
    assert (tmp_path / "back.onnx").read_bytes() == file.read_bytes()
