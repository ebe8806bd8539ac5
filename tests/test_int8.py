"""Training for INT8: tried where rounding breaks the accuracy budget, kept where it helps."""

from dataclasses import replace
from pathlib import Path

import models
import pytest
import torch
from services import Job, examples, network
from test_precisions import asking, said

from secateur import program as programs
from tasks import datasets, int8, precisions, recipe, tracking, validate


@pytest.mark.usefixtures("services")
def test_training_for_int8_is_tried_where_the_budget_is_broken_and_kept_where_it_is_better(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pinned = asking(job, "aware", True, aware_epochs=2)
    torch.manual_seed(0)
    programs.save(models.export(network(), torch.from_numpy(examples()[0][:2])), tmp_path / "untrained.pt2", {})
    untrained = tracking.put(pinned.run_id, tmp_path / "untrained.pt2", "untrained")
    with tracking.fetched(job.exported.pruned) as path:
        plain = precisions.made(pinned, path, job.exported.pruned, untrained, "pruned_int8")
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
