"""One look at what serves of a model: reads the log, judges, keeps what it saw in MLflow, and says what shall be done."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import InputError, NothingToDo
from tasks import recipe as recipes
from tasks import registry, tracking
from tasks.monitoring import observe
from tasks.recipe import Recipe
from tasks.sections.monitor import Monitor

if TYPE_CHECKING:
    from secateur.monitoring.judging import Judged
    from secateur.monitoring.levels import Levels
    from secateur.monitoring.reference import Reference
    from tasks.journal import Entry

STATE = "monitor/state.json"
PAGE = "monitor/monitor.html"
HEALTH = "secateur.health"  # the tag of a version that says how it does
SETTLES = timedelta(seconds=60)  # until a request is in the log, at the latest
LONGEST = timedelta(days=7)  # that one look goes back
KEPT_LOOKS = 1000  # on the page
SLOWER = 2.0  # than the validated p99, since a server and a network stand before the file


@dataclass(frozen=True)
class Look:
    """What a look found; `page` is the address of its page, `policy` what is done about a breach that is ours.

    `number` counts from when the version came to serve, as it may do more than once; `run` is the run in MLflow of that time.
    """

    model: str
    version: str
    run: str
    number: int
    outcome: str
    cause: str
    reason: str
    page: str
    policy: str
    changed: bool  # since the look before
    users: tuple[str, ...] = ()
    hours: float = 24.0
    again: str | None = None

    @property
    def ours(self) -> bool:
        """Whether the dense model would serve better."""
        return self.outcome == "breach" and self.cause == "ours"

    @property
    def sentence(self) -> str:
        """What a person is told."""
        whose = f" ({self.cause})" if self.cause else ""
        return f"{registry.onnx_name(self.model)} version {self.version}: {self.outcome}{whose}: {self.reason}"


@dataclass(frozen=True)
class Known:
    """What is known of a version before a look: levels and reference by its gate, and why there are none."""

    levels: Levels | None
    reference: Reference | None
    slow_ms: float | None
    missing: str = ""


def models() -> list[str]:
    """The source models of which something serves."""
    found = [one.name for one in _registered() if registry.CHAMPION in one.aliases]
    return [name.removesuffix(registry.onnx_name("")) for name in found]


def run(model: str, keep: bool = True) -> Look:
    """Look at what came since the last look.

    Without `keep` nothing of it is kept, and the next look looks at the same again.

    Raises:
        NothingToDo: nothing serves, or the dense model itself does: nothing of the pruning's can go wrong.
        OSError: a store does not answer.
    """
    registry.check_name(model)
    version = registry.champion(model)
    if version is None:
        raise NothingToDo(f"{model}: nothing serves")
    tags = tracking.client().get_model_version(registry.onnx_name(model), version).tags
    if tags.get(registry.KIND) == "dense" and registry.DENSE not in tags:
        raise NothingToDo(f"{model}: version {version}, the dense model, serves; nothing that pruning did can go wrong")
    entry = _entry(model, version)
    monitor = _monitor(tags)
    run_id = _run(model, version, entry)
    state = tracking.get_json(run_id, STATE) or {"looks": [], "detectors": {}}
    until = datetime.now(UTC) - SETTLES
    last = datetime.fromisoformat(state["until"]) if "until" in state else _begun(entry, until)
    judged, seen, state = _judged(model, version, tags, monitor, state, last, until)
    *earlier, now = state["looks"]
    look = Look(
        model,
        version,
        run_id,
        now["number"],
        judged.outcome,
        judged.cause,
        judged.reason,
        f"{tracking.address()}{tracking.page_of(run_id)}/artifacts/{PAGE}",
        monitor.policy,
        judged.outcome != (earlier[-1]["outcome"] if earlier else "healthy"),
        monitor.users,
        monitor.hours,
        monitor.again,
    )
    if keep:
        _keep(model, version, run_id, judged, state)
        if look.ours:
            _keep_drifted(model, seen)
        _expire(model, monitor, until)
    return look


def _judged(
    model: str,
    version: str,
    tags: Mapping[str, str],
    monitor: Monitor,
    state: dict[str, Any],
    last: datetime,
    until: datetime,
) -> tuple[Judged, observe.Seen, dict[str, Any]]:
    """The verdict on what came since the last look, what it rests on, and the state after it."""
    from secateur.monitoring import judging
    from secateur.monitoring.detectors import Detector

    since = max(min(last, until), until - LONGEST)
    known = _known(tags)
    number = state["looks"][-1]["number"] + 1 if state["looks"] else 1
    detectors = {name: Detector(tuple(owned)) for name, owned in state["detectors"].items()}
    seen, trouble = _observed(model, version, since, until, known, monitor, seed=number)
    if known.levels is None or trouble:
        judged, after = _unknown(trouble or known.missing), detectors
    else:
        judged, after = judging.judge(detectors, seen.observed, known.levels, seen.drift, known.slow_ms)
    said = [] if trouble or known.levels is None else [known.missing]
    if last < since:
        said.append(f"{(since - last).total_seconds() / 3600:.0f} hours before were too long ago to look at")
    judged = _beside(judged, seen, said)
    after_it = {
        # what could not be read is read by the next look
        "until": (since if trouble else until).isoformat(),
        "looks": [*state["looks"], _kept(number, judged, seen)][-KEPT_LOOKS:],
        "detectors": {name: one.owned for name, one in after.items()},
    }
    return judged, seen, after_it


def _registered() -> list[Any]:
    client, found, token = tracking.client(), [], None
    while True:
        page = client.search_registered_models(f"tags.`{registry.SOURCE}` LIKE '%'", max_results=100, page_token=token)
        found += list(page)
        token = page.token
        if not token:
            return found


def _entry(model: str, version: str) -> Entry | None:
    """The change of the journal by which the version serves."""
    from tasks import journal

    head = journal.read(model).head
    return head if head is not None and head.to_version == version else None


def _monitor(tags: Mapping[str, str]) -> Monitor:
    """What the recipe that the version came from says now; the defaults where there is none any more."""
    name = tags.get("secateur.recipe", "")
    try:
        return recipes.load(name).monitor
    except InputError as gone:
        print(f"the recipe {name!r} cannot be read, so the defaults go: {gone}", flush=True)
        return Monitor()


def _run(model: str, version: str, entry: Entry | None) -> str:
    """The run in MLflow that all looks at what serves by this change are in."""
    key = tracking.digest(["monitor", model, version, entry.digest if entry else ""])
    name = f"monitor {registry.onnx_name(model)} v{version}"
    tags = {"secateur.kind": "monitor", "secateur.version": version}
    return tracking.find_or_create_run(tracking.experiment_of(model), key, name, tags)


def _begun(entry: Entry | None, until: datetime) -> datetime:
    """When the version came to serve, as far as the journal says."""
    return datetime.fromisoformat(entry.when) if entry else until - timedelta(hours=1)


def _known(tags: Mapping[str, str]) -> Known:
    """What the gate left of the version."""
    from secateur.gate import evidence as evidences
    from secateur.gate import slices
    from secateur.gate.judging import Asked
    from secateur.monitoring import levels, reference, shadow

    run_id = tags.get("secateur.run")
    kept = {
        name: tracking.get_bytes(run_id, f"gate/{name}.npz") if run_id else None for name in ("evidence", "reference")
    }
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        paths = {name: Path(folder) / f"{name}.npz" for name in kept}
        for name, content in kept.items():
            paths[name].write_bytes(content or b"")
        found, seen = None, None
        with suppress(InputError):
            found = reference.read(paths["reference"])
        with suppress(InputError):
            seen = evidences.read(paths["evidence"])
    slow = _slow(run_id) if run_id else None
    if seen is None:
        return Known(
            None, found, slow, "what the gate saw of this version is missing or damaged: nothing says what is normal"
        )
    pinned = Recipe.model_validate(tracking.get_json(str(run_id), "recipe.json"))
    of_classes = shadow.of_evidence(seen)
    compared = of_classes or (shadow.shadow(found.dense, found.pruned) if found else None)
    gone = "" if found else "the reference of this version is missing or damaged: "
    if compared is None:
        return Known(None, found, slow, f"{gone}nothing says what is normal")
    right = (seen.dense.right, seen.pruned.right) if of_classes else None
    # ranges of the test set's own quarters are no slices of later examples
    by = {
        name: named for name, named in seen.slices.items() if name not in (slices.MEAN, slices.DEVIATION, slices.LENGTH)
    }
    asked = pinned.gate.slices
    members, _ = slices.parts_of(by, asked.fewest if asked else Asked.fewest)
    drop = asked.drop if asked else None
    normal = levels.levels_of(compared, right, pinned.budget.accuracy_drop, members, drop)
    return Known(normal, found, slow, gone and f"{gone}the data are not compared with the test set")


def _slow(run_id: str) -> float | None:
    """The latency that is slow for the version: twice the validated p99."""
    metrics, ships = tracking.client().get_run(run_id).data.metrics, tracking.get_json(run_id, "steps/validate.json")
    p99 = metrics.get(f"{ships['result']['ships']}.latency_p99_ms") if ships else None
    return None if p99 is None else SLOWER * p99


def _observed(
    model: str, version: str, since: datetime, until: datetime, known: Known, monitor: Monitor, seed: int
) -> tuple[observe.Seen, str]:
    """What came, or nothing and why it could not be had."""
    nothing = observe.Seen(since, until, 0, None, (), {}, 0)
    if since >= until:
        return nothing, ""
    try:
        dense = registry.dense(model, version)
        seen = observe.observe(model, version, dense, since, until, known.reference, monitor, seed)
    except InputError as unusable:
        return nothing, str(unusable)
    return seen, ""


def _unknown(why: str) -> Judged:
    from secateur.monitoring import judging

    return judging.Judged(judging.UNKNOWN, judging.NOBODY, why, (), ())


def _beside(judged: Judged, seen: observe.Seen, more: Sequence[str]) -> Judged:
    """What was left out is said too."""
    said = [*filter(None, more), *(f"{count} {why}" for why, count in seen.problems.items())]
    if seen.gaps:
        said.append(f"{seen.gaps} hours without any request")
    return dataclasses.replace(judged, reason="; ".join([judged.reason, *said])) if said else judged


def _kept(number: int, judged: Judged, seen: observe.Seen) -> dict[str, Any]:
    """A look as the state keeps it."""
    return {
        "number": number,
        "since": seen.since.isoformat(),
        "until": seen.until.isoformat(),
        "requests": seen.requests,
        "labels": seen.labels,
        "outcome": judged.outcome,
        "cause": judged.cause,
        "reason": judged.reason,
        "problems": dict(seen.problems),
        "findings": [dataclasses.asdict(finding) for finding in judged.findings],
        "drift": [dataclasses.asdict(one) for one in judged.drift],
        "rules": [{"name": one.name, "outcome": one.outcome, "sentence": one.sentence} for one in judged.rules],
    }


def _keep(model: str, version: str, run_id: str, judged: Judged, state: dict[str, Any]) -> None:
    """Write the look into MLflow and, for servers to tell Prometheus, into the bucket; the state last."""
    from tasks import bucket
    from tasks.monitoring import page

    numbers = {f"monitor.{_metric(one.name)}": one.mean for one in judged.findings if one.examples}
    numbers |= {f"monitor.{_metric(one.name)}_level": one.level for one in judged.findings if one.examples}
    numbers |= {f"drift.{_metric(one.name)}": one.size for one in judged.drift}
    tracking.log(
        run_id,
        {**numbers, "monitor.requests": state["looks"][-1]["requests"]},
        step=state["looks"][-1]["number"],
        health=judged.outcome,
    )
    name = registry.onnx_name(model)
    tracking.put_text(run_id, page.page(name, version, state["looks"]), PAGE)
    tracking.describe(run_id, f"**{judged.outcome}** · {judged.reason}")
    tracking.client().set_model_version_tag(
        name, version, HEALTH, " ".join(filter(None, [judged.outcome, judged.cause]))
    )
    latest = {key: value for key, value in state["looks"][-1].items() if key not in ("findings", "drift", "rules")}
    bucket.write_json({**latest, "version": version, "metrics": numbers}, name, "monitor.json")
    tracking.put_json(run_id, STATE, state)


def _metric(name: str) -> str:
    """A name as MLflow takes it."""
    return "".join(sign if sign.isalnum() or sign in "._-/ " else "_" for sign in name)


def _keep_drifted(model: str, seen: observe.Seen) -> None:
    """Keep the inputs that were looked at where a recipe can read them: `<model>-onnx/drifted.npz` of the bucket."""
    import numpy as np

    from tasks import bucket

    if not seen.inputs:
        return
    names = list(seen.inputs)
    columns = {"inputs": seen.inputs[names[0]]} if len(names) == 1 else dict(seen.inputs)
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "drifted.npz"
        np.savez_compressed(path, allow_pickle=False, **columns)
        bucket.upload(path, registry.onnx_name(model), "drifted.npz")


def _expire(model: str, monitor: Monitor, until: datetime) -> None:
    from secateur.inference_log import reader
    from tasks import bucket

    if monitor.keep_days is None:
        return
    before = until - timedelta(days=monitor.keep_days)
    old = reader.expired(observe.log_root(), registry.onnx_name(model), before)
    for place in old:
        bucket.remove(place)
    if old:
        print(f"deleted {len(old)} files of the log, older than {monitor.keep_days:g} days", flush=True)
