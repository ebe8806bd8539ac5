"""What a server serves of one model: the version that the bucket points to, fetched, verified and warmed up before it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateur.errors import InputError
from tasks import bucket
from tasks.serving.protocol import DATATYPES, Spec

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime as ort

    from secateur.runtime import Target

_TYPES = {f"tensor({dtype.name})": dtype for dtype in DATATYPES.values()}  # by what ONNX Runtime calls them
_TYPES |= {"tensor(float)": DATATYPES["FP32"], "tensor(double)": DATATYPES["FP64"]}


@dataclass(frozen=True)
class Served:
    """One version of a model, ready to answer; requests that hold it go on with it after another one has come."""

    model: str
    version: str
    session: ort.InferenceSession
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]

    def run(self, arrays: tuple[np.ndarray, ...], names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The outputs of these names."""
        given = {spec.name: array for spec, array in zip(self.inputs, arrays, strict=True)}
        return dict(zip(names, self.session.run(list(names), given), strict=True))


def champion_of(model: str, target: Target, now: Served | None = None) -> Served:
    """What the bucket says serves: `now` itself where that is it.

    Args:
        model: of the bucket, such as `digits-cnn-onnx`.
        target: to run it on.
        now: what serves up to now.

    Raises:
        InputError: nothing serves, or the file has types that the protocol has no name for.
        OSError: the bucket does not answer, or the file is not the one that its manifest names.
    """
    pointer = bucket.pointer(model)
    if pointer is None:
        raise InputError(
            f"model: expected one that serves, nothing of {model} was promoted yet; `secateur run` it first"
        )
    version = str(pointer["version"])
    if now is not None and now.version == version:
        return now
    return load(model, version, target)


def load(model: str, version: str, target: Target) -> Served:
    """A published version, verified by its manifest and warmed up by one request of ones."""
    import numpy as np

    from secateur.runtime import open_session

    with bucket.verified(model, version) as path:
        session = open_session(path, target)
    inputs, outputs = (
        tuple(_spec(one.name, one.type, one.shape) for one in side)
        for side in (session.get_inputs(), session.get_outputs())
    )
    made = Served(model, version, session, inputs, outputs)
    ones = tuple(np.ones([size or 1 for size in spec.shape], spec.dtype) for spec in inputs)
    made.run(ones, tuple(spec.name for spec in outputs))
    return made


def _spec(name: str, type_: str, shape: list[int | str | None]) -> Spec:
    if type_ not in _TYPES:
        raise InputError(f"model: expected inputs and outputs of numbers, {name} is a {type_}")
    return Spec(name, _TYPES[type_], tuple(size if isinstance(size, int) else None for size in shape))
