"""Named ways from the raw output of a model to the answer that is scored. The name stands in every report with its version.

| name | the answer |
|---|---|
| `verbatim` | the output as it is |
| `first-line` | its first line that holds more than white space |
| `unwrapped` | what a chat-like sentence wraps: see `_LEADS`, a code fence round the whole, quotation marks round the whole |
| `choice` | the letter of a multiple-choice answer: `B`, `(B)`, `B. a dog`, `The answer is B because ...`, `答案是B` |
| `number` | the last number as written, with its sign, separators and `%` |
| `json` | the first JSON object, with sorted keys, without white space, and numbers as written |

Where nothing of the kind is found the output stays as it is. Extractors guess: a line of print that says `The answer is 42` is
unwrapped too, so a figure by one of them is to stand beside the figure by `verbatim`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.texts.json_objects import as_canonical_json, first_json_object

VERSION = 1
"""Of all extractors together: raised when one of them gives another answer."""

VERBATIM = "verbatim"

Extract = Callable[[str], str]

_IMAGE = r"(?:image|picture|photo(?:graph)?|scan|screenshot|receipt|line|figure|sign|document)"
_TEXT = r"(?:text|words?|writing|line|number|content|transcription|caption)"
_LEADS: Mapping[str, re.Pattern[str]] = {
    "Sure, here is the text:": re.compile(
        rf"(?:sure|certainly|of course|okay|ok)?[,!.]?\s*here(?: is|'s|’s| are) (?:the|your) [\w ]{{0,40}}?{_TEXT}[\w ]{{0,40}}:",
        re.IGNORECASE,
    ),
    "The text in the image is": re.compile(
        rf"(?:the|this) (?:\w+ )?{_TEXT}(?: (?:that is )?(?:shown |written |printed |displayed |visible )?(?:in|on|of|from) "
        rf"(?:the|this) (?:\w+ )?{_IMAGE})?(?: is| are| reads?| says?)\b(?:\s*:)?",
        re.IGNORECASE,
    ),
    "The image says": re.compile(
        rf"(?:(?:the|this) (?:\w+ )?{_IMAGE}|it) (?:reads|says|shows the {_TEXT}|contains the {_TEXT})\b(?:\s*:)?", re.IGNORECASE
    ),
    "The answer is": re.compile(
        r"(?:so,? |therefore,? )?(?:the|my) (?:(?:final|correct|right) )?answer(?: is\b(?:\s*:)?|\s*:)", re.IGNORECASE
    ),
    "Answer:": re.compile(r"(?:final )?(?:answer|text|transcription|output)\s*:", re.IGNORECASE),
    "图片中的文字是：": re.compile(
        r"(?:好的[，,。！!]?\s*)?(?:这|该|此)?(?:张|幅)?(?:图片|图像|图|照片|截图|收据)(?:中|里|上)?(?:面|显示|所示|所写|写|印)?的?"
        r"(?:文字|文本|字|内容)(?:内容)?(?:是|为|如下|:|：)\s*[:：]?"
    ),
    "文字是：": re.compile(r"(?:文字|文本)(?:内容)?(?:(?:是|为|如下)\s*[:：]?|[:：])"),
    "答案是：": re.compile(r"(?:所以|因此)?[，,]?(?:正确|最终)?(?:答案|回答)(?:(?:应该|应)?(?:是|为)\s*[:：]?|[:：])"),
}
"""Beginnings of answers that are no part of the answer, by an example of each; the letters' case does not matter."""

_FENCE = re.compile(r"```[\w+-]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_QUOTES = ('""', "''", "``", "“”", "‘’", "„“", "«»", "「」", "『』", "＂＂")

_MARKS = r"[\s(（\[【\"“'‘*]*"
_ARTICLE = r"(?!(?<=[AI])\s+(?!(?:because|since|as|which|is|and|or|but|due|for)\b)[a-z])"
"""`A` and `I` before a word in small letters are words, unless the word goes on about the choice."""
_LETTER = rf"(?P<letter>[A-Z](?![\w'’]){_ARTICLE}|[a-z](?=[\s)）\]】\"”'’*.。]*\Z))"
_ALONE = re.compile(rf"{_MARKS}(?P<letter>[A-Za-z])[\s)）\]】\"”'’*.。:：、,，]*")
_BEFORE_LETTER = rf"\s*[:：]?{_MARKS}(?i:(?:option|choice)\s+)?{_MARKS}{_LETTER}"
_STATED = tuple(
    re.compile(words + _BEFORE_LETTER, re.ASCII)
    for words in (
        r"(?:(?i:\b(?:answer|(?:correct|right|best) (?:option|choice))(?:\s*(?:is|would be|should be))?\b)"
        r"|(?:答案|应选|故选|选择)(?:应该是|应为|是|为)?)",
        r"(?:(?i:\b(?:option|choice)(?:\s*is)?\b)|(?:选项|选)(?:是|为)?)",
    )
)
"""What stands before the letter, the surest first: an option may be named to say that it is wrong."""
_AT_START = re.compile(r"\s*[*]*[(（\[【]?(?P<letter>[A-Z])[)）\]】.:：、。][*]*(?![A-Za-z0-9])")
_IN_PARENTHESES = re.compile(r"[(（](?P<letter>[A-Z])[)）]")

_NUMBER = re.compile(
    r"(?:(?<![\w)])[-+−])?(?:(?<![\d])\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d+(?:[.,]\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+(?!\w))?[%％]?"
)


def find_extractor(name: str) -> Extract:
    """The extractor of a name, as a function of one output.

    Raises:
        ConfigurationError: there is no such extractor.
    """
    if name not in _EXTRACTORS:
        raise ConfigurationError(f"there is no extractor {name!r}; give one of {', '.join(_EXTRACTORS)}")
    return _EXTRACTORS[name]


def describe_extractor(name: str) -> dict[str, Any]:
    """What a report says of an extractor: its name, and the version of them all."""
    find_extractor(name)
    return {"name": name, "version": VERSION}


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), text)


def _unwrapped(text: str) -> str:
    """One layer after the other is taken off, until none is left: a sentence, a fence, quotation marks."""
    inner = text.strip()
    is_wrapped = False
    while (less := _without_lead(_without_fence(_without_quotes(inner)))) != inner:
        inner, is_wrapped = less, True
    return inner if is_wrapped else text


def _without_lead(text: str) -> str:
    """Without a beginning out of `_LEADS`.

    A sentence, as `The answer is 12.`, loses its full stop as well; after a colon the text stands for itself and keeps it.
    """
    lead = next((match for pattern in _LEADS.values() if (match := pattern.match(text))), None)
    if lead is None:
        return text
    rest = text[lead.end() :].strip()
    if not rest:  # the words of a lead, and no answer after them
        return text
    is_sentence = not lead[0].endswith((":", "："))
    if rest.endswith((".", "。")) and (is_sentence or _without_quotes(rest[:-1]) != rest[:-1]) and not rest.endswith(".."):
        rest = rest[:-1].rstrip()
    return rest


def _without_fence(text: str) -> str:
    fence = _FENCE.fullmatch(text)
    return fence[1].strip() if fence and "```" not in fence[1] else text


def _without_quotes(text: str) -> str:
    """Without one pair of quotation marks round the whole; `"A" and "B"` is not quoted as a whole."""
    if len(text) < 2 or text[0] + text[-1] not in _QUOTES:
        return text
    inner = text[1:-1]
    return text if text[0] in inner or text[-1] in inner else inner.strip()


def _choice(text: str) -> str:
    if alone := _ALONE.fullmatch(text):
        return alone["letter"].upper()
    for pattern in _STATED:
        if stated := list(pattern.finditer(text)):
            return stated[-1]["letter"].upper()  # the last one: reasoning comes before the answer
    if at_start := _AT_START.match(text):
        return at_start["letter"]
    letters = set(_IN_PARENTHESES.findall(text))
    return letters.pop() if len(letters) == 1 else text


def _number(text: str) -> str:
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else text


def _json(text: str) -> str:
    found = first_json_object(text)
    return text if found is None else as_canonical_json(found)


_EXTRACTORS: Mapping[str, Extract] = {
    VERBATIM: str,
    "first-line": _first_line,
    "unwrapped": _unwrapped,
    "choice": _choice,
    "number": _number,
    "json": _json,
}
