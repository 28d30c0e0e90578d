import time

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from yivl_core.evaluation.metrics.hygiene import HYGIENE_METRICS, cut, is_looping, refused
from yivl_core.evaluation.metrics.metric import RowBatch


def slow_is_looping(text: str) -> bool:
    """Every period and every stretch, as the definition has it."""
    for period in range(1, len(text) // 6 + 1):
        start = 0
        while start < len(text) - period:
            end = start
            while end < len(text) - period and text[end] == text[end + period]:
                end += 1
            length = end - start + period
            least = 30 if any(map(str.isalnum, text[start : start + period])) else 100
            if end > start and length >= max(least, 6 * period) and 100 * length >= 35 * len(text) and text.strip():
                return True
            start = end + 1
    return False


noise = st.text(alphabet="ab. 好\n", max_size=60)


@settings(deadline=None, max_examples=300)
@given(
    before=noise,
    piece=st.text(alphabet="ab. 好🧾", min_size=1, max_size=14),
    num=st.integers(3, 14),
    less=st.integers(0, 6),
    after=noise,
)
def test_loops_are_those_of_the_definition(before: str, piece: str, num: int, less: int, after: str) -> None:
    text = before + (piece * num)[: len(piece) * num - less] + after
    event(f"loops: {slow_is_looping(text)}")
    assert is_looping(text) == slow_is_looping(text)


@pytest.mark.parametrize("length", [29, 30, 31, 85, 86, 87, 171, 172])
def test_share_of_the_text_is_met_exactly(length: int) -> None:
    """A loop of thirty characters, then others: 30 of 85 are more than 35 %, 30 of 86 less."""
    text = ("abcde" * 6 + "".join(chr(0x4E00 + place) for place in range(200)))[:length]
    assert is_looping(text) == (30 <= length <= 85)


@pytest.mark.parametrize(
    ("text", "is_loop"),
    [
        ("x" * 100_000, True),
        (("a" * 999 + "b") * 100, True),
        (("a" * 16_000 + "b") * 6, True),
        (("a" * 16_000 + "b") * 5 + "c" * 16_000, False),
        ("".join(chr(0x4E00 + place * place % 20_000) for place in range(100_000)), True),
        ("".join(str(place) + " " for place in range(20_000)), False),
    ],
    ids=["a letter", "long period", "longest period", "five times", "squares, which come again", "counting"],
)
def test_a_hundred_thousand_characters_take_no_long_time(text: str, is_loop: bool) -> None:
    start = time.process_time()
    assert is_looping(text) == is_loop
    assert time.process_time() - start < 1


def test_half_a_surrogate_pair_is_a_character() -> None:
    assert is_looping("\ud800a" * 20)


@pytest.mark.parametrize(
    ("answer", "is_refusal"),
    [
        ("I am unable to read the text", True),
        ("Unfortunately, I cannot see the image.", True),
        ("I apologize, but the image is blurry", True),
        ("Sorry, the image is too dark", True),
        ("I do not have the ability to see", True),
        ("很抱歉，我不能回答", True),
        ("作为一个人工智能助手，我", True),
        ("无法识别", True),
        ("I can't wait", False),
        ("I cannon", False),
        ("SORRY WE ARE CLOSED", True),  # begins as a refusal does: print that reads so counts too
        ("对不起", False),
        ("TOTAL", False),
    ],
)
def test_refusals_are_told_by_how_they_begin(answer: str, is_refusal: bool) -> None:
    assert refused().measure(RowBatch([answer], [("x",)], ["stop"])).tolist() == [[1, is_refusal]]


def test_cut_is_told_by_the_finish_reason() -> None:
    batch = RowBatch(["a", "a", None], [("a",)] * 3, ["length", "stop", "error"])
    assert cut().measure(batch).tolist() == [[1, 1], [1, 0], [1, 0]]


def test_hygiene_counts_every_row_and_is_best_low() -> None:
    batch = RowBatch(["a", "", None], [("a",)] * 3, ["stop", "length", "error"])
    for metric in (make() for make in HYGIENE_METRICS):
        assert (metric.kind, metric.best, metric.normaliser) == ("share", "low", None)
        assert metric.measure(batch)[:, 0].tolist() == [1, 1, 1]
