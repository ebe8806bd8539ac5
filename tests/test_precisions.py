"""Files in lower precision: made where the recipe asks for them, judged by their own answers, promoted with their precision."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from services import Job, another_job, versions_of, write_onnx
from test_champion import serving

from secateur import machine
from secateur.errors import InputError
from secateur.machine import Machine
from tasks import export, gate, precisions, promote, recipe, registry, tracking
from tasks.references import File, Pinned, Selected

SOURCE = File("runs:/0/none.onnx", ""), File("runs:/0/none.pt2", "")


def asking(job: Job, name: str, wanted: Any, model: str | None = None, **more: Any) -> Pinned:
    """The shared job's inputs as a job of its own that asks for lower precisions."""
    filled = recipe.Recipe.model_validate(
        {**job.pinned.recipe, "quantize": {"int8": wanted, "calibration": 40, **more}}
    )
    return replace(another_job(job.pinned, name, model), recipe=filled.model_dump(mode="json"))


def said(pinned: Pinned, name: str) -> str:
    """What the run keeps about a file."""
    return (tracking.get_bytes(pinned.run_id, f"{name.rpartition('_')[2]}/{name}.txt") or b"").decode()


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
        assert precisions.made(pinned, tmp_path / "never read.onnx", *SOURCE, "dense_int8") is None
        assert said(pinned, "dense_int8").startswith("left out, on CPUExecutionProvider it buys memory (")

    def test_a_file_without_anything_to_quantise_is_left_out_by_auto_and_refused_by_true(
        self, job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr(machine, "here", lambda: Machine("", 1, ("AVX2", "AVX-VNNI"), None))
        adds = write_onnx(tmp_path / "adds.onnx", 1.0)
        pinned = asking(job, "auto of nothing", "auto")
        assert precisions.made(pinned, adds, *SOURCE, "dense_int8") is None
        assert said(pinned, "dense_int8").startswith("left out, model: expected ")
        with pytest.raises(InputError, match=r"^quantize\.int8: dense_int8 cannot be made: model: expected "):
            precisions.made(asking(job, "true of nothing", True), adds, *SOURCE, "dense_int8")

    def test_an_int8_file_is_judged_by_its_own_answers_and_promoted_with_its_precision(self, job: Job) -> None:
        pinned = asking(job, "ships int8", True, "tiny-in-int8")
        with tracking.fetched(job.exported.pruned) as path:
            source = job.exported.pruned, job.exported.program
            made, again = (precisions.made(pinned, path, *source, "pruned_int8") for _ in range(2))
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

    def test_an_fp16_file_is_smaller_and_is_judged_and_promoted_like_any_other(self, job: Job) -> None:
        pinned = asking(job, "ships fp16", False, "tiny-in-fp16", fp16=True)
        with tracking.fetched(job.exported.pruned) as path:
            source = job.exported.pruned, job.exported.program
            assert precisions.made(pinned, path, *source, "pruned_int8") is None
            made, again = (precisions.made(pinned, path, *source, "pruned_fp16") for _ in range(2))
            before = path.stat().st_size
        assert made is not None
        assert made == again
        assert said(pinned, "pruned_fp16").startswith("FP16: weights of ")
        with tracking.fetched(made.file) as path:
            assert path.stat().st_size < before
        exported = replace(job.exported, pruned_fp16=made)
        verdict = gate.run(pinned, exported, replace(job.validated, ships="pruned_fp16"))
        assert (verdict.outcome, verdict.ships) == ("pass", "pruned_fp16")
        assert any(rule.sentence.endswith("FP16 itself is proven by its metric alone") for rule in verdict.rules)
        promotion = promote.run(pinned, exported, verdict)
        assert registry.onnx_file(pinned.model, promotion.version) == made.file
        assert self.tags(pinned.model, promotion.version) == ("pruned", "fp16")

    def test_where_nothing_is_pruned_every_form_of_the_dense_model_that_was_asked_for_may_ship(self, job: Job) -> None:
        pinned = asking(job, "only forms", True, fp16=True)
        with tracking.fetched(job.baseline.figures.onnx) as path:
            source = job.baseline.figures.onnx, job.pinned.program
            rounded, halved = (precisions.made(pinned, path, *source, f"dense_{one}") for one in precisions.ALL)
        exported = export.run(pinned, replace(job.baseline, int8=rounded, fp16=halved), Selected(None, "only forms"))
        assert list(exported.candidates) == ["dense_int8", "dense_fp16"]

    def test_auto_leaves_fp16_out_where_it_is_computed_between_casts(self, job: Job, tmp_path: Path) -> None:
        pinned = asking(job, "auto fp16", False, fp16="auto")
        assert precisions.made(pinned, tmp_path / "never read.onnx", *SOURCE, "dense_fp16") is None
        assert said(pinned, "dense_fp16").startswith("left out, on CPUExecutionProvider it buys disk (half the file; ")

    @staticmethod
    def tags(model: str, version: str) -> tuple[str, str]:
        """What a registered version is, and in which numbers."""
        found = tracking.client().get_model_version(registry.onnx_name(model), version).tags
        return found["secateur.kind"], found["secateur.precision"]
