"""Reads what other servers keep of their requests, as records of the log: KServe, Triton, SageMaker."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from secateur.errors import InputError
from secateur.inference_log.schema import Record, Tensors

_KSERVE = "org.kubeflow.serving.inference."
_TRITON = {"FP16": "float16", "FP32": "float32", "FP64": "float64", "BOOL": "bool"} | {
    f"{sign.upper()}INT{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_INPUT, _OUTPUT = "TENSOR_QUEUE_INPUT", "TENSOR_BACKEND_OUTPUT"


@dataclass
class Converted:
    """Records, and how many entries could not be used, by why."""

    records: list[Record] = field(default_factory=list)
    problems: dict[str, int] = field(default_factory=dict)

    def skip(self, why: str) -> None:
        """Count an entry that is left out."""
        self.problems[why] = self.problems.get(why, 0) + 1


def kserve(lines: Iterable[str], model: str, version: str, name: str = "inputs") -> Converted:
    """What KServe's payload logger sends: a CloudEvent as JSON on each line, one of the request and one of the response.

    Bodies are of the Open Inference Protocol (`inputs`, `outputs`) or of the first protocol (`instances`, `predictions`, float32).
    https://kserve.github.io/website, "Inference Logger".

    Args:
        lines: of the file.
        model: that it is of.
        version: that served; KServe does not say.
        name: of the input where the body gives it none.
    """
    found, asked = Converted(), dict[str, tuple[datetime, Tensors]]()
    for event in _objects(lines, found):
        kind = str(event.get("type", "")).removeprefix(_KSERVE)
        try:
            key, moment, body = str(event["id"]), _moment(event["time"]), _body(event)
            if kind == "request":
                asked[key] = moment, _tensors(body, "inputs", "instances", name)
            elif kind != "response":
                found.skip("events of another type")
            elif key not in asked:
                found.skip("responses without a request")
            else:
                begun, inputs = asked.pop(key)
                outputs = _tensors(body, "outputs", "predictions", "outputs")
                took = (moment - begun).total_seconds() * 1000
                found.records.append(Record(begun, key, model, version, inputs, outputs, took))
        except (KeyError, ValueError, TypeError, AttributeError):
            found.skip("events that are damaged")
    for _ in asked:
        found.skip("requests without a response")
    return found


def sagemaker(lines: Iterable[str], model: str, version: str, name: str = "inputs") -> Converted:
    """SageMaker's data capture files: JSON lines with `captureData` and `eventMetadata`.

    Bodies are CSV, or JSON as KServe's, plain or in base64. Latency is not captured.
    https://docs.aws.amazon.com/sagemaker, "Capture data".
    """
    found = Converted()
    for entry in _objects(lines, found):
        try:
            captured, about = entry["captureData"], entry["eventMetadata"]
            sides = [_captured(captured[side], side) for side in ("endpointInput", "endpointOutput")]
            inputs = _tensors(sides[0], "inputs", "instances", name)
            outputs = _tensors(sides[1], "outputs", "predictions", "outputs")
            moment = _moment(about["inferenceTime"])
            found.records.append(Record(moment, str(about["eventId"]), model, version, inputs, outputs, float("nan")))
        except (KeyError, ValueError, TypeError, AttributeError):
            found.skip("entries that are damaged, or hold only one side")
    return found


def triton(text: str, model: str, ended: datetime) -> Converted:
    """Triton's trace file at level TENSORS and TIMESTAMPS: one JSON array.

    Its clock has no date, so the last moment in it is said to be `ended`, such as the time of the file.
    https://github.com/triton-inference-server/server, "docs/user_guide/trace.md".

    Raises:
        InputError: it is no such array.
    """
    try:
        events = json.loads(text)
        if not isinstance(events, list):
            raise ValueError("not an array")
    except ValueError as error:
        raise InputError(f"log: expected Triton's trace, a JSON array, got other text: {error}") from error
    found, traces = Converted(), dict[int, dict[str, Any]]()
    for event in events:
        try:
            one = traces.setdefault(int(event["id"]), {"inputs": {}, "outputs": {}, "times": {}})
            _gather(event, one)
        except (KeyError, ValueError, TypeError, AttributeError):
            found.skip("events that are damaged")
    last = max((time for one in traces.values() for time in one["times"].values()), default=0)
    for number, one in traces.items():
        times = one["times"]
        if one.get("model") != model:
            found.skip("traces of other models")
        elif not one["inputs"] or not one["outputs"] or not {"REQUEST_START", "REQUEST_END"} <= set(times):
            found.skip("traces without tensors or times")
        else:
            begun = ended.astimezone(UTC) - timedelta(microseconds=(last - times["REQUEST_START"]) / 1000)
            took = (times["REQUEST_END"] - times["REQUEST_START"]) / 1e6
            key = one.get("request") or f"triton-{number}"
            found.records.append(Record(begun, key, model, one["version"], one["inputs"], one["outputs"], took))
    return found


FORMATS: Mapping[str, Callable[[Iterable[str], str, str, str], Converted]] = {"kserve": kserve, "sagemaker": sagemaker}


def _gather(event: Mapping[str, Any], one: dict[str, Any]) -> None:
    if "model_name" in event:
        one |= {
            "model": event["model_name"],
            "version": str(event["model_version"]),
            "request": event.get("request_id"),
        }
    for stamp in event.get("timestamps", ()):
        one["times"][stamp["name"]] = int(stamp["ns"])
    if event.get("activity") in (_INPUT, _OUTPUT):
        tensor = event["tensor"]
        side = one["inputs" if event["activity"] == _INPUT else "outputs"]
        side[tensor["name"]] = _array(
            [float(part) for part in tensor["data"].split(",")],
            tensor["dtype"],
            [int(size) for size in tensor["shape"].split(",")],
        )


def _objects(lines: Iterable[str], found: Converted) -> Iterator[dict[str, Any]]:
    for line in lines:
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if isinstance(value, dict):
            yield value
        else:
            found.skip("lines that are no JSON object")


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _body(event: Mapping[str, Any]) -> Any:
    """What a CloudEvent holds, in either of its two forms."""
    if "data_base64" in event:
        return json.loads(base64.b64decode(event["data_base64"]))
    data = event["data"]
    return json.loads(data) if isinstance(data, str) else data


def _captured(side: Mapping[str, Any], where: str) -> Any:
    text = side["data"]
    if side.get("encoding") == "BASE64":
        text = base64.b64decode(text).decode()
    if "csv" in str(side.get("observedContentType", "")).lower() or side.get("encoding") == "CSV":
        rows = [[float(cell) for cell in row] for row in csv.reader(io.StringIO(text)) if row]
        return {"instances" if where == "endpointInput" else "predictions": rows}
    return json.loads(text)


def _tensors(body: Any, second: str, first: str, name: str) -> Tensors:
    """Arrays by name of a body of either protocol."""
    if second in body:
        return {one["name"]: _array(one["data"], one["datatype"], one["shape"]) for one in body[second]}
    array = np.asarray(body[first])
    if array.dtype.kind not in "biuf":
        raise ValueError(f"expected numbers, got {array.dtype}")
    return {name: array.astype(np.float32) if array.dtype.kind == "f" else array}


def _array(data: Any, datatype: str, shape: list[int]) -> np.ndarray:
    return np.asarray(data, dtype=_TRITON[datatype]).reshape(shape)
