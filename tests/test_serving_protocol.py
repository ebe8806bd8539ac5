"""The Open Inference Protocol: arrays arrive as they were sent, in JSON and in binary, and anything else is refused in words."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tasks.serving.protocol import DATATYPES, HEADER, ProtocolError, Spec, answer, arrays_of, parse, request

X = Spec("x", np.dtype("float32"), (None, 2))
IDS = Spec("ids", np.dtype("int64"), (None, 3))
Y = Spec("y", np.dtype("float32"), (None, 4))
GOOD = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}


def parsed(content: Any, inputs: tuple[Spec, ...] = (X,)) -> Any:
    return parse(json.dumps(content).encode(), None, inputs, (Y,))


@given(
    array=hnp.arrays(st.sampled_from(sorted(DATATYPES.values(), key=str)), hnp.array_shapes(max_dims=3, max_side=4)),
    binary=st.booleans(),
)
def test_what_is_sent_arrives(array: np.ndarray, binary: bool) -> None:
    if not binary and array.dtype.kind == "f":
        array = np.nan_to_num(array, nan=0.0, posinf=1.0, neginf=-1.0)
    spec = Spec("x", array.dtype, (None,) * array.ndim)
    body, headers = request({"x": array}, "key", binary=binary)
    asked = parse(body, headers.get(HEADER), [spec], [Y])
    np.testing.assert_array_equal(asked.arrays[0], array)
    assert asked.arrays[0].dtype == array.dtype
    assert asked.id == "key"
    assert asked.outputs == {"y": binary}


@pytest.mark.parametrize("binary", [True, False])
def test_what_is_answered_arrives(binary: bool) -> None:
    arrays = {"y": np.arange(4, dtype=np.float32)[None], "z": np.array([[True]])}
    body, headers = answer("m", "3", "key", arrays, {"y": binary, "z": False})
    said = json.loads(body[: int(headers.get(HEADER, len(body)))])
    assert (said["model_name"], said["model_version"], said["id"]) == ("m", "3", "key")
    for name, found in arrays_of(body, headers.get(HEADER)).items():
        np.testing.assert_array_equal(found, arrays[name])


def test_what_json_has_no_numbers_for_is_answered_in_binary_alone() -> None:
    arrays = {"y": np.array([np.nan, np.inf], np.float32)}
    body, headers = answer("m", "3", "key", arrays, {"y": True})
    np.testing.assert_array_equal(arrays_of(body, headers[HEADER])["y"], arrays["y"])
    with pytest.raises(ProtocolError, match="ask for it in binary") as refused:
        answer("m", "3", "key", arrays, {"y": False})
    assert refused.value.status == 500


def test_inputs_come_in_the_models_order_whatever_the_requests() -> None:
    ids = {"name": "ids", "datatype": "INT64", "shape": [1, 3], "data": [[1, 2, 3]]}
    asked = parsed({"inputs": [ids, GOOD], "parameters": {"country": "is", "priority": 3}}, (X, IDS))
    assert [array.dtype.name for array in asked.arrays] == ["float32", "int64"]
    assert asked.metadata == {"country": "is"}


def test_outputs_may_be_named() -> None:
    asked = parsed({"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"binary_data": True}}]})
    assert asked.outputs == {"y": True}


BAD: dict[str, tuple[Any, str]] = {
    "no object": ([], "JSON object"),
    "no inputs": ({}, "inputs: expected a list"),
    "an unknown key": ({"inputs": [GOOD], "input": 1}, "'input'"),
    "an unknown input": ({"inputs": [{**GOOD, "name": "z"}]}, "expected x, each once, got 'z'"),
    "an input twice": ({"inputs": [GOOD, GOOD]}, "each once"),
    "a missing input": ({"inputs": []}, "x is missing"),
    "another type": ({"inputs": [{**GOOD, "datatype": "FP64"}]}, "x.datatype: expected FP32, got 'FP64'"),
    "another shape": ({"inputs": [{**GOOD, "shape": [1, 3]}]}, r"x.shape: expected \['any', 2\]"),
    "another rank": ({"inputs": [{**GOOD, "shape": [2]}]}, "x.shape"),
    "a negative size": ({"inputs": [{**GOOD, "shape": [-1, 2]}]}, "x.shape"),
    "no examples": ({"inputs": [{**GOOD, "shape": [0, 2], "data": []}]}, "x.shape"),
    "too few numbers": ({"inputs": [{**GOOD, "data": [1]}]}, "x.data: expected 2 numbers"),
    "no numbers": ({"inputs": [{**GOOD, "data": ["a", "b"]}]}, "x.data"),
    "ragged lists": ({"inputs": [{**GOOD, "data": [[1], [2, 3]]}]}, "x.data"),
    "no data": ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2]}]}, "expected data"),
    "a huge shape": ({"inputs": [{**GOOD, "shape": [10**18, 2]}]}, "x.data"),
    "an unknown output": ({"inputs": [GOOD], "outputs": [{"name": "w"}]}, "outputs: expected some of y, got 'w'"),
    "an id that is none": ({"inputs": [GOOD], "id": 3}, "id: expected a text"),
    "parameters that are none": ({"inputs": [GOOD], "parameters": 3}, "parameters: expected an object"),
    "more bytes than there are": (
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}]},
        "expected 8 bytes after the JSON, there are 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_request_that_is_none_is_refused_in_words(name: str) -> None:
    content, words = BAD[name]
    with pytest.raises(ProtocolError, match=words) as refused:
        parsed(content)
    assert refused.value.status == 400


def test_numbers_beyond_the_type_are_refused() -> None:
    one = {"name": "ids", "datatype": "INT64", "shape": [1, 3], "data": [1, 2, 2.5]}
    with pytest.raises(ProtocolError, match="ids"):
        parsed({"inputs": [one]}, (IDS,))
    small = Spec("ids", np.dtype("int8"), (None,))
    with pytest.raises(ProtocolError, match="beyond INT8"):
        parsed({"inputs": [{"name": "ids", "datatype": "INT8", "shape": [1], "data": [300]}]}, (small,))


@pytest.mark.parametrize(
    ("body", "length", "words"),
    [
        (b"{", None, "expected JSON"),
        (b"\xff\xfe", None, "expected JSON"),
        (b"[" * 100_000, None, "expected JSON"),
        (b"{}", "99", HEADER),
        (b"{}", "-1", HEADER),
        (b'{"inputs": []}xx', "14", "bytes after the JSON"),
    ],
)
def test_a_body_that_is_none_is_refused(body: bytes, length: str | None, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        parse(body, length, (), (Y,))


@given(st.binary(max_size=200), st.sampled_from([None, "0", "10", "200", "x"]))
def test_no_bytes_raise_anything_else(body: bytes, length: str | None) -> None:
    with pytest.raises(ProtocolError):
        parse(body, length, (X,), (Y,))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["inputs", "outputs", "name", "shape", "data", "datatype", "parameters", "id"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_no_json_raises_anything_else(content: Any) -> None:
    with pytest.raises(ProtocolError):
        parsed(content)
