import io
import json
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.configuration import Purpose
from yivl_core.data.findings import KINDS
from yivl_core.data.rows.coco import DEFAULT_QUESTION, is_coco, read_coco
from yivl_core.data.rows.parsing import parse_record
from yivl_core.data.rows.raw_row import RawRow

# Cut down from captions_val2017.json.
INFO = {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017}
LICENSES = [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "Attribution License"}]
IMAGES = [
    {"license": 4, "file_name": "000000397133.jpg", "height": 427, "width": 640, "id": 397133},
    {"license": 4, "file_name": "000000037777.jpg", "height": 230, "width": 352, "id": 37777},
    {"license": 4, "file_name": "000000252219.jpg", "height": 428, "width": 640, "id": 252219},
]
ANNOTATIONS = [
    {"image_id": 37777, "id": 38, "caption": "A small kitchen with a fridge.\n"},
    {"image_id": 397133, "id": 49, "caption": "A man cooks in a kitchen."},
    {"image_id": 37777, "id": 182, "caption": "The dining table near the kitchen has fruit on it."},
]
WHOLE = {"info": INFO, "licenses": LICENSES, "images": IMAGES, "annotations": ANNOTATIONS}


def rows_of(document: Any, purpose: Purpose = "training", **options: Any) -> list[RawRow]:
    data = document if isinstance(document, bytes) else json.dumps(document, indent=0).encode()
    return list(read_coco(io.BytesIO(data), 10_000, purpose, **options))


def messages(rows: list[RawRow]) -> list[tuple[int | None, str, str]]:
    return [(row.line, finding.kind, finding.message) for row in rows for finding in row.findings]


@pytest.mark.parametrize("order", [tuple(WHOLE), tuple(reversed(WHOLE)), ("annotations", "info", "images")])
def test_each_caption_is_a_training_record_whatever_the_order_of_the_parts(order: tuple[str, ...]) -> None:
    rows = rows_of({name: WHOLE[name] for name in order})
    records = [parse_record(row.values or {}, "training") for row in rows]
    assert not any(parsed.findings for parsed in records)
    found = [parsed.record for parsed in records if parsed.record]
    assert [(record.id, record.cluster_id, record.images, record.response) for record in found] == [
        ("38", "37777", ("000000037777.jpg",), "A small kitchen with a fridge."),
        ("49", "397133", ("000000397133.jpg",), "A man cooks in a kitchen."),
        ("182", "37777", ("000000037777.jpg",), "The dining table near the kitchen has fruit on it."),
    ]
    assert {record.query for record in found} == {DEFAULT_QUESTION}


def test_lines_are_those_of_captions_or_images() -> None:
    images, captions = '{"id": 1, "file_name": "a.jpg"}', '{"image_id": 1,\n"caption": "x"},\n{"image_id": 1, "caption": "y"}'
    document = f'{{"images": [\n{images}],\n"annotations": [\n{captions}]}}'.encode()
    assert [row.line for row in rows_of(document)] == [4, 6]
    assert [row.line for row in rows_of(document, "inference")] == [2]
    assert "id" not in (rows_of(document)[0].values or {"id": ""})


def test_each_image_is_a_row_to_caption_and_compare_with_all_its_captions() -> None:
    rows = rows_of(WHOLE, "inference", question="What is it?")
    assert [row.values for row in rows] == [
        {
            "query": "What is it?", "images": ["000000397133.jpg"], "id": "397133", "cluster_id": "397133",
            "response": "A man cooks in a kitchen.", "references": [],
        },
        {
            "query": "What is it?", "images": ["000000037777.jpg"], "id": "37777", "cluster_id": "37777",
            "response": "A small kitchen with a fridge.", "references": ["The dining table near the kitchen has fruit on it."],
        },
        {"query": "What is it?", "images": ["000000252219.jpg"], "id": "252219", "cluster_id": "252219"},
    ]  # fmt: skip
    assert all(parse_record(row.values or {}, "inference").record for row in rows)


@pytest.mark.parametrize("purpose", ["training", "inference"])
def test_an_annotation_of_no_image_is_a_finding_and_the_others_are_rows(purpose: Purpose) -> None:
    annotations = [*ANNOTATIONS, {"image_id": "37777", "id": 5, "caption": "x"}, {"image_id": 1, "caption": "y"}]
    rows = rows_of({"images": IMAGES, "annotations": annotations}, purpose)
    assert [(kind, message) for _, kind, message in messages(rows)] == [
        ("image_missing", 'the annotation 5 has the `image_id` "37777", which is none of the file\'s images'),
        ("image_missing", "an annotation has the `image_id` 1, which is none of the file's images"),
    ]
    assert sum(row.values is not None for row in rows) == 3


@pytest.mark.parametrize(
    ("section", "item", "kind", "message"),
    [
        ("images", {"file_name": "a.jpg"}, "missing_field", "there is no `id`"),
        ("images", {"id": 1}, "missing_field", "there is no `file_name`"),
        ("images", {"id": 1.5, "file_name": "a.jpg"}, "wrong_type", "`id` is a number: 1.5"),
        ("images", {"id": True, "file_name": "a.jpg"}, "wrong_type", "`id` is a boolean: true"),
        ("images", {"id": 1, "file_name": None}, "wrong_type", "`file_name` is null"),
        ("images", {"id": 397133, "file_name": "b.jpg"}, "duplicate_key", "the id 397133 stands in the images on line 3 already"),
        ("images", 7, "not_an_object", "a record has to be a JSON object, this is 7"),
        ("annotations", {"image_id": 37777, "id": 1, "bbox": [1, 2]}, "missing_field", "there is no `caption`"),
        ("annotations", {"image_id": 37777, "caption": " \n"}, "empty_field", "`caption` is empty"),
        ("annotations", {"image_id": 37777, "caption": "a\x00"}, "control_char", '"caption" holds the control character U+0000'),
        ("annotations", {"image_id": [1], "caption": "a"}, "wrong_type", "`image_id` is a list: [1]"),
        ("annotations", {"image_id": 37777, "id": 38, "caption": "a"}, "duplicate_key",
         "the id 38 stands in the annotations on line 6 already"),
    ],
)  # fmt: skip
def test_an_item_that_cannot_be_used_is_told_with_its_line(section: str, item: Any, kind: str, message: str) -> None:
    lists: dict[str, list[Any]] = {"images": [*IMAGES], "annotations": [*ANNOTATIONS]}
    lists[section].append(item)
    texts = {name: ",\n".join(json.dumps(one) for one in items) for name, items in lists.items()}
    document = f'{{"images": [\n\n{texts["images"]}],\n"annotations": [{texts["annotations"]}]}}'
    rows = rows_of(document.encode())
    assert messages(rows)[0] == ({"images": 6, "annotations": 9}[section], kind, message)
    assert sum(row.values is not None for row in rows) == 3


def test_a_document_that_breaks_gives_no_rows_since_images_may_be_missing() -> None:
    whole = json.dumps(WHOLE).encode()
    for end in range(1, len(whole), 11):
        rows = rows_of(whole[:end])
        assert not any(row.values for row in rows)
        assert "nothing behind it was read" in rows[-1].findings[0].message
    (row,) = rows_of({"images": IMAGES})
    assert row.line is None
    assert row.findings[0].message == "the file has nothing in `annotations`"
    assert rows_of([])[0].findings[0].message == "the file is not a JSON object"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["id", "a"]), inner, max_size=2),
    max_leaves=4,
)
ITEMS = st.lists(
    JSON | st.dictionaries(st.sampled_from(["id", "image_id", "caption", "file_name"]), JSON, max_size=4), max_size=5
)


@given(images=ITEMS | JSON, annotations=ITEMS | JSON, purpose=st.sampled_from(["training", "inference"]))
def test_documents_of_any_shape_give_findings_and_sound_rows(images: Any, annotations: Any, purpose: Purpose) -> None:
    rows = rows_of({"images": images, "annotations": annotations}, purpose)
    assert rows
    for row in rows:
        assert all(finding.kind in KINDS for finding in row.findings)
        assert row.findings or parse_record(row.values or {}, purpose).record is not None


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (json.dumps(WHOLE).encode(), True),
        (json.dumps(WHOLE, indent=4).encode(), True),
        (json.dumps({"images": [], "annotations": []}).encode(), True),
        (json.dumps({"annotations": ANNOTATIONS, "images": IMAGES}).encode(), True),
        (b'{"type": "captions", "info": {}', True),
        (b'[{"id": 1, "image": "a.png", "conversations": []}]', False),
        (b'{"images": ["a.png"], "query": "Read it."}', False),
        (b'{"query": "Read it."}', False),
        (b'{"info": "x"}', False),
        (b"", False),
    ],
)
def test_annotations_are_known_by_how_the_file_begins(head: bytes, expected: bool) -> None:
    assert is_coco(head[:100]) is expected


def test_memory_does_not_grow_with_the_file() -> None:
    def document(num_images: int) -> bytes:
        ids = list(range(num_images))
        captions = [{"image_id": number, "id": number, "caption": f"Caption {number} " + "x" * 200} for number in ids]
        random.Random(1).shuffle(captions)
        return json.dumps({"annotations": captions, "images": [{"id": n, "file_name": f"{n}.jpg"} for n in ids]}).encode()

    peaks = []
    for num_images in (2_000, 8_000):
        file = io.BytesIO(document(num_images))
        tracemalloc.start()
        assert sum(row.values is not None for row in read_coco(file, 10_000, "inference")) == num_images
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 500_000
