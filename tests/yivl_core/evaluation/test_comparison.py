"""The comparison page: what it says is counted again here, and its HTML is read by Python's parser and by Chromium."""

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
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
from rapidfuzz.distance import LCSseq

from yivl_core.data.configuration import ValidationConfig
from yivl_core.data.dataset import ValidatedDataset, write_records
from yivl_core.data.validation import validate_dataset
from yivl_core.errors import DatasetError, OutputError, StorageError
from yivl_core.evaluation.comparison import write_comparison
from yivl_core.evaluation.configuration import ComparisonConfig, ComparisonSummary, EvaluationConfig
from yivl_core.evaluation.differences import find_differences
from yivl_core.evaluation.pairing import Group, share_out
from yivl_core.evaluation.report import evaluate_predictions
from yivl_core.evaluation.texts.normalisation import normalise
from yivl_core.outputs.manifest import write_manifest
from yivl_core.outputs.page import MAX_CHARACTERS
from yivl_core.outputs.predictions import Prediction, PredictionImage, write_part
from yivl_core.storage import read_bytes

from ..conftest import AWKWARD, Page

Make = Callable[..., Prediction]
Rows = Sequence[tuple[str | None, str | None]]
TEXT = st.text(st.sampled_from("aAbB \né"), max_size=12)


@pytest.fixture
def compare(tmp_path: Path, make_prediction: Make) -> Callable[..., tuple[ComparisonSummary, Page]]:
    """Writes rows of (before, after, reference, changes) as two folders, compares them and reads the page."""

    def run(rows: Sequence[Sequence[Any]], **settings: Any) -> tuple[ComparisonSummary, Page]:
        for name, column in (("before", 0), ("after", 1)):
            predictions = [
                make_prediction(index, row[column], row[2], **(row[3] if len(row) > 3 else {})) for index, row in enumerate(rows)
            ]
            write_part(str(tmp_path / name), "part-00000.parquet", predictions)
        places = {"baseline": str(tmp_path / "before"), "predictions": str(tmp_path / "after"), "output": str(tmp_path / "out")}
        summary = write_comparison(ComparisonConfig(**places, **settings))
        return summary, Page(read_bytes(summary.page).decode())

    return run


ROWS: list[tuple[str | None, str | None, str | None]] = [
    ("12.80", "12.30", "12.30"),
    ("TOTAL", "total ", "Total"),
    ("right", "wrung", "right"),
    ("", "almos", "almost"),
    (None, "x", "x"),
    ("x", None, "x"),
    ("anything", "something", None),
]


def test_groups_and_figures_are_those_of_an_independent_count(compare, tmp_path, make_prediction: Make) -> None:
    rows = [*ROWS[:6], *[("a", "b", "b")] * 3, ("c", "c", "d")]
    summary, page = compare(rows)

    def right(answer: str | None, reference: str) -> bool:
        return answer is not None and normalise(answer) == normalise(reference)

    counted = Counter((right(before, reference), right(after, reference)) for before, after, reference in rows)
    assert (summary.num_mended, summary.num_lost) == (counted[False, True], counted[True, False]) == (5, 2)
    assert (summary.num_stayed_right, summary.num_stayed_wrong) == (counted[True, True], counted[False, False]) == (1, 2)
    assert summary.num_matched == len(rows) == len(page.cards)
    for name in ("before", "after"):
        figures = evaluate_predictions(EvaluationConfig(predictions=str(tmp_path / name), output=str(tmp_path / f"r-{name}")))
        for value in (figures.cer, figures.exact_match):
            assert f"{100 * value:.2f}\N{NO-BREAK SPACE}%" in page.text
    assert "All records are shown." in page.text


def test_each_answer_is_marked_by_a_word_and_each_change_too(compare) -> None:
    _, page = compare([ROWS[0], ROWS[3]])
    mended, wrong = page.cards
    assert re.search(r"reference\s*12\.30\s*before ✗ wrong\s*12\.80\s*after ✓ right\s*12\.30", mended)
    assert re.search(r"before ✗ wrong\s*\(empty\)\s*after ✗ wrong\s*almost", wrong)  # the t is in <del>
    assert [name for name, _ in page.tags].count("del") == 2  # one of them in the legend
    assert "+50.00 points better" in page.text
    _, worse = compare([("a", "b", "a")])
    assert "−100.00 points worse" in worse.text
    assert "+100.00 points worse" in worse.text


def test_failed_and_cut_answers_are_told_as_such_without_their_paths(compare) -> None:
    _, page = compare([(None, "tota", "total")])
    assert "(failed: truncated)" in page.cards[0]
    assert "a.png" not in page.text
    _, page = compare([("to", "tota", "total", {"finish_reason": "length"})])
    assert page.cards[0].count("cut") == 2
    assert re.search(r"cut at the most new tokens\s*1\s*1\s*no change", page.text)


def test_without_references_only_what_differs_is_told(compare) -> None:
    summary, page = compare([("a", "A ", None), ("a", "b", None), (None, None, None), (None, "", None)])
    assert (summary.num_changed, summary.num_unchanged) == (2, 2)
    assert "None of the records has a reference" in page.text
    assert "CER" not in page.text
    assert not {"right", "wrong"} & set(re.findall(r"\w+", " ".join(page.cards)))


def test_records_with_and_without_reference_stand_beside_each_other(compare) -> None:
    summary, page = compare(ROWS)
    assert (summary.num_changed, summary.num_matched) == (1, 7)
    assert "no reference; the answers differ" in page.text
    assert re.search(r"records with a reference\s*6\s*6", page.text)


def write_side(folder: Path, make_prediction: Make, numbers: Sequence[int], reference: str = "r") -> str:
    write_part(str(folder), "part-00000.parquet", [make_prediction(number, "r", reference) for number in numbers])
    return str(folder)


def test_records_of_only_one_side_are_counted_and_named(tmp_path: Path, make_prediction: Make) -> None:
    before = write_side(tmp_path / "before", make_prediction, range(10))
    after = write_side(tmp_path / "after", make_prediction, range(8, 11))
    summary = write_comparison(ComparisonConfig(predictions=after, baseline=before, output=str(tmp_path)))
    assert (summary.num_matched, summary.num_only_baseline, summary.num_only_predictions) == (2, 8, 1)
    text = Page(Path(summary.page).read_text("utf-8")).text
    assert "8 records that only the baseline has answered (id-0, id-1, id-2, id-3, id-4 and 3 more)" in text
    assert "1 record that only the compared model has answered (id-10)" in text


def test_what_cannot_be_compared_is_refused_and_nothing_written(tmp_path: Path, make_prediction: Make) -> None:
    before = write_side(tmp_path / "before", make_prediction, range(3))
    unknown = write_side(tmp_path / "unknown", make_prediction, range(5, 9))
    other = write_side(tmp_path / "other", make_prediction, range(5, 9))
    changed = write_side(tmp_path / "changed", make_prediction, [1], reference="another")
    write_part(str(tmp_path / "twice"), "part-00000.parquet", [make_prediction(n, "r", "r", sample_id="one") for n in (0, 1)])
    write_manifest(str(tmp_path / "other" / "manifest.json"), {"content_digest": "0" * 64}, {})
    for after, error, message in (
        (
            unknown,
            DatasetError,
            "none of the 4 rows .* of the 3 rows .*; run `yivl infer` with both models over the same dataset",
        ),
        (changed, DatasetError, r"'id-1' has the references \['r'\] in the baseline and \['another'\].* over the same dataset"),
        (str(tmp_path / "twice"), OutputError, "two rows of the same predictions have the sample_id 'one'"),
        (other, OutputError, "the rows were changed after they were written"),
        (str(tmp_path / "nowhere"), OutputError, "holds no predictions"),
    ):
        with pytest.raises(error, match=message):
            write_comparison(ComparisonConfig(predictions=after, baseline=before, output=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_only_a_comparison_is_overwritten(compare, tmp_path: Path) -> None:
    summary, _ = compare(ROWS)
    first = Path(summary.page).read_bytes()
    compare(ROWS[:3])
    assert Path(summary.page).read_bytes() != first
    Path(summary.page).write_text("<p>mine")
    with pytest.raises(OutputError, match=r"comparison\.html is no comparison .*; choose another folder"):
        compare(ROWS)
    assert Path(summary.page).read_text() == "<p>mine"


def test_what_others_wrote_is_text_and_nothing_else(compare) -> None:
    kept = {"query": None, "sample_id": None, "history": (("<i>a</i>", "b"),)}
    rows = [
        (text, text + "!", text, kept | {"query": text, "sample_id": f"{text[:40]}{number}"})
        for number, text in enumerate(AWKWARD)
    ]
    _, harmless = compare([("a", "a!", "a", kept | {"query": "q", "sample_id": str(number)}) for number, _ in enumerate(AWKWARD)])
    _, page = compare(rows)
    names = {name for name, _ in harmless.tags}
    assert {name for name, _ in page.tags} <= names
    assert not {"script", "i", "img", "link", "iframe"} & names
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert len(page.cards) == len(rows)
    shown = "\n".join(page.cards)
    for text in AWKWARD[:4]:
        assert text in shown
    assert not re.search("[\x00-\x09\x0b-\x1f\u200b\u202e\u2066\ufeff]", page.text)
    assert {"U+0000", "U+001B", "U+000D", "U+202E", "U+2066", "U+200B", "U+FEFF"} <= set(re.findall(r"U\+[0-9A-F]{4}", shown))
    assert "first⏎\nsecond" in shown
    assert "(and 3,000 more characters)" in shown
    assert "(and 3,001 more characters)" in shown
    assert all(attributes.get("dir") == "auto" for attributes in page.all("dd"))


@given(answer=TEXT, reference=TEXT)
def test_differences_rebuild_the_answer_and_are_none_only_where_the_texts_are_equal(answer: str, reference: str) -> None:
    pieces = find_differences(answer, reference)
    assert "".join(piece.text for piece in pieces if piece.kind != "missing") == answer.strip()
    assert ({piece.kind for piece in pieces} <= {"same"}) == (normalise(answer) == normalise(reference))
    same = normalise("".join(piece.text for piece in pieces if piece.kind == "same"))
    assert len(same) <= LCSseq.similarity(normalise(answer), normalise(reference))


def test_differences_of_cut_texts_do_not_call_the_rest_missing() -> None:
    pieces = find_differences("a" * (MAX_CHARACTERS + 9), "a" * (MAX_CHARACTERS - 5) + "b" * 99)
    assert [piece.kind for piece in pieces] == ["same", "other"]
    assert [piece.kind for piece in find_differences("abc", "abc" + "d" * MAX_CHARACTERS)] == ["same"]


@given(
    counts=st.dictionaries(st.sampled_from(list(Group)), st.integers(0, 400)).filter(lambda counts: sum(counts.values())),
    num_samples=st.integers(1, 60),
)
def test_each_group_gives_its_share(counts: dict[Group, int], num_samples: int) -> None:
    shares, total = share_out(num_samples, counts), sum(counts.values())
    assert sum(shares.values()) == min(num_samples, total)
    assert shares.keys() == {group for group, size in counts.items() if size}
    assert all(shares[group] <= counts[group] for group in shares)
    if num_samples >= 3 * len(shares):
        assert all(shares[group] >= min(3, counts[group]) for group in shares)
        assert all(shares[group] <= max(3, num_samples * counts[group] / total + 1) for group in shares)


def test_samples_are_those_with_the_smallest_hashes_whatever_the_order(tmp_path: Path, make_prediction: Make) -> None:
    right = set(range(0, 90, 9))
    rows = [make_prediction(number, "r" if number in right else "w", "r") for number in range(90)]
    write_part(str(tmp_path / "p"), "part-00000.parquet", rows)
    renumbered = [dataclasses.replace(row, record_index=number) for number, row in enumerate(reversed(rows))]
    write_part(str(tmp_path / "q"), "part-00000.parquet", renumbered)
    shown = []
    for name in "pq":
        places = {"predictions": str(tmp_path / name), "baseline": str(tmp_path / "p"), "output": str(tmp_path)}
        config = ComparisonConfig(**places, num_samples=20)
        page = Page(Path(write_comparison(config).page).read_text("utf-8"))
        shown.append({int(found) for card in page.cards for found in re.findall(r"id-(\d+)", card)})
    by_hash = sorted(range(90), key=lambda number: hashlib.sha256(f"id-{number}".encode()).hexdigest())
    expected = [number for number in by_hash if number in right][:3] + [number for number in by_hash if number not in right][:17]
    assert shown == [set(expected)] * 2
    assert "20 of 90 records are shown: from each group in proportion to its size" in page.text


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, PredictionImage]:
    """Images of several shapes in a validated dataset at `tmp_path / "validated"`."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    sizes = {"strip.png": (40, 10), "large.jpg": (900, 1200), "wide.png": (1000, 30), "gone.png": (9, 9), "changed.png": (9, 8)}
    for number, (name, size) in enumerate(sizes.items()):
        Image.effect_noise(size, 60 + number).convert("RGB").save(folder / name)
    turned, exif = Image.new("RGB", (30, 20), "red"), Image.Exif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    names = [*sizes, "turned.jpg"]
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps({"query": "q", "response": "r", "images": [f"pictures/{name}"]}) + "\n" for name in names)
    )
    validate_dataset(ValidationConfig(dataset=(str(tmp_path / "rows.jsonl"),), output=str(tmp_path / "validated")))
    infos = [validated.images[0] for validated in ValidatedDataset.open(str(tmp_path / "validated"))]
    (folder / "gone.png").unlink()
    Image.new("RGB", (9, 8)).save(folder / "changed.png")
    return {
        Path(info.uri).name: PredictionImage(uri=info.uri, sha256=info.sha256, width=info.width, height=info.height)
        for info in infos
    }


def rows_with(images: Sequence[PredictionImage]) -> list[tuple[Any, ...]]:
    return [("a", "b", "b", {"images": (image,), "query": "q"}) for image in images]


def test_images_are_embedded_at_their_size_and_way_up(compare, pictures, tmp_path: Path) -> None:
    names = ["strip.png", "large.jpg", "wide.png", "turned.jpg"]
    _, page = compare(rows_with([pictures[name] for name in names]), dataset=str(tmp_path / "validated"))
    embedded, shown = [], []
    for number, attributes in enumerate(page.all("img")):
        head, _, data = str(attributes["src"]).partition(",")
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
            image.load()
            assert head == f"data:image/{str(image.format).lower()};base64"
            assert not image.getexif()
            embedded.append(image.size)
        shown.append((int(str(attributes["width"])), int(str(attributes["height"]))))
        assert attributes["alt"] == f"image 1 of record {number}"
    assert embedded == [(40, 10), (240, 320), (320, 10), (20, 30)]
    assert shown == [(80, 20), (240, 320), (320, 10), (40, 60)]
    with Image.open(tmp_path / "pictures" / "strip.png") as original:  # small, and noise: PNG or JPEG, but the same picture
        first = Image.open(io.BytesIO(base64.b64decode(str(page.all("img")[0]["src"]).partition(",")[2])))
        distances = [abs(a - b) for a, b in zip(original.tobytes(), first.tobytes(), strict=True)]
    assert sum(distances) / len(distances) < 20


def test_an_image_that_is_not_there_as_it_was_is_a_box_that_says_so(compare, pictures, tmp_path: Path) -> None:
    images = [pictures["gone.png"], pictures["changed.png"], PredictionImage(uri="u"), PredictionImage(uri="v", sha256="0" * 64)]
    _, page = compare(rows_with(images), dataset=str(tmp_path / "validated"))
    assert not page.all("img")
    told = ["is not there any more", "was changed since it was validated", "could not be read", "is not in the dataset"]
    for number, (card, words) in enumerate(zip(page.cards, told, strict=True)):
        assert f"image 1 of record {number} {words}" in card


def test_without_a_dataset_the_page_says_that_images_were_not_asked_for(compare, pictures) -> None:
    _, page = compare(rows_with([pictures["strip.png"]]))
    assert not page.all("img")
    assert "Images were not asked for." in page.text


def test_images_are_found_through_a_file_of_held_out_records_too(compare, pictures, tmp_path: Path) -> None:
    write_records(tmp_path / "val.jsonl", ValidatedDataset.open(str(tmp_path / "validated")))
    _, page = compare(rows_with([pictures["strip.png"]]), dataset=str(tmp_path / "val.jsonl"))
    assert len(page.all("img")) == 1
    with pytest.raises(StorageError, match=r"lost\.jsonl: there is no such file"):
        compare(rows_with([pictures["strip.png"]]), dataset=str(tmp_path / "lost.jsonl"))


def test_the_page_has_the_same_bytes_whatever_the_place_and_hash_seed(compare, pictures, tmp_path: Path) -> None:
    rows = [*ROWS, *rows_with(list(pictures.values()))]
    content = {"model": {"digest": "ab" * 32}, "adapter": None, "data": {"digest": "cd" * 32}}
    for name in ("before", "after"):
        write_manifest(str(tmp_path / name / "manifest.json"), content, {"began": "now"})
    summary, page = compare(rows, dataset=str(tmp_path / "validated"), num_samples=9)
    first = read_bytes(summary.page)
    assert "ab" * 8 in page.text
    assert not re.search(re.escape(str(tmp_path)), first.decode())
    shutil.copytree(tmp_path / "before", tmp_path / "elsewhere" / "before")
    script = (
        "import sys; from yivl_core.evaluation.comparison import write_comparison as write; "
        "from yivl_core.evaluation.configuration import ComparisonConfig as Config; "
        "write(Config(baseline=sys.argv[1], predictions=sys.argv[2], dataset=sys.argv[3], output=sys.argv[4], num_samples=9)); "
        "assert 'torch' not in sys.modules and 'prefect' not in sys.modules"
    )
    places = [str(tmp_path / place) for place in ("elsewhere/before", "after", "validated", "elsewhere/out")]
    settings = {"TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script, *places], check=True, env=os.environ | settings)
    assert (tmp_path / "elsewhere" / "out" / "comparison.html").read_bytes() == first


def test_the_page_goes_to_any_address(tmp_path: Path, make_prediction: Make) -> None:
    side, output = write_side(tmp_path / "p", make_prediction, range(3)), f"memory://{uuid.uuid4().hex}/run"
    summary = write_comparison(ComparisonConfig(predictions=side, baseline=side, output=output))
    assert summary.page == f"{output}/comparison.html"
    assert read_bytes(summary.page).startswith(b"<!DOCTYPE html>")


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1280])
def test_a_browser_scrolls_down_only_and_asks_nobody_for_anything(compare, pictures, tmp_path, look_at, width: int) -> None:
    kept = [{"query": text * 3, "sample_id": f"{number}{text[:40]}"} for number, text in enumerate(AWKWARD)]
    awkward = [(text, text * 2, text + "z", changes) for text, changes in zip(AWKWARD, kept, strict=True)]
    summary, page = compare([*ROWS, *awkward, *rows_with(list(pictures.values()))], dataset=str(tmp_path / "validated"))
    seen = look_at(Path(summary.page), width)
    assert seen["scroll_width"] <= seen["client_width"] <= width
    assert seen["client_width"] > width - 20
    assert seen["num_cards"] == len(page.cards) == 22
    assert seen["images"] == [[True, True]] * len(page.all("img"))
    assert len(seen["images"]) == 4
    assert seen["requests"] == []
