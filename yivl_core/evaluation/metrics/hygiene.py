"""Answers that went wrong in a way that is told without a reference: empty, cut off, going round in circles, refused, failed."""

import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from yivl_core.evaluation.metrics.metric import Counts, Metric, RowBatch, counts_of, share_of_rows

_MIN_REPEATS = 6
_MIN_PERCENT = 35
_MIN_CHARACTERS = 30
_MIN_LEADERS = 100
"""Shortest loop of letters or digits, and of anything else: receipts print `......`, `------` and `* * * *` a line long."""

_REFUSALS: Mapping[str, str] = {
    "I'm sorry": r"(?:i am|i'm|we are|we're) (?:very |so |really |truly )?sorry\b",
    "Sorry, I": r"(?:my apologies|apologies|sorry)[,.!]? (?:but )?(?:i|we|there|the (?:image|picture|photo|text))\b",
    "I apologize": r"(?:i|we) apologi[sz]e\b",
    "I can't": r"(?:unfortunately,? )?(?:i|we) (?:cannot|can not|can't|could not|couldn't|will not|won't) (?!wait|stop|help but)",
    "I am unable to": r"(?:unfortunately,? )?(?:i am|i'm|we are|we're) (?:unable|not able|not allowed|not permitted) to\b",
    "I do not have the ability": r"(?:unfortunately,? )?(?:i|we) (?:do not|don't) have (?:the )?(?:ability|access|capability)\b",
    "As an AI": r"as an? (?:ai|artificial intelligence|(?:large )?language model|assistant)\b",
    "抱歉，我": r"(?:非常|很|十分)?(?:抱歉|对不起|不好意思)[，,。！!]?\s*(?:但是?)?(?:我|作为|由于|因为|这张|该|图|无法)",
    "我无法": r"(?:很遗憾[，,]?\s*)?(?:我|我们)(?:目前|暂时|现在)?(?:无法|不能|没有办法|没办法|没有能力)",
    "无法识别": r"无法(?:识别|辨认|辨别|看清|读取|回答|提供|确定)",
    "作为AI": r"作为(?:一个|一名|一款)?\s*(?:ai|人工智能|大?语言模型|智能助手)",
}
_REFUSED = re.compile(rf"[\s\"'“*]*(?:{'|'.join(_REFUSALS.values())})", re.IGNORECASE)


def empty() -> Metric:
    """Share of empty answers."""
    return _share("empty", "empty", "share of rows whose answer is nothing but white space; a failed row is not empty", _is_empty)


def cut() -> Metric:
    """Share of answers that the limit of new tokens cut off."""
    return _share("cut", "cut off", "share of rows whose answer ended at the limit of new tokens (finish_reason length)", _is_cut)


def looping() -> Metric:
    """Share of answers that repeat themselves."""
    return _share(
        "looping",
        "looping",
        f"share of rows in whose answer, anywhere, a piece of text stands at least {_MIN_REPEATS} times in a row, over at least "
        f"{_MIN_PERCENT} % of the answer and {_MIN_CHARACTERS} characters, or {_MIN_LEADERS} where the piece has neither letters "
        "nor digits, as table leaders",
        _is_loop_row,
    )


def refused() -> Metric:
    """Share of answers that refuse."""
    return _share(
        "refused",
        "refused",
        f"share of rows whose answer begins as a refusal in English or Chinese does: {', '.join(_REFUSALS)}",
        _is_refused,
    )


def failed() -> Metric:
    """Share of rows without an answer."""
    return _share("failed", "failed", "share of rows that have an error and no answer", _is_failed)


HYGIENE_METRICS: tuple[Callable[[], Metric], ...] = (empty, cut, looping, refused, failed)
"""Makers of the metrics of all rows."""


def is_looping(text: str) -> bool:
    """Whether a text repeats itself, by the definition of `looping`; in time that grows little faster than the text.

    With n characters, a repeated piece has at most n // 6 of them. A probe of that length, taken inside the repetition, comes
    again first after exactly the shortest period (Fine and Wilf 1965), so a few probes find the periods worth a closer look.
    They stand n // 8 apart: the first inside has at most that before it, and the repetition, at least 0.35 n, goes on for a
    period (a sixth of it) and a probe behind it.
    """
    least = max(_MIN_CHARACTERS, -(-len(text) * _MIN_PERCENT // 100))
    if len(text) < least or not text.strip():
        return False
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return any(_has_loop(text, codes, period, least) for period in sorted(_likely_periods(text)))


def _likely_periods(text: str) -> set[int]:
    longest = len(text) // _MIN_REPEATS
    periods = set()
    for start in range(0, len(text), max(1, len(text) // 8)):
        probe = text[start : start + longest]
        again = text.find(probe, start + 1, start + 2 * longest)
        if again != -1:
            periods.add(again - start)
    return periods


def _has_loop(text: str, codes: np.ndarray[tuple[int], np.dtype[np.uint32]], period: int, least: int) -> bool:
    """Whether a stretch that is equal to itself one period on is long enough."""
    differs = np.flatnonzero(codes[:-period] != codes[period:])
    edges = np.concatenate([[-1], differs, [len(codes) - period]])
    lengths = np.diff(edges) - 1 + period
    for place in np.flatnonzero(lengths >= max(least, _MIN_REPEATS * period)):
        piece = text[edges[place] + 1 :][:period]
        if lengths[place] >= _MIN_LEADERS or any(map(str.isalnum, piece)):
            return True
    return False


def _share(name: str, title: str, definition: str, is_so: Callable[[str | None, str], bool]) -> Metric:
    return Metric(
        name=name,
        title=title,
        version=1,
        definition=definition,
        best="low",
        kind="share",
        columns=("rows", "hits"),
        measure=partial(_measure, is_so=is_so),
        figure=share_of_rows,
    )


def _measure(batch: RowBatch, *, is_so: Callable[[str | None, str], bool]) -> Counts:
    rows = zip(batch.answers, batch.finish_reasons, strict=True)
    return counts_of([(1, int(is_so(answer, finish_reason))) for answer, finish_reason in rows], 2)


def _is_empty(answer: str | None, _: str) -> bool:
    return answer is not None and not answer.strip()


def _is_cut(_: str | None, finish_reason: str) -> bool:
    return finish_reason == "length"


def _is_loop_row(answer: str | None, _: str) -> bool:
    return answer is not None and is_looping(answer)


def _is_refused(answer: str | None, _: str) -> bool:
    return answer is not None and _REFUSED.match(answer[:200].replace("’", "'")) is not None


def _is_failed(answer: str | None, _: str) -> bool:
    return answer is None
