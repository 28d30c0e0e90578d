"""What a user decides about a promotion, and what became of it."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from yivl_core.evaluation.configuration import GateResult

Requirement = Literal["better", "not_worse"]
PromotionResult = GateResult | Literal["declined"]


class PromotionConfig(BaseModel):
    """Settings of `promote_model`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    registry: str = Field(description="folder or fsspec URL of registry.json, which says which model is the current one")
    model: str | None = Field(default=None, description="checkpoint folder that is to become the current model")
    report: str | None = Field(
        default=None, description="folder of its evaluation report, made with a gate, and with the current model as baseline"
    )
    predictions: str | None = Field(
        default=None, description="the answers that the report is about, so that later models find them; default: not kept"
    )
    require: Requirement = Field(
        default="better",
        description="what the report has to say of the primary metric beside the current model; without one the gate decides",
    )
    note: str | None = Field(default=None, description="kept in the registry with the reason")
    rollback: bool = Field(default=False, description="make the model current again that was so before the current one")

    @model_validator(mode="after")
    def _promotes_or_rolls_back(self) -> "PromotionConfig":
        if self.rollback and (self.model or self.report or self.predictions):
            raise ValueError("`rollback` takes the model from the registry; leave out `model`, `report` and `predictions`")
        if not self.rollback and not (self.model and self.report):
            raise ValueError("a promotion needs `model` and `report`; or give `rollback`")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionSummary:
    """What became of a promotion.

    Attributes:
        registry: the file that names the current model.
        result: `passed`, or why nothing was changed, in the words of a gate; `declined`: somebody was asked and said no.
        reasons: a sentence for each thing that stood against it.
        model: the current model's folder now; None where there is none.
        digest: of its content.
        was_current: the model was the current one already, so nothing was changed.
        previous: folder of the model that this promotion or rollback has replaced.
    """

    registry: str
    result: PromotionResult
    reasons: tuple[str, ...] = ()
    model: str | None = None
    digest: str | None = None
    was_current: bool = False
    previous: str | None = None
