"""The gate's YAML file -> settings that are checked against what the evaluation measures, before predictions are read.

Every scalar is read as text, as it stands in the file, and becomes a number only where one belongs: `no` stays the value of a
slice, and a digest of digits a digest. Aliases are refused, so that a small file stays small when it is read.
"""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from yivl_core.errors import ConfigurationError, FileTooLargeError
from yivl_core.evaluation.configuration import EvaluationConfig
from yivl_core.evaluation.measures import VERBATIM_ENDING, primary_of
from yivl_core.evaluation.metrics.document_frequencies import DocumentFrequencies
from yivl_core.evaluation.metrics.names import ALWAYS, make_metrics, resolve_names
from yivl_core.evaluation.slices import slice_names
from yivl_core.evaluation.texts.extraction import VERBATIM
from yivl_core.object_stores import without_secrets
from yivl_core.settings import Location, explain_validation_error
from yivl_core.storage import read_limited

COVERAGE = "coverage"
"""Share of the rows with a reference that were answered; beside the metrics, the one figure that rules may name."""

SCORING_NAMES = ("normaliser", "extractor", "primary", "bleu_tokenizer")
MANIFEST_BLOCKS = ("data", "prompt", "decoding", "numerics", "settings", "environment", "code", "model", "adapter")

Same = Literal[
    "data", "prompt", "decoding", "numerics", "environment", "code", "model", "adapter", "normaliser", "extractor"
]  # fmt: skip

_MAX_BYTES = 64 * 1024


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SliceValue(_Checked):
    """The rows of one value of one slice."""

    name: str = Field(description="as the report names the slice: length, characters, text in training, or meta.FIELD")
    value: str = Field(description="as the report names the value")


class Rule(_Checked):
    """What has to hold of one figure."""

    metric: str = Field(description="name of a metric that is measured, or coverage")
    direction: Literal["low", "high"] | None = Field(
        default=None, description="which figures are good; refused where it is not what the metric itself says"
    )
    margin: float | None = Field(default=None, ge=0, description="how much worse than the baseline's the figure may be")
    test: Literal["regression", "non_inferiority"] = Field(
        default="regression",
        description="regression: fails where the 95 % interval of the worsening lies wholly beyond the margin; non_inferiority: "
        "fails unless it lies wholly below the margin",
    )
    min: float | None = Field(default=None, description="least figure")
    max: float | None = Field(default=None, description="largest figure")
    min_n: int | None = Field(default=None, ge=1, description="least number of rows that the figure is made of")
    slice: SliceValue | None = Field(default=None, description="look at these rows alone; default: at all")

    @model_validator(mode="after")
    def _says_something_that_can_be_tested(self) -> "Rule":
        if self.margin is None and self.min is None and self.max is None and self.min_n is None:
            raise ValueError("a rule needs one of `margin`, `min`, `max` and `min_n`")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"nothing is at least {self.min:g} and at most {self.max:g}")
        if self.margin is None and self.test != "regression":
            raise ValueError("`test` is for rules with a `margin`")
        if self.margin == 0 and self.test == "non_inferiority":
            raise ValueError("`non_inferiority` needs a `margin` above 0: with 0 nothing short of an improvement would pass")
        if self.margin is not None and self.slice is not None:
            raise ValueError("differences from the baseline are not measured in slices; give `min` or `max` with `slice`")
        if self.margin is not None and self.metric == COVERAGE:
            raise ValueError("give `metric: failed` with a `margin`: the share of rows without an answer")
        return self


class Requirements(_Checked):
    """What has to be as it was, and what promotion needs."""

    same: tuple[Same, ...] = Field(
        default=(), description="what must not differ from the baseline, nor be unknown, even where a difference was allowed"
    )
    equal: dict[str, str] = Field(
        default={},
        description="pinned values: normaliser, extractor, primary, bleu_tokenizer, or a place in the manifest of the "
        "predictions, as decoding.max_new_tokens; data, model, adapter and prompt stand for their digests",
    )
    primary: Literal["better", "not_worse"] | None = Field(
        default=None, description="what has to be said of the primary metric beside the baseline's"
    )

    @field_validator("equal")
    @classmethod
    def _are_known(cls, equal: dict[str, str]) -> dict[str, str]:
        for name in equal:
            if name not in SCORING_NAMES and name.partition(".")[0] not in MANIFEST_BLOCKS:
                raise ValueError(
                    f"{name!r} is nothing that can be pinned; give {', '.join(SCORING_NAMES)}, or a place below one of "
                    f"{', '.join(MANIFEST_BLOCKS)}"
                )
        return equal


class GateSettings(_Checked):
    """The content of a gate file."""

    rules: tuple[Rule, ...] = Field(default=(), description="what has to hold of figures")
    require: Requirements = Field(default=Requirements(), description="what has to be as it was")
    require_baseline: bool = Field(
        default=False, description="refuse to evaluate without a baseline, in place of skipping what needs one"
    )

    @model_validator(mode="after")
    def _asks_for_something(self) -> "GateSettings":
        if not self.rules and self.require == Requirements():
            raise ValueError("the gate asks for nothing; give `rules` or `require`")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A gate that fits the evaluation.

    Attributes:
        settings: what it asks for.
        digest: sha256 (hex) of the file.
    """

    settings: GateSettings
    digest: str


def read_gate(url: str, config: EvaluationConfig) -> Gate:
    """The gate of an evaluation.

    Args:
        url: YAML file, of any fsspec address.
        config: of the evaluation.

    Raises:
        ConfigurationError: the file is no such gate, asks for what is not measured, or for a baseline where there is none.
        StorageError: it cannot be read.
    """
    place = without_secrets(url)
    try:
        data = read_limited(url, _MAX_BYTES)
    except FileTooLargeError as error:
        raise ConfigurationError(f"{error}, so it is no gate; check the path") from error
    try:
        settings = GateSettings.model_validate(_load(data, place))
        _check(settings, config)
    except ValidationError as error:
        lines = explain_validation_error(error, _name).splitlines()
        raise ConfigurationError("\n".join(f"{place}: {line}" for line in lines)) from error
    except ValueError as error:
        raise ConfigurationError(f"{place}: {error}") from error
    return Gate(settings=settings, digest=hashlib.sha256(data).hexdigest())


def _name(location: Location) -> str:
    """`rules.0.margin` as `rule 1: margin`."""
    if len(location) > 1 and location[0] == "rules" and isinstance(location[1], int):
        rest = ".".join(str(part) for part in location[2:])
        return f"rule {location[1] + 1}" + (f": {rest}" if rest else "")
    return ".".join(str(part) for part in location)


def _check(settings: GateSettings, config: EvaluationConfig) -> None:
    """Raises a ValueError where the settings do not fit the evaluation."""
    if settings.require_baseline and config.baseline is None:
        raise ValueError("the gate requires a baseline (require_baseline), and none is given; name one with `baseline`")
    measured = resolve_names(config.metrics)
    if config.extractor != VERBATIM:
        measured = (*measured, primary_of(config) + VERBATIM_ENDING)
    slices = slice_names(config.slice_by, has_training_texts=bool(config.training_texts))
    sliced = tuple(dict.fromkeys((primary_of(config), *ALWAYS)))
    for place, rule in enumerate(settings.rules):
        name = _name(("rules", place))
        if rule.metric not in (*measured, COVERAGE):
            raise ValueError(
                f"{name}: the metric {rule.metric!r} is not measured; name one of {', '.join((*measured, COVERAGE))}, or ask for "
                "more `metrics`"
            )
        if rule.direction is not None and rule.direction != (best := _best(rule.metric, config)):
            raise ValueError(f"{name}: of {rule.metric} {best} figures are good, not {rule.direction}; leave out `direction`")
        if rule.slice is not None and rule.slice.name not in slices:
            raise ValueError(f"{name}: there is no slice {rule.slice.name!r}; the report has {', '.join(slices)}")
        if rule.slice is not None and rule.metric not in sliced:
            raise ValueError(f"{name}: {rule.metric} is not measured in slices; these are: {', '.join(sliced)}")


def _best(name: str, config: EvaluationConfig) -> Literal["low", "high"]:
    if name == COVERAGE:
        return "high"
    (metric,) = make_metrics(
        [name.removesuffix(VERBATIM_ENDING)],
        normaliser=config.normaliser,
        bleu_tokenizer=config.bleu_tokenizer,
        document_frequencies=DocumentFrequencies(1),
    )
    return metric.best


class _Loader(yaml.BaseLoader):
    """Texts, lists and mappings: tags mean nothing, no node stands for another, and each key stands once."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases (*) are not read; write it out", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                problem = "this key stands twice" if isinstance(key, yaml.ScalarNode) else "a key has to be text"
                raise yaml.MarkedYAMLError(problem=f"{problem}: {key.value}", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _load(data: bytes, place: str) -> dict[Hashable, Any]:
    try:
        content = yaml.load(data, _Loader)  # noqa: S506 - it makes nothing but texts, lists and mappings
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigurationError(f"{place}{line}: {error.problem}; correct the YAML") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise ConfigurationError(f"{place}: this is no YAML: {reason}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{place}: a gate is a mapping with the keys rules, require and require_baseline")
    return content
