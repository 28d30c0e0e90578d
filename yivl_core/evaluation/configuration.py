"""What a user decides about an evaluation, and its main figures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.texts.normalisation import MAIN, find_normaliser

AllowedDifference = Literal["data", "prompt", "decoding", "rows"]
GateResult = Literal["passed", "regression", "not comparable", "incomplete"]


class ScoringSettings(BaseModel):
    """How answers are compared with their references, in fields that a retraining can take over."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metrics: tuple[str, ...] = Field(
        default=("ocr",),
        min_length=1,
        description="groups of metrics (ocr, vqa, fields, caption) or names of single ones; CER, exact match and the counts of "
        "bad answers are always there (default: ocr)",
    )
    primary: str | None = Field(
        default=None, description="the metric that decides a comparison; default: the first of `metrics`, for ocr cer"
    )
    normaliser: str = Field(
        default=MAIN,
        description="by which texts are equal: nfc or nfkc, then any of casefold, quotes, nopunct, and ws1 or nows, joined by +; "
        "or raw",
    )
    extractor: str = Field(
        default="verbatim",
        description="what of an answer is scored: verbatim, first-line, unwrapped (without `The text says:` and such), choice, "
        "number or json; the main figure without it stands beside",
    )
    slice_by: tuple[str, ...] = Field(
        default=(), description="further fields of the records (`meta`) by whose values the figures are given apart"
    )
    bleu_tokenizer: Literal["13a", "zh", "char", "intl", "none"] = Field(
        default="13a", description="how sacreBLEU parts words; for Chinese zh or char"
    )
    num_resamples: int = Field(default=2000, ge=100, le=100_000, description="resamples of the bootstrap")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="of the bootstrap")
    document_frequencies: str | None = Field(
        default=None,
        description="file of document frequencies that an earlier report wrote, for CIDEr-D; default: those of these references",
    )
    training_texts: tuple[str, ...] = Field(
        default=(),
        description="datasets that the model was trained on (validated ones or jsonl files): figures are given apart for answers "
        "whose text was in them, and for those whose was not",
    )

    @field_validator("metrics")
    @classmethod
    def _are_metrics(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from yivl_core.evaluation.metrics.names import resolve_names  # which loads all metrics

        _refuse(resolve_names, names)
        return names

    @field_validator("normaliser")
    @classmethod
    def _is_normaliser(cls, name: str) -> str:
        _refuse(find_normaliser, name)
        return name

    @field_validator("extractor")
    @classmethod
    def _is_extractor(cls, name: str) -> str:
        from yivl_core.evaluation.texts.extraction import find_extractor

        _refuse(find_extractor, name)
        return name

    @model_validator(mode="after")
    def _primary_is_measured(self) -> "ScoringSettings":
        if self.primary is not None:
            from yivl_core.evaluation.metrics.names import resolve_names

            names = resolve_names(self.metrics)
            if self.primary not in names:
                raise ValueError(f"`primary` {self.primary!r} is none of the metrics of this report: {', '.join(names)}")
        return self


def _refuse(find: Callable[[Any], object], value: object) -> None:
    try:
        find(value)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error


class EvaluationConfig(ScoringSettings):
    """Settings of `evaluate_predictions`."""

    predictions: str = Field(description="predictions folder or fsspec URL, as `yivl infer` writes it")
    baseline: str | None = Field(
        default=None, description="the same of a model that this one is compared with, over the same records"
    )
    gate: str | None = Field(
        default=None, description="YAML file that says what has to hold; its result is the exit code (README: gate)"
    )
    allow_difference: tuple[AllowedDifference, ...] = Field(
        default=(),
        description="compare with the baseline although these differ (data, prompt, decoding, or rows that only one side has); "
        "the report says so",
    )
    dataset: str | None = Field(
        default=None,
        description="validated dataset, or file of held-out records, in which the images are found; default: none are shown",
    )
    max_samples: int = Field(
        default=2000,
        ge=0,
        description="rows that the report shows: all, or the worst, some at random, failed ones, and those that the baseline "
        "has otherwise",
    )
    output: str = Field(
        description="folder or fsspec URL for report.json, report.md and report.html; those of an earlier evaluation are replaced"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSummary:
    """The main figures of a report.

    Attributes:
        output: the report folder.
        num_samples: rows that have a reference, and so count.
        num_failed, num_empty, num_cut: rows among them with an error, with an empty answer, and cut at max_new_tokens.
        cer: corpus character error rate: edits over reference characters, a failed row counting as empty; None where no reference
            has a character.
        exact_match: share of rows whose answer equals a reference.
        primary: the metric that decides.
        value: its figure; None where it is not defined for any row.
        low, high: its 95 % interval; None without one.
        difference: the figure minus the baseline's; None without a baseline, or where they do not compare.
        verdict: `better`, `worse`, `not distinguishable` or `not comparable`; None without a baseline.
        reason: why the two do not compare; None where they do, or without a baseline.
        gate: what the gate says; None without one.
        gate_reasons: why it did not pass, a sentence each.
    """

    output: str
    num_samples: int
    num_failed: int
    num_empty: int
    num_cut: int
    cer: float | None
    exact_match: float
    primary: str
    value: float | None
    low: float | None
    high: float | None
    difference: float | None = None
    verdict: str | None = None
    reason: str | None = None
    gate: GateResult | None = None
    gate_reasons: tuple[str, ...] = ()
