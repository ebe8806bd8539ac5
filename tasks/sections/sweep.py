"""A sweep's file, and the section `trial` that it gives the recipes of its candidates."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from tasks.sections.section import Section

MOST_RUNGS, MOST_FINALISTS = 3, 3


class Halving(Section):
    """Successive halving: who goes on after a short recovery (Karnin et al., ICML 2013; Jamieson and Talwalkar, AISTATS 2016)."""

    eta: int = Field(2, ge=2, le=8)  # one of so many goes on from a rung, to so many times its recovery
    rungs: int = Field(2, ge=2, le=MOST_RUNGS)


class Sweep(Section):
    """Recipes to compare: a matrix over one, or a list of them."""

    base: str | None = None  # the recipe that `matrix` changes
    matrix: dict[str, tuple[Any, ...]] = Field(default_factory=dict)  # values by the dotted names of its settings
    recipes: tuple[str, ...] = ()
    halving: Halving | None = None  # off without it
    finalists: int = Field(1, ge=1, le=MOST_FINALISTS)  # that the test split judges at most, the best first

    @field_validator("halving", mode="before")
    @classmethod
    def _off(cls, given: Any) -> Any:
        """What YAML reads `off` as is False, unless it is quoted."""
        if given is False or given == "off":
            return None
        if not isinstance(given, dict | Halving | None):
            raise ValueError("must be {eta: 2, rungs: 2}, or off")
        return given

    @model_validator(mode="after")
    def _one_kind(self) -> Sweep:
        matrix = self.base is not None and bool(self.matrix)
        if matrix == bool(self.recipes) or (self.recipes and (self.base or self.matrix)):
            raise ValueError("base with matrix is needed, or recipes alone")
        if empty := [name for name, values in self.matrix.items() if not values]:
            raise ValueError(f"matrix.{empty[0]} needs a list of values, one at least")
        return self


class Trial(Section):
    """What a candidate of a sweep is one of; its sweep fills it in, for bounds depend on it."""

    candidates: int = Field(ge=2)  # by whose measured figures the best is chosen
    finalists: int = Field(ge=1)  # that the test split judges
    rung: int = Field(1, ge=1)
    rungs: int = Field(1, ge=1)
    eta: int = Field(2, ge=2)

    @property
    def share(self) -> float:
        """Of the recovery, what is done when this rung ends."""
        return float(self.eta) ** (self.rung - self.rungs)

    @property
    def short(self) -> bool:
        """Whether its recovery goes on in a later rung."""
        return self.rung < self.rungs
