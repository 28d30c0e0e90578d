"""CIDEr-D: how close an answer is to what most references say, where n-grams that few documents hold weigh most.

An n-gram's weight is the logarithm of the number of documents over the number of those that hold it (taken as 1 where none
does). For each n the similarity of two texts is the cosine of their weighted counts, with the answer's cut to the reference's:

    sum of min(a, r) r weight²  /  sqrt(sum of a² weight² · sum of r² weight²)

times exp(-(difference in words)² / (2 · 6²)). A row has ten times the mean over n and references.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.metrics.document_frequencies import MAX_ORDER, DocumentFrequencies, count_ngrams
from yivl_core.evaluation.metrics.metric import BILLION, Counts, Metric, RowBatch, mean_of_billionths
from yivl_core.evaluation.texts.words import RULE, split_words

_SCALE = 10
_SIGMA = 6


def cider_d(document_frequencies: DocumentFrequencies) -> Metric:
    """CIDEr-D with these document frequencies, as they are now: what is counted into them later changes nothing here.

    Raises:
        ConfigurationError: there is no document in them.
    """
    num_documents = document_frequencies.num_documents
    if not num_documents:
        raise ConfigurationError(
            "the document frequencies for CIDEr-D are of no document; count the references of at least two rows into them"
        )
    squares = {count: (math.log(num_documents) - math.log(count)) ** 2 for count in {1, *document_frequencies.counts.values()}}
    return Metric(
        name="cider_d",
        title="CIDEr-D",
        version=1,
        definition="mean over rows of CIDEr-D (R. Vedantam et al., CIDEr, CVPR 2015): n-grams of 1 to 4 words, sigma 6, times "
        f"10, so 10 is perfect; document frequencies of {num_documents} documents (rows) with sha256 "
        f"{document_frequencies.digest}: figures with others do not compare, and with one document all weights are log 1, so the "
        f"figure is 0; a failed row counts as an empty text, which has 0; words by {RULE}",
        best="high",
        kind="score",
        columns=("rows", "billionths"),
        measure=partial(
            _measure,
            squares={ngram: squares[count] for ngram, count in document_frequencies.counts.items()},
            unseen=squares[1],
        ),
        figure=mean_of_billionths,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Vector:
    """A text: its words, how often each n-gram occurs, and the squared length of the weighted counts; the last two by n."""

    num_words: int
    counts: tuple[Counter[str], ...]
    squared_lengths: tuple[float, ...]


def _measure(batch: RowBatch, *, squares: Mapping[str, float], unseen: float) -> Counts:
    """Columns rows and billionths, with the squared weight of each n-gram, and of those that no document holds."""
    pairs = zip(batch.answers, batch.references, strict=True)
    rows = [(1, _cider(answer or "", references, squares, unseen)) for answer, references in pairs]
    return np.array(rows, dtype=np.int64).reshape(len(rows), 2)


def _cider(answer: str, references: Sequence[str], squares: Mapping[str, float], unseen: float) -> int:
    """CIDEr-D in billionths. Sums of floats are exact before they are rounded (`fsum`), so no order decides."""
    vector = _vector(answer, squares, unseen)
    total = math.fsum(_similarity(vector, _vector(reference, squares, unseen), squares, unseen) for reference in references)
    return round(_SCALE * BILLION * total / (MAX_ORDER * len(references)))


def _vector(text: str, squares: Mapping[str, float], unseen: float) -> _Vector:
    words = split_words(text)
    counts = count_ngrams(words)
    lengths = (math.fsum(count * count * squares.get(ngram, unseen) for ngram, count in order.items()) for order in counts)
    return _Vector(num_words=len(words), counts=counts, squared_lengths=tuple(lengths))


def _similarity(answer: _Vector, reference: _Vector, squares: Mapping[str, float], unseen: float) -> float:
    """Sum over n of the cosines, times the penalty for another number of words."""
    cosines = []
    for order in range(MAX_ORDER):
        lengths = answer.squared_lengths[order] * reference.squared_lengths[order]
        if lengths:
            others = reference.counts[order]
            common = math.fsum(
                min(count, others[ngram]) * others[ngram] * squares.get(ngram, unseen)
                for ngram, count in answer.counts[order].items()
                if ngram in others
            )
            cosines.append(common / math.sqrt(lengths))
    return math.fsum(cosines) * math.exp(-((answer.num_words - reference.num_words) ** 2) / (2 * _SIGMA**2))
