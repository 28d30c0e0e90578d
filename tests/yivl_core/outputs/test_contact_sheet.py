"""The contact sheet: which records are drawn, and what Python's parser and Chromium find on the page."""

import os
import re
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from yivl_core.outputs.contact_sheet import MARK, SheetRow, chosen_records, write_contact_sheet
from yivl_core.outputs.page import MAX_CHARACTERS
from yivl_core.outputs.predictions import Prediction, PredictionImage, read_predictions, write_part
from yivl_core.outputs.thumbnails import UNREADABLE, Thumbnail, to_thumbnail
from yivl_core.storage import read_bytes

from ..conftest import AWKWARD, Page

MakeRow = Callable[..., SheetRow]
PICTURE = to_thumbnail(Image.new("RGB", (300, 200), "red"))
SETTINGS = {"model": "Yi-VL-6B", "prompt": "Describe it.\n描述它。"}
PLAIN: dict[str, Any] = {"history": (), "reference": None, "references": ()}


@pytest.fixture
def make_row(make_prediction: Callable[..., Prediction]) -> MakeRow:
    """A row with one image, an answer and no more, unless told otherwise."""

    def make(number: int = 0, *, picture: Thumbnail = PICTURE, **changes: Any) -> SheetRow:
        images = (PredictionImage(uri=f"scans/{number}.png", sha256="ab" * 32, width=300, height=200),)
        prediction = make_prediction(number, **(PLAIN | {"images": images} | changes))
        return SheetRow(prediction=prediction, pictures=(picture,) * len(prediction.images))

    return make


@pytest.fixture
def sheet(tmp_path: Path) -> Callable[..., Page]:
    """Writes rows as `sheet.html` and reads the page."""

    def write(rows: Sequence[SheetRow], num_records: int = 1204, **settings: Any) -> Page:
        url = str(tmp_path / "sheet.html")
        write_contact_sheet(url, rows, num_records=num_records, seed=7, settings={**SETTINGS, **settings})
        return Page(read_bytes(url).decode())

    return write


@given(num_records=st.integers(0, 60) | st.integers(0, 10**15), num_wanted=st.integers(0, 50), seed=st.integers(0, 2**64))
def test_as_many_records_are_drawn_as_wanted_each_once_and_in_order(num_records: int, num_wanted: int, seed: int) -> None:
    drawn = chosen_records(num_records, num_wanted, seed)
    assert len(drawn) == min(num_wanted, num_records)
    assert drawn == sorted(set(drawn))
    assert all(0 <= index < num_records for index in drawn)
    assert drawn == chosen_records(num_records, num_wanted, seed)


def test_a_seed_draws_the_same_records_everywhere() -> None:
    assert chosen_records(1000, 5, 7) == [72, 150, 322, 535, 649]
    assert chosen_records(10**12, 3, 0) == [420571580830, 757954402939, 844421851523]


def test_every_set_of_records_is_drawn_about_as_often() -> None:
    counts = Counter(tuple(chosen_records(5, 2, seed)) for seed in range(5000))
    assert len(counts) == 10
    assert all(abs(count - 500) < 110 for count in counts.values())  # five standard deviations


def test_the_top_says_what_was_chosen_and_how_the_answers_ended(sheet, make_row: MakeRow) -> None:
    reasons = ["stop"] * 4 + ["length"] * 2 + ["error"]
    rows = [make_row(number, finish_reason=reason) for number, reason in enumerate(reasons)]
    text = sheet(rows).text
    assert "7 of 1,204 rows, drawn at random with seed 7." in text
    assert re.search(r"4 ended by the model\s+2 cut at the token limit\s+1 failed", text)
    assert "All 7 rows of the run; seed 7 left none out." in sheet(rows, num_records=7).text
    nothing = sheet([], num_records=0)
    assert not nothing.cards
    assert re.search(r"0 ended by the model\s+0 cut at the token limit\s+0 failed", nothing.text)


def test_cut_and_failed_answers_wear_a_badge_and_others_none(sheet, make_row: MakeRow) -> None:
    error = {"finish_reason": "error", "error_kind": "truncated", "error": "scans/2.png is cut off; replace the file"}
    whole, cut, failed = sheet([make_row(0), make_row(1, finish_reason="length"), make_row(2, picture=UNREADABLE, **error)]).cards
    assert re.search(r"answer 0\s+record 0 · 4 tokens\s*$", whole)
    assert re.search(r"answer 1\s+cut at the token limit\s+record 1 · 4 tokens", cut)
    assert re.search(r"failed: truncated\s+scans/2\.png is cut off; replace the file\s+record 2\s*$", failed)
    assert "image 1 of record 2 could not be read" in failed
    assert "cut at" not in whole + failed
    assert "failed" not in whole + cut


def test_an_answer_without_text_is_said_to_be_empty(sheet, make_row: MakeRow) -> None:
    for response in ("", " \n\t"):
        (card,) = sheet([make_row(response=response, completion_tokens=1)]).cards
        assert re.search(r"\(empty: the model wrote nothing\)\s+record 0 · 1 token\s*$", card)


def test_a_question_of_all_rows_is_said_once_and_others_in_their_cards(sheet, make_row: MakeRow) -> None:
    asked = {"query": "What is it?", "system": "Be brief."}
    same = sheet([make_row(0, **asked), make_row(1, **asked), make_row(2, query=None, finish_reason="error")])
    assert [same.text.count(text) for text in asked.values()] == [1, 1]
    assert not any(text in card for card in same.cards for text in asked.values())
    assert "(the input line is no record)" in same.cards[2]
    differing = sheet([make_row(0, **asked), make_row(1, query="Where is it?", system="")])
    assert (
        ["What is it?" in card for card in differing.cards] == ["Be brief." in card for card in differing.cards] == [True, False]
    )
    assert "Where is it?" in differing.cards[1]
    assert "(empty)" in sheet([make_row(0, query=" ")]).text
    assert "the same for every row" not in differing.text


def test_earlier_rounds_and_references_are_there_to_be_read(sheet, make_row: MakeRow) -> None:
    rounds = tuple((f"asked-{number}", f"said-{number}") for number in range(11))
    rows = [make_row(0, history=rounds[:2], reference="12.30", references=("12,30", "")), make_row(1, history=rounds)]
    first, second = sheet(rows).cards
    assert re.search(r"2 earlier rounds\s*asked\s*asked-0\s*answered\s*said-0\s*asked\s*asked-1", first)
    assert re.search(r"reference\s*12\.30\s*reference\s*12,30\s*reference\s*\(empty\)", first)
    assert "11 earlier rounds, the last 8 of them here" in second
    assert "asked-3" in second
    assert "asked-2" not in second


def test_pictures_have_their_size_a_name_for_who_cannot_see_them_and_their_place(sheet, make_row: MakeRow) -> None:
    images = tuple(PredictionImage(uri=f"{'deep/' * 60}{number}.png") for number in range(10))
    page = sheet([make_row(0), make_row(1, images=()), make_row(2, images=images)])
    assert page.all("img")[0] == {"src": PICTURE.data_uri, "width": "320", "height": "213", "alt": "image 1 of record 0"}
    assert [attributes["alt"] for attributes in page.all("img")[1:]] == [f"image {place} of record 2" for place in range(1, 9)]
    assert "scans/0.png" in page.cards[0]
    assert "(no image)" in page.cards[1]
    last, rest = page.cards[2].rsplit("…", 1)[1].split("(")
    assert (len(last), last[-11:]) == (160, "/deep/7.png")
    assert rest.startswith("and 2 more images)")


def test_line_ends_are_kept_and_long_texts_can_be_scrolled_with_the_keyboard(sheet, make_row: MakeRow) -> None:
    page = sheet(
        [make_row(0, response="first\r\nsecond\tthird"), make_row(1, response="a\n" * 20), make_row(2, response="b" * 2500)]
    )
    assert "first\nsecond\tthird" in page.cards[0]
    assert "⏎" not in page.text
    assert page.cards[2].count("b") == MAX_CHARACTERS
    assert f"(and {2500 - MAX_CHARACTERS} more characters)" in page.cards[2]
    scrolled = [attributes["aria-label"] for _, attributes in page.tags if "tabindex" in attributes]
    assert scrolled == ["answer of record 1", "answer of record 2"]


def awkward_rows(make_row: MakeRow) -> list[SheetRow]:
    """Whatever others write, in every place where it can stand; the last rows are failed ones."""
    told = [
        {"query": text, "system": text + "?", "response": text, "history": ((text, text),), "reference": text}
        | {"references": (text,), "images": (PredictionImage(uri=text),)}
        for text in AWKWARD
    ]
    rows = [make_row(number, **changes) for number, changes in enumerate(told)]
    failed = {"finish_reason": "error", "response": None}
    return rows + [
        make_row(len(rows) + number, picture=UNREADABLE, error_kind=text, error=text, **failed)
        for number, text in enumerate(AWKWARD)
    ]


def test_what_others_wrote_is_text_and_nothing_else(sheet, make_row: MakeRow) -> None:
    rows = awkward_rows(make_row)
    page = sheet(rows, **{text: text for text in AWKWARD})
    known = {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "section",
        "article",
        "h1",
        "h2",
        "p",
        "ul",
        "li",
    }
    known |= {"div", "span", "strong", "figure", "figcaption", "img", "details", "summary", "dl", "dt", "dd"}
    assert {name for name, _ in page.tags} == known | {"table", "tbody", "tr", "th", "td"}
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert all(str(attributes["src"]).startswith("data:image/") for attributes in page.all("img"))
    assert len(page.cards) == len(rows)
    for text, card, failed in zip(AWKWARD[:4], page.cards, page.cards[len(AWKWARD) :], strict=False):
        assert [card.count(text), failed.count(text)] == [8, 1 + (len(text) <= 24)]  # a long kind is shortened
        assert page.text.count(text) == card.count(text) + failed.count(text) + 2  # at the foot as name and value
    assert not re.search("[\x00-\x08\x0b-\x1f\u200b\u202e\u2066\ufeff]", page.text)
    shown = "\n".join(page.cards)
    assert {"U+0000", "U+001B", "U+000D", "U+202E", "U+2066", "U+200B", "U+FEFF"} <= set(re.findall(r"U\+[0-9A-F]{4}", shown))
    assert all(attributes.get("dir") == "auto" for tag in ("dd", "td", "figcaption") for attributes in page.all(tag))


def test_the_page_asks_nobody_for_anything_and_is_known_by_its_mark(sheet, make_row: MakeRow, tmp_path: Path) -> None:
    page = sheet([make_row()])
    html = (tmp_path / "sheet.html").read_text("utf-8")
    policies = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert MARK in html
    assert not re.search(r"https?:|url\(|@import|<script|<link", html)


def test_the_same_rows_give_the_same_bytes_whatever_the_hash_seed(make_row: MakeRow, tmp_path: Path) -> None:
    rows = [make_row(number, query=f"{number % 3}", images=()) for number in range(9)]
    write_part(str(tmp_path), "part-00000.parquet", [row.prediction for row in rows])
    script = (
        "import sys; from yivl_core.outputs.contact_sheet import SheetRow, write_contact_sheet; "
        "from yivl_core.outputs.predictions import read_predictions; "
        "rows = (SheetRow(prediction=prediction, pictures=()) for prediction in read_predictions(sys.argv[1])); "
        f"write_contact_sheet(sys.argv[2], rows, num_records=99, seed=7, settings={SETTINGS!r}); "
        "assert 'torch' not in sys.modules and 'prefect' not in sys.modules"
    )
    settings = {"TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    there = tmp_path / "there.html"
    subprocess.run([sys.executable, "-c", script, str(tmp_path), str(there)], check=True, env=os.environ | settings)
    here = f"memory://{uuid.uuid4().hex}/sheet.html"  # any address
    read = [SheetRow(prediction=prediction, pictures=()) for prediction in read_predictions(str(tmp_path))]
    write_contact_sheet(here, read, num_records=99, seed=7, settings=SETTINGS)
    assert there.read_bytes() == read_bytes(here)


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_scrolls_down_only_and_shows_every_picture(sheet, make_row, tmp_path, look_at, width: int) -> None:
    rows = [*awkward_rows(make_row), make_row(50), make_row(51, images=(PredictionImage(uri="x" * 999),) * 3)]
    page = sheet(rows, **{text[:99]: text for text in AWKWARD})
    seen = look_at(tmp_path / "sheet.html", width)
    assert seen["scroll_width"] <= seen["client_width"] <= width
    assert seen["client_width"] > width - 20
    assert seen["num_cards"] == len(page.cards) == 2 * len(AWKWARD) + 2
    assert seen["images"] == [[True, True]] * (len(AWKWARD) + 4)
    assert seen["requests"] == []
