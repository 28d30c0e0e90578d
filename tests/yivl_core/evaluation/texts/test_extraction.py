import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.errors import ConfigurationError
from yivl_core.evaluation.texts.extraction import VERSION, describe_extractor, find_extractor

NAMES = ["verbatim", "first-line", "unwrapped", "choice", "number", "json"]

STAYS = [  # extractor, output that holds nothing of the kind
    ("first-line", " \n\n"),
    ("unwrapped", " TOTAL "),
    ("unwrapped", '"A" and "B"'),
    ("unwrapped", "don't"),
    ("unwrapped", "The answer is"),
    ("unwrapped", "The textbook is red"),
    ("unwrapped", "这张图里有一只猫"),
    ("unwrapped", "```\nnever closed"),
    ("choice", "A cat"),
    ("choice", "I am"),
    ("choice", "The answer is A cat"),
    ("choice", "The answer is Apple"),
    ("choice", "The answer is a dog"),
    ("choice", "Both (A) and (B)"),
    ("choice", "U.S."),
    ("choice", "12"),
    ("choice", ""),
    ("number", "none"),
    ("json", "{total: 9}"),
    ("json", "[1, 2]"),
    ("json", '{"a": NaN}'),
    ("json", '{"a": "\\ud800"}'),
    ("json", '{"a": 1'),
]
FOUND = [
    ("verbatim", ' "a"\n', ' "a"\n'),
    ("first-line", "\n \n TOTAL \n9.00", "TOTAL"),
    ("first-line", "TOTAL\r\n9.00", "TOTAL"),
    ("unwrapped", 'The text in the image is "TOTAL".', "TOTAL"),
    ("unwrapped", "The text in the image reads: TOTAL 9.00.", "TOTAL 9.00."),
    ("unwrapped", "the handwritten number shown in this picture is 12.", "12"),
    ("unwrapped", "The answer is 12.30.", "12.30"),
    ("unwrapped", "So, the final answer is: 12", "12"),
    ("unwrapped", "Answer: 12.", "12."),
    ("unwrapped", "Sure! Here is the text from the image:\n\nTOTAL\n9.00", "TOTAL\n9.00"),
    ("unwrapped", "The image says “HELLO”", "HELLO"),
    ("unwrapped", "图片中的文字是：“合计”", "合计"),
    ("unwrapped", "图片中的文字是：“合计”。", "合计"),
    ("unwrapped", "好的，这张图片上的文字内容为：合计 9", "合计 9"),
    ("unwrapped", "答案是 42。", "42"),
    ("unwrapped", "```json\n{}\n```", "{}"),
    ("unwrapped", "The text in the image reads:\n```\n A\n  B\n```", "A\n  B"),
    ("unwrapped", "「合计」", "合计"),
    ("unwrapped", "‘“a”’", "a"),
    ("unwrapped", '""', ""),
    ("choice", "B", "B"),
    ("choice", " b ", "B"),
    ("choice", "A", "A"),
    ("choice", "(B)", "B"),
    ("choice", "B.", "B"),
    ("choice", "（C）", "C"),
    ("choice", "**D**", "D"),
    ("choice", "B. a dog", "B"),
    ("choice", "C、狗", "C"),
    ("choice", "Answer: B", "B"),
    ("choice", "answer: b", "B"),
    ("choice", "The answer is B", "B"),
    ("choice", "The answer is A because it barks", "A"),
    ("choice", "The correct option is (C).", "C"),
    ("choice", "The answer is B. Option A is wrong.", "B"),
    ("choice", "The answer is not A. So the answer is **C**.", "C"),
    ("choice", "It is (B), a dog", "B"),
    ("choice", "答案是B", "B"),
    ("choice", "答案：（D）", "D"),
    ("choice", "因此选择A。", "A"),
    ("number", "9 and then RM 1,234.50 in all", "1,234.50"),
    ("number", "it is -5 degrees", "-5"),
    ("number", "item A-12", "12"),
    ("number", "from 3-5", "5"),
    ("number", "12,30", "12,30"),
    ("number", "1, 2, 3.", "3"),
    ("number", "about 12%", "12%"),
    ("number", "$.50", ".50"),
    ("number", "1e5", "1e5"),
    ("number", "共１２元", "１２"),
    ("json", 'Here: {"b": 1.50, "a": "é"} and {"c": 2}', '{"a":"é","b":1.50}'),
    ("json", '```json\n{"a": {"c": [1, true, null], "b": "\\u4e00"}}\n```', '{"a":{"b":"一","c":[1,true,null]}}'),
    ("json", "{x} {}", "{}"),
]


@pytest.mark.parametrize(("name", "output", "answer"), [*FOUND, *[(name, output, output) for name, output in STAYS]])
def test_answer_of_an_output(name: str, output: str, answer: str) -> None:
    assert find_extractor(name)(output) == answer


def test_other_names_are_refused_with_those_that_there_are() -> None:
    with pytest.raises(
        ConfigurationError, match=r"no extractor 'last-line'; give one of verbatim, first-line, unwrapped, choice, "
    ):
        find_extractor("last-line")
    with pytest.raises(ConfigurationError, match="no extractor"):
        describe_extractor("")


def test_description_is_name_and_version() -> None:
    assert describe_extractor("choice") == {"name": "choice", "version": VERSION}


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None)
@given(output=st.text(max_size=40) | st.text(alphabet="The answer is:\"“”'`\n{}[](),.-%ABab12答案是：图片中的文字", max_size=40))
def test_what_was_extracted_is_extracted_as_it_is(name: str, output: str) -> None:
    extract = find_extractor(name)
    answer = extract(output)
    assert extract(answer) == answer


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "piece",
    ["{", '{"a":', '{"a":[', '"', "“‘", "```\n", "The answer is ", "answer ", "1,234", "((", "A. ", " ", "here is the a "],
)
def test_long_outputs_take_no_long_time(name: str, piece: str) -> None:
    start = time.process_time()
    find_extractor(name)(piece * (50_000 // len(piece)))
    assert time.process_time() - start < 5
