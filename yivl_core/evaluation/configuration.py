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
