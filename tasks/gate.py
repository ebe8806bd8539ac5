"""Asks the reliability gate, with the untouched test split, whether the file that ships may serve."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import InputError, NothingToDo
from tasks import figures, looks, placement, precisions, tracking
from tasks.recipe import Recipe
from tasks.references import Exported, GateResult, OnTarget, Pinned, RuleResult, Validated
from tasks.sections.data import COMPUTED_SLICES
from tasks.sections.gate import IMAGE_CORRUPTIONS, TEXT_CORRUPTIONS

if TYPE_CHECKING:
    import numpy as np

    from secateur.data import Split
    from secateur.gate.evidence import Evidence, Seen
    from secateur.gate.exemplars import Exemplars
    from secateur.gate.judging import Asked
    from secateur.gate.verdict import Rule
    from secateur.objectives import Objective
    from secateur.runtime import Change


@dataclass(frozen=True)
class Incumbent:
    """What serves: its answers where they can be compared, else what is known without, and how that reads."""

    said: str
    answers: Seen | None = None
    rule: Rule | None = None


def run(
    pinned: Pinned,
    exported: Exported | None,
    validated: Validated | None,
    elsewhere: tuple[OnTarget, ...] | None = None,
) -> GateResult:
    """Judge on the files themselves; the verdict and its evidence become artifacts, the reason the run's description.

    `elsewhere` is what other targets found of the file that ships, where the recipe names any.

    Raises:
        NothingToDo: there is no file, for the plan ended the run; or the run is a trial, judged on validation (`tasks.trial`).
    """
    if exported is None or validated is None:
        raise NothingToDo("nothing was validated: the plan was not to prune")
    if pinned.trial:
        from tasks import trial  # which judges by what is here

        seen = trial.run(pinned, exported, validated)
        raise NothingToDo(f"a trial, judged on validation alone: {seen.outcome}: {seen.reason}")
    return _judged(pinned, exported, validated, elsewhere or ())


@tracking.remembered
def _judged(pinned: Pinned, exported: Exported, validated: Validated, elsewhere: tuple[OnTarget, ...]) -> GateResult:
    from secateur.gate import judging
    from secateur.objectives import objective_of
    from tasks import datasets

    recipe, ships = Recipe.model_validate(pinned.recipe), validated.ships
    placement.check_here(recipe.target.name)
    shipped = exported.candidates[ships]
    test, objective = datasets.load(recipe, pinned.inputs).test, objective_of(recipe.objective)
    look = looks.take(pinned.model, test.digest, shipped, by=f"{pinned.recipe_name} {pinned.dag_run_id}")
    with tracking.fetched(exported.dense) as dense_path, tracking.fetched(shipped) as path:
        incumbent = _incumbent(pinned, recipe, test, objective)
        evidence = evidence_of(
            pinned, recipe, test, objective, {"dense": dense_path, "pruned": path}, validated, incumbent
        )
        asked = limits(recipe, look, precision=precisions.of(ships))
        beside = [*([incumbent.rule] if incumbent.rule else []), *(rule for one in elsewhere for rule in one.rules)]
        verdict = judging.verdict_on(evidence, asked, objective, test.digest, beside)
        keep_evidence(pinned.run_id, evidence, "gate")
        if verdict.outcome != "fail":  # nothing that fails ever serves
            _keep_reference(pinned.run_id, recipe, {"dense": dense_path, "pruned": path}, test)
    found = _exemplars(evidence, test, objective)
    if found:
        _keep_exemplars(pinned.run_id, found, evidence, test)
    said = {
        "verdict": verdict,
        "metric": pinned.metric,
        "test_examples": len(test),
        "test_digest": test.digest,
        "look": {
            "number": look,
            "free": recipe.gate.looks,
            "judged": asked.judged,
            "confidence": judging.confidence_of(asked),
        },
        "incumbent": incumbent.said,
        "data_digest": pinned.data_digest,
        **(_lost_and_gained(evidence) | {"exemplars": found} if found else {}),
        "files": {"dense": exported.dense, ships: shipped},
        "validated": validated,
        "elsewhere": elsewhere,
    }
    digest = tracking.put_json(pinned.run_id, "gate/verdict.json", said)
    if objective.right_or_wrong:
        tracking.put_json(pinned.run_id, "gate/classes.json", _by_class(evidence, recipe.gate.confidence))
    scores = {"dense": objective.score(*evidence.dense.pair), ships: objective.score(*evidence.pruned.pair)}
    logged = {f"{which}.{pinned.metric}": score for which, score in scores.items()}
    tracking.log(pinned.run_id, logged | {"look": look}, step=exported.cycle, verdict=verdict.outcome)
    tracking.describe(pinned.run_id, f"**{verdict.outcome}** · {verdict.reason}")
    tracking.finish(pinned.run_id)
    rules = tuple(RuleResult(rule.name, rule.outcome, rule.sentence) for rule in verdict.rules)
    print(
        f"look {look} at this test set, of {recipe.gate.looks} that are free; incumbent: {incumbent.said}", flush=True
    )
    return GateResult(ships, verdict.outcome, verdict.reason, rules, digest, look)


def check(recipe: Recipe, objective: Objective, test: Split, names: tuple[str, ...]) -> None:
    """Raise InputError unless the gate's rules can be asked of the test split, before anything is trained for them."""
    from secateur.gate import slices

    asked = recipe.gate
    if not objective.right_or_wrong and asked.of_classes:
        raise InputError(
            f"{asked.of_classes[0]}: expected an objective whose answers are right or wrong, got {recipe.objective}; leave it out"
        )
    if asked.documents is not None and objective.right_or_wrong:
        raise InputError(f"gate.documents: expected a metric that is resampled, got {objective.metric}; leave it out")
    named = {by: slices.slices_of(test, by) for by in (asked.slices.by if asked.slices else ())}
    if asked.slices and not slices.parts_of(named, asked.slices.fewest)[0]:
        raise InputError(
            f"gate.slices.fewest: expected a slice of {asked.slices.fewest} test examples, got none; lower it, or slice otherwise"
        )
    _changes(recipe, test, names)
    if asked.robustness and asked.robustness.shifted is not None:
        _check_alike(_shifted(recipe, names), test)


def _check_alike(shifted: Split, test: Split) -> None:
    import numpy as np

    pairs = [*zip(shifted.columns, test.columns, strict=True), (shifted.labels, test.labels)]
    for found, wanted in pairs:
        if found.shape[1:] != wanted.shape[1:] or found.dtype != wanted.dtype:
            raise InputError(
                f"gate.robustness.shifted: expected examples of {wanted.shape[1:]} ({wanted.dtype}) as in the test split, got "
                f"{found.shape[1:]} ({found.dtype}); prepare both in the same way"
            )
    for column in shifted.columns:
        if column.dtype.kind == "f" and not np.isfinite(column).all():
            raise InputError(
                "gate.robustness.shifted: expected finite inputs, found NaN or infinity; clean the data first"
            )
    if test.labels.dtype.kind in "iu" and (unknown := np.setdiff1d(shifted.labels, test.labels)).size:
        raise InputError(
            f"gate.robustness.shifted: expected the classes of the test split, got {unknown[:3].tolist()} beside them; number "
            "the classes as the model does"
        )


def limits(recipe: Recipe, look: int, *, precision: str) -> Asked:
    """The recipe's limits as the science knows them."""
    from secateur.gate.judging import Asked

    gate = recipe.gate
    alike = ("confidence", "looks", "floor", "exemplars", "agreement", "ece", "brier", "confidence_shift")
    figures_of = ("speedup", "parity", "p99_ms", "memory_mb", "size_mb")
    return Asked(
        drop=recipe.budget.accuracy_drop,
        slices_drop=gate.slices.drop if gate.slices else None,
        fewest=gate.slices.fewest if gate.slices else Asked.fewest,
        robustness_drop=gate.robustness.drop if gate.robustness else None,
        incumbent_drop=gate.incumbent.drop if gate.incumbent else None,
        qps=(gate.qps.rate, gate.qps.p99_ms) if gate.qps else None,
        precision=precision,
        look=look,
        candidates=recipe.trial.candidates if recipe.trial else 1,
        judged=recipe.trial.finalists if recipe.trial else 1,
        seed=recipe.seed,
        **{name: getattr(gate, name) for name in (*alike, *figures_of)},
    )


def evidence_of(
    pinned: Pinned,
    recipe: Recipe,
    test: Split,
    objective: Objective,
    paths: dict[str, Path],
    validated: Validated,
    incumbent: Incumbent,
) -> Evidence:
    """What both files answer to a split, as it is and changed, and what was measured of the one that ships."""
    from secateur.gate import slices
    from secateur.gate.evidence import Evidence

    target, asked = figures.target_of(recipe), recipe.gate
    sides = {name: figures.seen(path, target, test, objective) for name, path in paths.items()}
    changed = {
        name: tuple(figures.seen(path, target, test, objective, change) for path in paths.values())
        for name, change in _changes(recipe, test, pinned.inputs).items()
    }
    if asked.robustness and asked.robustness.shifted is not None:
        other = _shifted(recipe, pinned.inputs)
        changed["shifted"] = tuple(figures.seen(path, target, other, objective) for path in paths.values())
    by: tuple[str, ...] = asked.slices.by if asked.slices else ()
    if not by and objective.right_or_wrong and test.labels.ndim == 1 and test.labels.dtype.kind in "iu":
        by = COMPUTED_SLICES[:1]  # nobody asks, but a class that is lost is worth knowing
    return Evidence(
        metric=objective.metric,
        dense=sides["dense"],
        pruned=sides["pruned"],
        measured={
            **validated.costs,
            "speedup": (validated.speedup, validated.speedup_low, validated.speedup_high),
            "parity": (validated.parity,) * 3,
        },
        slices={name: slices.slices_of(test, name) for name in by},
        documents=None if asked.documents is None else test.metadata[asked.documents].astype(str),
        changed={name: (dense, pruned) for name, (dense, pruned) in changed.items()},
        incumbent=incumbent.answers,
    )


def _changes(recipe: Recipe, test: Split, names: tuple[str, ...]) -> dict[str, Change]:
    """How the test split is corrupted, by the name of each corruption."""
    from secateur.gate import corruptions
    from tasks import datasets

    asked = recipe.gate.robustness
    made: dict[str, Change] = {}
    for name in asked.corruptions if asked else ():
        assert asked
        if name in IMAGE_CORRUPTIONS:
            made[name] = corruptions.of_images(name, asked.severity, test.inputs, recipe.seed)
        elif name in TEXT_CORRUPTIONS:
            assert recipe.data.text
            texts, encode = test.metadata[recipe.data.text.column], datasets.encoder(recipe, names)
            made[name] = corruptions.of_texts(name, asked.severity, texts, encode, recipe.seed)
        else:
            made[name] = corruptions.of_features(asked.severity, test.inputs, recipe.seed)
    return made


def _shifted(recipe: Recipe, names: tuple[str, ...]) -> Split:
    from tasks import datasets

    assert recipe.gate.robustness
    assert recipe.gate.robustness.shifted is not None
    return datasets.shifted(recipe, recipe.gate.robustness.shifted, names)


def _incumbent(pinned: Pinned, recipe: Recipe, test: Split, objective: Objective) -> Incumbent:
    """The champion on this test set by this metric, or by what policy it is not compared."""
    from secateur.gate.judging import unknown
    from tasks import registry

    asked = recipe.gate.incumbent
    if asked is None:
        return Incumbent("not asked for")
    version = registry.champion(pinned.model)
    if version is None:
        said = f"nothing serves yet, gate.incumbent.none is {asked.none}"
        return Incumbent(said, rule=None if asked.none == "pass" else unknown("incumbent", asked.drop, said))
    said = f"version {version}"
    if changed := _judged_otherwise(pinned, version, test):
        said += f", {changed}, gate.incumbent.changed is {asked.changed}"
        if asked.changed == "refuse":
            return Incumbent(said, rule=unknown("incumbent", asked.drop, said))
    with tracking.fetched(registry.onnx_file(pinned.model, version)) as path:
        try:
            answers = figures.seen(path, figures.target_of(recipe), test, objective)
        except Exception as error:  # the runtime's own, without a common class
            said += f", cannot be given this test set: {' '.join(str(error).split())}"
            return Incumbent(said, rule=unknown("incumbent", asked.drop, said))
    return Incumbent(f"{said}, evaluated on this test set", answers)


def _judged_otherwise(pinned: Pinned, version: str, test: Split) -> str:
    """What was different when a version of the deployable model was judged; nothing where it was judged like this."""
    from tasks import registry

    tags = tracking.client().get_model_version(registry.onnx_name(pinned.model), version).tags
    verdict = tracking.get_json(tags["secateur.run"], "gate/verdict.json") if "secateur.run" in tags else None
    if verdict is None:
        return "of which no verdict is kept"
    before = {"metric": verdict.get("metric"), "test set": verdict.get("test_digest")}
    now = {"metric": pinned.metric, "test set": test.digest}
    return " and ".join(f"judged by another {name}" for name, value in before.items() if value != now[name])


def keep_evidence(run_id: str, evidence: Evidence, folder: str) -> None:
    """Keep it in a folder of the run."""
    from secateur.gate import evidence as evidences

    with tempfile.TemporaryDirectory(prefix="secateur-") as place:
        path = Path(place) / "evidence.npz"
        evidences.write(path, evidence)
        tracking.put(run_id, path, folder)


def _keep_reference(run_id: str, recipe: Recipe, paths: dict[str, Path], test: Split) -> None:
    """What later looks at production are compared with."""
    from secateur.monitoring import reference

    made = reference.refer(paths["dense"], paths["pruned"], figures.target_of(recipe), test.columns, recipe.seed)
    with tempfile.TemporaryDirectory(prefix="secateur-") as folder:
        path = Path(folder) / "reference.npz"
        reference.write(path, made)
        tracking.put(run_id, path, "gate")


def _exemplars(evidence: Evidence, test: Split, objective: Objective) -> Exemplars | None:
    from secateur.gate.exemplars import exemplars

    if not objective.right_or_wrong or test.labels.ndim != 1:
        return None
    dense, pruned = evidence.dense, evidence.pruned
    return exemplars(dense.right, pruned.right, test.labels, pruned.certainty)


def _keep_exemplars(run_id: str, found: Exemplars, evidence: Evidence, test: Split) -> None:
    """The worst ones, to be looked at: their inputs, and what was answered."""
    import numpy as np

    positions = np.array(found.worst, dtype=int)
    columns: dict[str, Any] = {f"input{number}": column[positions] for number, column in enumerate(test.columns)}
    answers = {"dense": evidence.dense.answers[positions], "pruned": evidence.pruned.answers[positions]}
    stream = io.BytesIO()
    np.savez_compressed(stream, positions=positions, labels=test.labels[positions], **answers, **columns)
    tracking.put_bytes(run_id, stream.getvalue(), "gate", "exemplars.npz")


def _lost_and_gained(evidence: Evidence) -> dict[str, Any]:
    """The positions in the test split that only the one model gets right, or only the other."""
    before, after = evidence.dense.right, evidence.pruned.right
    return {"lost": _where(before & ~after), "gained": _where(after & ~before)}


def _where(chosen: np.ndarray) -> list[int]:
    return [int(position) for position in chosen.nonzero()[0]]


def _by_class(evidence: Evidence, confidence: float) -> list[dict[str, float]]:
    """Of each class of the test split how its accuracy changed, with an interval for that class alone: told, not judged."""
    import numpy as np

    from secateur.gate.bounds import paired_difference

    before, after, targets = evidence.dense.right, evidence.pruned.right, evidence.dense.targets
    found = []
    for label in np.unique(targets).tolist():
        of_class = targets == label
        one, other = before[of_class], after[of_class]
        estimate, low, high = paired_difference(one, other, confidence)
        counts = {"examples": len(one), "lost": int((one & ~other).sum()), "gained": int((other & ~one).sum())}
        found.append({"label": label, **counts, "estimate": estimate, "low": low, "high": high})
    return found
