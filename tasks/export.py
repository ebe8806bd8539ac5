"""Exports the chosen program to the files that could be deployed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tasks import int8, tracking
from tasks.references import Baseline, Exported, Pinned, Selected


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline, selected: Selected) -> Exported:
    """Write the ONNX file, its weights counted against the program's, its INT8 form if asked, and record the exporter.

    Where no cycle was selected the dense model's INT8 is all there is to export.
    """
    from secateur import onnx_export
    from secateur import program as programs

    if selected.cycle is None:
        assert baseline.int8 is not None, "what is selected is the dense model's INT8"
        return Exported(0, baseline.figures.onnx, None, None, int8.made_up_for(pinned, baseline, baseline.int8))
    source = selected.cycle.program
    with tracking.fetched(source) as path, tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        program = programs.load(path)
        onnx_path = Path(folder) / "model.onnx"
        onnx_export.export(program, onnx_path)
        pruned = tracking.put(pinned.run_id, onnx_path, "export")
        quantised = int8.made(pinned, onnx_path, pruned, source, "pruned_int8")
    if quantised:
        quantised = int8.made_up_for(pinned, baseline, quantised)
    tracking.log(pinned.run_id, {}, exporter=onnx_export.EXPORTER)
    return Exported(selected.cycle.cycle, baseline.figures.onnx, pruned, source, baseline.int8, quantised)
