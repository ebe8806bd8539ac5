"""Logs of other servers become records, and what cannot be used of them is counted."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from secateur.errors import InputError
from secateur.inference_log.converters import kserve, sagemaker, triton

MODEL, VERSION = "tiny-onnx", "3"
BEGUN, ENDED = "2026-01-31T12:00:00.000Z", "2026-01-31T12:00:00.020Z"


def event(kind: str, body: Any, key: str = "a", **changes: Any) -> str:
    moment = BEGUN if kind == "request" else ENDED
    said = {
        "specversion": "1.0",
        "id": key,
        "type": f"org.kubeflow.serving.inference.{kind}",
        "time": moment,
        "data": body,
    }
    return json.dumps(said | changes)


def test_kserve_pairs_of_the_open_protocol() -> None:
    asked = {"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1]}]}
    said = {"outputs": [{"name": "y", "shape": [1, 3], "datatype": "INT64", "data": [1, 2, 3]}]}
    found = kserve([event("request", asked), event("response", said)], MODEL, VERSION)
    (one,) = found.records
    assert (one.request_id, one.model, one.model_version) == ("a", MODEL, VERSION)
    assert one.time == datetime(2026, 1, 31, 12, tzinfo=UTC)
    assert one.latency_ms == pytest.approx(20)
    assert one.inputs["x"].tolist() == [[0.5, 1]]
    assert one.outputs["y"].dtype == np.int64
    assert found.problems == {}


def test_kserve_pairs_of_the_first_protocol_in_base64() -> None:
    body = base64.b64encode(json.dumps({"instances": [[1.0, 2.0]]}).encode()).decode()
    lines = [
        event("request", None, data_base64=body),
        event("response", json.dumps({"predictions": [[3.0]]})),
    ]
    lines[0] = json.dumps({key: value for key, value in json.loads(lines[0]).items() if key != "data"})
    (one,) = kserve(lines, MODEL, VERSION, "pixels").records
    assert one.inputs["pixels"].dtype == np.float32
    assert one.outputs["outputs"].tolist() == [[3.0]]


def test_what_kserve_left_incomplete_is_counted() -> None:
    lines = [
        "no json",
        event("request", {"instances": [[1.0]]}, "only asked"),
        event("response", {"predictions": [[1.0]]}, "only answered"),
        event("feedback", {}),
        event("request", {"instances": [["text"]]}, "text"),
        json.dumps({"id": "x"}),
    ]
    found = kserve(lines, MODEL, VERSION)
    assert found.records == []
    assert found.problems == {
        "lines that are no JSON object": 1,
        "responses without a request": 1,
        "events of another type": 1,
        "events that are damaged": 2,
        "requests without a response": 1,
    }


def captured(data: str, encoding: str, kind: str = "text/csv") -> dict[str, str]:
    return {"observedContentType": kind, "mode": "INPUT", "data": data, "encoding": encoding}


def capture(asked: dict[str, str], said: dict[str, str]) -> str:
    about = {"eventId": "e1", "inferenceTime": "2026-01-31T12:00:00Z"}
    return json.dumps(
        {"captureData": {"endpointInput": asked, "endpointOutput": said}, "eventMetadata": about, "eventVersion": "0"}
    )


def test_sagemaker_captures_in_csv_and_in_base64() -> None:
    encoded = base64.b64encode(b"0.1,0.9\n").decode()
    (one,) = sagemaker([capture(captured("1,2\n3,4\n", "CSV"), captured(encoded, "BASE64"))], MODEL, VERSION).records
    assert one.inputs["inputs"].tolist() == [[1, 2], [3, 4]]
    np.testing.assert_allclose(one.outputs["outputs"], [[0.1, 0.9]], rtol=1e-6)
    assert np.isnan(one.latency_ms)


def test_a_capture_of_one_side_is_counted() -> None:
    line = json.dumps({"captureData": {"endpointInput": captured("1", "CSV")}, "eventMetadata": {}})
    assert sagemaker([line], MODEL, VERSION).problems == {"entries that are damaged, or hold only one side": 1}


def trace(number: int = 1, model: str = MODEL) -> list[dict[str, Any]]:
    def tensor(activity: str, name: str, data: str, shape: str, dtype: str) -> dict[str, Any]:
        return {
            "id": number,
            "activity": activity,
            "tensor": {"name": name, "data": data, "shape": shape, "dtype": dtype},
        }

    return [
        {"id": number, "model_name": model, "model_version": 3, "request_id": f"q{number}"},
        {"id": number, "timestamps": [{"name": "REQUEST_START", "ns": 1_000_000}]},
        tensor("TENSOR_QUEUE_INPUT", "x", "1,2", "1,2", "FP32"),
        tensor("TENSOR_BACKEND_OUTPUT", "y", "0.5,0.25", "1,2", "FP32"),
        {"id": number, "timestamps": [{"name": "REQUEST_END", "ns": 5_000_000}]},
    ]


def test_tritons_traces_with_tensors() -> None:
    ended = datetime(2026, 1, 31, 12, tzinfo=UTC)
    found = triton(json.dumps([*trace(), *trace(2, "another")]), MODEL, ended)
    (one,) = found.records
    assert (one.request_id, one.model_version, one.latency_ms) == ("q1", "3", 4.0)
    assert one.time == ended - timedelta(milliseconds=4)
    assert one.outputs["y"].tolist() == [[0.5, 0.25]]
    assert found.problems == {"traces of other models": 1}


def test_a_trace_without_tensors_is_counted() -> None:
    assert triton(json.dumps(trace()[:2]), MODEL, datetime.now(UTC)).problems == {"traces without tensors or times": 1}
    with pytest.raises(InputError, match="Triton's trace, a JSON array"):
        triton("{}", MODEL, datetime.now(UTC))
