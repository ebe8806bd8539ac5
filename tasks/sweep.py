"""A sweep: many recipes for one model version, each a run of `prune_model`, compared on validation; the best are judged and one promoted.

What its runs leave for it is in its run in MLflow: `jobs/`, which job each made or found, and `failures/`, why one failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from secateur.errors import InputError
from secateur.gate.verdict import shared_out
from secateur.standings import Candidate, fronts, survivors, to_be_judged
from tasks import candidates, tracking, trial
from tasks.recipe import Recipe
from tasks.references import Ended, GateResult, Pinned, Plan, Standing, Standings, Start, Sweeping

UNKNOWN = "no step of it could say why, its process may have been killed; Airflow has its log"


def begin(model: str, version: str, sweep: str, fresh: bool, dag_run_id: str) -> Sweeping:
    """Check every candidate's recipe, fix the version for all of them, and open the sweep's run in MLflow.

    Raises:
        InputError: the sweep or a candidate is not usable, or there is no such version.
        RegistryDownError: MLflow does not answer.
    """
    settings, found = candidates.of_sweep(sweep)
    first = next(iter(found.values()))
    if first.model != model:
        raise InputError(f"sweep {sweep}: is for model {first.model!r}, got model {model!r}; its recipes say `model`")
    tracking.client()
    from secateur.objectives import objective_of
    from tasks import registry

    number = registry.number(model, version)
    digests = {name: _digest(_plain(one)) for name, one in found.items()}
    salt = dag_run_id if fresh else ""
    content = settings.model_dump(mode="json")
    key = tracking.digest(["sweep", model, number, sweep, content, digests, tracking.code_digest(), salt])
    experiment = tracking.experiment_of(model)
    tags = {
        "secateur.kind": "sweep",
        "secateur.source": f"models:/{model}/{number}",
        "secateur.sweep": sweep,
        "secateur.dag_run": dag_run_id,
    }
    run_id = tracking.find_or_create_run(experiment, key, f"sweep {sweep} · {model} v{number}", tags)
    tracking.put_json(
        run_id, "sweep.json", content | {"candidates": {name: _plain(one) for name, one in found.items()}}
    )
    return Sweeping(
        name=sweep,
        model=model,
        version=number,
        run_id=run_id,
        experiment_id=experiment,
        dag_run_id=dag_run_id,
        fresh=fresh,
        metric=objective_of(first.objective).metric,
        drop=first.budget.accuracy_drop,
        confidence=shared_out(first.gate.confidence, len(found)),
        candidates=tuple(found),
        digests=digests,
        rungs=settings.halving.rungs if settings.halving else 1,
        eta=settings.halving.eta if settings.halving else 1,
        finalists=min(settings.finalists, len(found)),
    )


def starts(sweeping: Sweeping, rung: int, before: Standings | None) -> list[Start]:
    """The runs of a rung: of all candidates in the first, then of those that go on; none after the last."""
    if rung > sweeping.rungs:
        return []
    names = [one.name for one in before.candidates if one.goes_on] if before else sweeping.candidates
    return [_start(sweeping, name, rung, trial_run=True) for name in names]


def compare(sweeping: Sweeping, rung: int, before: Standings | None, ended: list[Ended] | None) -> Standings:
    """Where every candidate stands after a rung, and who goes on; what fell out before stays as it was.

    By accuracy, speed and size on validation, after recovery; never by the test split. One that failed is told with its reason.
    """
    if before and rung > sweeping.rungs:
        return before
    states = {one.run_id: one.state for one in ended or ()}
    known = {one.name: one for one in before.candidates} if before else {}
    running = [one.name for one in before.candidates if one.goes_on] if before else sweeping.candidates
    for name in running:
        known[name] = _standing(sweeping, name, rung, states)
    made_of = {name: _made_of(known[name]) for name in running if known[name].state == "measured"}
    for name, digests in made_of.items():
        if digests != made_of[first := next(iter(made_of))]:
            why = f"its code or data is not that of {first}, it was changed while the sweep went on; start the sweep again"
            known[name] = replace(known[name], state="failed", reason=why)
    for told in (known[name] for name in running):
        print(f"{told.name}: {told.state}{f', {told.outcome}' if told.outcome else ''}: {told.reason}", flush=True)
    compared = [_as_compared(known[name]) for name in running if known[name].state == "measured"]
    front = {one.name for one in fronts(compared)[0]} if compared else set()
    last = rung == sweeping.rungs
    going = set() if last else {one.name for one in survivors(compared, sweeping.drop, sweeping.eta)}
    for name in running:
        known[name] = replace(known[name], front=name in front, goes_on=name in going)
    found = Standings(rung, tuple(known[name] for name in sweeping.candidates))
    tracking.put_json(sweeping.run_id, f"standings/{rung}.json", found)
    return found


def finalists(sweeping: Sweeping, standings: Standings) -> list[str]:
    """Whom the test split will judge, the best first, by the last rung."""
    last = [one for one in _in_last_rung(sweeping, standings) if one.state == "measured"]
    ranked = to_be_judged([_as_compared(one) for one in last], sweeping.drop)
    return [one.name for one in ranked[: sweeping.finalists]]


def _in_last_rung(sweeping: Sweeping, standings: Standings) -> list[Standing]:
    return [one for one in standings.candidates if one.rung == sweeping.rungs]


def final(sweeping: Sweeping, standings: Standings, place: int) -> list[Start]:
    """The run that has a finalist judged by the test split, and promoted on a pass; none once one has been promoted."""
    names = finalists(sweeping, standings)
    if place > len(names) or any(_promoted(standings, name) for name in names[: place - 1]):
        return []
    return [_start(sweeping, names[place - 1], sweeping.rungs, trial_run=False)]


def judged(sweeping: Sweeping, standings: Standings) -> dict[str, GateResult]:
    """The verdicts of the finalists that were judged, in that order."""
    by_name = {one.name: one for one in standings.candidates}
    found: dict[str, GateResult] = {}
    for name in finalists(sweeping, standings):
        verdict = tracking.recalled(by_name[name].run_id, "gate", GateResult)
        if verdict is None:
            break
        found[name] = verdict
        if _promoted(standings, name):
            break
    return found


def winner(sweeping: Sweeping, standings: Standings, verdicts: Mapping[str, GateResult]) -> tuple[str | None, str]:
    """Who was promoted and why, or why nobody was."""
    won = next((name for name in verdicts if _promoted(standings, name)), None)
    measured = sum(one.state == "measured" for one in standings.candidates)
    if won:
        why = f"the first by validation that the gate let through; test split: {verdicts[won].reason}"
    elif verdicts:
        told = "; ".join(f"{name}: {verdict.outcome}: {verdict.reason}" for name, verdict in verdicts.items())
        why = f"no finalist was promoted; {told}"
    elif not measured:
        first = standings.candidates[0]
        why = f"nothing could be compared; {first.name}: {first.reason}"
    elif left := finalists(sweeping, standings):
        why = f"the finalist {left[0]} was not judged; {_failure(sweeping, left[0], sweeping.rungs)}"
    elif not any(one.state == "measured" for one in _in_last_rung(sweeping, standings)):
        first = _in_last_rung(sweeping, standings)[0]
        why = f"none came through the last rung; {first.name}: {first.reason}"
    else:
        why = "each that came to the last rung breaks a bound on validation already; the test split was not looked at"
    return won, f"of {len(sweeping.candidates)} candidates, {measured} measured: {why}"


def note_job(pinned: Pinned) -> None:
    """Let the sweep know which job a run of it made or found."""
    tracking.put_json(pinned.sweep, _place("jobs", pinned.recipe_name), {"run_id": pinned.run_id})


def check_job(pinned: Pinned, known: str | None) -> None:
    """Raise InputError unless the job that a run would have judged, `known` or a new one, is the one that was compared."""
    compared = tracking.get_json(pinned.sweep, _place("jobs", pinned.recipe_name))
    if compared and compared["run_id"] != known:
        raise InputError(
            f"recipe {pinned.recipe_name}: expected the job that the sweep compared, MLflow run {compared['run_id']}, got "
            f"{known or 'a new one'}: recipe, data or code was changed while the sweep went on; start the sweep again"
        )


def note_failure(sweep_run: str, recipe_name: str, sentence: str) -> None:
    """Let the sweep know why a run of it failed."""
    tracking.put_json(sweep_run, _place("failures", recipe_name), {"reason": sentence})


def _place(folder: str, recipe_name: str) -> str:
    return f"{folder}/{recipe_name.replace(':', '/')}.json"


def _recipe_name(sweeping: Sweeping, name: str, rung: int) -> str:
    return f"{sweeping.name}:{name}:{rung}" if sweeping.rungs > 1 else f"{sweeping.name}:{name}"


def _start(sweeping: Sweeping, name: str, rung: int, *, trial_run: bool) -> Start:
    """Its id follows from sweep, candidate and rung, so that a sweep that is cleared finds it again, unless it begins anew."""
    conf = {
        "model": sweeping.model,
        "version": sweeping.version,
        "recipe": _recipe_name(sweeping, name, rung),
        "fresh": sweeping.fresh,
        "trial": trial_run,
        "sweep_run": sweeping.run_id,
    }
    return Start(_dag_run(sweeping, name, str(rung) if trial_run else "final"), conf)


def _dag_run(sweeping: Sweeping, name: str, part: str) -> str:
    return f"{sweeping.dag_run_id}__{sweeping.run_id[:8]}__{name}__{part}"


def _digest(content: dict[str, Any]) -> str:
    """Of a candidate's recipe, whatever rung it is in."""
    return tracking.digest({name: value for name, value in content.items() if name != "trial"})


def _plain(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json", exclude={"monitor"})


def _standing(sweeping: Sweeping, name: str, rung: int, states: dict[str, str]) -> Standing:
    dag_run, recipe_name = _dag_run(sweeping, name, str(rung)), _recipe_name(sweeping, name, rung)
    job = tracking.get_json(sweeping.run_id, _place("jobs", recipe_name)) or {}
    run_id = job.get("run_id", "")

    def without(state: str, reason: str) -> Standing:
        return Standing(name, rung, state, reason, dag_run, run_id)

    if states.get(dag_run) != "success" or not run_id:
        return without("failed", _failure(sweeping, name, rung))
    if _digest(tracking.get_json(run_id, "recipe.json") or {}) != sweeping.digests[name]:
        return without("failed", "its recipe was changed while the sweep went on; start the sweep again")
    plan = tracking.recalled(run_id, "plan", Plan)
    said = tracking.get_json(run_id, trial.VERDICT)
    if said is None:
        return without("not pruned", plan.reasons[0].because if plan else "the run ended without a plan")
    return _measured(sweeping, without("measured", said["verdict"]["reason"]), said)


def _made_of(standing: Standing) -> tuple[str | None, ...]:
    """Digests of the code and the data of a candidate's job."""
    tags = tracking.client().get_run(standing.run_id).data.tags
    return tags.get("secateur.code"), tags.get("secateur.data")


def _measured(sweeping: Sweeping, standing: Standing, said: dict[str, Any]) -> Standing:
    """What the candidate's job found on validation."""
    metrics, seen = tracking.client().get_run(standing.run_id).data.metrics, said["validated"]
    ships = seen["ships"]
    rule = next(rule for rule in said["verdict"]["rules"] if rule["name"] == sweeping.metric)
    return replace(
        standing,
        ships=ships,
        outcome=said["verdict"]["outcome"],
        metric=metrics[f"{ships}.validation_{sweeping.metric}"],
        change=(rule["estimate"], rule["low"], rule["high"]),
        speedup=(seen["speedup"], seen["speedup_low"], seen["speedup_high"]),
        p50_ms=metrics.get(f"{ships}.latency_p50_ms"),
        p99_ms=metrics.get(f"{ships}.latency_p99_ms"),
        size_bytes=metrics[f"{ships}.size_bytes"],
        sparsity=metrics["sparsity"],
    )


def _failure(sweeping: Sweeping, name: str, rung: int) -> str:
    noted = tracking.get_json(sweeping.run_id, _place("failures", _recipe_name(sweeping, name, rung)))
    return noted["reason"] if noted else UNKNOWN


def _promoted(standings: Standings, name: str) -> bool:
    """Whether the run that had a finalist judged has promoted it."""
    run_id = next(one.run_id for one in standings.candidates if one.name == name)
    return bool(tracking.client().get_run(run_id).data.tags.get("secateur.promoted"))


def _as_compared(one: Standing) -> Candidate:
    (change, change_low, _), (speedup, speedup_low, _) = one.change, one.speedup
    return Candidate(one.name, change, change_low, speedup, speedup_low, one.size_bytes, one.outcome)
