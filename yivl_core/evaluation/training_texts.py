"""The texts that a model was trained to answer, so that reading can be told from remembering."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from yivl_core.data.dataset import RECORDS_NAME, is_validated_dataset, read_records
from yivl_core.data.inputs import InputSource, open_input
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


def read_training_texts(datasets: Iterable[str], normaliser: str) -> TrainingTexts:
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
    if is_validated_dataset(dataset):
        records = (validated.record for validated in read_records(Path(dataset) / RECORDS_NAME))
    else:
        rows = open_input(InputSource(dataset=dataset))
        records = (row.record for row in rows if row.record is not None)
    for record in records:
        yield from (response for _, response in record.history)
        if record.response is not None:
            yield record.response
