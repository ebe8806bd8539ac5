"""10,000 requests a second over 100 models: what is sampled, stored, read and spent in an hour, by measuring one model's share."""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from benchmarks.context import Row
from secateur.inference_log import reader
from secateur.inference_log.schema import Record
from secateur.inference_log.writer import Settings, Writer

MODELS, PER_SECOND, SAMPLE, LOOKED_AT = 100, 10_000, 0.01, 500
IMAGE = (1, 3, 224, 224)
STORE_PRICE, READ_PRICE = (
    0.023,
    0.0004,
)  # dollars for a GB in a month, and for a thousand reads, of S3 in us-east-1 in 2026
PUT_PRICE = 0.005  # for a thousand writes


def simulated(seed: int) -> Row:
    """Write one model's hour as a server would, read it as a look would, and count for all of them."""
    rng = np.random.default_rng(seed)
    asked = PER_SECOND * 3600 // MODELS
    kept = round(asked * SAMPLE)
    row = rng.random((1, 20)).astype(np.float32)
    hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=2)
    with tempfile.TemporaryDirectory() as folder:
        writer = Writer(folder, Settings(sample=SAMPLE, flush_s=1.0))
        outputs = {"y": rng.random((1, 10)).astype(np.float32)}
        begun = time.perf_counter()
        for number in range(asked):
            at = hour + timedelta(seconds=3600 * number / asked)
            writer.write(Record(at, f"r{seed}-{number}", "m-onnx", "1", {"x": row}, outputs, 1.0))
        handing_us = (time.perf_counter() - begun) / asked * 1e6
        counts = writer.close(60)
        files = list(Path(folder).rglob("*.parquet"))
        stored = sum(path.stat().st_size for path in files)
        begun = time.perf_counter()
        window = reader.read(folder, "m-onnx", hour, hour + timedelta(hours=1))
        reading_s = time.perf_counter() - begun
    image = int(np.prod(IMAGE)) * 4
    return {
        "requests an hour, all": PER_SECOND * 3600,
        "kept an hour, all": counts.written * MODELS,
        "asked for": kept * MODELS,
        "dropped": counts.dropped,
        "µs to hand over one": handing_us,
        "MB an hour, all, a row of 20 numbers": stored * MODELS / 1e6,
        "GB an hour, all, an image of 224x224": (stored + counts.written * image) * MODELS / 1e9,
        "s to read an hour of one": reading_s,
        "read": len(window.records),
        "dollars a month to store 30 days, rows": stored * MODELS * 720 / 1e9 * STORE_PRICE,
        "dollars a month of writes, a file every 10 s": MODELS * 360 * 720 / 1000 * PUT_PRICE,
        "dense answers an hour, all": MODELS * LOOKED_AT,
    }
