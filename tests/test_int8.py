"""INT8 in the pipeline: made where the recipe asks for it, the fastest file within the budget ships, the gate judges that one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from services import Job, another_job, examples, network, versions_of, write_onnx
from test_champion import serving

from secateur import machine
from secateur import program as programs
from secateur.compare import Comparison
from secateur.errors import InputError
from secateur.machine import Machine
from secateur.measure import Latency
from secateur.noise import summed
from tasks import baseline, datasets, export, gate, int8, promote, recipe, registry, tracking, validate
from tasks.figures import Counts
from tasks.references import Exported, File, Pinned

DENSE, DROP = 0.9, 0.02
NOTHING = Counts(0, 0, 0, None)
SOURCE = File("runs:/0/none.onnx", ""), File("runs:/0/none.pt2", "")


def asking(job: Job, name: str, wanted: Any, model: str | None = None, **more: Any) -> Pinned:
    """The shared job's inputs as a job of its own that asks for INT8."""
    filled = recipe.Recipe.model_validate(
        {**job.pinned.recipe, "quantize": {"int8": wanted, "calibration": 40, **more}}
    )
    return replace(another_job(job.pinned, name, model), recipe=filled.model_dump(mode="json"))


def said(pinned: Pinned, name: str) -> str:
    """What the run keeps about a file."""
    return (tracking.get_bytes(pinned.run_id, f"{int8.FOLDER}/{name}.txt") or b"").decode()


def candidate(accuracy: float, low: float, goal: float = 1.0) -> validate.Candidate:
    """A file of this accuracy that is at least so much faster, and reaches so much of the goal."""
    latency = Latency(1.0, 1.0, None, 1.0, 100)
    return validate.Candidate(
        Comparison(1.1 * low, low, 1.2 * low, 0.95, 6, 30, latency, latency, summed([]), 1.0),
        accuracy,
        0,
        NOTHING,
        goal,
    )


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ({"pruned": (0.9, 1.5)}, "pruned"),
        ({"pruned": (0.9, 1.5), "dense_int8": (0.9, 1.4), "pruned_int8": (0.885, 2.5)}, "pruned_int8"),
        ({"pruned": (0.9, 1.5), "dense_int8": (0.9, 1.4), "pruned_int8": (0.87, 2.5)}, "pruned"),
        ({"pruned": (0.87, 1.5), "dense_int8": (0.9, 1.4), "pruned_int8": (0.86, 2.5)}, "dense_int8"),
        ({"pruned": (0.9, 1.5), "dense_int8": (0.9, 1.5), "pruned_int8": (0.9, 1.5)}, "pruned"),
        ({"pruned": (0.8, 1.5), "dense_int8": (0.85, 1.1), "pruned_int8": (0.7, 2.5)}, "dense_int8"),
        ({"pruned": (0.9, 1.0), "dense_int8": (0.9, 1.4, 0.5), "pruned_int8": (0.9, 1.3)}, "pruned_int8"),
        ({"pruned": (0.9, 1.0), "dense_int8": (0.9, 1.4, 0.5), "pruned_int8": (0.87, 1.3)}, "pruned"),
        ({"pruned": (0.9, 1.0, 0.9), "dense_int8": (0.9, 1.4, 0.5), "pruned_int8": (0.87, 1.3)}, "pruned"),
        ({"pruned": (0.9, 1.0, 0.9), "dense_int8": (0.9, 1.4, 0.5), "pruned_int8": (0.9, 1.3, 0.9)}, "pruned_int8"),
    ],
)
def test_the_fastest_file_within_the_budget_that_reaches_the_goal_ships_else_the_nearest_or_the_most_accurate(
    found: dict[str, tuple[float, ...]], chosen: str
) -> None:
    ships, reason = validate.choose(
        {name: candidate(*figures) for name, figures in found.items()}, DENSE, DROP, "accuracy"
    )
    assert ships == chosen
    assert reason.startswith(f"{chosen}: ")
    assert ("none of" in reason) == all(accuracy < DENSE - DROP for accuracy, *_ in found.values())


@pytest.mark.usefixtures("services")
class TestSteps:
    """On the shared job."""

    def test_without_being_asked_nothing_is_quantised(self, job: Job) -> None:
        assert job.baseline.int8 is None
        assert job.exported.candidates == {"pruned": job.exported.pruned}
        assert job.validated.ships == job.verdict.ships == "pruned"

    def test_auto_leaves_out_what_gains_no_time_and_says_why(
        self, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(machine, "here", lambda: Machine("", 1, ("SSE4.2",), None))
        pinned = asking(job, "auto without AVX2", "auto")
        assert int8.made(pinned, tmp_path / "never read.onnx", *SOURCE, "dense_int8") is None
        assert said(pinned, "dense_int8").startswith("left out, on CPUExecutionProvider it buys memory (")

    def test_a_file_without_anything_to_quantise_is_left_out_by_auto_and_refused_by_true(
        self, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(machine, "here", lambda: Machine("", 1, ("AVX2", "AVX-VNNI"), None))
        adds = write_onnx(tmp_path / "adds.onnx", 1.0)
        pinned = asking(job, "auto of nothing", "auto")
        assert int8.made(pinned, adds, *SOURCE, "dense_int8") is None
        assert said(pinned, "dense_int8").startswith("left out, model: expected ")
        with pytest.raises(InputError, match=r"^quantize\.int8: dense_int8 cannot be made: model: expected "):
            int8.made(asking(job, "true of nothing", True), adds, *SOURCE, "dense_int8")

    def test_an_int8_file_is_judged_by_its_own_answers_and_promoted_with_its_precision(self, job: Job) -> None:
        pinned = asking(job, "ships int8", True, "tiny-in-int8")
        with tracking.fetched(job.exported.pruned) as path:
            source = job.exported.pruned, job.exported.program
            made, again = (int8.made(pinned, path, *source, "pruned_int8") for _ in range(2))
        assert made is not None
        assert made == again
        assert "2 Conv" in said(pinned, "pruned_int8")
        assert "ranges of 40 examples" in said(pinned, "pruned_int8")
        exported = replace(job.exported, pruned_int8=made)
        verdict = gate.run(pinned, exported, replace(job.validated, ships="pruned_int8"))
        assert (verdict.outcome, verdict.ships) == ("pass", "pruned_int8")
        sentences = {rule.name: rule.sentence for rule in verdict.rules}
        assert sentences["parity"].endswith("INT8 itself is proven by its metric alone")
        evidence = tracking.get_json(pinned.run_id, "gate/verdict.json")
        assert evidence is not None
        assert evidence["files"]["pruned_int8"]["sha256"] == made.file.sha256
        assert "pruned_int8.accuracy" in tracking.client().get_run(pinned.run_id).data.metrics
        promotion = promote.run(pinned, exported, verdict)
        assert versions_of(pinned.model) == ["1", "2"]
        assert serving(pinned.model) == ("2", "2", "2")
        assert registry.onnx_file(pinned.model, promotion.version) == made.file
        kinds = [self.tags(pinned.model, version) for version in ("1", "2")]
        assert kinds == [("dense", "float32"), ("pruned", "int8")]

    def test_training_for_int8_is_tried_where_the_budget_is_broken_and_kept_where_it_is_better(
        self, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        pinned = asking(job, "aware", True, aware_epochs=2)
        torch.manual_seed(0)
        programs.save(models.export(network(), torch.from_numpy(examples()[0][:2])), tmp_path / "untrained.pt2", {})
        untrained = tracking.put(pinned.run_id, tmp_path / "untrained.pt2", "untrained")
        with tracking.fetched(job.exported.pruned) as path:
            plain = int8.made(pinned, path, job.exported.pruned, untrained, "pruned_int8")
        assert plain is not None
        assert int8.made_up_for(pinned, job.baseline, plain) == plain, "the budget is kept"
        scores = {plain.file: 0.3}
        monkeypatch.setattr(int8, "_accuracy", lambda pinned, recipe, file: scores.get(file, 0.4))
        aware = int8.made_up_for(pinned, job.baseline, plain)
        assert said(pinned, int8.AWARE).endswith("after 2 epochs of training for it 0.4000: kept")
        assert len({plain.file, plain.onnx, plain.program, aware.file, aware.onnx, aware.program}) == 6
        history = tracking.client().get_metric_history(pinned.run_id, "aware_accuracy")
        assert {metric.step for metric in history} == {0, 1, 2}
        split = datasets.load(recipe.Recipe.model_validate(pinned.recipe), pinned.inputs).validation
        exported = replace(job.exported, pruned_int8=aware)
        assert validate._parity(exported, "pruned_int8", split) < 1e-4
        assert validate._parity(replace(exported, pruned=aware.onnx), "pruned", split) > 1e-4
        scores[plain.file] = 0.5
        assert int8.made_up_for(pinned, job.baseline, plain) == plain
        assert said(pinned, int8.AWARE).endswith("after 2 epochs of training for it 0.4000: left out")

    @staticmethod
    def tags(model: str, version: str) -> tuple[str, str]:
        """What a registered version is, and in which numbers."""
        found = tracking.client().get_model_version(registry.onnx_name(model), version).tags
        return found["secateur.kind"], found["secateur.precision"]

    @pytest.mark.slow
    def test_all_files_are_measured_against_the_dense_one_and_the_one_that_ships_gives_the_figures(
        self, job: Job
    ) -> None:
        pinned = asking(job, "measures int8", True)
        base = baseline.run(pinned)
        exported: Exported = export.run(pinned, base, job.selected)
        assert list(exported.candidates) == ["pruned", "dense_int8", "pruned_int8"]
        assert len({file.sha256 for file in exported.candidates.values()}) == 3
        validated = validate.run(pinned, base, exported)
        run = tracking.client().get_run(pinned.run_id).data
        for name in exported.candidates:
            low, middle, high = (run.metrics[f"{name}.{end}"] for end in ("speedup_low", "speedup", "speedup_high"))
            assert low <= middle <= high
            assert run.metrics[f"{name}.validation_accuracy"] > 0.5
        assert run.metrics["pruned_int8.size_bytes"] < run.metrics["dense_int8.size_bytes"]
        assert run.tags["secateur.ships"].startswith(f"{validated.ships}: ")
        assert run.metrics["speedup_low"] == run.metrics[f"{validated.ships}.speedup_low"] == validated.speedup_low
        assert gate.run(pinned, exported, validated).ships == validated.ships
