"""The section `gate` of a recipe: the bounds that what ships must keep."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from tasks.sections.section import Drop, Qps, Section, Share

IMAGE_CORRUPTIONS, TEXT_CORRUPTIONS = ("noise", "blur", "contrast", "jpeg"), ("typos", "word_drops")


class Slices(Section):
    """Whether some part of the test set lost more than the whole."""

    drop: Drop  # of the metric, in none of them more
    by: tuple[str, ...] = Field(("label",), min_length=1)  # label, mean, deviation, length, or names of data.metadata
    fewest: int = Field(30, ge=2)  # examples of a slice; smaller ones are only counted


class Robustness(Section):
    """Whether the pruned model is more fragile than the dense one: both are given the test set corrupted, or another set."""

    drop: Drop  # of the metric against the dense model's on the same examples, in none of them more
    corruptions: tuple[
        Literal["noise", "blur", "contrast", "jpeg", "typos", "word_drops", "feature_noise"], ...
    ] = ()  # of images, of texts, of tables
    severity: int = Field(3, ge=1, le=5)
    shifted: str | None = None  # where another set is, as data.splits would say it

    @model_validator(mode="after")
    def _something(self) -> Robustness:
        if not self.corruptions and self.shifted is None:
            raise ValueError("corruptions or shifted is needed, got neither")
        return self


class Incumbent(Section):
    """Whether what serves is better than what would replace it, on this test set and by this metric."""

    drop: Drop  # of the metric against the champion's
    none: Literal["pass", "refuse"] = "pass"  # where nothing serves yet
    changed: Literal["measure", "refuse"] = "measure"  # where it was judged by another metric or on another test set


class GateSection(Section):
    """What must be proven before a promotion; what is not given is reported, where it can be, and decides nothing."""

    confidence: float = Field(0.95, gt=0.5, lt=1)
    speedup: float = Field(1.0, gt=0)  # the interval's low end must reach it
    parity: float = Field(1e-4, gt=0)  # ONNX in floating point against torch, relative to the largest output
    looks: int = Field(3, ge=1)  # verdicts on a model by one test set, after which each must be surer
    floor: float | None = None  # of the metric itself, whatever the dense model's
    documents: str | None = None  # of data.metadata: the document of each example, where they are parts of documents
    slices: Slices | None = None
    exemplars: Share | None = None  # of the examples, largest share that only the dense model gets right
    agreement: Share | None = None  # of the examples, least share with the same answer
    ece: Share | None = None  # largest calibration error
    brier: Annotated[float, Field(gt=0, lt=2)] | None = None  # largest rise of the Brier score
    confidence_shift: Share | None = None  # largest shift of the mean probability, up or down
    robustness: Robustness | None = None
    incumbent: Incumbent | None = None
    p99_ms: PositiveFloat | None = None  # of requests one after the other
    memory_mb: PositiveFloat | None = None  # peak that loading and running the file adds to a process
    size_mb: PositiveFloat | None = None  # of the ONNX file, 10^6 bytes
    qps: Qps | None = None  # that LoadGen calls VALID

    @property
    def of_classes(self) -> list[str]:
        """The settings that need answers which are right or wrong."""
        named = ("exemplars", "agreement", "ece", "brier", "confidence_shift")
        asked = [f"gate.{name}" for name in named if getattr(self, name) is not None]
        return asked + (["gate.slices.by label"] if self.slices and "label" in self.slices.by else [])
