"""A latency table on a clock that the tests set: what an operation takes follows from its sizes, so that every sum is known."""

import json
import math
import timeit
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.export import ExportedProgram

from secateur import Speedup, onnx_export, prune, replay
from secateur import program as programs
from secateur.axes.infer import AxisInfo, infer
from secateur.compare import compare
from secateur.errors import InputError
from secateur.latency import clock, timing
from secateur.latency import table as latency_table
from secateur.latency.nodes import Node, Sketch, Value, Writer
from secateur.latency.operations import operations
from secateur.latency.table import LatencyTable, interpolated, measure
from secateur.measure import latency
from secateur.pruning import DEFAULT_KINDS
from secateur.runtime import Target, run, session_options

KINDS = (*DEFAULT_KINDS, "embedding")
DENSE = 0.5  # seconds of the whole program
TARGET = Target()
NAMES = ("perceptron", "residual", "branches", "encoder", "tied")


def volume(sketch: Sketch) -> float:
    """A cost that grows with every size: the elements of all that an operation reads from outside."""
    return 1e-6 * sum(math.prod(value.shape) for value in (*sketch.inputs, *sketch.weights))


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[Sketch]:
    """The sketches that were timed, each taking what its volume says."""
    sketches: list[Sketch] = []

    def seconds(sketch: Sketch, target: Target) -> float:
        sketches.append(sketch)
        return volume(sketch)

    monkeypatch.setattr(timing, "seconds", seconds)
    return sketches


def measured(name: str = "residual", target: Target = TARGET, folder: Path | None = None) -> LatencyTable:
    return measure(models.exported(name), target, dense=DENSE, kinds=KINDS, align=1, folder=folder)


@pytest.mark.parametrize("name", NAMES)
def test_the_dense_program_takes_what_was_measured(name: str, timed: list[Sketch]) -> None:
    assert measured(name).predict({}) == pytest.approx(DENSE)


@pytest.mark.parametrize("name", NAMES)
def test_narrower_never_takes_longer_and_each_axis_saves_something(name: str, timed: list[Sketch]) -> None:
    table = measured(name)
    for axis, size in table.sizes.items():
        seconds = [table.predict({axis: width}) for width in range(1, size + 1)]
        assert seconds == sorted(seconds)
        assert seconds[0] < seconds[-1] == pytest.approx(DENSE)


def test_noise_does_not_make_a_narrower_operation_dearer(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    monkeypatch.setattr(timing, "seconds", lambda sketch, target: float(rng.uniform(1, 2)))
    table = measured()
    for axis, size in table.sizes.items():
        seconds = [table.predict({axis: width}) for width in range(1, size + 1)]
        assert np.all(np.diff(seconds) >= -1e-12)


def test_equal_operations_are_timed_once(timed: list[Sketch]) -> None:
    twice = nn.Sequential(*(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU()) for _ in range(3)))
    program = models.export(nn.Sequential(twice, nn.Linear(6, 6)), torch.zeros(2, 6))
    table = measure(program, TARGET, dense=DENSE, kinds=KINDS, align=1)
    signatures = [timing.signature(sketch) for sketch in timed]
    assert len(signatures) == len(set(signatures))
    assert len(table.timed) == 7
    inner = [one for one in table.timed if len(one.groups) == 2]
    assert any(np.array_equal(one.seconds, other.seconds) for one in inner for other in inner if one is not other)


def test_times_are_kept_in_a_file_and_a_measurement_that_was_killed_goes_on(
    timed: list[Sketch], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured()
    count = len(timed)
    timed.clear()
    simulated = timing.seconds

    def killed(sketch: Sketch, target: Target) -> float:
        if len(timed) == count // 2:
            raise KeyboardInterrupt
        return simulated(sketch, target)

    with monkeypatch.context() as patch:
        patch.setattr(timing, "seconds", killed)
        with pytest.raises(KeyboardInterrupt):
            measured(folder=tmp_path)
    resumed = measured(folder=tmp_path)
    assert len(timed) == count
    assert resumed.predict({}) == whole.predict({})
    measured(folder=tmp_path)
    assert len(timed) == count


def test_another_target_has_times_of_its_own(timed: list[Sketch], tmp_path: Path) -> None:
    measured(folder=tmp_path)
    count = len(timed)
    measured(target=Target(threads=2), folder=tmp_path)
    assert len(timed) == 2 * count
    assert len(list(tmp_path.iterdir())) == 2


def test_another_batch_is_other_sizes(timed: list[Sketch], tmp_path: Path) -> None:
    measured(folder=tmp_path)
    count = len(timed)
    measured(target=Target(batch=3), folder=tmp_path)
    assert len(timed) > count
    assert {value.shape[0] for sketch in timed[count:] for value in sketch.inputs} == {3}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_of_something_else_is_refused(timed: list[Sketch], tmp_path: Path) -> None:
    measured(folder=tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps({"curves": {}}))
    with pytest.raises(InputError, match=r"^folder: expected times of operations in .* remove it"):
        measured(folder=tmp_path)


class Odd(nn.Module):
    """A layer whose activation has an axis rule but none for timing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.expm1(self.first(x)))


def test_an_operator_without_a_timing_model_is_named_and_its_time_is_constant(timed: list[Sketch]) -> None:
    program = models.export(Odd(), torch.zeros(2, 4))
    table = measure(program, TARGET, dense=DENSE, kinds=KINDS, align=1)
    assert [name.partition(":")[2] for name in table.untimed] == ["expm1"]
    known = sum(volume(sketch) for sketch in timed if sketch.weights[0].shape in ((6, 4), (3, 6)))
    assert table.constant == pytest.approx(DENSE - known)
    assert table.scale == pytest.approx(1.0)
    (axis,) = table.sizes
    assert table.constant < table.predict({axis: 1}) < table.predict({}) == pytest.approx(DENSE)


def test_a_table_that_was_written_down_predicts_the_same(timed: list[Sketch]) -> None:
    table = measured()
    again = LatencyTable.from_json(json.loads(json.dumps(table.to_json())))
    narrow = {name: max(1, size // 3) for name, size in table.sizes.items()}
    assert again.predict(narrow) == table.predict(narrow) < table.predict({})
    assert again.untimed == table.untimed


def test_an_axis_that_was_not_measured_is_an_error(timed: list[Sketch]) -> None:
    with pytest.raises(InputError, match=r"^widths: .*got elsewhere:channel; measure it again"):
        measured().predict({"elsewhere:channel": 2})


def nodes_and_weights(sketch: Sketch, target: Target) -> float:
    """Seconds that add up however a graph is taken apart."""
    return 1e-6 * (len(sketch.nodes) + sum(math.prod(value.shape) for value in sketch.weights))


def test_a_dropped_branch_takes_all_of_its_time_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "seconds", nodes_and_weights)
    program, kinds = models.layers()[1], (*KINDS, "attention", "mlp")
    table = measure(program, TARGET, dense=DENSE, kinds=kinds, align=1)
    table = LatencyTable.from_json(json.loads(json.dumps(table.to_json())))
    assert len(table.branches) == 6
    total = sum(one.at({}) for one in table.timed)
    gone = ["layers.0:mlp", "layers.1:attention", "layers.1:mlp"]
    shallow, _ = replay(program, dict.fromkeys(gone, ()))
    left = measure(shallow, TARGET, dense=DENSE, kinds=KINDS, align=1)
    expected = DENSE * sum(one.at({}) for one in left.timed) / total
    assert table.predict(dict.fromkeys(gone, 0)) == pytest.approx(expected)


def test_without_a_branch_a_program_takes_no_longer_than_with_it_narrow(timed: list[Sketch]) -> None:
    table = measure(models.layers()[1], TARGET, dense=DENSE, kinds=(*KINDS, "mlp"), align=1)
    narrow = {name: 1 for name in table.sizes if name.endswith(".up:width")}
    assert table.predict(narrow | {"layers.1:mlp": 0}) < table.predict(narrow) < table.predict({})


def test_a_provider_that_does_not_tell_kernel_times_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(InputError, match=r"^target.provider: expected CPUExecutionProvider"):
        measured(target=Target(provider="CUDAExecutionProvider"))


@given(st.data(), st.integers(1, 3))
def test_interpolation_is_exact_for_what_is_linear_in_each_group(data: st.DataObject, rank: int) -> None:
    shares = st.lists(st.floats(0.01, 1.0), min_size=1, max_size=5, unique=True).map(sorted)
    grid = [np.array(data.draw(shares)) for _ in range(rank)]
    slopes = data.draw(st.lists(st.floats(0.0, 5.0), min_size=rank, max_size=rank))
    time = lambda *xs: math.prod(1 + slope * x for slope, x in zip(slopes, xs, strict=True))  # noqa: E731
    values = np.vectorize(time)(*np.meshgrid(*grid, indexing="ij"))
    at = [data.draw(st.floats(points[0], points[-1])) for points in grid]
    assert float(interpolated(grid, values, at)) == pytest.approx(time(*at))


@given(st.sampled_from(NAMES), st.integers(0, 10_000))
@settings(max_examples=25)
def test_every_operation_runs_in_the_runtime_at_any_widths_and_gives_the_sizes_of_the_layouts(
    name: str, seed: int
) -> None:
    program = models.exported(name)
    structure = infer(programs.graph_module(program, shared=True))
    rng = np.random.default_rng(seed)
    widths = {info.axis: int(rng.integers(1, info.size + 1)) for info in structure.prunable}
    for operation in operations(structure, list(widths)):
        writer = Writer(structure, programs.per_example_symbols(program, 2), widths)
        sketch = writer.write(operation.chain)
        assert writer.untimed == []
        if not sketch.nodes:
            continue
        session = ort.InferenceSession(timing.to_model(sketch, rng).SerializeToString())
        feeds = [timing._random(value, rng) for value in sketch.inputs]
        seen = run(session, *feeds)
        made = [node for node in operation.chain if writer._names.get(node) == sketch.outputs[0]]
        assert list(seen.shape) == writer.shape(made[0])


def test_seconds_leave_out_the_change_of_layout_and_sum_the_least_of_each_kernel() -> None:
    kernels = [("ReorderInput", [9, 9, 9]), ("Conv", [900, 20, 30]), ("Relu", [1, 5, 4])]
    events = [
        {"cat": "Node", "name": f"{op}_kernel_time", "dur": times[i], "args": {"op_name": op}}
        for i in range(3)
        for op, times in kernels
    ]
    assert timing.kernel_seconds(events, 3, 0.0) == pytest.approx((24e-6, 33e-6))  # the first run warms up
    assert timing.kernel_seconds(events, 3, 1e-6) == pytest.approx((22e-6, 30e-6))
    assert timing.kernel_seconds(events, 3, 5e-6) == pytest.approx((15e-6, 19e-6))  # no kernel takes less than nothing


def test_what_timing_adds_to_a_kernel_is_more_than_nothing_and_less_than_a_few_microseconds() -> None:
    assert 0.1e-6 < clock.added_seconds(TARGET) < 10e-6
    assert clock.added_seconds(TARGET) == clock.added_seconds(TARGET)  # one measurement for all operations


@pytest.mark.alone
def test_kernels_by_the_profile_take_together_what_they_take_without_it() -> None:
    width, counts = 256, (10, 60)
    by_profile, by_clock = [], []
    for count in counts:
        nodes = [Node("MatMul", (f"x{i}", "w"), (f"x{i + 1}",), ()) for i in range(count)]
        value, weight = Value("x0", "float32", (1, width)), Value("w", "float32", (width, width))
        sketch = Sketch(nodes, inputs=[value], weights=[weight], outputs=[f"x{count}"])
        by_profile.append(timing.seconds(sketch, TARGET))
        model = timing.to_model(sketch, np.random.default_rng(0)).SerializeToString()
        session = ort.InferenceSession(model, session_options(TARGET))
        feeds = {"x0": np.ones((1, width), dtype=np.float32)}
        by_clock.append(min(timeit.repeat(lambda: session.run(None, feeds), number=1, repeat=500)))  # noqa: B023
    assert np.diff(by_profile) == pytest.approx(np.diff(by_clock), rel=0.25)


@pytest.mark.parametrize(
    ("make", "shape"),
    [(lambda w: nn.Linear(w, w), (2, 64, -1)), (lambda w: nn.Conv2d(w, w, 3, padding=1), (2, -1, 14, 14))],
)
def test_a_real_operation_takes_more_time_when_it_is_wider(
    make: Callable[[int], nn.Module], shape: tuple[int, ...]
) -> None:
    seconds = []
    for width in (16, 256):
        program = models.export(make(width), torch.zeros([width if size < 0 else size for size in shape]))
        structure = infer(programs.graph_module(program, shared=True))
        (operation,) = operations(structure, [])
        sketch = Writer(structure, programs.per_example_symbols(program), {}).write(operation.chain)
        seconds.append(timing.seconds(sketch, TARGET))
    assert 0 < 4 * seconds[0] < seconds[1]


@pytest.mark.parametrize("allocation", ["uniform", "knapsack"])
def test_prune_reaches_a_predicted_speedup_and_keeps_its_promise(allocation: str, timed: list[Sketch]) -> None:
    program = models.exported("residual")
    table = measured()
    _, report = prune(program, goal=Speedup(1.5, table.predict), allocation=allocation)
    widths = {axis.name: axis.after for axis in report.axes}
    assert table.predict(widths) <= DENSE / 1.5


@pytest.mark.alone
@pytest.mark.slow
def test_a_speedup_that_no_widths_give_is_predicted_and_measured_with_branches(tmp_path: Path) -> None:
    length, stream = 32, 64
    program = models.export(models.Layers(4, stream, 4 * stream), torch.zeros(2, length, stream))
    columns = [np.random.default_rng(0).normal(size=(8, length, stream)).astype(np.float32)]
    paths = [tmp_path / name for name in ("dense.onnx", "shallow.onnx")]
    onnx_export.export(program, paths[0])
    seconds = latency(paths[0], TARGET, columns, budget_s=1.0).p50_ms / 1e3
    choice: dict[str, Any] = {"allocation": "knapsack", "align": 8}
    table = measure(program, TARGET, dense=seconds, kinds=("head", "width", "attention", "mlp"), align=8)
    widths = {info.name: 1 if info.kind == "head" else 8 for info in of_kinds(program, ("head", "width"))}
    times = 1.5 * table.predict({}) / table.predict(widths)
    with pytest.raises(InputError, match=r"^goal: Speedup.* asks for more than these 8 axes can give"):
        prune(program, goal=Speedup(times, table.predict), kinds=("head", "width"), **choice)
    goal = Speedup(times, table.predict)
    shallow, report = prune(program, goal=goal, kinds=("head", "width", "attention", "mlp"), **choice)
    onnx_export.export(shallow, paths[1])
    assert table.predict({cut.name: cut.after for cut in report.axes}) <= table.predict({}) / times
    seen = compare(paths[0], paths[1], TARGET, columns, budget_s=5.0)
    assert 0.6 * times <= seen.high
    assert seen.low <= 1.8 * times


def of_kinds(program: ExportedProgram, kinds: tuple[str, ...]) -> list[AxisInfo]:
    return [info for info in infer(programs.graph_module(program)).prunable if info.kind in kinds]


def test_a_speedup_that_is_none_is_refused(timed: list[Sketch]) -> None:
    with pytest.raises(InputError, match=r"^goal: expected a speedup above 1, got 1"):
        prune(models.exported("residual"), goal=Speedup(1.0, measured().predict))


def test_the_shares_of_the_grid_are_widths_that_the_ladder_allows(timed: list[Sketch]) -> None:
    table = measure(models.exported("residual"), TARGET, dense=DENSE, kinds=KINDS, align=4)
    for one in table.timed:
        for points, group in zip(one.grid, one.groups, strict=True):
            assert points[-1] == 1.0
            assert len(points) <= len(latency_table.SHARES)
            if len(group) == 1:
                (size,) = group.values()
                assert all(round(x * size) in (size, 4, 8) for x in points)
