"""Watching what serves, measured: `make bench-monitor`, on the running stack with the sample model promoted; DATA=<folder>, PARTS="shifts ..."."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine, shapes
from benchmarks.context import Context, Row, Skipped, say
from benchmarks.monitor import loop, pairs, scale, server, shifts
from benchmarks.monitor.report import markdown
from secateur.errors import InputError
from tasks.cli.settings import export_settings

CLEAN_LOOKS, DRIFT_LOOKS = 20_000, 1_000
LOOPED = "contrast 3", "brightness 50%"  # which hurts both models, and which hurts the pruned one more
BARE = "bench-resnet50"


def main() -> int:
    """Run the parts, write what they gave after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--shift", nargs="+", default=LOOPED, help="each of a loop")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--cache", type=Path, default=Path(".bench"))
    asked = parser.parse_args()
    export_settings()
    if not os.environ.get("SECATEUR_BUCKET"):
        parser.error(
            "expected a running stack, or SECATEUR_BUCKET and MLflow's address in the environment; try make up"
        )
    context = Context(asked.data, asked.cache)
    asked.cache.mkdir(exist_ok=True)
    path = asked.out / "monitor.json"
    for part in asked.parts:
        say(part)
        try:
            found = PARTS[part](context, asked.shift)
        except (Skipped, InputError) as missing:
            say(f"{part}: {missing}")
            continue
        about = {"date": datetime.date.today().isoformat(), "code": machine.commit(), "machine": machine.in_words()}
        results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}  # another part may run beside
        results[part] = {**about, "rows": found}
        path.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        (asked.out / "monitor.md").write_text(markdown(results))
    print((asked.out / "monitor.md").read_text() if path.exists() else "Nothing was measured.")
    return 0


def shifted(context: Context, _: Sequence[str]) -> list[Row]:
    """Digits under growing shifts, with labels and without."""
    return _studied(pairs.digits(context.seed), context.seed)


def jpeg(context: Context, _: Sequence[str]) -> list[Row]:
    """CIFAR-10 through JPEG."""
    return _studied(pairs.cifar10(context), context.seed)


def _studied(pair: pairs.Pair, seed: int) -> list[Row]:
    before = shifts.past(pair, seed)
    rows = [
        {"pair": pair.name, "kind": "clean", **shifts.clean(pair, CLEAN_LOOKS, seed)},
        {"pair": pair.name, "kind": "drift", **shifts.drifts(pair, DRIFT_LOOKS, seed)},
    ]
    for shift in ("clean", *(name for name in pair.inputs if name != "clean")):
        for labelled in (True, False):
            row = shifts.study(pair, before, shift, seed, labelled=labelled)
            say(f"{shift}, labels {labelled}: {row['watch']}, {row['breach']} {row['cause']}")
            rows.append({"kind": "shift", **row})
    return rows


def whole(context: Context, wanted: Sequence[str]) -> list[Row]:
    """The loop with a server under traffic, for each shift."""
    pair = pairs.digits(context.seed)
    if missing := set(wanted) - set(pair.inputs):
        raise InputError(f"--shift: expected some of {', '.join(pair.inputs)}, got {', '.join(sorted(missing))}")
    return [loop.run(pair, shift, context.seed) for shift in wanted]


def served(context: Context, _: Sequence[str]) -> list[Row]:
    """The reference server beside bare ONNX Runtime on ResNet-50."""
    name, threads = f"{BARE}-onnx", 1
    file = shapes.onnx_of(
        shapes.dense_program("ResNet-50", context.cache, context.seed), context.cache / "ResNet-50.onnx"
    )
    image = shapes.example("ResNet-50", context.seed)
    with tempfile.TemporaryDirectory() as folder:
        server.publish(name, "1", file)
        with server.running(BARE, f"{folder}/log", "--sample", "0.01", threads=threads) as (url, pid):
            only = _only(url, name)
            row = server.overhead(url, name, file, image, threads)
            say(f"overhead: {row}")
            row |= server.full_load(url, pid, name, only, image)
            say(f"full load: {row}")
        server.publish(name, "2", file)
        options = ("--sample", "0.01", "--poll-s", "0.2")
        with server.running(BARE, f"{folder}/log", *options, threads=threads) as (url, pid):
            row |= server.reloads(url, name, only, image, ("1", "2"))
    return [row]


def _only(url: str, name: str) -> str:
    import httpx

    return str(httpx.get(f"{url}/v2/models/{name}").json()["inputs"][0]["name"])


def on_paper(context: Context, _: Sequence[str]) -> list[Row]:
    """10,000 requests a second over 100 models."""
    return [scale.simulated(context.seed)]


PARTS: dict[str, Callable[[Context, Sequence[str]], list[Row]]] = {
    "shifts": shifted,
    "jpeg": jpeg,
    "loop": whole,
    "server": served,
    "scale": on_paper,
}

if __name__ == "__main__":
    raise SystemExit(main())
