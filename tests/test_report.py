"""The report of a run: one file that needs nothing else, the same for the same run, honest about what is missing, safe to open."""

import dataclasses
import math
import re
import sys
import xml.etree.ElementTree
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from services import CHANNELS, MODEL, Job

from secateur import planner
from secateur.errors import InputError, NothingToDo
from tasks import registry, report, tracking
from tasks.cli import app
from tasks.references import GateResult, RuleResult
from tasks.report import pictures, render
from tasks.report.gather import (
    Bound,
    ClassChange,
    Curve,
    Evidence,
    Measured,
    Point,
    Promise,
    Size,
    Width,
    gather,
    wilson,
)

HOSTILE = "<script>alert('&\"x')</script> [a](javascript:b) `c` | d"
SMALL = 3_000_000  # bytes of a page
SLICE = Bound("class 0", "reported", math.nan, -0.05, -0.1, 0.0, "changed by -5.00 points")
RULES = (
    Bound("accuracy", "pass", -0.02, -0.003, -0.012, 0.006, "accuracy changed by -0.30 points"),
    Bound("speedup", "inconclusive", 2.0, 2.02, 1.95, 2.1, "2.02x faster"),
    Bound("parity", "fail", 1e-4, 1e-3, 1e-3, 1e-3, "ONNX outputs differ"),
    Bound("p99", "fail", 1.0, math.nan, math.nan, math.nan, "no finite figure was measured"),
    Bound("slices", "reported", math.nan, -0.05, -0.1, 0.0, "worst of 2", (SLICE, replace(SLICE, name="class 1"))),
)
FIGURES = (0.98, 0.97, 2.0, (1.9, 2.1), 1.0, 1.2, None, 1000.0, 100.0, 1000.0)
DENSE = Measured("dense", False, 0.98, 0.97, None, None, 2.0, 2.4, None, 2000.0, 200.0, 2000.0)
FULL = Evidence(
    run_id="r1",
    title="tiny version 1",
    started="2026-11-24 10:00+00:00",
    model="tiny",
    version="1",
    recipe_name="tiny",
    recipe={
        "budget": {"accuracy_drop": 0.02},
        "target": {"provider": "CPUExecutionProvider", "threads": 2, "batch": 1},
    },
    metric="accuracy",
    outcome="fail",
    reason="parity: ONNX outputs differ",
    ships="pruned",
    rules=RULES,
    test_examples=629,
    look="look 2 at this test split, 5 of which cost no confidence",
    incumbent="version 1",
    confidence=0.95,
    plan=(planner.Row("cycles", "2", "the share lies between 30% and 50%", "50%"),),
    not_pruned="",
    selected="cycle 1: the fastest",
    shipped_because="pruned: the fastest",
    promoted="",
    files=(DENSE, Measured("pruned", True, *FIGURES), Measured("pruned_int8", False, *FIGURES)),
    points=(
        Point("dense", "dense", 0.98, (0.97, 0.99), 0.0, 2.0, None, False),
        Point("cycle 1", "cycle", 0.975, (0.96, 0.98), 0.5, 1.0, (0.9, 1.1), True),
        Point("pruned INT8", "converted", 0.97, (0.95, 0.98), None, 0.5, (0.4, 0.6), False),
    ),
    widths=(Width("conv1", "channel", 16, 8),),
    curves=(Curve("dense", ((10.0, 1.9), (50.0, 2.0), (90.0, 2.4)), 100),),
    sizes=(Size(8, 1.5, (1.4, 1.6), 2000.0, 1400.0, 5 * 2.0**20, 9 * 2.0**20),),
    classes=(ClassChange("0", 60, 2, 1, -0.017, -0.08, 0.05),),
    promises=(Promise("multiply-accumulates", 3.8, None), Promise("measured", 2.0, (1.9, 2.1))),
    explained="Every node became as much faster.",
    converted={"pruned_int8": "calibrated on 40 examples"},
    machine="a processor",
    noise="quiet",
    origin=(("program", "abc"),),
    commands=(("This report", "secateur report r1"),),
)
EMPTY = replace(
    FULL,
    **dict.fromkeys(
        (
            "look",
            "incumbent",
            "outcome",
            "reason",
            "ships",
            "selected",
            "shipped_because",
            "explained",
            "machine",
            "noise",
        ),
        "",
    ),
    **dict.fromkeys(("rules", "plan", "files", "points", "widths", "curves", "sizes", "classes", "promises"), ()),
    recipe={},
    test_examples=None,
    converted={},
)
VERDICT = GateResult("pruned", "pass", "all hold", (RuleResult("speedup", "pass", "2.02x faster"),), "digest")


def svgs(page: str) -> list[xml.etree.ElementTree.Element]:
    """Every picture of a page, parsed."""
    return [xml.etree.ElementTree.fromstring(found) for found in re.findall(r"<svg.*?</svg>", page, re.DOTALL)]


def hostile(value: Any) -> Any:
    """A value with every text in it replaced, but for those that Secateur chooses among."""
    if isinstance(value, str):
        return HOSTILE
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return replace(value, **{name: hostile(found) for name, found in fields.items()})
    if isinstance(value, dict):
        return {name: hostile(found) for name, found in value.items()}
    return tuple(map(hostile, value)) if isinstance(value, tuple) else value


# --- a whole run


@pytest.mark.usefixtures("services")
def test_the_page_of_a_run_stands_alone_and_opens_with_the_verdict(job: Job) -> None:
    page = report.page(job.pinned.run_id).decode()
    assert len(page) < SMALL
    assert not re.search(r"<script|https?://|src=|@import|url\(", page)
    assert page.index('<p class="stamp">pass</p>') < page.index("<h2>")
    for rule in job.verdict.rules:
        assert rule.sentence.replace("'", "&#39;") in page
    assert len(svgs(page)) == len(job.verdict.rules) + 5  # two trade-offs, latencies, promises, classes


@pytest.mark.usefixtures("services")
def test_a_report_tells_what_the_steps_measured(job: Job) -> None:
    told = gather(job.pinned.run_id)
    assert [point.name for point in told.points] == ["dense", "cycle 1", "cycle 2"]
    assert [point.chosen for point in told.points] == [cycle == job.selected.cycle.cycle for cycle in (0, 1, 2)]
    assert {axis.before for axis in told.widths} == {CHANNELS}
    assert all(axis.after < axis.before for axis in told.widths)
    assert [curve.name for curve in told.curves] == ["dense", "pruned"]
    assert [size.batch for size in told.sizes] == [4]
    assert told.promises[-1].interval == (job.validated.speedup_low, job.validated.speedup_high)
    evidence = tracking.get_json(job.pinned.run_id, "gate/verdict.json")
    assert evidence is not None
    assert sum(one.examples for one in told.classes) == evidence["test_examples"]
    for side in ("lost", "gained"):
        assert sum(getattr(one, side) for one in told.classes) == len(evidence[side])


@pytest.mark.usefixtures("services")
def test_the_run_s_description_leads_to_the_report_and_is_linked_once(job: Job) -> None:
    again = report.run(job.pinned)
    assert again == job.reported
    description = tracking.description(job.pinned.run_id)
    assert description.startswith(f"**pass** · {job.verdict.reason}\n\nReport: [report.html](#/experiments/")
    assert description.count("report.html") == 2  # its name and its address
    assert again.address.endswith(f"/runs/{job.pinned.run_id}/artifacts/report/report.html")
    assert (tracking.get_bytes(job.pinned.run_id, "report/summary.md") or b"").startswith(b"# tiny version 1: pass")


@pytest.mark.usefixtures("services")
def test_the_description_of_a_registered_version_is_its_card(job: Job) -> None:
    version = tracking.client().get_model_version(registry.onnx_name(MODEL), "2")
    for part in (
        "**Came from** tiny version 1",
        "**Removed**",
        "**Proven** on",
        "**Not proven**",
        "**Let through by**",
    ):
        assert part in version.description
    assert f"evidence {job.verdict.evidence}" in version.description
    assert len(version.description) <= render.LONGEST_CARD


@pytest.mark.usefixtures("services")
def test_a_report_that_cannot_be_written_skips_and_fails_nothing(job: Job) -> None:
    with pytest.raises(
        NothingToDo, match=r"^no report: InputError: run: expected the run of a whole job.* tries again$"
    ):
        report.run(replace(job.pinned, run_id=job.cycles[0].run_id))


@pytest.mark.usefixtures("services")
def test_the_command_writes_the_page(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "page.html"
    for words, status in ((job.pinned.run_id, 0), ("unknown", 1)):
        monkeypatch.setattr(sys, "argv", ["secateur", "report", words, "-o", str(path)])
        with pytest.raises(SystemExit) as ended:
            app.main()
        assert (ended.value.code or 0) == status
    assert path.read_bytes() == report.page(job.pinned.run_id)
    assert "Error: run: expected the id of a run in MLflow, got 'unknown'" in capsys.readouterr().err


def test_a_run_of_something_else_is_no_job(job: Job, services: Any) -> None:
    with pytest.raises(InputError, match=r"^run: expected the run of a whole job, got 'cycle 1', a cycle"):
        gather(job.cycles[0].run_id)


# --- what is missing, and what is hostile


def test_what_a_run_does_not_have_is_said_and_not_drawn() -> None:
    page = render.page(EMPTY)
    assert "<svg" not in page
    for sentence in (
        "ended before the gate",
        "Nothing was measured",
        "No cycle",
        "No axis",
        "No latencies",
        "no classes",
    ):
        assert sentence in page
    assert "No lower precision was asked for" in page
    assert render.summary(EMPTY).startswith("# tiny version 1: no verdict")


def test_a_run_that_was_planned_not_to_prune_opens_with_the_reason() -> None:
    ended = replace(EMPTY, not_pruned="the dense model is within the goal as it is")
    assert "The plan was not to prune: the dense model is within the goal as it is." in render.page(ended)
    assert render.summary(ended).startswith("# tiny version 1: not pruned")


def test_a_trial_opens_with_what_validation_said_of_it() -> None:
    ended = replace(EMPTY, trial="accuracy changed by -0.30 points on 270 validation examples")
    assert "judged on validation alone: accuracy changed by -0.30 points on 270 validation examples." in render.page(
        ended
    )
    assert render.summary(ended).startswith("# tiny version 1: trial")


def test_zeros_are_counted_where_a_method_makes_some() -> None:
    sparse = replace(FULL, files=(DENSE, replace(FULL.files[1], zeros=60.0)))
    assert "of them zero" in render.page(sparse)
    assert "of them zero" not in render.page(FULL)
    assert "60 parameters set to zero" in render.card(sparse, "Pruned", VERDICT, "somebody")


@pytest.mark.parametrize("write", [render.page, render.summary])
def test_other_batch_sizes_are_told_where_the_recipe_names_some(write: Callable[[Evidence], str]) -> None:
    text = write(FULL)
    for figure in ("1.50x", "1.40x to 1.60x", "2,000", "1,400", "5,120 KiB", "9,216 KiB"):
        assert figure in text
    assert "peak memory" not in write(replace(FULL, sizes=())).lower()


def test_what_users_wrote_is_shown_on_the_page_and_never_obeyed() -> None:
    page = render.page(hostile(FULL))
    assert "&lt;script&gt;alert" in page
    assert "<script" not in page
    assert len(svgs(page)) == len(svgs(render.page(FULL)))


@pytest.mark.parametrize(
    "write", [render.summary, lambda told: render.card(told, HOSTILE, replace(VERDICT, reason=HOSTILE), HOSTILE)]
)
def test_what_users_wrote_is_no_markup_of_markdown(write: Callable[[Evidence], str]) -> None:
    lines = [line for line in write(hostile(FULL)).splitlines() if not line.startswith("    ")]  # but for code
    assert any("alert" in line for line in lines)
    assert not any(part in line for line in lines for part in ("<script", "[a](", " `c`", " | d"))


def test_the_same_evidence_gives_the_same_bytes() -> None:
    assert render.page(FULL) == render.page(FULL)


def test_a_card_is_never_longer_than_the_registry_holds() -> None:
    long = replace(VERDICT, rules=(RuleResult("speedup", "pass", "x" * 6000),))
    assert len(render.card(FULL, "Pruned", long, "somebody")) == render.LONGEST_CARD


def test_a_card_says_that_nothing_left_where_what_ships_was_only_quantised() -> None:
    written = render.card(EMPTY, "Dense, INT8", replace(VERDICT, ships="dense_int8"), "somebody")
    assert "**Removed**: nothing. Rounded to INT8" in written


def test_of_many_classes_those_that_lost_most_are_told() -> None:
    classes = tuple(ClassChange(f"c{n}", 50, 1, 0, -n / 1000, -0.1, 0.05) for n in range(render.MOST_CLASSES + 20))
    page = render.page(replace(FULL, classes=classes))
    assert {f"c{n}" for n in range(20, len(classes))} == set(re.findall(r">(c\d+)<", page))
    assert f"the {render.MOST_CLASSES} of {len(classes)} classes" in page


def test_a_model_whose_metric_is_no_number_is_left_out_of_the_pictures() -> None:
    lost = replace(FULL.points[1], name="astray", accuracy=math.nan, accuracy_interval=None)
    page = render.page(replace(FULL, points=(*FULL.points, lost)))
    assert 'x="nan' not in page
    assert ">astray<" not in page


# --- pictures


def test_every_mark_and_every_line_of_all_files_has_a_colour_and_so_has_its_key() -> None:
    """A class without a style is drawn as nothing, or as a black shape; the legend would not say which is which."""
    names = ("dense", "pruned", "dense INT8", "pruned INT8", "dense FP16", "pruned FP16")
    page = render.page(replace(FULL, curves=tuple(replace(FULL.curves[0], name=name) for name in names)))
    style = page[: page.index("</style>")]
    keys = set(re.findall(r'class="key (\w+)"', page))
    assert {"dense", "cycle", "converted", "chosen"} | {f"line{number}" for number in range(len(names))} <= keys
    for key in keys:
        assert re.search(rf"\.key\.{key}\b", style), key
    for key in keys - {"chosen"}:
        assert re.search(rf"svg \.(?:mark\.)?{key}\b", style), key
        assert re.search(rf'class="(?:mark|curve) {key}"', page), f"{key} is in the legend only"


def test_a_card_of_an_fp16_file_says_that_its_metric_alone_proves_it() -> None:
    written = render.card(EMPTY, "Pruned, FP16", replace(VERDICT, ships="pruned_fp16"), "somebody")
    assert "Rounded to FP16." in written
    assert "that FP16 answers as floating point does is said by its" in written
    assert "FP16" not in render.card(EMPTY, "Pruned", VERDICT, "somebody")


def test_every_picture_is_inside_its_frame() -> None:
    for svg in svgs(render.page(FULL)):
        *_, width, height = map(float, svg.attrib["viewBox"].split())
        for element in svg.iter():
            across = [float(element.attrib[name]) for name in ("x", "x1", "x2", "cx") if name in element.attrib]
            down = [float(element.attrib[name]) for name in ("y", "y1", "y2", "cy") if name in element.attrib]
            assert all(-1 <= value <= width + 1 for value in across), element.attrib
            assert all(-1 <= value <= height + 1 for value in down), element.attrib


@pytest.mark.parametrize(
    ("outcome", "limit", "low", "high", "side"),
    [
        ("pass", -0.02, -0.01, 0.0, "above"),
        ("fail", -0.02, -0.05, -0.03, "above"),
        ("pass", 1e-4, 1e-7, 1e-7, "below"),
        ("fail", 1e-4, 1e-3, 1e-3, "below"),
        ("inconclusive", 2.0, 1.9, 2.1, ""),
    ],
)
def test_the_tinted_side_is_the_one_that_passes(outcome: str, limit: float, low: float, high: float, side: str) -> None:
    drawn = pictures.bound(Bound("rule", outcome, limit, (low + high) / 2, low, high, ""), pictures.plain)
    (tinted,) = re.findall(r'class="allowed" x="([\d.]+)"', drawn) or [None]
    assert (tinted is None, tinted == "0.0") == (side == "", side == "below")


def test_a_rule_that_asks_nothing_is_drawn_without_a_limit_and_its_parts_are_told() -> None:
    drawn = pictures.bound(RULES[4], pictures.plain)
    assert "whisker reported" in drawn
    assert "limit" not in drawn
    page = render.page(FULL)
    assert "<summary>2 parts</summary>" in page
    assert "<b>class 1</b>" in page


def test_a_rule_without_a_finite_figure_has_no_picture() -> None:
    assert pictures.bound(RULES[3], pictures.plain) == ""


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0.0, 1.0, False, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-0.021, 0.009, False, [-0.02, -0.01, 0]),
        (0.08, 6.0, True, [0.1, 0.3, 1, 3]),
    ],
)
def test_ticks_are_round(low: float, high: float, log: bool, ticks: list[float]) -> None:
    assert pictures.Scale(low, high, 0, 100, log=log).ticks == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("saving", "names"), [(True, ["dense", "cycle 1"]), (False, ["pruned INT8", "cycle 1", "dense"])]
)
def test_the_front_joins_what_no_other_point_beats(saving: bool, names: list[str]) -> None:
    beaten = Point("worse", "cycle", 0.9, None, 0.4, 1.5, None, False)
    shown = [(p.sparsity if saving else p.latency_ms, p) for p in (*FULL.points, beaten)]
    found = pictures.front([(at, point) for at, point in shown if at is not None], saving=saving)
    by_name = {point.name: point.accuracy for point in FULL.points}
    assert [accuracy for _, accuracy in found] == [by_name[name] for name in names]


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.0370), (0.5, 0.4038, 0.5962), (1.0, 0.9630, 1.0)])
def test_the_interval_of_a_share_is_wilson_s(share: float, low: float, high: float) -> None:
    assert wilson(share, 100) == pytest.approx((low, high), abs=1e-4)
