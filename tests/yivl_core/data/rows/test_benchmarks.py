import base64
from typing import Any

import pytest

from yivl_core.data.findings import Finding
from yivl_core.data.rows.benchmarks import read_benchmark_row
from yivl_core.data.rows.formats import detect_format, to_record_values
from yivl_core.data.rows.parsing import parse_record

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(60)).decode()
JPEG = base64.b64encode(b"\xff\xd8\xff\xe0" + bytes(60)).decode()


def read(row: dict[str, Any]) -> dict[str, Any]:
    findings: list[Finding] = []
    fields = read_benchmark_row(row, findings)
    assert findings == []
    return fields


def kinds(row: dict[str, Any]) -> list[str]:
    return [finding.kind for finding in to_record_values(row, detect_format(row))[1]]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["index", "image", "question", "answer"], "vlmevalkit"),
        (["index", "question"], "vlmevalkit"),
        (["question", "answer"], "lmms_eval"),
        (["question", "answers", "image"], "lmms_eval"),
        (["question_id", "question"], "lmms_eval"),
        (["doc_id", "doc", "target", "resps"], "lmms_eval"),
        (["question"], "swift"),
        (["index", "question", "query"], "swift"),
        (["question", "answer", "messages"], "messages"),
        (["question", "answer", "instruction"], "alpaca"),
    ],
)
def test_a_format_is_told_by_the_names(names: list[str], expected: str) -> None:
    assert detect_format(names) == expected


def test_a_row_of_ocrbench() -> None:
    row = {
        "index": "7", "image": JPEG, "question": "what is written in the image?", "answer": "['CENTRE', 'Centre']",
        "category": "Regular Text Recognition", "dataset": "IIIT5K",
    }  # fmt: skip
    assert read(row) == {
        "id": "7",
        "cluster_id": "7",
        "query": "what is written in the image?",
        "response": "CENTRE",
        "references": ["Centre"],
        "images": [f"data:image/jpeg;base64,{JPEG}"],
        "meta": {"category": "Regular Text Recognition", "dataset": "IIIT5K"},
    }


# What ImageMCQDataset.build_prompt gives, written out by hand from its source.
@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (
            {"question": "Which?", "hint": "Look.", "A": "a cat", "B": "a dog"},
            "Hint: Look.\nQuestion: Which?\nOptions:\nA. a cat\nB. a dog\n"
            "Please select the correct answer from the options above. \n",
        ),
        (
            {"question": "Which?", "A": "1", "B": "", "D": "4"},
            "Question: Which?\nOptions:\nA. 1\nD. 4\nPlease select the correct answer from the options above. \n",
        ),
        (
            {"question": "Which?", "options": ["(A) cat", "(B) dog"]},
            "Question: Which?\nOptions:\nA. cat\nB. dog\nPlease select the correct answer from the options above. \n",
        ),
        (
            {"question": "Which?", "choices": "['A cat', 'x']"},
            "Question: Which?\nOptions:\nA. A cat\nB. x\nPlease select the correct answer from the options above. \n",
        ),
        ({"question": "Which?", "hint": "Look."}, "Which?"),
    ],
)
def test_options_make_the_prompt_of_vlmevalkit(row: dict[str, Any], expected: str) -> None:
    assert read(row)["query"] == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"answer": "B", "A": "x", "B": "y"}, ["B"]),
        ({"answer": 1, "options": ["x", "y"]}, ["B"]),
        ({"answer": 7, "options": ["x", "y"]}, ["7"]),
        ({"answer": 12.5}, ["12.5"]),
        ({"answer": "[1, 2]"}, ["[1, 2]"]),
        ({"answer": "one", "answers": ["two", "two", "three"]}, ["two", "two", "three"]),
        ({"answers": [{"answer": "net", "answer_id": 1}, {"answer": "nets"}]}, ["net", "nets"]),
        ({"answer": ""}, []),
        ({}, []),
    ],
)
def test_right_answers(row: dict[str, Any], expected: list[str]) -> None:
    fields = read({"question": "Which?", **row})
    assert [*([fields["response"]] if "response" in fields else []), *fields.get("references", [])] == expected


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"image": PNG}, [f"data:image/png;base64,{PNG}"]),
        ({"image": f"['{PNG}', '{JPEG}']"}, [f"data:image/png;base64,{PNG}", f"data:image/jpeg;base64,{JPEG}"]),
        ({"image": f'["{PNG}"]'}, [f"data:image/png;base64,{PNG}"]),
        ({"image": {"bytes": PNG, "path": "a.png"}}, [f"data:image/png;base64,{PNG}"]),
        ({"image": {"bytes": None, "path": "a.png"}}, ["a.png"]),
        ({"images": ["a.png", "https://host.test/" + "b" * 80]}, ["a.png", "https://host.test/" + "b" * 80]),
        ({"image": "deep/" * 20 + "a.png"}, ["deep/" * 20 + "a.png"]),
        ({"image": "", "image_path": "['a.png', 'b.png']"}, ["a.png", "b.png"]),
        ({"image": f"data:image/png;base64,{PNG}"}, [f"data:image/png;base64,{PNG}"]),
    ],
)
def test_images(row: dict[str, Any], expected: list[str]) -> None:
    assert read({"question": "Which?", **row})["images"] == expected


def test_images_that_are_named_by_number_stand_at_their_places() -> None:
    fields = read({"question": "Is <image 2> in <image 1>?", "image": ["a.png", "b.png"]})
    assert (fields["query"], fields["images"]) == ("Is <image> in <image>?", ["b.png", "a.png"])
    fields = read({"question": "Is it <image 3>?", "image": ["a.png", "b.png"]})
    assert (fields["query"], fields["images"]) == ("Is it <image 3>?", ["a.png", "b.png"])


def test_a_logged_sample_of_lmms_eval() -> None:
    sample = {
        "doc_id": 3, "doc": {"question": "What?", "question_id": 77, "file": "a.png", "category": "signs"}, "target": ["x", "y"],
        "arguments": ["What?\nAnswer in a word.", {"max_new_tokens": 16}], "resps": [["z"]],
    }  # fmt: skip
    assert kinds(sample) == ["image_missing"]
    fields = read({**sample, "images": ["a.png"]})
    assert fields == {
        "id": 3,
        "query": "What?\nAnswer in a word.",
        "response": "x",
        "references": ["y"],
        "images": ["a.png"],
        "meta": {"question": "What?", "question_id": 77, "file": "a.png", "category": "signs", "resps": [["z"]]},
    }
    assert parse_record(fields, "training").record is not None


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"question": "Which?", "answer": True}, ["wrong_type"]),
        ({"question": "Which?", "image": 5}, ["wrong_type"]),
        ({"question": "Which?", "answer": "a", "options": 5}, ["wrong_type"]),
        ({"question": "Which?", "answer": "a", "options": ["x"] * 27}, ["wrong_type"]),
        ({"doc_id": 1, "doc": "text"}, ["wrong_type", "image_missing"]),
        ({"doc_id": 1, "doc": {"image": "a.png"}}, ["missing_field"]),
        ({"question": "Which?", "answer": "a", "video": "a.mp4"}, ["unsupported_content"]),
    ],
)
def test_what_cannot_be_read_is_found(row: dict[str, Any], expected: list[str]) -> None:
    assert kinds(row) == expected


def test_a_row_of_another_format_is_found() -> None:
    assert [one.kind for one in to_record_values({"question": "a", "answer": "b"}, "vlmevalkit")[1]] == ["format_mismatch"]
    assert [one.kind for one in to_record_values({"index": 3}, "vlmevalkit")[1]] == ["missing_field"]
    assert [one.kind for one in to_record_values({"question": "a"}, "vlmevalkit")[1]] == ["missing_field"]
