import re
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from yivl_core.evaluation.markdown_cells import change_cell, escape, figure_cell, interval_cell, name_cell, p_cell, size_cell

NASTY = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a | b \\| c \\",
    "`code` ``` *bold* _it_ ~~gone~~ $x$",
    "[link](http://evil.example) ![image](x.png) <http://evil.example>",
    "http://evil.example www.evil.example me@evil.example",
    "line 1\nline 2\r\n\n# heading\n- item\n| a |\n|---|",
    "\u202eright to left\u0000 \u2028",
    "&lt; &#42; &amp;",
    "*(empty)*",
    "x" * 1000,
]


class Cells(HTMLParser):
    """The tags of a page and the text of its table cells."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        if self.cells:
            self.cells[-1] += data


def render(cell: str) -> Cells:
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser = Cells()
    parser.feed(page.render(f"| a | b |\n| --- | --- |\n| {cell} | end |\n"))
    return parser


def shown(text: str) -> str:
    text = text.replace("\n", "⏎")
    return re.sub("[\0-\x1f\x7f-\x9f]", lambda match: f"(U+{ord(match[0]):04X})", text)


@settings(deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=("Cs", "Cf", "Zl", "Zp")), min_size=1, max_size=100))
@example(NASTY[0])
@example(NASTY[1])
@example(NASTY[2])
@example(NASTY[3])
@example(NASTY[4])
@example(NASTY[5])
@example(NASTY[6])
@example(NASTY[8])
@example(NASTY[9])
def test_any_text_is_shown_as_it_is_in_one_cell(text: str) -> None:
    page = render(escape(text))
    assert page.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    assert len(page.cells) == 4
    assert " ".join(page.cells[2].split()) == " ".join(shown(text).split())


def test_invisible_characters_are_named() -> None:
    assert escape("a\u202eb\u2028c\ud800") == "a(U+202E)b(U+2028)c(U+D800)"


def test_long_text_is_cut_and_says_so() -> None:
    assert escape("x" * 160) == "x" * 160
    assert escape("x" * 161) == "x" * 160 + " *(and 1 more characters)*"


def test_empty_text_is_told_from_the_words() -> None:
    assert escape("") == "*(empty)*"
    assert render(escape("*(empty)*")).tags.isdisjoint({"em", "strong"})
    assert "em" in render(escape("")).tags


def test_addresses_do_not_become_links() -> None:
    text = escape("http://evil.example www.evil.example me@evil.example")
    assert not any(sign in text for sign in ("://", "www.", "@"))


def test_a_text_may_be_given_more_room() -> None:
    assert escape("x" * 500, 500) == "x" * 500


def test_names_are_code_unless_that_could_end_in_them() -> None:
    assert name_cell("model.files.model-00001-of-00002.safetensors") == "`model.files.model-00001-of-00002.safetensors`"
    assert name_cell("a`|<b>") == escape("a`|<b>")


def test_a_pipe_in_a_cell_does_not_part_it() -> None:
    assert len(render(escape("a | b")).cells) == 4


@pytest.mark.parametrize(
    ("kind", "figure", "change", "size"),
    [
        ("rate", "12.34 %", "-12.34 points", "12.34 points"),
        ("share", "12.34 %", "-12.34 points", "12.34 points"),
        ("mean", "12.34 %", "-12.34 points", "12.34 points"),
        ("score", "0.12", "-0.12", "0.12"),
    ],
)
def test_figures_are_in_percent_and_scores_on_their_own_scale(kind: Any, figure: str, change: str, size: str) -> None:
    assert (figure_cell(0.12341, kind), change_cell(-0.12341, kind), size_cell(0.12341, kind)) == (figure, change, size)
    assert change_cell(0.5, "share") == "+50.00 points"
    assert change_cell(-0.00001, "share") == change_cell(0.0, "share") == size_cell(0.0, "share") == "0.00 points"
    assert change_cell(-0.001, "score") == "0.00"
    assert figure_cell(None, kind) == change_cell(None, kind) == size_cell(None, kind) == "-"


def test_intervals_say_their_unit() -> None:
    interval = {"low": -0.1, "high": 0.25}
    assert interval_cell(interval, "rate") == "-10.00 to 25.00 %"
    assert interval_cell(interval, "rate", is_change=True) == "-10.00 to 25.00 points"
    assert interval_cell(interval, "score") == "-0.10 to 0.25"
    assert interval_cell({"low": -1e-9, "high": 1e-9}, "rate", is_change=True) == "0.00 to 0.00 points"
    assert interval_cell({"low": None, "high": None}, "rate") == "-"


def test_p_values_have_three_digits() -> None:
    assert [p_cell(value) for value in (None, 1.0, 0.0456, 0.001, 0.0009)] == ["-", "1.000", "0.046", "0.001", "< 0.001"]
