"""The planner: evidence in, decision out; every choice has its row, and every choice can be overruled."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import InputError
from secateur.planner import (
    NONE,
    PREFERRED,
    QUANTIZE,
    Alone,
    Cost,
    Decision,
    Evidence,
    Option,
    Overrules,
    decide,
    table,
)

DROP = 0.02
EPOCHS = Overrules(epochs=12)


def option(method: str, reach: float = 10.0, lost: float | None = 0.3, buys: str = "time", misfit: str = "") -> Option:
    """A method that serves, and what it loses at half of what is wanted and at all of it."""
    costs = (
        () if lost is None else tuple(Cost(at, lost * at, lost * at - 0.1, lost * at + 0.1, 500) for at in (0.5, 1.0))
    )
    return Option(method, buys, "as is documented", reach, misfit, costs)


def evidence(*options: Option, share: float = 0.5, **changes: object) -> Evidence:
    """What is known where this share of the parameters shall go; by default of a target with dense kernels."""
    known = options or (option("structured"), option("depth", misfit="no branches"), option("n_m", buys="nothing"))
    seen = Evidence("sparsity", counted=True, wanted=1 / (1 - share), allowed_drop=DROP, options=known)
    return replace(seen, **changes)  # type: ignore[arg-type]


def alone(drop: float = 0.0, reached: float = 3.0) -> Alone:
    """The dense model in INT8."""
    return Alone(drop, reached, 1.1 * reached, reached, 1.2 * reached)


def because(made: Decision, choice: str) -> str:
    return next(row.because for row in made.rows if row.choice == choice)


# --- the method


def test_units_leave_where_kernels_are_dense() -> None:
    made = decide(evidence(), EPOCHS)
    assert made.method == "structured"
    assert because(made, "method") == "on this target it buys time (as is documented)"
    assert {row.chosen: row.because for row in made.rows if row.choice == "not"} == {
        "depth": "no branches",
        "n_m": "it would buy nothing (as is documented)",
    }


def test_zeros_are_chosen_only_where_sparse_kernels_gain_time_by_them() -> None:
    costly = option("structured", lost=0.5)
    for buys, chosen in (("time", "n_m"), ("unknown", "structured"), ("disk", "structured")):
        assert decide(evidence(costly, option("n_m", lost=0.0, buys=buys)), EPOCHS).method == chosen


def test_a_cut_that_keeps_the_budget_by_itself_is_preferred_to_one_that_does_not() -> None:
    made = decide(evidence(option("structured", lost=0.5), option("depth", lost=DROP)), EPOCHS)
    assert made.method == "depth"
    assert because(made, "method") == "its cut alone keeps the accuracy budget, that of structured does not"
    assert decide(evidence(option("structured", lost=0.5), option("depth", lost=0.4)), EPOCHS).method == "structured"
    assert decide(evidence(option("structured", lost=DROP), option("depth", lost=0.0)), EPOCHS).method == "structured"


def test_what_does_not_reach_is_passed_over() -> None:
    made = decide(evidence(option("structured", reach=1.5), option("depth", reach=2.1)), EPOCHS)
    assert made.method == "depth"


def test_a_count_that_nothing_reaches_is_no_reason_to_prune() -> None:
    made = decide(evidence(option("structured", reach=1.9), option("depth", reach=1.2)), EPOCHS)
    assert (made.method, made.cycles, made.epochs) == (NONE, 0, 0)
    assert made.rows[0].numbers == "2.00x wanted, structured at most 1.90x, depth at most 1.20x"


def test_a_measured_goal_out_of_reach_is_gone_for_as_far_as_can_be() -> None:
    made = decide(evidence(option("structured", reach=1.5), option("depth", reach=1.9), counted=False), EPOCHS)
    assert made.method == "depth"
    assert "out of reach" in because(made, "method")


def test_a_model_within_the_goal_is_not_pruned_whatever_is_asked() -> None:
    for overrules in (EPOCHS, replace(EPOCHS, method="structured", by="prune.method")):
        made = decide(evidence(wanted=0.8), overrules)
        assert made.method == NONE
        assert because(made, "method").startswith("the dense model is within the goal as it is")


@pytest.mark.parametrize(
    ("int8", "counted", "chosen"),
    [
        (alone(), False, QUANTIZE),
        (alone(drop=DROP), False, QUANTIZE),
        (alone(drop=DROP + 0.001), False, "structured"),
        (alone(reached=1.99), False, "structured"),
        (alone(), True, "structured"),
        (None, False, "structured"),
    ],
)
def test_int8_alone_is_enough_where_it_reaches_a_measured_goal_within_the_budget(
    int8: Alone | None, counted: bool, chosen: str
) -> None:
    made = decide(evidence(int8=int8, counted=counted), EPOCHS)
    assert made.method == chosen
    if int8:
        assert any(str(int8) in row.numbers for row in made.rows), "the numbers are shown either way"


# --- overruled


@pytest.mark.parametrize("method", PREFERRED)
def test_the_recipe_has_the_last_word_on_the_method(method: str) -> None:
    options = [option(name, buys="nothing", lost=None) for name in PREFERRED]
    made = decide(evidence(*options), replace(EPOCHS, method=method, by="prune.method"))
    assert made.method == method
    assert because(made, "method") == "set in the recipe (prune.method)"


def test_not_to_prune_and_to_quantise_only_can_be_asked_for() -> None:
    assert decide(evidence(), Overrules(NONE, "prune.method")).method == NONE
    assert decide(evidence(int8=alone(drop=1.0)), Overrules(QUANTIZE, "prune.method")).method == QUANTIZE
    made = decide(evidence(), Overrules(QUANTIZE, "prune.method"))
    assert made.method == NONE
    assert "this target gains no time by INT8" in because(made, "method")


def test_a_method_that_is_asked_for_and_cannot_serve_is_refused() -> None:
    with pytest.raises(InputError, match=r"^prune\.method: depth cannot serve the goal sparsity: no branches$"):
        decide(evidence(), Overrules("depth", "prune.method", epochs=12))


# --- cycles and recovery


@pytest.mark.parametrize(
    ("share", "lost", "epochs", "asked", "cycles", "why"),
    [
        (0.05, 0.0, 12, None, 1, "one-shot: at most 30% goes"),
        (0.3, 0.3, 12, None, 2, "accuracy is critical: a one-shot cut breaks its budget of 0.02"),
        (0.3, 0.3, 3, None, 1, "one-shot: at most 30% goes, and few epochs"),
        (0.3, None, 12, None, 1, "one-shot"),
        (0.31, 0.0, 12, None, 2, "between 30% and 50% goes"),
        (0.5, 0.3, 12, None, 2, "between 30% and 50% goes"),
        (0.51, 0.0, 12, None, 3, "more than 50% goes"),
        (0.95, 0.3, 2, None, 2, "more than 50% goes, where recovery in between pays, and every cycle needs an epoch"),
        (0.9, 0.3, 12, 1, 1, "set in the recipe"),
        (0.05, 0.0, 12, 5, 5, "set in the recipe"),
    ],
)
def test_the_more_goes_or_the_more_it_costs_the_more_cycles_unless_the_recipe_says_how_many(
    share: float, lost: float | None, epochs: int, asked: int | None, cycles: int, why: str
) -> None:
    seen = evidence(option("structured", reach=100, lost=lost), share=share)
    made = decide(seen, Overrules(cycles=asked, epochs=epochs))
    assert made.cycles == cycles
    assert because(made, "cycles").startswith(why)


def test_a_pattern_is_cut_at_once() -> None:
    assert decide(evidence(option("n_m"), share=0.5), EPOCHS).cycles == 1


@pytest.mark.parametrize(
    ("lost", "share", "asked", "epochs", "why"),
    [
        (0.01, 0.75, None, 10, "the cut alone keeps the accuracy budget"),
        (0.3, 0.3, None, 15, "the middle of the published range"),
        (0.3, 0.75, None, 20, "much goes, and the cut alone breaks the accuracy budget"),
        (None, 0.75, None, 15, "the middle of the published range"),
        (0.3, 0.75, 0.5, 50, "its share is set in the recipe, outside the published 10% to 20%"),
        (0.3, 0.75, 0.1, 10, "its share is set in the recipe"),
        (0.3, 0.75, 0.001, 1, "its share is set in the recipe, outside the published 10% to 20%"),
    ],
)
def test_recovery_takes_more_of_the_training_before_the_more_there_is_to_win_back(
    lost: float | None, share: float, asked: float | None, epochs: int, why: str
) -> None:
    seen = evidence(option("structured", lost=lost), share=share, trained_epochs=100.0)
    made = decide(seen, Overrules(recovery=asked))
    assert made.epochs == epochs
    assert because(made, "recovery") == why


@given(
    share=st.floats(0.01, 0.95),
    epochs=st.integers(1, 40),
    reaches=st.lists(st.floats(1.0, 30.0), min_size=4, max_size=4),
    lost=st.lists(st.floats(-0.1, 1.0), min_size=4, max_size=4),
    buys=st.lists(st.sampled_from(["time", "disk", "nothing", "unknown"]), min_size=4, max_size=4),
    counted=st.booleans(),
)
def test_whatever_is_known_the_method_serves_and_every_cycle_has_an_epoch(
    share: float, epochs: int, reaches: list[float], lost: list[float], buys: list[str], counted: bool
) -> None:
    options = [option(*facts) for facts in zip(PREFERRED, reaches, lost, buys, strict=True)]
    made = decide(evidence(*options, share=share, counted=counted), Overrules(epochs=epochs))
    if made.method == NONE:
        assert not any(one.buys == "time" and one.reach >= 1 / (1 - share) for one in options)
        return
    (chosen,) = [one for one in options if one.method == made.method]
    assert chosen.buys == "time"
    assert not counted or chosen.reach >= 1 / (1 - share)
    assert 1 <= made.cycles <= min(3, epochs)


def test_the_reasons_are_a_short_table_with_their_numbers() -> None:
    rows = decide(evidence(int8=alone(drop=0.004)), EPOCHS).rows
    text = table(rows)
    for word in ("structured", "cycles", "recovery", "12 epochs", "2.00x", "10.00x", "0.0040", "0.3000"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 120
    assert len(rows) <= 8


def test_a_method_that_can_take_nothing_away_is_no_method() -> None:
    made = decide(evidence(option("structured", reach=1.0, lost=None), counted=False), EPOCHS)
    assert made.method == NONE
    assert because(made, "method") == "no method that this target gains by reaches the goal"
