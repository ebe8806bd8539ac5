"""Asking a person: only what the recipe leaves to one, with all that is needed to decide."""

import pytest
from services import recipe_for

from tasks import ask
from tasks.recipe import Recipe
from tasks.references import Answer, File, GateResult, Person, Pinned, RuleResult

RULE = RuleResult("speedup", "inconclusive", "1.1x faster, 95% interval 0.9 to 1.3; asked for at least 1.00x")


def pinned(**approval: object) -> Pinned:
    """A job whose recipe has this section `approval`, or none."""
    recipe = recipe_for("data.npz", **({"approval": approval} if approval else {}))
    digests = {"program_digest": "p", "data_digest": "d", "code_digest": "c", "key": "k"}
    ids = {"experiment_id": "7", "run_id": "r1", "dag_run_id": "run"}
    model = {"model": "tiny", "version": "3", "recipe_name": "small", "inputs": ("x",), "examples": 1}
    settings = Recipe.model_validate(recipe).model_dump(mode="json")
    goal = {"objective": "classification", "metric": "accuracy"}
    return Pinned(program=File("runs:/r/x", "0"), recipe=settings, **digests, **ids, **model, **goal)  # type: ignore[arg-type]


def verdict(outcome: str) -> GateResult:
    """A verdict."""
    return GateResult("pruned", outcome, "speedup: too close to call", (RULE,), "e" * 64)


@pytest.mark.parametrize("outcome", ["pass", "inconclusive", "fail"])
def test_nobody_is_asked_unless_the_recipe_says_so(outcome: str) -> None:
    assert ask.run(pinned(), verdict(outcome)) == []


def test_what_is_inconclusive_is_asked_and_a_pass_only_where_it_is_named() -> None:
    assert [bool(ask.run(pinned(users=["ann"]), verdict(one))) for one in ("inconclusive", "pass", "fail")] == [1, 0, 0]
    both = pinned(users=["ann"], verdicts=["inconclusive", "pass"])
    assert [bool(ask.run(both, verdict(one))) for one in ("inconclusive", "pass", "fail")] == [1, 1, 0]


def test_the_question_holds_the_verdict_its_rules_and_where_the_rest_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://registry/")
    (question,) = ask.run(pinned(users=["ann", "bob"], hours=2), verdict("inconclusive"))
    assert (question.users, question.hours) == (("ann", "bob"), 2.0)
    assert question.subject == "Promote tiny version 3, pruned by recipe small? (inconclusive)"
    for part in ("**inconclusive** of `pruned`", RULE.sentence, "http://registry/#/experiments/7/runs/r1", "e" * 12):
        assert part in question.body


@pytest.mark.parametrize(
    ("answer", "yes", "sentence"),
    [
        (Answer(("Approve",), Person("1", "Ann"), {"words": " fine "}), True, "Approved by Ann: fine"),
        (Answer(("Approve",), Person("1", "Ann"), {}), True, "Approved by Ann."),
        (Answer(("Reject",), Person("1", "Ann"), {"words": "no"}), False, "Rejected by Ann: no"),
        (Answer(("Reject",), None, {"words": ""}), False, "Nobody answered in time."),
        (Answer(("Approve",), None, {}), False, "Nobody answered in time."),
    ],
)
def test_an_answer_says_who_said_what(answer: Answer, yes: bool, sentence: str) -> None:
    assert (answer.yes, answer.sentence) == (yes, sentence)
