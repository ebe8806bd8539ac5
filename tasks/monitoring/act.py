"""What follows from looks: a person is asked or not, the dense model serves again, people are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tasks import registry
from tasks.monitoring.look import Look
from tasks.references import Answer, Question

Start = Callable[[str, str, Mapping[str, Any]], bool]  # a DAG, an id and params; False where that run exists

ROLLBACK, PRUNE = "rollback_model", "prune_model"
WHO = "monitor_model"
LONGEST_REASON = 800


def ask(looks: list[Look] | None) -> list[Question]:
    """One question for every breach of ours that a person decides, in the order of the looks; without looks none."""
    return [
        Question(
            f"Serve the dense model of {look.model} again? ({registry.onnx_name(look.model)} version {look.version})",
            f"{look.sentence}.\n\n[Every look at it]({look.page})\n",
            look.users,
            look.hours,
        )
        for look in looks or ()
        if look.ours and look.policy == "ask"
    ]


def run(looks: Sequence[Look], answers: tuple[Answer, ...], start: Start) -> list[str]:
    """Start what follows; returns what was done, a sentence for each look that something follows from.

    A run's id follows from the look, so that what is tried again starts nothing twice.
    """
    said = iter(answers)
    return [done for look in looks if look.ours for done in _followed(look, said, start)]


def told(looks: Sequence[Look], done: list[str]) -> list[str]:
    """What people should hear of: whatever changed since the look before, breaches, and what was done."""
    news = [look.sentence for look in looks if look.outcome == "breach" or look.changed]
    return [*news, *done]


def _followed(look: Look, answers: Any, start: Start) -> list[str]:
    name = f"{registry.onnx_name(look.model)} version {look.version}"
    word = ""
    if look.policy == "tell":
        return [
            f"{name}: nothing is done, monitor.policy is tell; `secateur rollback {look.model} --to dense --reason ...` does it"
        ]
    if look.policy == "ask":
        answer = next(answers, None)
        if answer is None or not answer.yes:
            said = answer.sentence if answer else "Nobody was asked."
            return [f"{name}: it goes on serving. {said}"]
        word = f"{answer.sentence.rstrip('.')}. "
    key = f"monitor__{look.model}__v{look.version}__{look.run[:12]}__look{look.number}"
    reason = _one_line(f"{word}{look.reason}")
    conf = {"model": look.model, "to": "dense", "reason": reason, "who": WHO}
    begun = start(ROLLBACK, key, conf)
    done = [
        f"{name}: {'rollback to the dense model was started' if begun else 'its rollback was started before'} ({key})"
    ]
    if look.again:
        start(PRUNE, key, {"model": look.model, "recipe": look.again, "version": "latest"})
        done.append(f"{look.model}: pruning anew by recipe {look.again} was started ({key})")
    return done


def _one_line(reason: str) -> str:
    shown = " ".join("".join(sign if sign.isprintable() else " " for sign in reason).split())
    return shown if len(shown) <= LONGEST_REASON else f"{shown[: LONGEST_REASON - 4]} ..."
