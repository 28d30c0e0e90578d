"""The texts that a model was trained to answer, so that reading can be told from remembering."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from yivl_core.data.input_source import InputSource
from yivl_core.data.inputs import open_input
from yivl_core.digests import digest_json
from yivl_core.errors import DatasetError
from yivl_core.evaluation.texts.normalisation import find_normaliser


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingTexts:
    """Answers that were learned.

    Attributes:
        texts: normalised.
        digest: sha256 (hex) over them in order.
    """

    texts: frozenset[str]
    digest: str


def read_training_texts(datasets: Sequence[str], normaliser: str) -> TrainingTexts:
    """The answers of all rounds of the records.

    Args:
        datasets: folders of validated datasets, or dataset files of any format.
        normaliser: name of the rule by which texts are equal.

    Raises:
        DatasetError: one cannot be read, or none holds an answer.
        StorageError: a file cannot be opened.
    """
    normalise = find_normaliser(normaliser)
    texts = frozenset(normalise(text) for dataset in datasets for text in _answers(dataset))
    if not texts:
        raise DatasetError(f"{', '.join(datasets)}: no record has an answer, so there are no training texts; give other files")
    return TrainingTexts(texts=texts, digest=digest_json(sorted(texts)))


def _answers(dataset: str) -> Iterator[str]:
    for row in open_input(InputSource(dataset=dataset)).rows():
        if row.record is not None:
            yield from (response for _, response in row.record.history)
            if row.record.response is not None:
                yield row.record.response
