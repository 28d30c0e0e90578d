import ast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from yivl_core.data.rows.list_literals import read_list


@given(st.lists(st.text(), min_size=1))
@example(["it's", 'a "b"', "\\frac{1}{2}\n", "\x00\u2028\U0001f600é", "\\"])
def test_what_python_writes_is_read_back(texts: list[str]) -> None:
    assert read_list(repr(texts)) == texts


@pytest.mark.parametrize("text", [r"""['\x41\u00e9\101', "\'\t"]""", """  [ 'a',"b" , 'c', ]  """, "['line\\\nend']"])
def test_escapes_are_those_of_python(text: str) -> None:
    assert read_list(text) == ast.literal_eval(text.strip())


def test_what_is_no_escape_keeps_its_backslash() -> None:
    assert read_list(r"['\quad \q']") == [r"\quad \q"]


def test_json_joins_the_two_halves_of_a_character() -> None:
    assert read_list(r'["\ud83d\ude00", "a\/b"]') == ["\U0001f600", "a/b"]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "CENTRE", "[illegible]", "[1, 2]", "['a'", "['a'] b", "[['a']]", "['a' 'b']", "['a', 1]", "['a'b']",
        "__import__('os').system('x')", "[__import__('os')]", r"['\U99999999']", "[" * 100_000, "['a'," * 50_000,
    ],
)  # fmt: skip
def test_other_text_is_no_list(text: str) -> None:
    assert read_list(text) is None


def test_a_list_of_large_images_is_read_in_little_time() -> None:
    images = ["/9j/" + "A" * 4_000_000, "iVBORw" + "B" * 3_000_000]
    assert read_list(str(images)) == images
