"""Settings -> what is measured, with the inputs that it needs, and how a report describes it."""

from dataclasses import dataclass, replace
from typing import Any

from yivl_core.evaluation.configuration import EvaluationConfig, ScoringSettings
from yivl_core.evaluation.metrics.document_frequencies import DocumentFrequencies
from yivl_core.evaluation.metrics.metric import Metric
from yivl_core.evaluation.metrics.names import CIDER, make_metrics, resolve_names
from yivl_core.evaluation.rows import no_references, references_of
from yivl_core.evaluation.scoring import Measuring
from yivl_core.evaluation.texts.extraction import VERBATIM, describe_extractor
from yivl_core.evaluation.texts.normalisation import describe_normaliser
from yivl_core.evaluation.training_texts import TrainingTexts, read_training_texts
from yivl_core.outputs.predictions import read_predictions

VERBATIM_ENDING = "_verbatim"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What an evaluation measures.

    Attributes:
        names: of the metrics, in the order of the report.
        primary: the one that decides.
        measuring: of each row.
        frequencies: of n-grams, where CIDEr-D is measured.
        described: the same for the report.
    """

    names: tuple[str, ...]
    primary: str
    measuring: Measuring
    frequencies: DocumentFrequencies | None
    described: dict[str, Any]


def primary_of(settings: ScoringSettings) -> str:
    """The name of the metric that decides comparisons."""
    return settings.primary or resolve_names(settings.metrics)[0]


def prepare_measures(config: EvaluationConfig) -> Measures:
    """Make the metrics, and read what they need.

    Raises:
        DatasetError: training texts cannot be read, or no row has a reference whose n-grams could be counted.
        OutputError: there are no predictions, or the file of document frequencies is none.
        StorageError: something cannot be read.
    """
    names, primary = resolve_names(config.metrics), primary_of(config)
    frequencies = _document_frequencies(config) if CIDER in names else None
    texts = read_training_texts(config.training_texts, config.normaliser) if config.training_texts else None
    metrics = make_metrics(
        names, normaliser=config.normaliser, bleu_tokenizer=config.bleu_tokenizer, document_frequencies=frequencies
    )
    measuring = Measuring(
        metrics=metrics,
        verbatim=(_verbatim(metrics[names.index(primary)]),) if config.extractor != VERBATIM else (),
        normaliser=config.normaliser,
        extractor=config.extractor,
        fields=config.slice_by,
        training_texts=None if texts is None else texts.texts,
    )
    described = _describe(config, (*names, *(metric.name for metric in measuring.verbatim)), texts, frequencies)
    return Measures(names=names, primary=primary, measuring=measuring, frequencies=frequencies, described=described)


def _verbatim(metric: Metric) -> Metric:
    """The same of answers as they were written, so that what the extractor did can be seen."""
    return replace(metric, name=metric.name + VERBATIM_ENDING, title=f"{metric.title}, answers as written")


def _document_frequencies(config: EvaluationConfig) -> DocumentFrequencies:
    if config.document_frequencies is not None:
        return DocumentFrequencies.read(config.document_frequencies)
    found, num_rows = DocumentFrequencies(), 0
    for prediction in read_predictions(config.predictions):
        num_rows += 1
        if references := references_of(prediction):
            found.add([references])
    if not found.num_documents:
        raise no_references(config.predictions, num_rows)
    return found


def _describe(
    config: EvaluationConfig, names: tuple[str, ...], texts: TrainingTexts | None, frequencies: DocumentFrequencies | None
) -> dict[str, Any]:
    return {
        "metrics": list(names),
        "primary": primary_of(config),
        "normaliser": describe_normaliser(config.normaliser),
        "extractor": describe_extractor(config.extractor),
        "slice_by": list(config.slice_by),
        "bleu_tokenizer": config.bleu_tokenizer if "bleu4" in names else None,
        "num_resamples": config.num_resamples,
        "seed": config.seed,
        "allow_difference": sorted(set(config.allow_difference)),
        "training_texts": None if texts is None else {"num_texts": len(texts.texts), "digest": texts.digest},
        "document_frequencies": None
        if frequencies is None
        else {"num_documents": frequencies.num_documents, "digest": frequencies.digest},
    }
