"""An answer beside its reference, in pieces: what is the same, what is too much or another, and what is missing."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Levenshtein

from yivl_core.outputs.page import MAX_CHARACTERS

_UNIT = re.compile(r"\s+|.", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Part of a text.

    Attributes:
        text: as the answer has it; of a missing piece as the reference has it.
        kind: `same`: in the reference too; `other`: not there, or something else; `missing`: only there.
    """

    text: str
    kind: Literal["same", "other", "missing"]


def find_differences(answer: str, reference: str, max_characters: int = MAX_CHARACTERS) -> list[Piece]:
    """The answer from its beginning to its end, with what it lacks in between: fewest edits.

    Case and the kind and length of white space make no difference, and none counts at the ends.
    Of each text the first `max_characters` are looked at.
    """
    answer_units, reference_units = _units(answer[:max_characters]), _units(reference[:max_characters])
    pieces: list[Piece] = []
    for step in Levenshtein.opcodes(_keys(reference_units), _keys(answer_units)):
        if step.tag == "delete":
            pieces.append(Piece(text="".join(reference_units[step.src_start : step.src_end]), kind="missing"))
        else:
            text = "".join(answer_units[step.dest_start : step.dest_end])
            pieces.append(Piece(text=text, kind="same" if step.tag == "equal" else "other"))
    is_cut = max(len(answer), len(reference)) > max_characters
    if is_cut and pieces and pieces[-1].kind == "missing":
        pieces.pop()  # the answer goes on where it is cut
    return pieces


def _units(text: str) -> list[str]:
    return _UNIT.findall(unicodedata.normalize("NFC", text).strip())


def _keys(units: list[str]) -> list[str]:
    return [" " if unit.isspace() else unit.casefold() for unit in units]
