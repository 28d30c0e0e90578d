"""Key fields, as of a receipt: the reference is a JSON object of texts and numbers, the answer JSON or lines `key: value`.

Keys are the same whatever their case, white space, hyphens and underscores: `invoice_no` and `Invoice No`. A value is right where
the reference's is a number and the answer's the same amount (`numbers.parse_amount`), or where both are the same text after the
normaliser. A value of null in an answer is no field; one that is an object or a list is a field, and wrong.
"""

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import partial

from yivl_core.evaluation.metrics.metric import Counts, Metric, RowBatch, counts_of, ratio_of, share_of_rows
from yivl_core.evaluation.metrics.numbers import parse_amount
from yivl_core.evaluation.texts.json_objects import JsonNumber, as_canonical_json, first_json_object, whole_json_object
from yivl_core.evaluation.texts.normalisation import MAIN, find_normaliser, normalise

_COLON = re.compile("[:：]")
_MAX_KEY_CHARACTERS = 80  # a longer one is a sentence with a colon
_DEFINED = "of the rows whose reference is a JSON object of texts and numbers"

Fields = Mapping[str, str]


def field_accuracy(normaliser: str = MAIN) -> Metric:
    """Right fields over fields of the references."""
    return Metric(
        name="field_accuracy",
        title="field accuracy",
        version=1,
        definition=f"fields that are answered right over fields of the reference, {_DEFINED}; a failed row answers no field",
        best="high",
        kind="rate",
        columns=("rows", "reference_fields", "answered_fields", "right_fields"),
        measure=partial(_measure_fields, normaliser=normaliser),
        figure=partial(ratio_of, [3], [1]),
        normaliser=normaliser,
    )


def field_f1(normaliser: str = MAIN) -> Metric:
    """F1 of fields."""
    return Metric(
        name="field_f1",
        title="field F1",
        version=1,
        definition="twice the fields that are answered right over fields of the reference and fields of the answer together, "
        f"{_DEFINED}; a failed row answers no field",
        best="high",
        kind="rate",
        columns=("rows", "reference_fields", "answered_fields", "right_fields"),
        measure=partial(_measure_fields, normaliser=normaliser),
        figure=partial(ratio_of, [3, 3], [1, 2]),
        normaliser=normaliser,
    )


def unparsable() -> Metric:
    """Share of answers without any field."""
    return Metric(
        name="unparsable",
        title="unparsable",
        version=1,
        definition=f"share, {_DEFINED}, whose answer holds neither a JSON object with fields nor a line `key: value`; a failed "
        "row holds none",
        best="low",
        kind="share",
        columns=("rows", "hits"),
        measure=_measure_unparsable,
        figure=share_of_rows,
    )


def read_fields(answer: str) -> Fields:
    """The fields of an answer, keys made alike: of its first JSON object, or else of its lines `key: value`.

    Of a key that stands twice the last value counts. Values are as written; empty where the answer has no field.
    """
    found = first_json_object(answer)
    if found is not None:
        return {
            _plain_key(key): value if isinstance(value, str) else as_canonical_json(value)
            for key, value in found.items()
            if value is not None
        }
    return dict(filter(None, map(_field_of_line, answer.splitlines())))


def _field_of_line(line: str) -> tuple[str, str] | None:
    """Key and value of `key: value`, also as `- **key**: value`; a line of JSON that was cut off is none."""
    key, *values = _COLON.split(line, maxsplit=1)
    key = key.strip(" \t\u3000>*•·-")
    is_key = 0 < len(key) <= _MAX_KEY_CHARACTERS and not set(key) & set('{}[]"')
    return (_plain_key(key), values[0].strip(" \t\u3000*")) if values and is_key else None


def _read_reference(reference: str) -> Fields | None:
    """Fields of a reference, numbers as `JsonNumber`; None unless it is a JSON object of texts and numbers, and not empty."""
    found = whole_json_object(reference)
    if not found or not all(isinstance(value, str) for value in found.values()):
        return None
    return {_plain_key(key): value for key, value in found.items()}


def _plain_key(key: str) -> str:
    return normalise(re.sub(r"[-_]", " ", key))


def _measure_fields(batch: RowBatch, *, normaliser: str) -> Counts:
    rows = []
    for answer, references in zip(batch.answers, batch.references, strict=True):
        possible = [fields for reference in references if (fields := _read_reference(reference)) is not None]
        if not possible:
            rows.append((0, 0, 0, 0))
            continue
        answered = {} if answer is None else read_fields(answer)
        counts = [(len(fields), len(answered), _num_right(answered, fields, normaliser)) for fields in possible]
        rows.append((1, *_closest(counts)))
    return counts_of(rows, 4)


def _closest(counts: list[tuple[int, int, int]]) -> tuple[int, int, int]:
    """Of several references the one with the best F1; of equals the shortest."""
    return max(counts, key=lambda count: (count[2] / (count[0] + count[1]), -count[0]))


def _num_right(answered: Fields, right: Fields, normaliser: str) -> int:
    return sum(key in answered and _is_right(answered[key], value, normaliser) for key, value in right.items())


def _is_right(answered: str, right: str, normaliser: str) -> bool:
    if isinstance(right, JsonNumber) and (number := _as_decimal(right)) is not None:
        return number == _as_decimal(answered)
    normalised = find_normaliser(normaliser)
    return normalised(answered) == normalised(right)


def _as_decimal(text: str) -> Decimal | None:
    if not isinstance(text, JsonNumber):
        return parse_amount(text)
    try:
        return Decimal(text)  # JSON's own numbers may have exponents
    except ArithmeticError:  # an exponent of more than eighteen digits
        return None


def _measure_unparsable(batch: RowBatch) -> Counts:
    rows = []
    for answer, references in zip(batch.answers, batch.references, strict=True):
        is_defined = any(_read_reference(reference) is not None for reference in references)
        rows.append((int(is_defined), int(is_defined and not (answer is not None and read_fields(answer)))))
    return counts_of(rows, 2)
