"""Recipes: defaults are filled in, and whatever is wrong is one sentence that names the setting."""

from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.allocate import ALLOCATIONS
from secateur.errors import InputError
from secateur.gate.corruptions import CORRUPTIONS, IMAGES, TEXTS
from secateur.gate.slices import COMPUTED
from secateur.objectives import OBJECTIVES
from secateur.quantization import METHODS
from secateur.runtime import OPTIMISATIONS
from tasks import recipe
from tasks.sections import data, gate

MINIMAL: dict[str, Any] = {"model": "m", "data": {"source": "digits"}, "goal": {"sparsity": 0.5}}
SPLITS = {"train": "a", "test": "b"}
TEXT = {"tokenizer": "tokenizer.json", "max_length": 8}
FOLDER = Path(__file__).resolve().parents[1] / "recipes"
SHIPPED = sorted(path for path in FOLDER.glob("*.yaml") if "\nmatrix:" not in path.read_text())  # the others are sweeps


def parse(**changes: Any) -> recipe.Recipe:
    """The minimal recipe with whole sections replaced."""
    return recipe.parse(yaml.safe_dump(MINIMAL | changes), "test")


def refusal(text: str) -> str:
    """The sentence with which a text is refused."""
    with pytest.raises(InputError) as caught:
        recipe.parse(text, "test")
    return str(caught.value)


def test_a_recipe_says_of_which_form_it_is() -> None:
    assert parse().model_dump()["schema"] == recipe.SCHEMA
    assert parse(schema=recipe.SCHEMA) == parse()
    assert recipe.Recipe.model_validate(parse().model_dump(mode="json")) == parse()


def test_a_recipe_of_a_later_form_is_refused_for_that_before_anything_else() -> None:
    sentence = refusal(yaml.safe_dump(MINIMAL | {"schema": recipe.SCHEMA + 1, "goal": {"joules": 3}}))
    assert f"schema {recipe.SCHEMA + 1} is read by a later release of Secateur than this one" in sentence
    assert "schema 7.5 is read by a later release" in refusal(yaml.safe_dump(MINIMAL | {"schema": 7.5}))
    assert "schema: input should be a valid integer, got '2'" in refusal(yaml.safe_dump(MINIMAL | {"schema": "2"}))
    assert "joules" not in sentence


def test_every_default_is_filled_in() -> None:
    filled = parse().model_dump()
    assert {name: value for name, value in filled["budget"].items() if value} == {
        "accuracy_drop": 0.01,
        "recovery_epochs": 12,
        "measuring_s": 60.0,
    }
    assert filled["quantize"] == {
        "int8": False,
        "fp16": False,
        "calibration": 256,
        "method": "minmax",
        "aware_epochs": 0,
    }
    assert {name: value for name, value in filled["gate"].items() if value is not None} == {
        "confidence": 0.95,
        "speedup": 1.0,
        "parity": 1e-4,
        "looks": 3,
    }
    assert filled["approval"] is None
    assert parse(approval={"users": ["ann"]}).model_dump()["approval"] == {
        "verdicts": ("inconclusive",),
        "users": ("ann",),
        "hours": 24.0,
    }
    assert filled["target"] == {
        "name": None,
        "provider": "CPUExecutionProvider",
        "threads": 1,
        "batch": 1,
        "batches": (),
        "length": None,
        "optimisation": "all",
    }


@pytest.mark.parametrize(
    ("budget", "filled"),
    [
        ({"trained_epochs": 100}, {"trained_epochs": 100}),
        ({"trained_steps": 9000, "recovery": 0.2}, {"trained_steps": 9000, "recovery": 0.2}),
        ({"recovery_epochs": 3}, {"recovery_epochs": 3}),
    ],
)
def test_recovery_is_a_share_of_the_training_before_where_that_is_told_and_the_plans_choice_unless_it_is_given(
    budget: dict[str, Any], filled: dict[str, Any]
) -> None:
    read = parse(budget=budget)
    said = read.budget.model_dump(exclude_none=True)
    assert said == {"accuracy_drop": 0.01, "measuring_s": 60.0, **filled}
    assert recipe.Recipe.model_validate(read.model_dump(mode="json")) == read


def test_there_is_no_sparse_learning_unless_it_is_asked_for() -> None:
    assert parse().prune.sparse_learning is None
    asked = parse(prune={"sparse_learning": {"method": "growing"}})
    assert asked.prune.sparse_learning is not None
    assert asked.prune.sparse_learning.penalty["strength"] == 1e-4
    assert asked.prune.choice == parse().prune.choice


def test_every_optimisation_of_the_runtime_can_be_asked_for() -> None:
    asked = [parse(target={"optimisation": level}).target.optimisation for level in OPTIMISATIONS]
    assert asked == list(OPTIMISATIONS)


def test_a_filled_in_recipe_reads_back_as_itself() -> None:
    filled = parse(goal={"speedup": 2.0}, prune={"cycles": 2, "sparse_learning": {"method": "growing"}})
    assert recipe.Recipe.model_validate(filled.model_dump(mode="json")) == filled


@pytest.mark.parametrize(
    ("data", "section", "filled"),
    [
        ({"source": "csv", "path": "x"}, "table", {"label": "label", "features": None}),
        ({"source": "images", "path": "x", "images": {"size": [4, 6]}}, "images", {"size": (4, 6), "mean": (0.0,)}),
        ({"source": "huggingface", "path": "a/b", "text": TEXT}, "text", {"column": "text", "max_length": 8}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_section_of_the_source_is_filled_in_and_reads_back(
    data: dict[str, Any], section: str, filled: dict[str, Any]
) -> None:
    read = parse(data=data)
    assert read.model_dump()["data"][section].items() >= filled.items()
    assert recipe.Recipe.model_validate(read.model_dump(mode="json")) == read


def test_recipes_know_every_allocation_of_the_library() -> None:
    assert set(get_args(recipe.Prune.model_fields["allocation"].annotation)) == set(ALLOCATIONS)


def test_recipes_know_every_corruption_and_slice_of_the_library() -> None:
    annotation = get_args(gate.Robustness.model_fields["corruptions"].annotation)[0]
    assert get_args(annotation) == CORRUPTIONS
    assert tuple(IMAGES) == gate.IMAGE_CORRUPTIONS
    assert tuple(TEXTS) == gate.TEXT_CORRUPTIONS
    assert data.COMPUTED_SLICES == COMPUTED


def test_a_stricter_gate_than_another_goal_contradicts_nothing() -> None:
    assert parse(goal={"speedup": 2.0}, gate={"speedup": 1.9, "size_mb": 1}).gate.size_mb == 1


def test_recipes_know_every_calibration_method_of_the_library() -> None:
    assert set(get_args(recipe.Quantize.model_fields["method"].annotation)) == set(METHODS)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_says_what_it_shows(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ")
    assert recipe.parse(text, path.stem).model


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"budgett": {}}, ["budgett: unknown setting", "budget,"]),
        ({"gate": {"speedupp": 2}}, ["gate.speedupp: unknown setting", "confidence, speedup, parity"]),
        ({"data": {"source": "digits", "paths": "x"}}, ["data.paths: unknown setting", "source, path, split"]),
        ({"goal": {"sparsity": 1.2}}, ["goal.sparsity", "less than 1", "got 1.2"]),
        ({"goal": {"sparsity": 0}}, ["goal.sparsity", "greater than 0", "got 0"]),
        ({"goal": {"sparsity": "half"}}, ["goal.sparsity", "number", "'half'"]),
        ({"goal": {"speedup": 1}}, ["goal.speedup", "greater than 1", "got 1"]),
        ({"goal": {"sparsity": 0.5, "speedup": 2}}, ["goal", "exactly one", "sparsity, speedup"]),
        ({"goal": {}}, ["goal", "exactly one", "got none"]),
        ({"data": {"source": "npz"}}, ["data", "npz needs either a path or splits", "path missing, splits missing"]),
        ({"data": {"source": "npz", "path": "x", "splits": SPLITS}}, ["either a path or splits", "splits given"]),
        ({"data": {"source": "digits", "path": "x.npz"}}, ["data", "digits needs neither path nor splits"]),
        ({"data": {"source": "huggingface", "splits": SPLITS}}, ["data", "needs a path, the data set's name"]),
        ({"data": {"source": "excel"}}, ["data.source", "'digits', 'npz'", "'excel'"]),
        ({"data": {"source": "npz", "splits": {"train": "x"}}}, ["data.splits.test: field required"]),
        ({"data": {"source": "npz", "splits": SPLITS | {"tset": "x"}}}, ["data.splits.tset: unknown setting", "test"]),
        ({"data": {"source": "npz", "path": "x", "text": TEXT}}, ["text goes with source parquet, csv", "is npz"]),
        ({"data": {"source": "csv", "path": "x", "images": {}}}, ["images goes with source images", "is csv"]),
        ({"data": {"source": "csv", "path": "x", "text": TEXT | {"lenght": 1}}}, ["data.text.lenght: unknown setting"]),
        (
            {"data": {"source": "csv", "path": "x", "text": TEXT, "table": {"features": ["a"]}}},
            ["data", "text and table.features exclude each other"],
        ),
        (
            {"data": {"source": "csv", "path": "x", "text": {"tokenizer": "x"}}},
            ["data.text.max_length: field required"],
        ),
        (
            {"data": {"source": "images", "path": "x", "images": {"channels": 2}}},
            ["data.images.channels", "1 or 3", "2"],
        ),
        ({"data": {"source": "images", "path": "x", "images": {"mean": [0, 1]}}}, ["mean needs one number or one for"]),
        ({"data": {"source": "images", "path": "x", "images": {"deviation": [0]}}}, ["data.images.deviation.0", "0"]),
        ({"data": {"source": "digits", "proxy": 1}}, ["data.proxy", "less than 1"]),
        ({"data": {"source": "npz", "path": "x", "labels": "none"}}, ["labels none is of the training split alone"]),
        ({"data": {"source": "npz", "splits": SPLITS, "labels": "none"}}, ["labels none", "validation"]),
        (
            {"data": {"source": "npz", "splits": SPLITS | {"validation": "v"}, "labels": "none"}},
            ["data.labels none needs recovery.distillation 1.0", "it is 0.5"],
        ),
        ({"data": {"source": "digits", "split": [0.5, 0.2, 0.2]}}, ["data", "sum to 1", "0.9"]),
        ({"data": {"source": "digits", "split": [0.5, 0.5]}}, ["data.split"]),
        ({"data": {"source": "digits", "split": [1.5, -0.25, -0.25]}}, ["data.split.0", "less than 1", "1.5"]),
        (
            {"objective": "ranking"},
            ["objective: must be one of classification, multi_label", "or module:function, got 'ranking'"],
        ),
        (
            {"budget": {"recovery_epochs": 3, "trained_epochs": 20}},
            ["budget: at most one of recovery_epochs, trained_epochs, trained_steps is needed", "trained_epochs"],
        ),
        ({"budget": {"recovery": 0.1}}, ["budget: recovery is a share of trained_epochs or trained_steps"]),
        ({"budget": {"trained_epochs": 20, "recovery": 0}}, ["budget.recovery", "greater than 0", "got 0"]),
        ({"budget": {"recovery_epochs": 0}}, ["budget.recovery_epochs", "greater than or equal to 1", "got 0"]),
        (
            {"target": {"batch": 8, "batches": [1, 8]}},
            ["target: batches names other sizes than batch, each once; batch is 8, batches 1, 8"],
        ),
        ({"target": {"batches": [0]}}, ["target.batches.0", "greater than 0", "got 0"]),
        ({"prune": {"cycles": 6}}, ["prune.cycles", "less than or equal to 5", "6"]),
        (
            {"recovery": {"batch": 8, "processes": 2, "accumulate": 3}},
            ["recovery: batch must be at least 12, 2 examples for each of 3 parts in each of 2 processes; it is 8"],
        ),
        (
            {"recovery": {"compile": True, "processes": 2}},
            ["recovery: compile needs one process that keeps its activations; processes is 2, recompute false"],
        ),
        (
            {"prune": {"sparse_learning": {"method": "lasso"}}},
            ["prune.sparse_learning.method", "'group_lasso', 'growing' or 'slimming'", "'lasso'"],
        ),
        (
            {"prune": {"sparse_learning": {"method": "growing", "strength": 0}}},
            ["prune.sparse_learning.strength", "greater than 0"],
        ),
        (
            {"prune": {"sparse_learning": {"method": "growing", "epochs": 0}}},
            ["prune.sparse_learning.epochs", "greater than or equal to 1"],
        ),
        (
            {"prune": {"sparse_learning": {"method": "growing", "epoch": 3}}},
            ["prune.sparse_learning.epoch: unknown setting", "method, strength, epochs"],
        ),
        ({"approval": {"users": ["ann"], "hour": 1}}, ["approval.hour: unknown setting", "verdicts, users, hours"]),
        ({"approval": {}}, ["approval.users: field required"]),
        ({"approval": {"users": []}}, ["approval.users: tuple should have at least 1 item"]),
        (
            {"approval": {"users": ["ann"], "verdicts": ["fail"]}},
            ["approval.verdicts.0: input should be 'inconclusive' or 'pass', got 'fail'"],
        ),
        (
            {"target": {"lenght": 8}},
            ["target.lenght: unknown setting", "name, provider, threads, batch, batches, length"],
        ),
        ({"target": {"length": 0}}, ["target.length", "greater than or equal to 1", "0"]),
        (
            {"target": {"optimisation": "most"}},
            ["target.optimisation", "'all', 'extended', 'basic' or 'none'", "'most'"],
        ),
        ({"target": {"threads": 0}}, ["target.threads", "greater than or equal to 1", "0"]),
        ({"quantize": {"int8": "always"}}, ["quantize.int8", "True or 'auto'", "got 'always'"]),
        ({"quantize": {"method": "mean"}}, ["quantize.method", "'minmax', 'entropy' or 'percentile'", "got 'mean'"]),
        ({"quantize": {"aware_epochs": 2}}, ["quantize: aware_epochs needs int8 true or auto; int8 is false"]),
        ({"quantize": {"calibration": 0}}, ["quantize.calibration", "greater than or equal to 1", "got 0"]),
        ({"gate": {"confidence": 95}}, ["gate.confidence", "less than 1", "95"]),
        ({"gate": {"slices": {"by": ["label"]}}}, ["gate.slices.drop: field required"]),
        ({"gate": {"slices": {"drop": 0.1, "bye": []}}}, ["gate.slices.bye: unknown setting", "drop, by, fewest"]),
        ({"gate": {"slices": {"drop": 0.1, "by": []}}}, ["gate.slices.by", "at least 1 item"]),
        (
            {"gate": {"slices": {"drop": 0.1, "by": ["site"]}}},
            ["gate needs site in data.metadata, which names nothing; slices are by label, mean, deviation, length"],
        ),
        ({"gate": {"robustness": {"drop": 0.1}}}, ["gate.robustness: corruptions or shifted is needed, got neither"]),
        ({"gate": {"robustness": {"drop": 0.1, "corruptions": ["fog"]}}}, ["gate.robustness.corruptions.0", "'fog'"]),
        (
            {"gate": {"robustness": {"drop": 0.1, "corruptions": ["typos"]}}},
            ["gate.robustness.corruptions: typos does not go with source digits; choose some of noise, blur"],
        ),
        (
            {"gate": {"robustness": {"drop": 0.1, "shifted": "x"}}},
            ["gate.robustness.shifted needs a source that is read"],
        ),
        ({"gate": {"looks": 0}}, ["gate.looks", "greater than or equal to 1", "got 0"]),
        ({"gate": {"agreement": 1.0}}, ["gate.agreement", "less than 1", "got 1.0"]),
        (
            {"gate": {"incumbent": {"drop": 0.1, "none": "fail"}}},
            ["gate.incumbent.none", "'pass' or 'refuse'", "'fail'"],
        ),
        (
            {"goal": {"speedup": 2.0}, "gate": {"speedup": 3.0}},
            ["gate.speedup 3 asks for more than goal.speedup 2, where pruning stops; mend one"],
        ),
        ({"goal": {"size_mb": 12}, "gate": {"size_mb": 8}}, ["gate.size_mb 8 asks for more than goal.size_mb 12"]),
        (
            {"goal": {"qps": {"rate": 50, "p99_ms": 9}}, "gate": {"qps": {"rate": 60, "p99_ms": 9}}},
            ["gate.qps 60 asks for more than goal.qps 50"],
        ),
        (
            {"objective": "regression", "gate": {"ece": 0.1}},
            ["gate.ece needs answers that are right or wrong, as of objective classification; it is regression"],
        ),
        ({"gate": {"documents": "book"}}, ["gate.documents goes with metrics that are resampled, accuracy is not"]),
        ({"data": {"source": "digits", "metadata": ["site"]}}, ["metadata goes with source parquet", "is digits"]),
        (
            {"data": {"source": "csv", "path": "x", "metadata": ["label"]}},
            ["metadata is what no model sees and no other name of a slice, got label"],
        ),
        ({"seed": -1}, ["seed", "greater than or equal to 0", "-1"]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_named_with_what_was_expected_and_seen(changes: dict[str, Any], names: list[str]) -> None:
    sentence = refusal(yaml.safe_dump(MINIMAL | changes))
    assert sentence.startswith("recipe test: ")
    assert "\n" not in sentence
    for name in names:
        assert name in sentence


@pytest.mark.parametrize("number", [".nan", ".inf"])
@pytest.mark.parametrize(
    "setting", ["goal.speedup", "gate.speedup", "gate.parity", "gate.floor", "recovery.learning_rate"]
)
def test_a_number_that_is_not_finite_is_refused(setting: str, number: str) -> None:
    section, key = setting.split(".")
    sentence = refusal(yaml.safe_dump(MINIMAL | {section: {key: float(number[1:])}}))
    assert setting in sentence


def test_a_missing_section_is_named() -> None:
    assert "goal: field required" in refusal("model: m\ndata: {source: digits}\n")


def test_every_wrong_setting_is_reported_at_once() -> None:
    sentence = refusal(yaml.safe_dump(MINIMAL | {"seed": -1, "goal": {"sparsity": 2}}))
    assert "seed" in sentence
    assert "goal.sparsity" in sentence


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    assert "expected a mapping of settings" in refusal(text)


@pytest.mark.parametrize("text", ["model: [", "model: {a: }}", "a: b: c", "\tmodel: m", "!!python/object:os.system {}"])
def test_what_is_not_plain_yaml_is_refused_in_one_line(text: str) -> None:
    sentence = refusal(text)
    assert "not valid YAML" in sentence
    assert "\n" not in sentence


def test_a_date_that_does_not_exist_is_refused_as_any_other_wrong_text() -> None:
    assert "recipe test" in refusal("model: 2026-13-45\n")


@given(
    st.recursive(st.none() | st.booleans() | st.floats() | st.text(), lambda inner: st.dictionaries(st.text(), inner))
)
@settings(max_examples=40)
def test_any_value_is_a_recipe_or_refused_in_a_sentence(value: Any) -> None:
    for content in (value, MINIMAL | {"prune": value}, MINIMAL | {"goal": value}):
        try:
            recipe.parse(yaml.safe_dump(content), "test")
        except InputError as error:
            refused = str(error)
        else:
            continue
        assert refused.startswith("recipe test: ")


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "UPPER", "", ".hidden", "a" * 101, "tiny\n", "tiny\0"]
)
def test_a_name_never_leads_out_of_the_folder(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret.yaml").write_text(yaml.safe_dump(MINIMAL))
    (tmp_path / "recipes").mkdir()
    monkeypatch.setenv("SECATEUR_RECIPES", str(tmp_path / "recipes"))
    with pytest.raises(InputError, match="recipe: expected"):
        recipe.load(name)


def test_an_unknown_name_is_answered_with_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_RECIPES", str(tmp_path))
    for known in ("half", "quarter"):
        (tmp_path / f"{known}.yaml").write_text(yaml.safe_dump(MINIMAL))
    assert recipe.load("half").goal.sparsity == 0.5
    with pytest.raises(InputError, match=r"expected one of half, quarter .*, got 'third'"):
        recipe.load("third")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECATEUR_RECIPES", str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"model: \xff\xfe\n")
    with pytest.raises(InputError, match="binary"):
        recipe.load("binary")


def test_every_objective_can_be_asked_for_by_its_name() -> None:
    assert tuple(OBJECTIVES) == recipe.OBJECTIVES
    for name in (*OBJECTIVES, "mine.objectives:rank"):
        assert recipe.parse(yaml.safe_dump(MINIMAL | {"objective": name}), "test").objective == name


@pytest.mark.parametrize("method", recipe.METHODS)
def test_every_method_is_taken_with_its_own_settings_and_comes_back_from_what_a_run_keeps(method: str) -> None:
    own: dict[str, Any] = {"structured": {"align": 4}, "unstructured": {"weights": {"scope": "global"}}}
    own |= {"n_m": {"weights": {"pattern": "1:4"}}, "depth": {"layers": {"kind": "mlp"}}}
    wanted = {"goal": {"speedup": 1.5}, "quantize": {"int8": True}, "prune": {"method": method, **own.get(method, {})}}
    read = parse(**wanted)
    assert recipe.Recipe.model_validate(read.model_dump(mode="json")) == read


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"prune": {"method": "unstructured", "align": 4}},
            "align goes with method structured, method is unstructured",
        ),
        ({"prune": {"method": "n_m", "layers": {"kind": "mlp"}}}, "layers goes with method depth, method is n_m"),
        (
            {"prune": {"method": "structured", "weights": {"scope": "global"}}},
            "weights goes with method unstructured, n_m",
        ),
        (
            {"prune": {"method": "depth", "sparse_learning": {"method": "growing"}}},
            "sparse_learning goes with method struc",
        ),
        ({"prune": {"method": "n_m", "cycles": 2}}, "cycles must be 1 or left out with method n_m; it is 2"),
        ({"prune": {"method": "n_m", "weights": {"pattern": "4:4"}}}, "pattern must leave fewer than all"),
        ({"prune": {"method": "n_m", "weights": {"pattern": "2/4"}}}, "prune.weights.pattern: string should match"),
        (
            {"prune": {"method": "n_m"}, "goal": {"sparsity": 0.6}},
            "goal sparsity 0.6 is more than the 0.5 that prune.weights",
        ),
        (
            {"prune": {"method": "unstructured"}, "goal": {"kv_cache": 0.5}},
            "goal kv_cache is nothing that zeros change",
        ),
        ({"prune": {"method": "unstructured"}, "goal": {"size_mb": 1}}, "goal size_mb is nothing that zeros change"),
        (
            {"prune": {"method": "quantize"}, "quantize": {"int8": True}},
            "goal sparsity counts what INT8 leaves as it is",
        ),
        (
            {"prune": {"method": "quantize"}, "goal": {"speedup": 2}},
            "prune.method quantize needs quantize.int8 true or auto",
        ),
        ({"prune": {"method": "magic"}}, "prune.method: input should be 'auto', 'structured'"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_settings_that_do_not_go_together_are_refused_with_both_their_names(
    changes: dict[str, Any], sentence: str
) -> None:
    assert sentence in refusal(yaml.safe_dump(MINIMAL | changes))
