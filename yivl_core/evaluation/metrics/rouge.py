"""ROUGE-L as captions are scored with it: the longest common subsequence of words, in whole numbers up to the last step."""

from collections.abc import Sequence

import numpy as np
from rapidfuzz.distance import LCSseq

from yivl_core.evaluation.metrics.metric import BILLION, Counts, Metric, RowBatch, mean_of_billionths
from yivl_core.evaluation.texts.words import RULE, split_words

_BETA_SQUARED = (36, 25)  # beta is 1.2 in coco-caption


def rouge_l() -> Metric:
    """ROUGE-L of coco-caption, in whose code precision and recall may come from different references."""
    return Metric(
        name="rouge_l",
        title="ROUGE-L",
        version=1,
        definition="mean over rows of ROUGE-L (C.-Y. Lin, ROUGE, ACL workshop 2004, section 3) as coco-caption has it: "
        "(1 + 1.44) P R / (R + 1.44 P), where P and R, the longest common subsequence over the words of the answer and of the "
        f"reference, are each the largest of all references; two texts without words give 1, a failed row 0; words by {RULE}",
        best="high",
        kind="mean",
        columns=("rows", "billionths"),
        measure=_measure,
        figure=mean_of_billionths,
    )


def _measure(batch: RowBatch) -> Counts:
    rows = [
        (1, 0 if answer is None else _rouge(_words(answer), [_words(reference) for reference in references]))
        for answer, references in zip(batch.answers, batch.references, strict=True)
    ]
    return np.array(rows, dtype=np.int64).reshape(len(rows), 2)


def _words(text: str) -> list[str]:
    return split_words(text) or [""]  # as coco-caption: what has no words equals only what has none


def _rouge(answer: Sequence[str], references: Sequence[Sequence[str]]) -> int:
    """ROUGE-L in billionths, rounded down."""
    common = [(LCSseq.similarity(reference, answer), len(reference)) for reference in references]
    precision = max(length for length, _ in common), len(answer)
    recall = max(common, key=lambda pair: pair[0] / pair[1])
    if not precision[0]:
        return 0
    above, below = _BETA_SQUARED
    numerator = (above + below) * precision[0] * recall[0]
    return BILLION * numerator // (below * recall[0] * precision[1] + above * precision[0] * recall[1])
