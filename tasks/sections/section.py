"""What sections of a recipe have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat

Share = Annotated[float, Field(gt=0, lt=1)]
Drop = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """Unknown keys are refused, so are NaN and infinity; nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Qps(Section):
    """Requests a second that are served with 99 of 100 in time, one example each."""

    rate: PositiveFloat
    p99_ms: PositiveFloat
