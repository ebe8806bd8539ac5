"""The bucket: a version is complete when its manifest is there, and nothing is believed that was not read back."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from services import BUCKET, Servers, write_onnx
from wire import wire

from secateur.errors import InputError
from secateur.runtime import Target
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
        "config": hashlib.sha256(stored(f"{model}/3/config.pbtxt")).hexdigest(),
    }
    bucket.check_serves(model, "3")


def test_triton_is_told_to_serve_the_one_version_with_the_sizes_of_its_file(model: str, file: Path) -> None:
    bucket.publish(model, "3", file)
    bucket.point(model, "3")
    assert stored(f"{model}/config.pbtxt").decode().splitlines() == [
        f'name: "{model}"',
        'backend: "onnxruntime"',
        "max_batch_size: 0",
        'input { name: "x" data_type: TYPE_FP32 dims: [-1, 2] }',
        'output { name: "y" data_type: TYPE_FP32 dims: [-1, 2] }',
        "version_policy { specific { versions: [3] } }",
    ]
    bucket.unpoint(model)
    assert bucket.names(model) == []


def test_nothing_points_to_a_version_whose_configuration_is_damaged(model: str, file: Path) -> None:
    bucket.publish(model, "1", file)
    store(f"{model}/1/config.pbtxt", b"damaged")
    with pytest.raises(bucket.IncompleteError, match=r"lacks the config\.pbtxt that its manifest names"):
        bucket.point(model, "1")
    assert bucket.pointer(model) is None


def test_a_large_file_goes_in_parts_and_comes_back_whole(model: str, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(np.random.default_rng(0).bytes(20_000_000))
    sent = headers_of(lambda: bucket._upload(large, f"s3://{BUCKET}/{model}/large"))
    assert len([one for one in sent if "partNumber" in one["path"]]) == 3
    assert all("x-amz-checksum-sha256" in one or "x-amz-trailer" in one for one in sent if "partNumber" in one["path"])
    assert hashlib.sha256(stored(f"{model}/large")).digest() == hashlib.sha256(large.read_bytes()).digest()


def test_encryption_and_access_are_asked_for_with_every_object(
    model: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": "alias/models", "ACL": "bucket-owner-full-control"}
    monkeypatch.setenv("SECATEUR_BUCKET_OPTIONS", json.dumps(options))
    sent = headers_of(lambda: (bucket.publish(model, "1", file), bucket.point(model, "1")))
    assert len(sent) == 5
    for one in sent:
        assert one["x-amz-server-side-encryption"] == "aws:kms"
        assert one["x-amz-server-side-encryption-aws-kms-key-id"] == "alias/models"
        assert one["x-amz-acl"] == "bucket-owner-full-control"


@pytest.mark.parametrize("text", ["AES256", "[]", '{"Metadata": {}}', '{"ACL": "private", "Key": "../other"}'])
def test_other_options_of_objects_are_refused_by_name(model: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_BUCKET_OPTIONS", text)
    with pytest.raises(InputError, match=r"SECATEUR_BUCKET_OPTIONS: expected JSON with some of ACL, .*, got "):
        bucket.write_json({}, model, "any.json")


def headers_of(work: Callable[[], Any]) -> list[dict[str, str]]:
    """What was sent with every PUT that a piece of work made, and its path."""
    sent: list[dict[str, str]] = []

    def seen(request: Any, **_: Any) -> None:
        if request.method == "PUT":
            headers = {
                name.lower(): value.decode() if isinstance(value, bytes) else str(value)
                for name, value in request.headers.items()
            }
            sent.append({**headers, "path": request.url})

    clients = bucket._s3(), bucket._s3_small()
    for client in clients:
        client.meta.events.register("before-send.s3", seen)
    try:
        work()
    finally:
        for client in clients:
            client.meta.events.unregister("before-send.s3", seen)
    return sent


def test_a_prefix_of_the_bucket_is_kept(model: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_BUCKET", f"s3://{BUCKET}/team/a/")
    assert bucket.publish(model, "1", file) == f"s3://{BUCKET}/team/a/{model}/1/model.onnx"
    bucket.check_serves(model, "1")
    bucket.point(model, "1")
    assert bucket.names(model, "1") == ["config.pbtxt", "manifest.json", "model.onnx"]
    assert json.loads(stored(f"team/a/{model}/champion.json")) == bucket.pointer(model)


def test_a_publication_cut_off_before_its_manifest_does_not_count_and_is_completed(
    model: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bucket, "write_json", cut_off)
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


def test_a_file_that_cannot_be_loaded_does_not_serve_and_the_runtime_s_words_say_why(
    model: str, tmp_path: Path
) -> None:
    bucket.publish(model, "1", write_onnx(tmp_path / "good.onnx", 1.0))
    garbage = b"no model"
    store(f"{model}/1/model.onnx", garbage)
    manifest = json.loads(stored(f"{model}/1/manifest.json"))
    store(f"{model}/1/manifest.json", json.dumps({**manifest, "sha256": hashlib.sha256(garbage).hexdigest()}).encode())
    with pytest.raises(OSError, match=r"^bucket: .*/1 does not answer: .*(protobuf|parsing)"):
        bucket.check_serves(model, "1")


def test_a_target_that_does_not_work_here_is_named(model: str, file: Path) -> None:
    bucket.publish(model, "1", file)
    with pytest.raises(InputError, match=r"^target.provider: expected one of .*, got NoSuchProvider"):
        bucket.check_serves(model, "1", Target(provider="NoSuchProvider"))


def test_a_pointer_that_is_no_json_is_named(model: str) -> None:
    store(f"{model}/champion.json", b"version 3")
    with pytest.raises(
        InputError, match=rf"^bucket: expected JSON at s3://{BUCKET}/{model}/champion.json, got b'version"
    ):
        bucket.pointer(model)


def test_the_pointer_is_none_until_something_serves(model: str, file: Path) -> None:
    assert bucket.pointer(model) is None
    for version in ("1", "2"):
        bucket.publish(model, version, file)
        bucket.point(model, version)
        assert bucket.pointer(model) == {"version": version, "uri": f"s3://{BUCKET}/{model}/{version}/model.onnx"}


def test_a_refused_signature_is_not_taken_for_an_empty_bucket(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3
    from botocore.exceptions import ClientError

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret-of-this-key")
    with pytest.raises(ClientError):
        bucket.pointer(model)


def test_a_server_that_fails_is_told_in_its_words_though_its_error_carries_a_checksum(
    model: str, services: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ClientError

    with wire(services["AWS_ENDPOINT_URL_S3"]) as failing:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", failing.address)
        failing.become("failing")
        with pytest.raises(ClientError, match="it moved while it was read"):
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
