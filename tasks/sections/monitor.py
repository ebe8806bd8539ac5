"""The section `monitor` of a recipe: what is done with what is seen of a version after it serves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tasks.sections.section import Section


class Monitor(Section):
    """How what serves is watched. Read anew at every look: it changes nothing of a pruning, and so belongs to none."""

    # of a breach that the pruning caused: go back to dense, ask one of `users` first, or only tell
    policy: Literal["automatic", "ask", "tell"] = "automatic"
    users: tuple[str, ...] = ()  # who may answer: their ids in Airflow
    hours: float = Field(24.0, gt=0, le=24 * 365)  # without an answer it is a no
    examples: int = Field(500, ge=30)  # of a look, that the dense model answers too
    labels_within_days: float = Field(7.0, gt=0)  # a label that comes later is not looked for
    keep_days: float | None = Field(None, gt=0)  # of the log; without, nothing is deleted
    again: str | None = None  # a recipe that `prune_model` is started with after a breach of ours

    @model_validator(mode="after")
    def _somebody(self) -> Monitor:
        if self.policy == "ask" and not self.users:
            raise ValueError("policy ask needs users, who may answer; users is empty")
        return self
