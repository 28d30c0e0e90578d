"""What a user decides about an evaluation, and its main figures."""

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field


class EvaluationConfig(BaseModel):
    """Settings of `evaluate_predictions`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    predictions: str = Field(description="predictions folder or fsspec URL, as `yivl infer` writes it")
    output: str = Field(
        description="folder or fsspec URL for report.json and report.md; those of an earlier evaluation are replaced"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSummary:
    """The main figures of a report.

    Attributes:
        output: the report folder.
        num_samples: rows that have a reference, and so count.
        num_failed, num_empty, num_cut: rows among them with an error, with an empty answer, and cut at max_new_tokens.
        cer: corpus character error rate: edits over reference characters, a failed row counting as empty.
        exact_match: share of rows whose answer equals a reference.
    """

    output: str
    num_samples: int
    num_failed: int
    num_empty: int
    num_cut: int
    cer: float
    exact_match: float


class ComparisonConfig(BaseModel):
    """Settings of `write_comparison`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    predictions: str = Field(description="predictions folder or fsspec URL of the model in question, as `yivl infer` writes it")
    baseline: str = Field(description="the same of the model that it is compared with, over the same records")
    dataset: str | None = Field(
        default=None,
        description="validated dataset, or file of held-out records, in which the images are found; default: none are shown",
    )
    output: str = Field(description="folder or fsspec URL for comparison.html; that of an earlier comparison is replaced")
    num_samples: int = Field(default=24, ge=1, description="records shown, out of all groups of better, worse and equal answers")


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSummary:
    """What a comparison found.

    Attributes:
        page: the HTML page.
        num_matched: records that both have answered.
        num_only_predictions, num_only_baseline: records in only one of the two.
        num_mended, num_lost: wrong before and right now, right before and wrong now; of the records with a reference.
        num_stayed_right, num_stayed_wrong: the others of those.
        num_changed, num_unchanged: records without a reference whose answers differ, and are equal.
    """

    page: str
    num_matched: int
    num_only_predictions: int
    num_only_baseline: int
    num_mended: int
    num_lost: int
    num_stayed_right: int
    num_stayed_wrong: int
    num_changed: int
    num_unchanged: int
