"""What later looks are compared with: examples of the test set, and what both files answer to them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import onnx
import onnxruntime as ort

from secateur.errors import InputError
from secateur.runtime import Target, open_session, predict

MOST_EXAMPLES = 1000
MOST_BYTES = 1 << 26  # of their inputs
BATCH = 64


@dataclass(frozen=True)
class Reference:
    """Examples of the test set: inputs by name [N, ...], both files' outputs [N, ...], the dense model's embedding [N, D].

    An embedding is what its last matrix product is given; none where that is not one vector for each example.
    """

    inputs: dict[str, np.ndarray]
    dense: np.ndarray
    pruned: np.ndarray
    embedding: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.dense)


def refer(
    dense: Path, pruned: Path, target: Target, columns: Sequence[np.ndarray], seed: int, *, most: int = MOST_EXAMPLES
) -> Reference:
    """Let both files answer to examples drawn from the test set.

    Args:
        dense: its ONNX file.
        pruned: the one that ships.
        target: that they run on.
        columns: the inputs in the program's order, [N, ...] each.
        seed: of the draw.
        most: examples; fewer where their inputs would be more than 64 MiB.
    """
    count = len(columns[0])
    each = max(sum(column[:1].nbytes for column in columns), 1)
    wanted = min(count, most, max(MOST_BYTES // each, 1))
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[:wanted])
    taken = [np.ascontiguousarray(column[chosen]) for column in columns]
    first, embedding = answers(dense, target, taken)
    session = open_session(pruned, target)
    names = [spec.name for spec in session.get_inputs()]
    second = np.concatenate(list(predict(session, taken, BATCH)))
    return Reference(dict(zip(names, taken, strict=True)), first, second, embedding)


def answers(path: Path, target: Target, columns: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]:
    """What a file answers to examples, and their embedding [N, D], computed in the same pass."""
    name = embedded(path)
    session = open_session(path, target) if name is None else _open_with(path, target, name)
    names = [spec.name for spec in session.get_inputs()]
    asked = [session.get_outputs()[0].name, *([] if name is None else [name])]
    found: list[list[np.ndarray]] = []
    for start in range(0, len(columns[0]), BATCH):
        batch = {key: column[start : start + BATCH] for key, column in zip(names, columns, strict=True)}
        found.append(session.run(asked, batch))
    outputs, *more = (np.concatenate(part) for part in zip(*found, strict=True))
    alike = more and more[0].ndim == 2 and len(more[0]) == len(outputs)
    return outputs, more[0] if alike else None


def embedded(path: Path) -> str | None:
    """The value that a file's last matrix product is given, where it has one whose other factor is a weight."""
    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = {value.name for value in graph.input}
    products = [node for node in graph.node if node.op_type in ("Gemm", "MatMul") and node.input[1] in weights]
    if not products or products[-1].input[0] in inputs:
        return None
    return str(products[-1].input[0])


def _open_with(path: Path, target: Target, name: str) -> ort.InferenceSession:
    """A session whose outputs hold an inner value too."""
    model = onnx.load(str(path))
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        widened = Path(folder) / "model.onnx"
        onnx.save(model, widened)
        return open_session(widened, target)


def write(path: Path, reference: Reference) -> None:
    """Keep it as one `.npz` file, that `read` reads."""
    arrays = {f"inputs/{name}": column for name, column in reference.inputs.items()}
    arrays |= {"dense": reference.dense, "pruned": reference.pruned}
    if reference.embedding is not None:
        arrays["embedding"] = reference.embedding
    order = np.array(json.dumps(list(reference.inputs)))
    np.savez_compressed(path, allow_pickle=False, order=order, **arrays)


def read(path: Path) -> Reference:
    """Read what `write` has kept.

    Raises:
        InputError: it is no such file, or lacks a part.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            order = json.loads(str(stored["order"]))
            inputs = {name: stored[f"inputs/{name}"] for name in order}
            embedding = stored["embedding"] if "embedding" in stored.files else None
            found = Reference(inputs, stored["dense"], stored["pruned"], embedding)
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        raise InputError(
            f"reference: expected what a gate has kept to compare with, got {path}: {' '.join(str(error).split())}"
        ) from error
    if not len(found) or any(len(column) != len(found) for column in (*found.inputs.values(), found.pruned)):
        raise InputError(f"reference: expected as many answers as examples, one at least, got others in {path}")
    return found
