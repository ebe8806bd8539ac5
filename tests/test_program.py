"""Exported programs: loaded without ever unpickling, trained and exported again, saved with where they came from."""

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from torch import fx, nn
from torch.export import Dim

from secateur import InputError
from secateur import program as programs
from secateur.axes.infer import infer
from secateur.surgery import cut

ROOT = "model"  # the folder inside the archive; torch takes it from the file name


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "was-unpickled"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The perceptron's file as `save` writes it, its folder in the archive called `model`."""
    path = tmp_path / f"{ROOT}.pt2"
    programs.save(models.exported("perceptron"), path, {"from": "dense", "cycle": 2})
    return path


def repacked(path: Path, records: Mapping[str, bytes | None]) -> Path:
    """The archive with records replaced, added or, where None, left out."""
    with zipfile.ZipFile(path) as archive:
        content: dict[str, bytes | None] = {name: archive.read(name) for name in archive.namelist()}
    content |= {f"{ROOT}/{name}": data for name, data in records.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in content.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def table(path: Path, name: str) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(f"{ROOT}/{name}"))


BYTES = {"dtype": 1, "requires_grad": False}  # a tensor of bytes, which any record can pass for
WEIGHTS = "data/weights/model_weights_config.json"
FIRST_WEIGHT, BOMBED = "data/weights/weight_0", "data/weights/weight_9"
CONSTANTS = "data/constants/model_constants_config.json"


def test_a_saved_program_loads_and_computes_the_same(saved: Path) -> None:
    inputs = torch.from_numpy(models.vectors(5))
    loaded = programs.load(saved)
    assert torch.equal(loaded.module(check_guards=False)(inputs), models.module("perceptron")(inputs))


def test_an_archive_that_was_only_repacked_still_loads(saved: Path) -> None:
    before = programs.digest(programs.load(saved))
    assert programs.digest(programs.load(repacked(saved, {}))) == before


def test_lineage_comes_back_as_it_was_saved(saved: Path) -> None:
    assert programs.lineage(saved) == {"from": "dense", "cycle": 2}


def test_a_lineage_of_a_later_release_is_refused(tmp_path: Path) -> None:
    later = tmp_path / "later.pt2"
    programs.save(
        models.exported("perceptron"), later, {"schema": programs.LINEAGE_SCHEMA + 1, "cuts": "of another form"}
    )
    with pytest.raises(InputError, match=r"later\.pt2: .* schema 1 at most, got 2; a later release"):
        programs.lineage(later)


def test_a_file_without_lineage_has_an_empty_one(tmp_path: Path) -> None:
    torch.export.save(models.exported("perceptron"), tmp_path / "plain.pt2")
    assert programs.lineage(tmp_path / "plain.pt2") == {}


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^program: expected a .pt2 file, .*nowhere.pt2 does not exist"):
        programs.load(tmp_path / "nowhere.pt2")


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut short"])
def test_what_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.pt2"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"^program: broken.pt2 is not a .pt2 archive"):
        programs.load(path)


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(InputError, match=r"^program: other.pt2 is not a torch.export archive"):
        programs.load(path)


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(models.module("perceptron"), tmp_path / "pickled.pt2")
    with pytest.raises(InputError, match="holds a pickled object"):
        programs.load(tmp_path / "pickled.pt2")


def test_a_pickle_without_an_archive_is_refused_and_not_read(tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "bare.pt2"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(InputError, match=r"is not a .pt2 archive"):
        programs.load(path)
    assert not marker.exists()


def test_the_bomb_of_these_tests_goes_off_when_unpickled(marker: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


def refused(path: Path, marker: Path, record: str) -> None:
    """The file is refused naming the record, and nothing in it was unpickled."""
    try:
        with pytest.raises(InputError, match=f"holds a pickled object.*{record}"):
            programs.load(path)
    finally:
        assert not marker.exists(), "the pickle in the file was executed"


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_in_any_record_is_refused_and_not_read(saved: Path, marker: Path, protocol: int) -> None:
    bomb = pickle.dumps(Bomb(marker), protocol=protocol)
    refused(repacked(saved, {"data/sample_inputs/model.pt": bomb}), marker, "sample_inputs/model.pt")


def test_a_weight_that_says_it_is_pickled_is_refused_and_not_read(saved: Path, marker: Path, tmp_path: Path) -> None:
    config = table(saved, WEIGHTS)
    next(iter(config["config"].values())).update(use_pickle=True, path_name="weight_9")
    torch.save(Bomb(marker), tmp_path / "bomb")
    records = {WEIGHTS: json.dumps(config).encode(), BOMBED: (tmp_path / "bomb").read_bytes()}
    refused(repacked(saved, {**records, FIRST_WEIGHT: None}), marker, "weight_9")


def test_a_record_declared_both_raw_and_pickled_is_refused_and_not_read(
    saved: Path, marker: Path, tmp_path: Path
) -> None:
    torch.save(Bomb(marker), tmp_path / "bomb")
    config = table(saved, WEIGHTS)
    raw = next(iter(config["config"].values()))
    raw.update(path_name="weight_9", tensor_meta={**raw["tensor_meta"], **BYTES})
    config["config"]["hidden"] = {**raw, "use_pickle": True}
    records = {WEIGHTS: json.dumps(config).encode(), BOMBED: (tmp_path / "bomb").read_bytes()}
    refused(repacked(saved, {**records, FIRST_WEIGHT: None}), marker, "weight_9")


def test_an_object_declared_as_raw_bytes_is_refused_and_not_read(saved: Path, marker: Path) -> None:
    meta = {**next(iter(table(saved, WEIGHTS)["config"].values()))["tensor_meta"], **BYTES}
    name = "opaque_obj_0"  # torch unpickles what has this name, whatever the table says
    entry = {"path_name": name, "is_param": False, "use_pickle": False, "tensor_meta": meta}
    config = {"config": {"hidden": entry}}
    records = {CONSTANTS: json.dumps(config).encode(), f"data/constants/{name}": pickle.dumps(Bomb(marker))}
    refused(repacked(saved, records), marker, name)


def test_a_table_that_torch_does_not_read_declares_nothing(saved: Path, marker: Path, tmp_path: Path) -> None:
    torch.save(Bomb(marker), tmp_path / "bomb")
    config = table(saved, WEIGHTS)
    decoy = {"config": {"hidden": {**next(iter(config["config"].values())), "path_name": "weight_9"}}}
    next(iter(config["config"].values())).update(use_pickle=True, path_name="weight_9")
    records = {
        WEIGHTS: json.dumps(config).encode(),
        "data/weights/decoy_weights_config.json": json.dumps(decoy).encode(),
        BOMBED: (tmp_path / "bomb").read_bytes(),
        FIRST_WEIGHT: None,
    }
    refused(repacked(saved, records), marker, "weight_9")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("copies", [2, 3, 4, 5, 6])
def test_a_record_that_is_there_several_times_is_never_unpickled(
    saved: Path, marker: Path, tmp_path: Path, copies: int
) -> None:
    """Python's reader takes the last of equal names, torch's takes any of them."""
    torch.save(Bomb(marker), tmp_path / "bomb")
    torch.save(torch.zeros(models.HIDDEN, models.FEATURES), tmp_path / "harmless")
    config = table(saved, WEIGHTS)
    next(iter(config["config"].values())).update(use_pickle=True, path_name="weight_9")
    repacked(saved, {WEIGHTS: json.dumps(config).encode(), FIRST_WEIGHT: None})
    with zipfile.ZipFile(saved, "a") as archive:
        for kind in ["bomb"] * (copies - 1) + ["harmless"]:
            archive.writestr(f"{ROOT}/{BOMBED}", (tmp_path / kind).read_bytes())
    try:
        with pytest.raises(InputError):
            programs.load(saved)
    finally:
        assert not marker.exists(), "the pickle in the file was executed"


def test_compiled_code_is_refused_before_torch_opens_the_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("torch was asked to load a file with machine code in it")

    meta = next(iter(table(saved, WEIGHTS)["config"].values()))["tensor_meta"]
    entry = {"path_name": "model.so", "is_param": False, "use_pickle": False, "tensor_meta": meta}
    records = {
        "data/aotinductor/model/model.so": b"\x7fELF\x02\x01\x01\x00",
        "data/aotinductor/model/x_weights_config.json": json.dumps({"config": {"x": entry}}).encode(),
    }
    monkeypatch.setattr(torch.export, "load", never)
    with pytest.raises(InputError, match=r"model\.so"):
        programs.load(repacked(saved, records))


@pytest.mark.parametrize("name", models.MODELS)
def test_the_digest_survives_a_file(name: str, tmp_path: Path) -> None:
    program = models.exported(name)
    programs.save(program, tmp_path / "model.pt2", {"any": "lineage"})
    assert programs.digest(programs.load(tmp_path / "model.pt2")) == programs.digest(program)


def test_the_digest_changes_with_a_single_weight() -> None:
    made = models.Perceptron()
    inputs = torch.zeros(2, models.FEATURES)
    before = programs.digest(models.export(made, inputs))
    with torch.no_grad():
        made.first.bias[0] += 1e-6
    assert programs.digest(models.export(made, inputs)) != before


def test_the_digest_changes_with_an_operator() -> None:
    layer, inputs = nn.Linear(4, 4), torch.zeros(2, 4)
    digests = {programs.digest(models.export(nn.Sequential(layer, act), inputs)) for act in (nn.ReLU(), nn.Tanh())}
    assert len(digests) == 2


def test_a_graph_module_is_a_copy() -> None:
    program = models.exported("residual")
    before = programs.digest(program)
    module = programs.graph_module(program)
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            tensor.zero_()
    programs.set_training(module, True)
    assert programs.digest(program) == before


def test_tied_weights_stay_tied_through_loading_cutting_and_exporting_again(tmp_path: Path) -> None:
    programs.save(models.exported("tied"), tmp_path / "tied.pt2")
    loaded = programs.load(tmp_path / "tied.pt2")
    module = programs.graph_module(loaded)
    assert module.get_parameter("embed.weight") is module.get_parameter("head.weight")
    structure = infer(module)
    cut(module, structure, {info.axis: torch.arange(info.size // 2).numpy() for info in structure.prunable})
    again = programs.reexport(module, loaded)
    programs.save(again, tmp_path / "cut.pt2")
    module = programs.graph_module(programs.load(tmp_path / "cut.pt2"))
    assert module.get_parameter("embed.weight") is module.get_parameter("head.weight")
    assert module.get_parameter("embed.weight").shape == (models.VOCABULARY, models.EMBEDDING // 2)


class Transposed(nn.Module):
    """Two square matrices in the same memory, one the transpose of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.transposed = nn.Parameter(self.weight.data.t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ self.weight) @ self.transposed


def test_a_graph_module_computes_what_the_program_computes_when_weights_share_memory_but_not_strides() -> None:
    made, inputs = Transposed(), torch.from_numpy(models.vectors(3))
    module = programs.graph_module(models.export(made, inputs))
    assert torch.allclose(module(inputs), made(inputs))


def training_arguments(module: fx.GraphModule) -> list[bool]:
    position = {torch.ops.aten.batch_norm.default: 5, torch.ops.aten.dropout.default: 2}
    return [bool(n.args[position[n.target]]) for n in module.graph.nodes if n.target in position]


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_restores_the_mode_that_was_before(training: bool) -> None:
    module = programs.graph_module(models.exported("residual"))
    programs.set_training(module, training)
    with programs.evaluating(module):
        assert training_arguments(module) == [False, False, False]
        assert not torch.is_grad_enabled()
    assert training_arguments(module) == [training] * 3
    assert torch.is_grad_enabled()


def test_evaluating_restores_the_mode_after_an_error() -> None:
    module = programs.graph_module(models.exported("residual"))
    programs.set_training(module, True)
    with pytest.raises(KeyError), programs.evaluating(module):
        raise KeyError
    assert training_arguments(module) == [True] * 3


def test_training_uses_batch_statistics_and_dropout_and_moves_the_running_ones() -> None:
    module = programs.graph_module(models.exported("residual"))
    eager = models.module("residual")
    inputs = torch.from_numpy(models.images(8))
    before = module.get_buffer("norm.running_mean").clone()
    with programs.evaluating(module):
        assert torch.equal(module(inputs), eager(inputs))
    assert torch.equal(module.get_buffer("norm.running_mean"), before)
    programs.set_training(module, True)
    assert not torch.equal(module(inputs), module(inputs))  # dropout
    assert not torch.equal(module.get_buffer("norm.running_mean"), before)


def test_exporting_again_is_in_evaluation_mode_with_a_dynamic_batch_whatever_the_mode_was() -> None:
    program = models.exported("residual")
    module = programs.graph_module(program)
    programs.set_training(module, True)
    again = programs.reexport(module, program)
    assert programs.input_specs(again) == programs.input_specs(program)
    inputs = torch.from_numpy(models.images(7))
    assert torch.equal(again.module(check_guards=False)(inputs), models.module("residual")(inputs))
    assert training_arguments(module) == [True] * 3


class Masked(nn.Module):
    """A vector and, by keyword, a mask of the same batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, *, mask: torch.Tensor) -> torch.Tensor:
        return self.layer(x * mask)


def test_inputs_by_keyword_are_exported_again_twice() -> None:
    made, x = Masked(), torch.from_numpy(models.vectors(2))
    shapes = {"x": {0: Dim.AUTO}, "mask": {0: Dim.AUTO}}
    program = torch.export.export(made, (x,), {"mask": torch.ones(2, 4)}, dynamic_shapes=shapes)
    for _ in range(2):
        program = programs.reexport(programs.graph_module(program), program)
    specs = programs.input_specs(program)
    assert specs == {"x": ([None, 4], torch.float32), "mask": ([None, 4], torch.float32)}
    x, mask = torch.from_numpy(models.vectors(6)), torch.rand(6, 4)
    assert torch.equal(program.module(check_guards=False)(x, mask=mask), made(x, mask=mask))


def test_input_specs_give_sizes_with_none_where_dynamic_and_the_type() -> None:
    assert programs.input_specs(models.exported("residual")) == {"x": ([None, *models.IMAGE], torch.float32)}
    assert programs.input_specs(models.exported("tied")) == {"tokens": ([None, models.LENGTH], torch.int64)}


def test_a_program_without_example_inputs_is_refused() -> None:
    program = models.export(models.Perceptron(), torch.zeros(2, models.FEATURES))
    program.example_inputs = None
    with pytest.raises(InputError, match=r"^program: expected example inputs"):
        programs.example(program)


def test_a_dynamic_batch_counts_as_one_example_and_a_dynamic_length_as_its_own() -> None:
    program = torch.export.export(
        nn.Linear(4, 3), (torch.zeros(2, 7, 4),), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO},)
    )
    assert list(programs.per_example_symbols(program).values()) == [1, 7]


def test_the_example_is_repeated_or_cut_to_a_batch() -> None:
    program = models.exported("perceptron")
    rows = torch.from_numpy(models.vectors(2))
    for size in (1, 2, 5):
        (seen,), _ = programs.batch_of_example(program, size)
        assert torch.equal(seen, rows[torch.arange(size) % 2])


class Cached(nn.Module):
    """What came before is an input [layers, batch, length, features], and so is a table that every example shares."""

    def forward(self, x: torch.Tensor, cache: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        return (torch.cat([cache[0], cache[1], x], 1) + table).sum(1)


def test_a_batch_is_resized_wherever_an_input_has_it() -> None:
    batch, past = Dim("batch"), Dim("past")
    program = torch.export.export(
        Cached(),
        (torch.randn(2, 1, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 1, 4)[:1]),
        dynamic_shapes=({0: batch}, {1: batch, 2: past}, {}),
    )
    for size in (1, 3):
        args, kwargs = programs.batch_of_example(program, size)
        assert [tuple(x.shape) for x in args] == [(size, 1, 4), (2, size, 5, 4), (1, 1, 4)]
        assert program.module(check_guards=False)(*args, **kwargs).shape == (size, 4)
    assert sorted(programs.per_example_symbols(program).values()) == [1, 5]


class Fixing(nn.Module):
    """Fixes its batch where nobody sees it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(2, 4).expand(int(x.shape[0]), 4)


def test_a_batch_that_the_export_found_to_be_fixed_is_not_dynamic() -> None:
    program = torch.export.export(Fixing(), (torch.randn(2, 4),), dynamic_shapes=({0: Dim.AUTO},))
    assert programs.input_specs(program) == {"x": ([2, 4], torch.float32)}
    assert not programs.has_dynamic_batch(program)
    assert programs.per_example_symbols(program) == {}
    assert programs.batch_of_example(program, 3)[0][0].shape == (2, 4)


@pytest.mark.parametrize("name", ["residual", "encoder", "tied"])
def test_a_module_computes_where_it_was_moved_to(name: str) -> None:
    """What a graph creates goes along; the meta device has shapes alone, and every machine has it."""
    meta = torch.device("meta")
    module = programs.move(programs.graph_module(models.exported(name)), meta)
    inputs = torch.from_numpy(models.MODELS[name][1](2)).to(meta)
    assert module(inputs).device == meta
