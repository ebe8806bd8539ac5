"""Exports the chosen program to the files that could be deployed."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tasks import int8, precisions, tracking
from tasks.references import Baseline, Exported, Pinned, Selected


@tracking.remembered
def run(pinned: Pinned, baseline: Baseline, selected: Selected) -> Exported:
    """Write the ONNX file, its weights counted against the program's, its forms in lower precision if asked, and record the exporter.

    Where no cycle was selected the dense model's own forms are all there is to export.
    """
    from secateur import onnx_export
    from secateur import program as programs

    if selected.cycle is None:
        assert baseline.int8 is not None, "what is selected is the dense model's INT8"
        dense_int8 = int8.made_up_for(pinned, baseline, baseline.int8)
        return Exported(0, baseline.figures.onnx, None, None, dense_int8=dense_int8, dense_fp16=baseline.fp16)
    source = selected.cycle.program
    with tracking.fetched(source) as path, tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        program = programs.load(path)
        onnx_path = Path(folder) / "model.onnx"
        onnx_export.export(program, onnx_path)
        pruned = tracking.put(pinned.run_id, onnx_path, "export")
        rounded, halved = (
            precisions.made(pinned, onnx_path, pruned, source, f"pruned_{precision}") for precision in precisions.ALL
        )
    if rounded:
        rounded = int8.made_up_for(pinned, baseline, rounded)
    tracking.log(pinned.run_id, {}, exporter=onnx_export.EXPORTER)
    return Exported(
        cycle=selected.cycle.cycle,
        dense=baseline.figures.onnx,
        pruned=pruned,
        program=source,
        dense_int8=baseline.int8,
        pruned_int8=rounded,
        dense_fp16=baseline.fp16,
        pruned_fp16=halved,
    )
