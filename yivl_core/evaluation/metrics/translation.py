"""BLEU-4 and chrF, as sacreBLEU counts them: its counts of each row are the columns, and the figure is made of their sums.

The figure is done again here because sacreBLEU gives it for one list of counts at a time, and a bootstrap has thousands.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.metrics.metric import Counts, Floats, Metric, RowBatch, Sums
from yivl_core.evaluation.texts.normalisation import RAW

if TYPE_CHECKING:  # importing it takes a third of a second, which whoever wants other metrics need not wait for
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

BLEU_TOKENIZERS = ("13a", "zh", "char", "intl", "none")
"""Those of sacreBLEU that need neither a download nor another package."""

_WORD_ORDERS = range(1, 5)
_CHARACTER_ORDERS = range(1, 7)
_BETA = 2


def bleu4(tokenizer: str = "13a") -> Metric:
    """Corpus BLEU of 1- to 4-grams. Where no answer has four words it is 0, even if all are right.

    Args:
        tokenizer: one of `BLEU_TOKENIZERS`: 13a for texts with white space between words, zh for Chinese.

    Raises:
        ConfigurationError: there is no such tokenizer here.
    """
    if tokenizer not in BLEU_TOKENIZERS:
        raise ConfigurationError(
            f"there is no BLEU tokenizer {tokenizer!r}; give one of {', '.join(BLEU_TOKENIZERS)} (others of sacreBLEU would "
            "download a model or need another package)"
        )
    return Metric(
        name="bleu4",
        title="BLEU-4",
        version=1,
        definition="corpus BLEU of 1- to 4-grams (K. Papineni et al., BLEU, ACL 2002), from 0 to 100, by sacreBLEU "
        f"{_signature(_make_bleu(tokenizer))}; a failed row counts as an empty text",
        best="high",
        kind="score",
        columns=(
            "rows",
            "answer_words",
            "reference_words",
            *(f"matches_{order}" for order in _WORD_ORDERS),
            *(f"ngrams_{order}" for order in _WORD_ORDERS),
        ),
        measure=partial(_measure_bleu, tokenizer=tokenizer),
        figure=_bleu_of,
        normaliser=RAW,
    )


def chrf() -> Metric:
    """Corpus chrF2: character 1- to 6-grams without white space."""
    return Metric(
        name="chrf",
        title="chrF",
        version=1,
        definition="corpus chrF2 of 1- to 6-grams of characters (M. Popović, chrF, WMT 2015), from 0 to 100, by sacreBLEU "
        f"{_signature(_make_chrf())}; of several references the one with the best chrF of the row counts, the first of equals; "
        "a failed row counts as an empty text",
        best="high",
        kind="score",
        columns=(
            "rows",
            *(f"{what}_{order}" for order in _CHARACTER_ORDERS for what in ("answer_ngrams", "reference_ngrams", "matches")),
        ),
        measure=_measure_chrf,
        figure=_chrf_of,
        normaliser=RAW,
    )


def _make_bleu(tokenizer: str) -> "BLEU":
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer, force=True)  # force: no warning of texts that end in " ."; the figure is the same


def _make_chrf() -> "CHRF":
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


_bleu, _chrf = cache(_make_bleu), cache(_make_chrf)


def _signature(metric: "BLEU | CHRF") -> str:
    """What sacreBLEU says of itself once it has met rows with different numbers of references."""
    metric.corpus_score(["a", "a"], [["a", "a"], ["a", None]])  # type: ignore[list-item]  # None: no second reference
    return str(metric.get_signature())


def _measure_bleu(batch: RowBatch, *, tokenizer: str) -> Counts:
    return _statistics(_bleu(tokenizer), batch, 2 + 2 * len(_WORD_ORDERS))


def _measure_chrf(batch: RowBatch) -> Counts:
    return _statistics(_chrf(), batch, 3 * len(_CHARACTER_ORDERS))


def _statistics(metric: "BLEU | CHRF", batch: RowBatch, num_statistics: int) -> Counts:
    """A column of ones, and behind it what sacreBLEU adds up over rows, by the one function of it that is not public."""
    if not len(batch):
        return np.zeros((0, 1 + num_statistics), dtype=np.int64)
    answers = [answer or "" for answer in batch.answers]
    streams = _streams(batch.references)
    statistics = metric._extract_corpus_statistics(answers, streams)  # type: ignore[arg-type]  # it allows None, as its docstring says
    return np.insert(np.array(statistics, dtype=np.int64), 0, 1, axis=1)


def _streams(references: Sequence[tuple[str, ...]]) -> list[list[str | None]]:
    """The first reference of each row, the second of each, and so on; None where a row has none."""
    num_streams = max(map(len, references))
    return [[row[i] if i < len(row) else None for row in references] for i in range(num_streams)]


def _bleu_of(sums: Sums) -> Floats:
    """What sacreBLEU's `BLEU.compute_bleu` makes of its counts with the smoothing `exp`, of all leading dimensions at once."""
    rows, answer_words, reference_words = np.moveaxis(sums[..., :3].astype(np.float64), -1, 0)
    matches, ngrams = np.split(sums[..., 3:].astype(np.float64), 2, axis=-1)
    is_zero = ~matches.any(axis=-1) | ~ngrams.all(axis=-1)
    halvings = np.cumsum(matches == 0, axis=-1)  # each order without a match is given half a match, a quarter, an eighth
    smoothed = np.where(matches == 0, 0.5**halvings, matches)
    logarithms = np.log(smoothed / np.maximum(ngrams, 1)).mean(axis=-1)
    brevity = np.minimum(0.0, 1 - reference_words / np.maximum(answer_words, 1))
    score = np.where(is_zero, 0.0, 100 * np.exp(brevity + logarithms))
    return np.where(rows == 0, np.nan, score)


def _chrf_of(sums: Sums) -> Floats:
    """The F that sacreBLEU's `CHRF` makes of its counts, of all leading dimensions at once.

    Precision and recall are means over the orders of which both answers and references have n-grams.
    """
    counts = sums[..., 1:].astype(np.float64)
    answer_ngrams, reference_ngrams, matches = np.moveaxis(counts.reshape(*counts.shape[:-1], -1, 3), -1, 0)
    is_there = (answer_ngrams > 0) & (reference_ngrams > 0)
    num_orders = np.maximum(is_there.sum(axis=-1), 1)
    precision, recall = (
        np.divide(matches, total, out=np.zeros_like(matches), where=is_there).sum(axis=-1) / num_orders
        for total in (answer_ngrams, reference_ngrams)
    )
    weight = _BETA**2
    above, below = (1 + weight) * precision * recall, weight * precision + recall
    score = 100 * np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    return np.where(sums[..., 0] == 0, np.nan, score)
