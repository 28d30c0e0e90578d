"""The page of a report, read by Python's parser: what it says is counted again, and what others wrote stays text."""

import base64
import copy
import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from yivl_core.evaluation.page import MARK, render_page
from yivl_core.evaluation.pages.script import SCRIPT
from yivl_core.evaluation.pages.style import STYLE
from yivl_core.evaluation.pictures import room_for_pictures
from yivl_core.outputs.page import MAX_CHARACTERS
from yivl_core.outputs.thumbnails import Thumbnail, to_thumbnail

from ..conftest import AWKWARD, Page

Report = dict[str, Any]
ATTACKS = [
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='x",
    "</style></title></article></svg><!-- &lt;b&gt; &amp;",
    "]]>\x00\x1b[31m\r\u202e\ud800",
]


def attacked(value: Any, attack: str, *, has_keys: bool = False) -> Any:
    """A report in which each string ends in an attack, and each name that users or models chose."""
    if isinstance(value, str):
        return value + attack
    if isinstance(value, list):
        return [attacked(one, attack, has_keys=has_keys) for one in value]
    if not isinstance(value, dict):
        return value
    named = {"figures", "slices", "values", "failures", "manifest", "packages", "groups"}
    return {
        key + attack if has_keys else key: attacked(one, attack, has_keys=key in named and isinstance(one, dict))
        for key, one in value.items()
    }


def script_of(html: str) -> str:
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    return str(script)


@pytest.mark.parametrize("attack", ATTACKS)
def test_whatever_stands_in_any_string_of_a_report_stays_text(page_report: Report, attack: str) -> None:
    page_report["gate"] = {"result": "regression", "reasons": ["so"], "checks": [{"text": "cer", "passed": False}]}
    harmless, html = render_page(page_report, None), render_page(attacked(page_report, attack), None)
    before, page = Page(harmless), Page(html)
    assert {name for name, _ in page.tags} <= {name for name, _ in before.tags}
    assert not {"img", "link", "iframe", "object", "base", "meta refresh"} & {name for name, _ in page.tags}
    assert script_of(html) == SCRIPT
    assert len(page.all("script")) == 1
    keys = {key for _, attributes in page.tags for key in attributes}
    assert keys <= {"disabled"} | {key for _, attributes in before.tags for key in attributes}
    assert not [key for key in keys if key.startswith("on")]
    assert len(page.cards) == len(page_report["samples"])
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800-\udfff]", html)
    assert html.encode()
    for key in ("class", "id", "name", "type", "data-marks", "data-rank"):
        assert all(re.fullmatch(r"[a-z0-9. -]*", str(attributes.get(key, ""))) for _, attributes in page.tags)


def places(report: Report) -> dict[str, Callable[[str], None]]:
    """Where a user or a model may have written, and what puts a text there."""
    sample, there = report["samples"][1], report["comparison"]
    return {
        "answer": lambda text: sample.update(answer=text, response=text, states=["wrong"]),
        "raw answer": lambda text: sample.update(response=text),
        "baseline's answer": lambda text: sample["baseline"].update(answer=text, response=text),
        "question": lambda text: sample.update(query=text),
        "reference": lambda text: sample.update(references=[text]),
        "id": lambda text: sample.update(sample_id=text),
        "source": lambda text: sample.update(source=text),
        "cluster": lambda text: sample.update(cluster_id=text),
        "state": lambda text: sample.update(states=[text]),
        "error": lambda text: sample.update(answer=None, response=None, error_kind="x", error=text),
        "image": lambda text: sample.update(images=[{"uri": text, "sha256": None}]),
        "value of a slice": lambda text: report["slices"][2]["values"][0].update(value=text),
        "slice of a sample": lambda text: sample["slices"].update({"meta.shop": text}),
        "failure": lambda text: report["failures"].update({text: {"num_rows": 1, "first": {"source": "s", "error": "e"}}}),
        "message": lambda text: report["failures"]["truncated"]["first"].update(error=text),
        "manifest": lambda text: report["predictions"].update(manifest={"model": {"name": text}}),
        "key of a manifest": lambda text: report["predictions"].update(manifest={text: 1}),
        "difference": lambda text: there["differences"][0].update(ours=text),
        "setting": lambda text: report["scoring"].update(slice_by=[text]),
        "definition": lambda text: report["figures"]["cer"].update(definition=text),
    }


NAMES = [
    "answer", "raw answer", "baseline's answer", "question", "reference", "id", "source", "cluster", "state", "error", "image",
    "value of a slice", "slice of a sample", "failure", "message", "manifest", "key of a manifest", "difference", "setting",
    "definition",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_attack_can_be_read_where_it_was_written(page_report: Report, name: str) -> None:
    attack = "</script><b>"
    assert attack not in Page(render_page(page_report, None)).text
    places(page_report)[name](attack)
    page = Page(render_page(page_report, {}))
    assert attack in page.text
    assert not page.all("b")


def test_the_page_asks_nobody_for_anything_and_runs_its_own_script_alone(page_report: Report) -> None:
    html = render_page(page_report, {"ab" * 32: to_thumbnail(Image.new("RGB", (30, 20), "red"))})
    page = Page(html)
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script_of(html).encode()).digest()).decode()
    assert policy == (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    assert MARK in html
    assert not re.search(r"https?:|url\(|@import|<link|xlink", html)
    for _, attributes in page.tags:
        for key in ("src", "href", "action", "srcset", "data", "style"):
            assert str(attributes.get(key, "#")).startswith(("#", "data:image/"))
    assert "innerHTML" not in SCRIPT
    assert "eval" not in SCRIPT


def test_equal_reports_give_equal_bytes_whatever_the_hash_seed(page_report: Report, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(json.dumps(page_report))
    script = (
        "import json, sys; from yivl_core.evaluation.page import render_page; "
        "page = render_page(json.load(open(sys.argv[1])), {}); open(sys.argv[2], 'w', encoding='utf-8').write(page); "
        "assert 'torch' not in sys.modules and 'prefect' not in sys.modules"
    )
    settings = {"TZ": "Pacific/Auckland", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-W", "ignore", "-c", script, str(tmp_path / "report.json"), str(tmp_path / "page.html")]
    subprocess.run(command, check=True, env=os.environ | settings)
    assert (tmp_path / "page.html").read_text("utf-8") == render_page(page_report, {})
    sorted_keys = json.loads(json.dumps(page_report, sort_keys=True))
    assert "".join(sorted(render_page(sorted_keys, {}))) == "".join(sorted(render_page(page_report, {})))


def test_main_figures_stand_on_top_with_interval_rows_and_method(page_report: Report) -> None:
    page_report["figures"]["cer"] |= {
        "value": 0.1234,
        "n": 1500,
        "num_clusters": 40,
        "interval": {"low": 0.1, "high": 0.25, "method": "cluster bootstrap"},
        "answered_rows": {"value": 0.05, "n": 1400, "interval": {"low": 0.0, "high": 0.1, "method": "x"}},
        "smallest_difference": 0.031,
    }
    text = " ".join(Page(render_page(page_report, None)).text.replace("\N{NO-BREAK SPACE}", " ").split())
    assert "CER primary12.34 %95 % interval 10.00 to 25.00 %1,500 rows, 40 clusters; cluster bootstrap" in text
    assert re.search(r"CER\s*12\.34 %\s*10\.00 to 25\.00 %\s*1,500\s*5\.00 % of 1,400\s*3\.10 points\s*cluster bootstrap", text)
    assert "edits (Levenshtein, code points) over reference characters" in text


def test_the_baseline_stands_beside_and_the_verdict_on_top(page_report: Report) -> None:
    page_report["comparison"]["verdict"] = "worse"
    page_report["comparison"]["figures"]["cer"] |= {
        "value": 0.2,
        "baseline": 0.1,
        "difference": 0.1,
        "interval": {"low": 0.05, "high": 0.15, "method": "row bootstrap"},
        "p_value": 0.00005,
        "num_improved": 1234,
        "num_worsened": 5,
        "num_equal": 6,
        "verdict": "worse",
    }
    page_report["comparison"]["groups"] = {"mended": 1, "lost": 2, "stayed wrong": 3, "stayed right": 4}
    page = Page(render_page(page_report, None))
    text = " ".join(page.text.replace("\N{NO-BREAK SPACE}", " ").split())
    assert "✗ Worse than the baseline CER: 20.00 %, baseline 10.00 %. Difference +10.00 points" in text
    assert "(95 % interval +5.00 to +15.00), p = < 0.0001" in text
    assert "1,234 / 5 / 6" in text
    (bar,) = (svg for svg in page.all("svg") if svg.get("class") == "bar")
    assert bar["aria-label"] == "1 mended, 2 lost, 3 stayed wrong, 4 stayed right"
    assert [rect["width"] for rect in page.all("rect")][-4:] == ["10.000%", "20.000%", "30.000%", "40.000%"]
    assert "1 mended 10.00 % · ✗ → ✓ wrong before, right now" in text


def without(*keys: str, value: Any = None) -> Callable[[Report], None]:
    def change(report: Report) -> None:
        for key in keys[:-1]:
            report = report[key]
        report[keys[-1]] = value

    return change


def no_baseline(report: Report) -> None:
    report["comparison"] = None
    for sample in report["samples"]:
        sample |= {"baseline": None, "group": None}


def not_comparable(report: Report) -> None:
    blocking = {
        "is_allowed": False, "is_blocking": True, "is_warning": False, "kind": "decoding", "name": "decoding.max_new_tokens",
        "ours": "128", "theirs": "64",
    }  # fmt: skip
    report["comparison"] |= {"verdict": "not comparable", "is_comparable": False, "figures": {}, "groups": {}}
    report["comparison"]["reason"] = "these differ: decoding.max_new_tokens"
    report["comparison"]["differences"].append(blocking)


def nothing_in_common(report: Report) -> None:
    report["comparison"] |= {"verdict": "not comparable", "is_comparable": False, "figures": {}, "groups": {}}
    report["comparison"] |= {"num_matched": 0, "differences": [], "reason": "they have no row with a reference in common"}


def undefined(report: Report) -> None:
    none = {"low": None, "high": None, "method": "none, no rows"}
    nothing = {"value": None, "interval": none, "n": 0}
    for figure in report["figures"].values():
        figure |= nothing | {"answered_rows": nothing, "standard_error": None, "smallest_difference": None, "num_clusters": 0}
    for part in report["slices"]:
        for value in part["values"]:
            value["figures"] = dict.fromkeys(value["figures"], nothing)
    for figure in report["comparison"]["figures"].values():
        figure |= nothing | {"baseline": None, "difference": None, "p_value": None, "mcnemar_p": None, "p_adjusted": None}
        figure["smallest_detectable"] = None
        figure["verdict"] = "not comparable"
    report["comparison"] |= {"verdict": "not comparable", "reason": "CER is not defined for the rows that both have"}
    for sample in report["samples"]:
        sample["values"] = dict.fromkeys(sample["values"])


GATE = {"result": "regression", "reasons": ["CER rose by 3 points"], "checks": [{"text": "CER at most 5 %", "passed": False}]}


@pytest.mark.parametrize(
    ("change", "told", "not_told"),
    [
        (no_baseline, ["answer ✗ wrong"], ["baseline", "mended"]),
        (not_comparable, ["⚠ Not comparable", "decoding.max_new_tokens: 128 here, 64 in the baseline"], ["Figures of both"]),
        (nothing_in_common, ["They have no row with a reference in common."], ["Figures of both"]),
        (undefined, ["CER –", "none, no rows", "CER is not defined for the rows that both have."], ["nan", "None %", "by slice"]),
        (without("samples", value=[]), ["No samples were asked for."], ["Clear filters"]),
        (without("slices", value=[]), ["All metrics"], ["by slice"]),
        (without("histogram", value=[]), ["by slice"], ["Rows by their own"]),
        (without("failures", value={}), ["Bad answers"], ["Failed rows"]),
        (without("predictions", "manifest"), ["Predictions: no manifest", "their model is unknown"], []),
        (
            without("gate", value=GATE),
            ["✗ Gate: regression", "CER rose by 3 points", "1 check, 1 of them not passed", "✗ CER at most 5 %"],
            ["Gate passed"],
        ),
        (without("gate", value=GATE | {"result": "passed", "reasons": []}), ["✓ Gate passed"], ["regression"]),
        (
            without("gate", value={"result": "passed", "reasons": [], "checks": [{"text": "CER margin", "passed": None}]}),
            ["✓ Gate passed", "1 check, 1 of them not looked at", "– CER margin"],
            ["not passed"],
        ),
        (without("gate", value=GATE | {"result": "incomplete", "checks": []}), ["⚠ Gate: incomplete"], ["1 check"]),
        (without("num_samples_left_out", value=7), ["8 of 8 rows are shown: the worst"], ["All rows with a reference"]),
    ],
)
def test_a_report_may_lack_any_of_its_parts(
    page_report: Report, change: Callable[[Report], None], told: list[str], not_told: list[str]
) -> None:
    change(page_report)
    page = Page(render_page(page_report, None))
    text = page.text.replace(SCRIPT, "").replace(STYLE, "").replace("\N{NO-BREAK SPACE}", " ")
    shown = re.sub(r"\s+([.,:])", r"\1", " ".join(text.split()))
    for words in told:
        assert words in shown
    for words in not_told:
        assert words not in shown
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {str(link["href"]).removeprefix("#") for link in page.all("a")} <= ids


def test_every_filter_tells_how_many_cards_have_its_mark(page_report: Report) -> None:
    page = Page(render_page(page_report, None))
    marks = Counter(mark for card in page.all("article") for mark in str(card["data-marks"]).split())
    boxes = [box for box in page.all("input") if box["type"] == "checkbox"]
    counts = [int(number) for number in re.findall(r'<span class="count">(\d+)</span>', render_page(page_report, None))]
    assert [marks[str(box["value"])] for box in boxes] == counts
    assert [("disabled" in box) for box in boxes] == [not number for number in counts]
    states = Counter(state for sample in page_report["samples"] for state in sample["states"])
    assert counts[4:11] == [states[name] for name in ("right", "wrong", "failed", "empty", "cut", "looping", "refused")]
    ranks = [int(str(card["data-rank"])) for card in page.all("article")]
    values = [
        sample["values"]["cer"] for _, sample in sorted(zip(ranks, page_report["samples"], strict=True), key=lambda x: x[0])
    ]
    assert values == sorted(values, reverse=True)


def test_differences_are_marked_in_wrong_answers_only(page_report: Report) -> None:
    sample = page_report["samples"][1]
    sample |= {"references": ["12.30", "x"], "answer": "12.80", "response": "12.80", "states": ["wrong"], "group": "lost"}
    sample["baseline"] |= {"answer": "12.30", "response": "12.30"}
    page_report["samples"] = [sample]
    page_report["comparison"]["differences"] = []
    html = render_page(page_report, None)
    card = html[html.index("<article") : html.index("</article>")]
    assert '<dd dir="auto">12.<mark>8</mark>0</dd>' in card
    assert card.count('<dd dir="auto">12.30</dd>') == 2  # the reference and the baseline's answer
    assert card.count("<mark>") == 1


PICTURE = to_thumbnail(Image.effect_noise((320, 44), 90).convert("RGB"))


def many(page_report: Report, num: int, text: str, num_images: int = 300) -> tuple[Report, dict[str, Thumbnail]]:
    sample, samples = page_report["samples"][1], []
    for number in range(num):
        one = copy.deepcopy(sample) | {"sample_id": f"id-{number}", "record_index": number}
        one |= {
            "answer": text,
            "response": text,
            "references": [text[::-1]],
            "images": [{"uri": "i", "sha256": f"{number:064x}"}],
        }
        one["baseline"] |= {"answer": text[1:], "response": text[1:]}
        samples.append(one)
    pictures = {f"{number:064x}": PICTURE for number in range(num_images)}
    return page_report | {"samples": samples}, pictures


@pytest.mark.parametrize(
    ("text", "num_cards"),
    [("TOTAL 12.30", 2000), ("描述这张图片的文字" * 60, 2000), ("a\u200b<" * 900, None)],
    ids=["short", "long", "signs"],
)
def test_2000_samples_with_pictures_stay_under_5_megabytes(page_report: Report, text: str, num_cards: int | None) -> None:
    report, _ = many(page_report, 2000, text)
    num_images = room_for_pictures(report["samples"]) // len(str(PICTURE.data_uri))
    report, pictures = many(page_report, 2000, text, num_images)
    html = render_page(report, pictures)
    assert len(html.encode()) < 5_000_000
    shown = html.count("<article")
    assert shown == (num_cards or shown) > 300
    assert html.count("<img ") == min(len(pictures), shown)
    assert f"it holds {min(len(pictures), shown):,} images and leaves out {shown - min(len(pictures), shown):,}" in html
    if num_cards is None:
        assert f"The last {2000 - shown:,} samples of report.json are left out" in html


def test_few_long_texts_are_shown_as_far_as_they_are_anywhere(page_report: Report) -> None:
    report, _ = many(page_report, 3, "x" * (MAX_CHARACTERS + 7))
    assert (
        Page(render_page(report, None)).text.count("(and 7 more characters)") == 3 * 2
    )  # reference, answer; the baseline's has 6


def test_an_image_of_several_samples_stands_on_the_page_once(page_report: Report) -> None:
    report, _ = many(page_report, 6, "a")
    for place, sample in enumerate(report["samples"]):
        sample["images"] = [
            {"uri": "u", "sha256": "ab" * 32 if place % 2 else "cd" * 32},
            {"uri": "v", "sha256": f"{place:064x}"},
        ]
    pictures = {"ab" * 32: PICTURE, "cd" * 32: Thumbnail(problem="is not there any more"), f"{0:064x}": PICTURE}
    html = render_page(report, pictures)
    page = Page(html)
    assert html.count(str(PICTURE.data_uri)) == 2  # one of them of one sample alone
    assert [use["href"] for use in page.all("use")] == ["#picture-0"] * 3
    assert [image["id"] for image in page.all("image")] == ["picture-0"]
    assert [image["alt"] for image in page.all("img")] == ["image 2 of record 0"]
    assert "image 1 of record 2 is not there any more" in page.cards[2]
    assert "image 2 of record 2 is left out, to keep this page small" in page.cards[2]
    assert "it holds 3 images and leaves out 5" in page.text


def test_awkward_texts_are_shown(page_report: Report) -> None:
    report, _ = many(page_report, len(AWKWARD), "a")
    for text, sample in zip(AWKWARD, report["samples"], strict=True):
        sample |= {"answer": text, "response": text, "states": ["right"]}
    page = Page(render_page(report, None))
    for text, card in zip(AWKWARD[:4], page.cards, strict=False):
        assert text in card
    shown = "\n".join(page.cards)
    assert {"U+0000", "U+001B", "U+202E", "U+200B"} <= set(re.findall(r"U\+[0-9A-F]{4}", shown))
    assert "first⏎\nsecond" in shown
