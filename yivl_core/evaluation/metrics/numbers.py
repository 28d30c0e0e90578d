"""Answers that are numbers: ChartQA's tolerance of five percent, and amounts that must be right to the last digit.

An amount is a number that may have a currency and thousands separators. What counts as one:

| written | amount |
|---|---|
| `12`, `12.30`, `.5`, `12.` | as read; the point parts decimals, so `1.234` is one and 234 thousandths |
| `1,234.50`, `1 234.50`, `1'234.50` | separators in groups of three, one kind in a number |
| `RM 9.00`, `US$9`, `9 €`, `¥9`, `9元`, `９．００` | the currency does not count: `RM 9.00` equals `$9` |
| `-9`, `−9`, `RM-9`, `9-`, `(9.00)`, `RM (9.00)` | below zero |
| `12,30`, `1.234,50`, `12%`, `1e3`, `1,2345`, `9 apples` | none: a decimal comma is not told from a misread one |
"""

import re
import unicodedata
from decimal import Decimal
from functools import partial

from yivl_core.evaluation.metrics.metric import Counts, Metric, RowBatch, counts_of, share_of_rows
from yivl_core.evaluation.texts.normalisation import MAIN

_TOLERANCE = 0.05

_LETTERS = (
    "US$ HK$ NT$ S$ A$ C$ R$ RM MYR USD EUR GBP CNY RMB JPY SGD HKD TWD AUD CAD NZD INR KRW THB IDR CHF PHP VND BRL "
    "SEK NOK DKK Rs. Rs Rp. Rp 人民币 元 圆 圓 块 円"
)
_CURRENCY = rf"(?:{'|'.join(re.escape(letters) for letters in _LETTERS.split())}|[$€£¥₩₹₫฿₱₽₺₴₦₪₿¢])"
_DIGITS = r"(?:\d{1,3}(?:(?P<separator>[, '’])\d{3})(?:(?P=separator)\d{3})*(?:\.\d*)?|\d+(?:\.\d*)?|\.\d+)"
_AMOUNT = re.compile(
    rf"(?P<before>[-+])? ?(?P<open>\()? ?{_CURRENCY}? ?(?P<inside>[-+])?(?P<open_inside>\()? ?(?P<digits>{_DIGITS})"
    rf" ?{_CURRENCY}? ?(?P<after>-)?(?P<close>\))?",
    re.IGNORECASE,
)


def relaxed_accuracy(normaliser: str = MAIN) -> Metric:
    """ChartQA's relaxed accuracy."""
    return Metric(
        name="relaxed_accuracy",
        title="relaxed accuracy",
        version=1,
        definition="share of rows whose answer is a number at most 5 % off a reference, |p - t| / |t| <= 0.05, where `12%` is "
        "0.12; an answer or reference that is no number, and a reference of 0, are compared as lower-case text (A. Masry et al., "
        "ChartQA, Findings of ACL 2022, section 5.1); any of several references suffices",
        best="high",
        kind="share",
        columns=("rows", "hits"),
        measure=partial(_measure_relaxed, normaliser=normaliser),
        figure=share_of_rows,
        normaliser=normaliser,
    )


def decimal_exact() -> Metric:
    """Amounts that are right to the last digit."""
    return Metric(
        name="decimal_exact",
        title="amount exact",
        version=1,
        definition="share of the rows with an amount as a reference, whose answer is exactly the same amount, whatever its "
        "currency, thousands separators and trailing zeros; any of several amounts suffices; 12,30 is no amount, and 1.234 is "
        "one and 234 thousandths",
        best="high",
        kind="share",
        columns=("rows", "hits"),
        measure=_measure_amounts,
        figure=share_of_rows,
    )


def parse_amount(text: str) -> Decimal | None:
    """The amount that a text is as a whole, by the table above; None where it is none."""
    plain = " ".join(unicodedata.normalize("NFKC", text).replace("−", "-").split())
    match = _AMOUNT.fullmatch(plain)
    if match is None:
        return None
    signs = [match[name] for name in ("before", "inside", "after") if match[name]]
    num_opened, is_enclosed = sum(match[name] is not None for name in ("open", "open_inside")), match["close"] is not None
    if num_opened != is_enclosed or len(signs) + is_enclosed > 1:
        return None
    amount = Decimal(re.sub(r"[, '’]", "", match["digits"]))
    return amount.copy_negate() if is_enclosed or signs == ["-"] else amount


def _measure_relaxed(batch: RowBatch, *, normaliser: str) -> Counts:
    return counts_of(
        [
            (1, int(answer is not None and any(_is_about(answer, reference) for reference in references)))
            for answer, references in batch.normalised(normaliser)
        ],
        2,
    )


def _is_about(answer: str, reference: str) -> bool:
    """In floating point, as the published evaluations have it: 105 is within 5 % of 100, while 1.05 is a hair beyond 5 % of 1."""
    found, target = _as_float(answer), _as_float(reference)
    if found is None or not target:
        return answer.lower() == reference.lower()
    return abs(found - target) / abs(target) <= _TOLERANCE


def _as_float(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _measure_amounts(batch: RowBatch) -> Counts:
    rows = []
    for answer, references in zip(batch.answers, batch.references, strict=True):
        amounts = [amount for reference in references if (amount := parse_amount(reference)) is not None]
        found = parse_amount(answer) if answer is not None and amounts else None
        rows.append((int(bool(amounts)), int(found is not None and found in amounts)))
    return counts_of(rows, 2)
