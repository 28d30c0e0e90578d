"""VQA accuracy: an answer is as right as many of ten people gave it.

The rules by which texts are made alike are those of the published evaluation code (github.com/GT-Vision-Lab/VQA, vqaEval.py, with
the marks of its later version), quirks among them, since figures of others rest on them:

- a mark of `_MARKS` goes away without a trace where it stands beside a space somewhere in the text, or where the text holds a
  comma between digits, and becomes a space elsewhere; a full stop goes unless a digit follows, the first 32 of them;
- number words up to ten are digits, `none` is 0, and articles go;
- a contraction without its apostrophe gets it.

There the ten people's answers are made alike only where they differ; here always, so `Two` is right where all ten say `two`, and
also where all ten say `Two`.
"""

import re

from yivl_core.evaluation.metrics.metric import BILLION, Counts, Metric, RowBatch, counts_of, mean_of_billionths

_NUM_REFERENCES = 10
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MAX_FULL_STOPS = 32  # the published code passes re.UNICODE, which is 32, where the number of replacements is expected
_NUMBERS = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
_ARTICLES = frozenset({"a", "an", "the"})
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word for word in _CONTRACTED.split() for place, letter in enumerate(word) if letter == "'"
} | {"somebody'd": "somebodyd"}  # the other way round in the published table
"""Each contraction that lacks one apostrophe, and how it is written."""


def vqa_accuracy() -> Metric:
    """VQA accuracy."""
    return Metric(
        name="vqa_accuracy",
        title="VQA accuracy",
        version=1,
        definition="of the rows with ten references, mean over the ten sets that leave one out of min(references that equal the "
        "answer / 3, 1), after VQA's own rules for punctuation, articles, number words and contractions (S. Antol et al., VQA, "
        "ICCV 2015, section 3, and its evaluation code)",
        best="high",
        kind="mean",
        columns=("rows", "billionths"),
        measure=_measure,
        figure=mean_of_billionths,
    )


def normalise_for_vqa(text: str) -> str:
    """The text as VQA compares it."""
    words = (_NUMBERS.get(word, word) for word in _without_punctuation(re.sub(r"[\n\t]", " ", text).strip()).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def _without_punctuation(text: str) -> str:
    is_number = _COMMA_IN_NUMBER.search(text) is not None
    replacements = {
        ord(mark): None if is_number or f"{mark} " in text or f" {mark}" in text else " " for mark in _MARKS if mark in text
    }
    return _FULL_STOP.sub("", text.translate(replacements), count=_MAX_FULL_STOPS)


def _measure(batch: RowBatch) -> Counts:
    rows = []
    for answer, references in zip(batch.answers, batch.references, strict=True):
        if len(references) != _NUM_REFERENCES:
            rows.append((0, 0))
        elif answer is None:
            rows.append((1, 0))
        else:
            text = normalise_for_vqa(answer)
            rows.append((1, _accuracy(sum(normalise_for_vqa(reference) == text for reference in references))))
    return counts_of(rows, 2)


def _accuracy(num_equal: int) -> int:
    """In billionths, rounded down: thirds, of the sets that leave out an equal reference, and of the others."""
    thirds = num_equal * min(num_equal - 1, 3) + (_NUM_REFERENCES - num_equal) * min(num_equal, 3)
    return BILLION * thirds // (3 * _NUM_REFERENCES)
