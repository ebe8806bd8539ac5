"""A dense and a pruned model, a test set in two halves, one for the levels and one for traffic, and shifts of it."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import rotate

from benchmarks.accuracy import cycles, images
from benchmarks.context import Context
from benchmarks.shapes import onnx_of
from benchmarks.trained import cifar_resnet
from secateur import runtime
from secateur.data import Split
from secateur.errors import InputError
from secateur.gate import corruptions
from secateur.monitoring import reference
from secateur.recovery import recover
from secateur.sparsity import Unstructured, sparsify
from secateur.training import Settings
from tasks import datasets, recipe, registry, tracking

DIGITS, DIGITS_RECIPE = "digits-cnn", "digits"
SEVERITIES = (1, 2, 3, 4, 5)
DEGREES = (8, 16, 24, 32, 40)
BRIGHTER = (0.1, 0.2, 0.3, 0.4, 0.5)  # of the range
QUALITY = 75
# CIFAR-10: images of recovery, share of the weights that are zero, images of the test split
TRAIN, ZEROS, TEST = 6000, 0.5, 4000

Shift = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Pair:
    """Outputs of both models to the same examples, by how these are shifted; "clean" is not at all."""

    name: str
    drop: float
    labels: np.ndarray
    dense: Mapping[str, np.ndarray]
    pruned: Mapping[str, np.ndarray]
    embedding: Mapping[str, np.ndarray]
    inputs: Mapping[str, np.ndarray]


def digits(seed: int) -> Pair:
    """The sample model as the running stack has it, pruned and dense.

    Raises:
        InputError: nothing of it was promoted.
    """
    version = pruned_version(DIGITS)
    wanted = recipe.load(DIGITS_RECIPE)
    test = datasets.load(wanted).test
    with (
        tracking.fetched(registry.onnx_file(DIGITS, registry.dense(DIGITS, version))) as dense,
        tracking.fetched(registry.onnx_file(DIGITS, version)) as pruned,
    ):
        return _pair("digits", wanted.budget.accuracy_drop, dense, pruned, test, _of_digits(test.inputs, seed))


def pruned_version(model: str) -> str:
    """The last version that served and is pruned."""
    from tasks import journal

    for version in journal.read(model).served:
        tags = tracking.client().get_model_version(registry.onnx_name(model), version).tags
        if tags.get(registry.KIND) == "pruned":
            return version
    raise InputError(
        f"expected a stack on which {model} was pruned and promoted; run `make run` or `secateur run {model}` first"
    )


def cifar10(context: Context) -> Pair:
    """The published ResNet-20, and itself with half of its weights zero after a short recovery: a pair that a gate would let through."""
    folder = context.folder("cifar_resnet")
    dense = cifar_resnet.exported(cifar_resnet.trained(folder, 20))
    data = cycles.drawn(images.dataset(context, 2000), TRAIN, context.seed)
    sparse, masks, _ = sparsify(dense, pattern=Unstructured(ZEROS, scope="global"))
    settings = Settings(epochs=1, learning_rate=0.01, batch=128, seed=context.seed)
    small = recover(sparse, dense, data, settings, masks=masks).program
    chosen = np.sort(np.random.default_rng(context.seed).permutation(len(data.test))[:TEST])
    test = data.test.take(chosen)
    with tempfile.TemporaryDirectory() as made:
        files = [
            onnx_of(program, Path(made) / f"{name}.onnx") for name, program in (("dense", dense), ("small", small))
        ]
        return _pair("cifar10", 0.02, files[0], files[1], test, {f"jpeg {QUALITY}": _jpeg(test.inputs)})


def _pair(name: str, drop: float, dense: Path, pruned: Path, test: Split, shifts: Mapping[str, Shift]) -> Pair:
    inputs = {"clean": test.inputs} | {shift: change(test.inputs) for shift, change in shifts.items()}
    target = runtime.Target(threads=2)
    first = {shift: reference.answers(dense, target, [images]) for shift, images in inputs.items()}
    second = {shift: reference.answers(pruned, target, [images])[0] for shift, images in inputs.items()}
    embedding = {shift: found for shift, (_, found) in first.items() if found is not None}
    return Pair(name, drop, test.labels, {shift: out for shift, (out, _) in first.items()}, second, embedding, inputs)


def _of_digits(inputs: np.ndarray, seed: int) -> dict[str, Shift]:
    """Blur, contrast and noise as the gate corrupts, rotation and brightness, each growing."""

    def corrupted(name: str, severity: int) -> Shift:
        change = corruptions.of_images(name, severity, inputs, seed)
        return lambda images: np.asarray(change(0, [images])[0])

    found = {
        f"{name} {severity}": corrupted(name, severity)
        for name in ("blur", "contrast", "noise")
        for severity in SEVERITIES
    }
    found |= {f"rotation {degrees}°": _rotated(degrees) for degrees in DEGREES}
    span = float(np.ptp(inputs))
    return found | {f"brightness {share:.0%}": _brighter(share * span) for share in BRIGHTER}


def _rotated(degrees: float) -> Shift:
    return lambda images: rotate(images, degrees, axes=(3, 2), reshape=False, order=1, mode="nearest").astype(
        images.dtype
    )


def _brighter(by: float) -> Shift:
    return lambda images: (images + by).astype(images.dtype)


def _jpeg(inputs: np.ndarray) -> Shift:
    low = inputs.min((0, 2, 3), keepdims=True)
    span = inputs.max((0, 2, 3), keepdims=True) - low

    def change(images: np.ndarray) -> np.ndarray:
        pixels = np.rint((images - low) / span * 255).astype(np.uint8).transpose(0, 2, 3, 1)
        back = np.stack([_through_jpeg(picture) for picture in pixels]).transpose(0, 3, 1, 2)
        return (low + span * (back.astype(np.float32) / 255)).astype(images.dtype)

    return change


def _through_jpeg(picture: np.ndarray) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=QUALITY)
    return np.asarray(Image.open(stream))
