"""The Open Inference Protocol v2 over HTTP, with its binary extension: from bytes to arrays, and back.

https://github.com/kserve/open-inference-protocol and, for tensors after the JSON, Triton's `extension_binary_data.md`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

HEADER = "Inference-Header-Content-Length"
DATATYPES = {
    "BOOL": np.dtype(bool),
    **{f"{sign.upper()}INT{bits}": np.dtype(f"{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_KNOWN = {"id", "inputs", "outputs", "parameters"}


class ProtocolError(Exception):
    """A request that is answered with a status of HTTP and the protocol's `error`."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Spec:
    """An input or output of a model: its shape has None where any size goes."""

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]

    def described(self) -> dict[str, Any]:
        """As metadata says it."""
        return {"name": self.name, "datatype": NAMES[self.dtype], "shape": [-1 if n is None else n for n in self.shape]}


@dataclass(frozen=True)
class Asked:
    """What a request asks: arrays in the order of the model's inputs; outputs by name, in binary or not."""

    id: str | None
    arrays: tuple[np.ndarray, ...]
    outputs: Mapping[str, bool]
    metadata: Mapping[str, str] = field(default_factory=dict)


def parse(body: bytes, json_length: str | None, inputs: Sequence[Spec], outputs: Sequence[Spec]) -> Asked:
    """Read a request.

    Args:
        body: all of it.
        json_length: the value of `HEADER`; without, all of the body is JSON.
        inputs: of the model.
        outputs: of the model.

    Raises:
        ProtocolError: status 400, and what was expected.
    """
    content, binary = _split(body, json_length)
    if unknown := sorted(set(content) - _KNOWN):
        raise ProtocolError(400, f"expected some of {', '.join(sorted(_KNOWN))}, got {unknown[0]!r}")
    given = content.get("inputs")
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise ProtocolError(400, "inputs: expected a list of tensors")
    arrays: dict[str, np.ndarray] = {}
    place, specs = 0, {spec.name: spec for spec in inputs}
    for one in given:
        name = one.get("name")
        if name not in specs or name in arrays:
            raise ProtocolError(400, f"inputs: expected {', '.join(specs)}, each once, got {name!r}")
        size = _parameters(one).get("binary_data_size")
        if size is None:
            arrays[name] = _from_json(one, specs[name])
        else:
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(binary) - place:
                raise ProtocolError(
                    400, f"inputs.{name}: expected {size!r} bytes after the JSON, there are {len(binary) - place}"
                )
            arrays[name] = _from_bytes(one, specs[name], binary[place : place + size])
            place += size
    if place != len(binary):
        raise ProtocolError(400, f"expected {place} bytes after the JSON, got {len(binary)}")
    if missing := [name for name in specs if name not in arrays]:
        raise ProtocolError(400, f"inputs: expected {', '.join(specs)}, {missing[0]} is missing")
    key = content.get("id")
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= 200 and key.isprintable()):
        raise ProtocolError(400, "id: expected a text of 200 characters at most")
    told = {name: value for name, value in _parameters(content).items() if isinstance(value, str)}
    return Asked(key, tuple(arrays[spec.name] for spec in inputs), _wanted(content, outputs), told)


def answer(
    model: str, version: str, key: str, arrays: Mapping[str, np.ndarray], asked: Mapping[str, bool]
) -> tuple[bytes, dict[str, str]]:
    """The body of an answer and its headers: outputs as asked, those in binary after the JSON.

    Raises:
        ProtocolError: status 500, an output that is asked for in JSON is not finite.
    """
    described: list[dict[str, Any]] = []
    binary: list[bytes] = []
    for name, in_binary in asked.items():
        array = np.ascontiguousarray(arrays[name])
        one: dict[str, Any] = {"name": name, "datatype": NAMES[array.dtype], "shape": list(array.shape)}
        if in_binary:
            raw = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            one["parameters"] = {"binary_data_size": len(raw)}
            binary.append(raw)
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ProtocolError(500, f"{name} is not finite, which JSON has no numbers for; ask for it in binary")
        else:
            one["data"] = array.ravel().tolist()
        described.append(one)
    content = {"model_name": model, "model_version": version, "id": key, "outputs": described}
    text = json.dumps(content).encode()
    if not binary:
        return text, {"Content-Type": "application/json"}
    return b"".join([text, *binary]), {"Content-Type": "application/octet-stream", HEADER: str(len(text))}


def request(
    arrays: Mapping[str, np.ndarray], key: str | None = None, *, binary: bool = True
) -> tuple[bytes, dict[str, str]]:
    """What a client sends: the body and its headers; all outputs are asked for as the inputs are sent."""
    described, parts = [], []
    for name, array in arrays.items():
        one: dict[str, Any] = {"name": name, "datatype": NAMES[array.dtype], "shape": list(array.shape)}
        if binary:
            raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
            one["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            one["data"] = array.ravel().tolist()
        described.append(one)
    content: dict[str, Any] = {"inputs": described}
    if key is not None:
        content["id"] = key
    if not binary:
        return json.dumps(content).encode(), {"Content-Type": "application/json"}
    content["parameters"] = {"binary_data_output": True}
    text = json.dumps(content).encode()
    return b"".join([text, *parts]), {"Content-Type": "application/octet-stream", HEADER: str(len(text))}


def arrays_of(body: bytes, json_length: str | None) -> dict[str, np.ndarray]:
    """The outputs of an answer, by name."""
    content, binary = _split(body, json_length)
    found, place = {}, 0
    for one in content["outputs"]:
        spec = Spec(one["name"], DATATYPES[one["datatype"]], tuple(one["shape"]))
        size = _parameters(one).get("binary_data_size")
        if size is None:
            found[spec.name] = _from_json(one, spec)
        else:
            found[spec.name] = _from_bytes(one, spec, binary[place : place + size])
            place += size
    return found


def _split(body: bytes, json_length: str | None) -> tuple[dict[str, Any], memoryview]:
    """The JSON, and what follows it."""
    length = len(body)
    if json_length is not None:
        if not json_length.isdecimal() or int(json_length) > len(body):
            raise ProtocolError(400, f"{HEADER}: expected at most {len(body)} bytes, got {json_length[:50]!r}")
        length = int(json_length)
    try:
        content = json.loads(body[:length])
    except (ValueError, RecursionError) as error:
        raise ProtocolError(400, f"expected JSON, got other text: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise ProtocolError(400, f"expected a JSON object, got a {type(content).__name__}")
    return content, memoryview(body)[length:]


def _parameters(one: Mapping[str, Any]) -> Mapping[str, Any]:
    found = one.get("parameters", {})
    if not isinstance(found, dict):
        raise ProtocolError(400, "parameters: expected an object")
    return found


def _shape(one: Mapping[str, Any], spec: Spec) -> tuple[int, ...]:
    """The shape that a tensor says it has, where the model takes it."""
    shape, datatype = one.get("shape"), one.get("datatype")
    if datatype != NAMES[spec.dtype]:
        raise ProtocolError(400, f"{spec.name}.datatype: expected {NAMES[spec.dtype]}, got {str(datatype)[:50]!r}")
    wanted = ["any" if size is None else size for size in spec.shape]
    if (
        not isinstance(shape, list)
        or len(shape) != len(spec.shape)
        or not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in shape)
        or any(size not in (None, n) for size, n in zip(spec.shape, shape, strict=True))
        or not all(shape)
    ):
        raise ProtocolError(400, f"{spec.name}.shape: expected {wanted}, got {str(shape)[:100]}")
    return tuple(shape)


def _from_json(one: Mapping[str, Any], spec: Spec) -> np.ndarray:
    shape = _shape(one, spec)
    try:
        flat = np.asarray(one["data"])
        if flat.dtype.kind not in "biuf" or (flat.dtype.kind == "f" and spec.dtype.kind != "f"):
            raise ValueError(f"numbers that are no {NAMES[spec.dtype]}")
        if spec.dtype.kind in "iu":
            ends = np.iinfo(spec.dtype)
            if flat.size and (flat.min() < ends.min or flat.max() > ends.max):
                raise ValueError(f"numbers beyond {NAMES[spec.dtype]}")
        with np.errstate(over="ignore"):  # what is too large is infinite, and refused as such where that matters
            return flat.astype(spec.dtype).reshape(shape)
    except KeyError as error:
        raise ProtocolError(400, f"{spec.name}: expected data, or binary_data_size among its parameters") from error
    except (ValueError, TypeError, OverflowError) as error:
        expected = f"{int(np.prod(shape))} numbers of {NAMES[spec.dtype]}"
        raise ProtocolError(400, f"{spec.name}.data: expected {expected}: {str(error)[:200]}") from error


def _from_bytes(one: Mapping[str, Any], spec: Spec, raw: memoryview) -> np.ndarray:
    shape = _shape(one, spec)
    expected = int(np.prod(shape, dtype=object)) * spec.dtype.itemsize
    if len(raw) != expected:
        raise ProtocolError(400, f"{spec.name}: expected {expected} bytes for its shape, got {len(raw)}")
    return np.frombuffer(raw, spec.dtype.newbyteorder("<")).astype(spec.dtype, copy=False).reshape(shape)


def _wanted(content: Mapping[str, Any], outputs: Sequence[Spec]) -> dict[str, bool]:
    """Which outputs are asked for, and whether in binary; all of them where none is named."""
    names = [spec.name for spec in outputs]
    everywhere = bool(_parameters(content).get("binary_data_output", False))
    given = content.get("outputs")
    if given is None or given == []:
        return dict.fromkeys(names, everywhere)
    if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
        raise ProtocolError(400, "outputs: expected a list of outputs by name")
    found: dict[str, bool] = {}
    for one in given:
        if one.get("name") not in names:
            raise ProtocolError(
                400, f"outputs: expected some of {', '.join(names)}, got {str(one.get('name'))[:100]!r}"
            )
        found[one["name"]] = bool(_parameters(one).get("binary_data", everywhere))
    return found
