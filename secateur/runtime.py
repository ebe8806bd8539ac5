"""ONNX Runtime as the serving runtime: sessions on a target, and outputs in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from secateur.errors import InputError

CPU = "CPUExecutionProvider"
OPTIMISATIONS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
_REFUSED = "fallback to CPU EP has been explicitly disabled"  # in the message of ONNX Runtime
_NO_FALLBACK = {"session.disable_cpu_ep_fallback": "1"}
_MEND = "mend its installation, or choose a provider that works by `secateur targets`"
_RECORDED = {"session.record_ep_graph_assignment_info": "1"}

Change = Callable[[int, Sequence[np.ndarray]], Sequence[np.ndarray]]  # of a batch that begins at a position


@dataclass(frozen=True)
class Target:
    """The hardware and settings that will serve the model."""

    provider: str = CPU
    threads: int = 1
    batch: int = 1
    length: int | None = None  # positions of a request's examples, for programs whose second dimension is dynamic
    optimisation: str = "all"  # of the graph, one of OPTIMISATIONS


def check_provider(target: Target) -> None:
    """Raise InputError unless the target's provider is installed."""
    available = ort.get_available_providers()
    if target.provider not in available:
        raise InputError(f"target.provider: expected one of {', '.join(available)}, got {target.provider}")


def open_session(path: str | Path, target: Target, *, profile: Path | None = None) -> ort.InferenceSession:
    """Load a file on the target's provider, which computes all of it; with `profile`, the beginning of a path, under the profiler.

    Only what ONNX Runtime leaves to the CPU on purpose may run there: nodes that compute sizes, never data.

    Raises:
        InputError: the provider is not installed or does not start, or the model or a part of it fell back to the CPU.
    """
    check_provider(target)
    if target.provider == CPU:
        return _load(path, target, {}, profile)
    try:
        return _load(path, target, _NO_FALLBACK, profile)
    except RuntimeError as error:  # from making the provider; the statuses of ONNX Runtime are no RuntimeErrors
        raise InputError(
            f"target.provider: {target.provider} does not start here: {' '.join(str(error).split())}; {_MEND}"
        ) from error
    except Exception as error:  # they have no narrower type in common
        if _REFUSED not in str(error):
            raise
    session = _load(path, target, _RECORDED, profile)
    _check_fallback(session, path, target)
    return session


def session_options(target: Target) -> ort.SessionOptions:
    """What a session is told of the target, but for its provider.

    Raises:
        InputError: no such optimisation.
    """
    if target.optimisation not in OPTIMISATIONS:
        raise InputError(f"target.optimisation: expected one of {', '.join(OPTIMISATIONS)}, got {target.optimisation}")
    options = ort.SessionOptions()
    options.graph_optimization_level = OPTIMISATIONS[target.optimisation]
    options.intra_op_num_threads = target.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # whatever is an error is raised too
    return options


def _load(
    path: str | Path, target: Target, entries: dict[str, str], profile: Path | None = None
) -> ort.InferenceSession:
    options = session_options(target)
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    providers = [(target.provider, _provider_options(target))]
    # without this, Python's wrapper prints what is wrong with the provider and takes another one
    return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)


def _provider_options(target: Target) -> dict[str, str]:
    """What a provider must be told beside the session: threads that are its own, and that 2:4 zeros may be skipped."""
    options = {
        "OpenVINOExecutionProvider": {"num_of_threads": str(target.threads)},
        "XnnpackExecutionProvider": {"intra_op_num_threads": str(target.threads)},
        "TensorrtExecutionProvider": {"trt_sparsity_enable": "1"},
    }
    return options.get(target.provider, {})


def _check_fallback(session: ort.InferenceSession, path: str | Path, target: Target) -> None:
    if session.get_providers()[0] != target.provider:
        raise InputError(
            f"target.provider: {target.provider} fell back to {session.get_providers()[0]}: it is installed but does "
            f"not start here; {_MEND}"
        )
    parts = session.get_provider_graph_assignment_info()
    nodes = [(part.ep_name, node) for part in parts for node in part.get_nodes()]
    sizes = _size_nodes(path)
    fallen = [node.op_type for provider, node in nodes if provider == CPU and node.name not in sizes]
    if fallen:
        raise InputError(
            f"target.provider: expected {target.provider} to run the whole model, {len(fallen)} of {len(nodes)} nodes fell "
            f"back to the CPU ({', '.join(sorted(set(fallen)))}); choose another provider, or a model without these operators"
        )


def _size_nodes(path: str | Path) -> set[str]:
    """The names of the nodes whose outputs follow from the shapes of the inputs, whatever the data."""
    import onnx  # a process that only measures on the CPU starts without it

    graph = onnx.load(path, load_external_data=False).graph
    known = {tensor.name for tensor in graph.initializer} | {""}  # an optional input that is not given has no name
    names = set()
    for node in graph.node:  # in an order in which they can be computed
        if node.op_type in ("Shape", "Size") or known.issuperset(node.input):
            known.update(node.output)
            names.add(node.name)
    return names - {""}


def run(session: ort.InferenceSession, *inputs: np.ndarray) -> np.ndarray:
    """The first output for one batch of the inputs, in the order that the program has them in."""
    names = (spec.name for spec in session.get_inputs())
    return session.run(None, dict(zip(names, inputs, strict=True)))[0]


def pass_on(session: ort.InferenceSession, inputs: Sequence[ort.OrtValue], times: int) -> np.ndarray:
    """The first output after so many runs; the other outputs of each are the inputs behind the first of the next.

    So a cache of keys and values is passed on. It stays where the runtime put it, in the CPU's memory, and is not copied.
    """
    names = [spec.name for spec in session.get_inputs()]
    values = list(inputs)
    for _ in range(times):
        binding = session.io_binding()
        for name, value in zip(names, values, strict=True):
            binding.bind_ortvalue_input(name, value)
        for spec in session.get_outputs():
            binding.bind_output(spec.name, "cpu")
        session.run_with_iobinding(binding)
        outputs = binding.get_outputs()
        values[1:] = outputs[1 : len(names)]
    return outputs[0].numpy()


def predict(
    session: ort.InferenceSession, columns: Sequence[np.ndarray], batch: int = 64, change: Change | None = None
) -> Iterator[np.ndarray]:
    """The first output batch by batch, of all examples in order; all together may be larger than memory.

    Args:
        session: of the file.
        columns: the inputs in the program's order, [N, ...] each.
        batch: examples at a time.
        change: what a batch is replaced by, from the position of its first example and its columns.
    """
    for start in range(0, len(columns[0]), batch):
        part = [column[start : start + batch] for column in columns]
        yield run(session, *(change(start, part) if change else part))
