"""Named rules by which two texts count as the same. A rule's name says its steps, and stands in every report with its version.

| step | what it does |
|---|---|
| `raw` | nothing; stands alone |
| `nfc`, `nfkc` | Unicode composition; `nfkc` makes full-width and other compatibility forms plain as well |
| `casefold` | folds case, by Unicode 15, section 3.13, D145 and D146 |
| `quotes` | one form of each quotation mark, and one of dash |
| `nopunct` | takes out punctuation (categories P*) |
| `ws1`, `nows` | each run of white space one space and none at the ends; no white space at all |

The steps are done in this order, and a name gives them in it: `nfc+casefold+ws1`. A text that has gone through a rule stays as
it is when it goes through it again: after the last step it is composed once more, since what is left may have come together anew.
"""

import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Literal

from yivl_core.errors import ConfigurationError

VERSION = 1
"""Of all steps together: raised when one of them gives another text."""

MAIN = "nfc+casefold+ws1"
RAW = "raw"

Normalise = Callable[[str], str]

_FORMS: Mapping[str, Literal["NFC", "NFKC"]] = {"nfc": "NFC", "nfkc": "NFKC"}
_SPACES = ("ws1", "nows")
_ORDER = (*_FORMS, "casefold", "quotes", "nopunct", *_SPACES)
_QUOTES = str.maketrans(dict.fromkeys("‘’‚‛′`´", "'") | dict.fromkeys("“”„‟″«»「」『』", '"') | dict.fromkeys("‐‑‒–—―−", "-"))


@cache
def find_normaliser(name: str) -> Normalise:
    """The rule of a name, as a function of one text.

    Raises:
        ConfigurationError: there is no such rule.
    """
    if name == RAW:
        return str
    steps = name.split("+")
    places = [_ORDER.index(step) if step in _ORDER else -1 for step in steps]
    has_two = any(set(choices) <= set(steps) for choices in (_FORMS, _SPACES))
    if places != sorted(set(places)) or -1 in places or has_two or steps[0] not in _FORMS:
        raise ConfigurationError(
            f"there is no normaliser {name!r}; give {RAW}, or nfc or nfkc followed by any of casefold, quotes, nopunct, and "
            f"ws1 or nows, in this order and joined by +, as in {MAIN}"
        )
    return _Rule(steps[0], frozenset(steps[1:]))


class _Rule:
    """A normaliser. Plain ASCII, which is composed already and folds as it is lowered, takes a tenth of the time."""

    def __init__(self, form: str, steps: frozenset[str]) -> None:
        self._form, self._steps = form, steps
        self._is_folded = "casefold" in steps
        self._space = " " if "ws1" in steps else "" if "nows" in steps else None
        self._is_plain = not steps & {"quotes", "nopunct"}

    def __call__(self, text: str) -> str:
        if not (self._is_plain and text.isascii()):
            return _normalise(text, form=self._form, steps=self._steps)
        if self._is_folded:
            text = text.lower()
        return text if self._space is None else self._space.join(text.split())


def describe_normaliser(name: str) -> dict[str, Any]:
    """What a report says of a rule: its name, the version of the steps, and of Unicode, which decides case and composition."""
    return {"name": name, "version": VERSION, "unicode": unicodedata.unidata_version}


def normalise(text: str) -> str:
    """The text as the main figures compare it: by the rule `MAIN`."""
    return find_normaliser(MAIN)(text)


def _normalise(text: str, *, form: str, steps: frozenset[str]) -> str:
    if "quotes" in steps:  # before nfkc as well, which would make a space and an accent of ´, and two single marks of ″
        text = unicodedata.normalize("NFC", text).translate(_QUOTES)
    if "casefold" in steps:
        text = unicodedata.normalize("NFD", text).casefold()  # decomposed first, as D145 has it
        if form == "nfkc":
            text = unicodedata.normalize("NFKD", text).casefold()
    text = unicodedata.normalize(_FORMS[form], text)
    if "quotes" in steps:
        text = text.translate(_QUOTES)
    # an accent may stand behind another letter than before, and make one character with it
    return unicodedata.normalize(_FORMS[form], _without(text, steps))


def _without(text: str, steps: frozenset[str]) -> str:
    if "nopunct" in steps:
        text = "".join(character for character in text if not unicodedata.category(character).startswith("P"))
    if "ws1" in steps:
        return " ".join(text.split())
    return "".join(text.split()) if "nows" in steps else text
