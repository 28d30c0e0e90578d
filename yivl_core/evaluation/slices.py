"""Parts of the rows by what their references are like and what their records say of themselves.

| slice | values |
|---|---|
| `length` | characters of the reference, normalised |
| `characters` | whether the reference has letters, digits, both or neither |
| `text in training` | whether the reference, normalised, is a text that the model was trained on; if these are given |
| a field of `meta` | its values; of more than `MAX_VALUES` the most frequent, and the rest together |
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from yivl_core.errors import OutputError

MAX_VALUES = 20
LENGTH, CHARACTERS, SEEN = "length", "characters", "text in training"
OTHERS = "(others)"

_LENGTHS = ((0, "0"), (4, "1 to 4"), (9, "5 to 9"), (19, "10 to 19"), (49, "20 to 49"), (199, "50 to 199"))
_LONGEST = "200 and more"
_KINDS = ("letters", "digits", "letters and digits", "neither")
_SEEN = ("yes", "no")
_FIXED_ORDER = {LENGTH: (*(name for _, name in _LENGTHS), _LONGEST), CHARACTERS: _KINDS, SEEN: _SEEN}
_MAX_CHARACTERS = 60  # of a value


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One way to divide the rows.

    Attributes:
        name: what is looked at.
        values: in the order in which they are shown.
        codes: int64 [num_rows], which of the values each row has.
    """

    name: str
    values: tuple[str, ...]
    codes: npt.NDArray[np.int64]


def slice_names(fields: Sequence[str], *, has_training_texts: bool) -> tuple[str, ...]:
    """The slices of a report: the fixed ones, then fields of `meta`."""
    return (LENGTH, CHARACTERS, *([SEEN] if has_training_texts else []), *(f"meta.{field}" for field in fields))


def slice_values(reference: str, meta: str, fields: Sequence[str], training_texts: Collection[str] | None) -> tuple[str, ...]:
    """The value of a row in each slice.

    Args:
        reference: the first right answer, normalised.
        meta: the row's other fields, as a JSON object.
        fields: which of them are slices.
        training_texts: normalised; None: they are not known.

    Raises:
        OutputError: `meta` is no JSON object; it does not say of which row.
    """
    values = [_length(reference), _characters(reference)]
    if training_texts is not None:
        values.append("yes" if reference in training_texts else "no")
    if fields:
        found = _read_meta(meta)
        values += [_shown(found.get(field)) for field in fields]
    return tuple(values)


def to_slice(name: str, values: Sequence[str]) -> Slice:
    """The slice that rows with these values make."""
    counts = Counter(values)
    if name in _FIXED_ORDER:
        order = [value for value in _FIXED_ORDER[name] if value in counts]
    else:
        order = sorted(counts, key=lambda value: (-counts[value], value))
        if len(order) > MAX_VALUES:
            order = [*[value for value in order if value != OTHERS][: MAX_VALUES - 1], OTHERS]
    codes = {value: code for code, value in enumerate(order)}
    rest = len(order) - 1
    return Slice(
        name=name,
        values=tuple(order),
        codes=np.fromiter((codes.get(value, rest) for value in values), np.int64, len(values)),
    )


def _read_meta(meta: str) -> dict[str, Any]:
    try:
        found = json.loads(meta)
    except (ValueError, RecursionError) as cause:
        raise OutputError("`meta` cannot be read as JSON") from cause
    if not isinstance(found, dict):
        raise OutputError("`meta` is no JSON object")
    return found


def _length(text: str) -> str:
    return next((name for most, name in _LENGTHS if len(text) <= most), _LONGEST)


def _characters(text: str) -> str:
    has_digits, has_letters = any(map(str.isdigit, text)), any(map(str.isalpha, text))
    if has_digits:
        return "letters and digits" if has_letters else "digits"
    return "letters" if has_letters else "neither"


def _shown(value: object) -> str:
    if value is None:
        return "(none)"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    text = text.encode(errors="backslashreplace").decode()  # JSON can say half a surrogate pair, and UTF-8 cannot
    return (text if len(text) <= _MAX_CHARACTERS else text[:_MAX_CHARACTERS] + "…") or "(empty)"
