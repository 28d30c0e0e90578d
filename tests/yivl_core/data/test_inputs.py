"""Inputs of images with one question about each: lists, parquet files, presets; here and elsewhere."""

import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from yivl_core.data.images import ImageError, ImageStore
from yivl_core.data.inputs import InputSource, input_digest, open_input
from yivl_core.data.presets import find_question
from yivl_core.data.reading import InputRow, read_rows
from yivl_core.data.records import Record
from yivl_core.data.rows.parquet_rows import split_parquet_rows
from yivl_core.errors import ConfigurationError, DatasetError


def png(grey: int = 0, size: tuple[int, int] = (9, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, grey).save(buffer, "png")
    return buffer.getvalue()


def read(**settings: Any) -> list[InputRow]:
    return list(open_input(InputSource(**settings)).rows())


def load(row: InputRow) -> list[int]:
    """The grey of each of its images."""
    return [ImageStore().load(image).image.getpixel((0, 0))[0] for image in row.images]  # type: ignore[index]


@pytest.fixture
def memory() -> Iterator[str]:
    """A folder on the store that fsspec keeps in memory."""
    filesystem = fsspec.filesystem("memory")
    filesystem.mkdir("/inputs")
    yield "memory://inputs"
    filesystem.rm("/inputs", recursive=True)


# Lists


def test_a_list_names_images_in_its_own_order_each_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / "in" / f"{number} é.png").write_bytes(png(number))
    (tmp_path / "these.txt").write_bytes("in/2 é.png\r\n\n  \nin/0 é.png\ngone.png\nin/2 é.png".encode())
    rows = read(images=str(tmp_path / "these.txt"), prompt="Read.")
    assert [row.source.line for row in rows] == [1, 4, 5, 6]
    assert {row.source.file for row in rows} == {str(tmp_path / "these.txt")}
    assert [row.record.images for row in rows if row.record] == [("in/2 é.png",), ("in/0 é.png",), ("gone.png",), ("in/2 é.png",)]
    assert [load(row) for row in (rows[0], rows[1], rows[3])] == [[2], [0], [2]]
    with pytest.raises(ImageError, match=r'image "gone\.png" is not there'):
        load(rows[2])
    assert len(read(images=str(tmp_path / "these.txt"), prompt="Read.", limit=2)) == 2


def test_the_images_of_a_list_lie_below_the_root_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(7))
    (tmp_path / "out.png").write_bytes(png(8))
    (tmp_path / "list.lst").write_text(f"a.png\n{tmp_path}/in/a.png\n{tmp_path}/out.png\n../out.png\n")
    rows = read(images=str(tmp_path / "list.lst"), prompt="Read.", image_root=str(tmp_path / "in"))
    assert [load(row) for row in rows[:2]] == [[7], [7]]
    for row in rows[2:]:
        with pytest.raises(ImageError) as caught:
            load(row)
        assert caught.value.kind == "path_escape"


def test_a_list_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n \n")
    with pytest.raises(DatasetError, match=r"list\.txt: the list names no image; write one path a line"):
        read(images=str(tmp_path / "list.txt"), prompt="Read.")


def test_a_mark_of_the_byte_order_is_no_part_of_the_first_name(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(3))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfa.png\r\n")
    (row,) = read(images=str(tmp_path / "list.txt"), prompt="Read.")
    assert load(row) == [3]


def test_a_line_that_is_no_text_is_an_image_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe.png\n")
    (row,) = read(images=str(tmp_path / "list.txt"), prompt="Read.")
    assert row.error_kind == "bad_unicode"


# Parquet


def write_parquet(path: Path, rows_per_group: int = 3, **columns: Any) -> str:
    pq.write_table(pa.table(columns), path, row_group_size=rows_per_group)
    return str(path)


COLUMNS: dict[str, Callable[[], Any]] = {
    "bytes": lambda: {"image": pa.array([png(n) for n in range(7)], pa.binary())},
    "large bytes": lambda: {"images": pa.array([png(n) for n in range(7)], pa.large_binary())},
    "structs": lambda: {"image": [{"bytes": png(n), "path": f"{n}.png"} for n in range(7)]},
    "structs without a path": lambda: {"image": [{"bytes": png(n), "path": None} for n in range(7)]},
    "lists of bytes": lambda: {"images": [[png(n)] for n in range(7)]},
    "lists of structs": lambda: {"images": [[{"bytes": png(n), "path": f"{n}.png"}] for n in range(7)]},
}


@pytest.mark.parametrize("columns", COLUMNS)
def test_images_in_a_parquet_file_are_read_whatever_the_column(columns: str, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "scans.parquet", **COLUMNS[columns]())
    rows = read(images=path, prompt="Read.")
    assert [load(row) for row in rows] == [[n] for n in range(7)]
    assert [row.source.line for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert {row.record.query for row in rows if row.record} == {"Read."}
    name = "{}.png" if "structs" in columns and "without" not in columns else "scans.parquet:{}"
    assert [row.images[0].uri for row in rows] == [name.format(n if ".png" in name else n + 1) for n in range(7)]


def test_addresses_in_a_parquet_file_lie_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(5))
    for column in ({"image": ["a.png"]}, {"images": [["a.png"]]}, {"image": [{"bytes": None, "path": "a.png"}]}):
        (row,) = read(images=write_parquet(tmp_path / "x.parquet", **column), prompt="Read.")
        assert load(row) == [5]


def test_a_parquet_dataset_holds_what_jsonl_does(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "rows.parquet",
        query=["<image><image>same?", "What?"],
        response=["no", None],
        images=[[png(1), png(2)], []],
        id=["x", "y"],
        history=[[], [["Hello.", "Good day."]]],
        page=[3, None],
        when=[datetime(2026, 1, 2, tzinfo=UTC), None],
        raw=[b"12345", None],
        price=[float("nan"), 2.5],
    )
    first, second = read(dataset=path)
    assert load(first) == [1, 2]
    assert [image.uri for image in first.images] == ["rows.parquet:1", "rows.parquet:1#2"]
    assert first.record is not None
    meta = {"page": 3, "when": "2026-01-02 00:00:00+00:00", "raw": "(5 bytes)", "price": "nan"}
    assert (first.record.query, first.record.response, first.record.id) == ("<image><image>same?", "no", "x")
    assert first.record.meta == meta
    history = (("Hello.", "Good day."),)
    assert second.record == Record(query="What?", id="y", history=history, meta={"price": 2.5})


@pytest.mark.parametrize("first", range(9))
def test_reading_may_begin_at_any_row(first: int, tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", query=[f"q{n}" for n in range(8)], rows_per_group=5)
    expected = [f"q{n}" for n in range(8)][first:]
    assert [row.record.query for row in read_rows(path, first=first) if row.record] == expected
    (tmp_path / "x.jsonl").write_text("".join(f'{{"query": "q{n}"}}\n\n' for n in range(8)))
    assert [row.record.query for row in read_rows(str(tmp_path / "x.jsonl"), first=first) if row.record] == expected


def test_several_parquet_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    for name, greys in (("b", (3, 4)), ("a", (1, 2))):
        write_parquet(tmp_path / f"{name}.parquet", image=[png(grey) for grey in greys])
    rows = read(images=f"{tmp_path}/*.parquet", prompt="Read.")
    assert [load(row)[0] for row in rows] == [1, 2, 3, 4]
    assert [Path(row.source.file).name for row in rows] == ["a.parquet", "a.parquet", "b.parquet", "b.parquet"]


def test_the_digest_of_a_parquet_file_changes_with_the_images_in_it(tmp_path: Path) -> None:
    digests = set()
    for greys in ((1, 2), (1, 3), (2, 1)):
        path = write_parquet(tmp_path / "x.parquet", image=[png(grey) for grey in greys])
        digests.add(input_digest(InputSource(images=path, prompt="Read.")))
    assert len(digests) == 3


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    path = Path(write_parquet(tmp_path / "x.parquet", query=["q"] * 1000))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DatasetError, match=r"x\.parquet: the file is damaged, or no parquet file \(.*\); write it again"):
        read(dataset=str(path))
    with pytest.raises(DatasetError, match="the file holds no record"):
        read(dataset=write_parquet(tmp_path / "y.parquet", query=pa.array([], pa.string())))


def test_rows_that_are_no_records_are_told_as_in_other_files(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", query=["q", None, ""], images=[None, None, ["a.png", "b.png"]])
    kinds = [row.error_kind for row in read(dataset=path)]
    assert kinds == [None, "missing_field", "empty_field"]


def test_an_image_that_is_too_large_is_an_error_of_its_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", image=[png(1), png(2) + bytes(5000)])
    store = ImageStore(max_bytes=5000)
    images = [row.images[0] for row in read(images=path, prompt="Read.")]
    assert store.load(images[0]).image.size == (9, 8)
    (tmp_path / "large.png").write_bytes(png(2) + bytes(5000))
    for image in (images[1], read(images=str(tmp_path / "large.png"), prompt="Read.")[0].images[0]):
        with pytest.raises(ImageError, match=r"is larger than 5,000 bytes; give a smaller file") as caught:
            store.load(image)
        assert caught.value.kind == "too_many_bytes"


def test_large_rows_are_held_a_few_at_a_time(tmp_path: Path) -> None:
    """One row group of 200 MB, in pages of 8."""
    schema, options = pa.schema([("image", pa.binary())]), {"compression": "none", "use_dictionary": False, "write_batch_size": 8}
    writer = pq.ParquetWriter(tmp_path / "x.parquet", schema, **options)
    with writer:
        writer.write_table(pa.table({"image": pa.array([bytes([n]) * 1_000_000 for n in range(200)], pa.binary())}))
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    largest = 0
    for row in split_parquet_rows(str(tmp_path / "x.parquet")):
        largest = max(largest, pool.bytes_allocated() - before)
        assert len(row.contents) == 1
    assert largest < 60_000_000


@pytest.mark.parametrize(
    ("name", "values", "kinds"),
    [
        ("image", pa.array([None, b""], pa.binary()), ["image_missing", "empty"]),
        ("images", pa.array([[], [None], None], pa.list_(pa.binary())), ["image_missing"] * 3),
        ("image", pa.array([{"bytes": None, "path": None}] * 2), ["image_missing"] * 2),
        ("image", pa.nulls(2), ["image_missing"] * 2),
    ],
    ids=["bytes", "lists", "structs", "nothing"],
)
def test_a_row_without_an_image_is_no_question_about_nothing(
    name: str, values: pa.Array, kinds: list[str], tmp_path: Path
) -> None:
    rows = read(images=write_parquet(tmp_path / "x.parquet", **{name: values}), prompt="Read.")
    assert [row.error_kind or failure(row) for row in rows] == kinds


def failure(row: InputRow) -> str:
    with pytest.raises(ImageError) as caught:
        load(row)
    return caught.value.kind


def test_a_file_without_a_column_of_images_is_refused_and_told_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"has no column `images` or `image`; it has img, text: rename the one"):
        read(images=write_parquet(tmp_path / "x.parquet", img=[png()], text=["a"]), prompt="Read.")


def test_a_value_that_cannot_be_read_is_an_error_of_its_row(tmp_path: Path) -> None:
    path = write_parquet(
        tmp_path / "x.parquet",
        query=["a", "b", "c", "d"],
        when=pa.array([0, 2**60, None, 1], pa.timestamp("ms")),
        note=pa.array([b"x", b"y", b"z", b"\xff"], pa.binary()).view(pa.string()),
    )
    rows = read(dataset=path)
    assert [row.error_kind for row in rows] == [None, "wrong_type", None, "wrong_type"]
    assert "`when` cannot be read" in str(rows[1].error)
    assert "`note` cannot be read" in str(rows[3].error)


def test_a_map_that_gives_a_key_twice_is_an_error_of_its_row(tmp_path: Path) -> None:
    tags = pa.array([[("till", 3)], [("till", 3), ("till", 4)], None], pa.map_(pa.string(), pa.int64()))
    rows = read(dataset=write_parquet(tmp_path / "x.parquet", query=["a", "b", "c"], tags=tags))
    assert [row.error_kind for row in rows] == [None, "wrong_type", None]
    assert rows[0].record is not None
    assert rows[0].record.meta == {"tags": {"till": 3}}
    assert "`tags` cannot be read" in str(rows[1].error)
    assert "duplicate key was 'till'" in str(rows[1].error)


def test_strange_images_in_a_parquet_file_are_errors_of_their_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", query=["a"], images=[[[png()]]])
    assert [row.error_kind for row in read(dataset=path)] == ["wrong_type"]


def test_rounds_as_predictions_store_them_are_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", query=["And?"], history=[[{"query": "Hello.", "response": "Good day."}]])
    (row,) = read(dataset=path)
    assert row.record is not None
    assert row.record.history == (("Hello.", "Good day."),)


def test_an_empty_file_among_others_is_passed_over_and_a_folder_of_that_name_is_searched(tmp_path: Path) -> None:
    folder = tmp_path / "spark.parquet"
    folder.mkdir()
    for name, greys in (("a", (1, 2)), ("b", ()), ("c", (3,))):
        write_parquet(folder / f"{name}.parquet", image=pa.array([png(grey) for grey in greys], pa.binary()))
    assert [load(row)[0] for row in read(images=str(folder), prompt="Read.")] == [1, 2, 3]
    source = open_input(InputSource(images=str(folder), prompt="Read."))
    assert [[load(row)[0] for row in source.rows(first)] for first in range(4)] == [[1, 2, 3], [2, 3], [3], []]
    write_parquet(tmp_path / "none.parquet", image=pa.array([], pa.binary()))
    with pytest.raises(DatasetError, match=r"none\.parquet: there is no row in it"):
        read(images=str(tmp_path / "none.parquet"), prompt="Read.")


# Object stores


def test_a_remote_folder_gives_the_rows_of_a_local_one(tmp_path: Path, memory: str) -> None:
    for number, name in enumerate(("b.png", "sub/é a.png", "B.PNG", ".hidden.png", "notes.txt", ".git/c.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(number))
        fsspec.filesystem("memory").pipe_file(f"/inputs/{name}", png(number))
    for pattern in ("", "/*.png", "/s*/*", "/**/*.png", "/b.png"):
        here = read(images=f"{tmp_path}{pattern}", prompt="Read.")
        there = read(images=f"{memory}{pattern}", prompt="Read.")
        assert [row.record for row in here] == [row.record for row in there], pattern
        assert [load(row) for row in here] == [load(row) for row in there]
        assert all(row.source.file.startswith("memory://inputs/") for row in there)
    with pytest.raises(DatasetError, match=r"memory://inputs/\*\.gif: no file there has the extension of an image"):
        read(images=f"{memory}/*.gif", prompt="Read.")


def test_datasets_and_lists_on_a_store_name_images_beside_them(memory: str) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/inputs/a.png", png(3))
    store.pipe_file(
        "/inputs/rows.jsonl", b'{"query": "What?", "images": ["a.png"]}\n{"query": "And?", "images": ["memory://inputs/a.png"]}\n'
    )
    store.pipe_file("/inputs/list.txt", b"a.png\nmemory://inputs/a.png\n")
    for row in (*read(dataset=f"{memory}/rows.jsonl"), *read(images=f"{memory}/list.txt", prompt="Read.")):
        assert load(row) == [3]
    (row, _) = read(dataset=f"{memory}/rows.jsonl")
    fetched = ImageStore().fetch(row.images[0])
    store.rm("/inputs/a.png")
    assert ImageStore().load(fetched).image.size == (9, 8)
    with pytest.raises(ImageError) as caught:
        load(row)
    assert caught.value.kind == "image_missing"


def test_two_colons_in_a_name_are_a_part_of_it(memory: str, tmp_path: Path) -> None:
    """fsspec takes them for the beginning of another address."""
    store = fsspec.filesystem("memory")
    for name, grey in (("a", 1), ("a::b.png", 2), ("s3::x.png", 3)):
        store.pipe_file(f"/inputs/{name}", png(grey))
    assert [load(row) for row in read(images=memory, prompt="Read.")] == [[2], [3]]
    store.pipe_file("/inputs/list.txt", b"a::b.png\nnope::foo.png\n")
    good, bad = read(images=f"{memory}/list.txt", prompt="Read.")
    assert load(good) == [2]
    assert failure(bad) == "image_missing"
    (tmp_path / "x::y").mkdir()
    (tmp_path / "x::y" / "a.png").write_bytes(png(5))
    (tmp_path / "x::y" / "list.txt").write_text("a.png")
    assert load(read(images=str(tmp_path / "x::y" / "list.txt"), prompt="Read.")[0]) == [5]


def test_a_file_from_elsewhere_opens_nothing_here(memory: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(9))
    image = {"path": str(secret), "sha256": "0" * 64, "width": 9, "height": 8, "mode": "L", "num_bytes": 9}
    note = {"file": "x", "line": 1, "images": [image]}
    line = json.dumps({"query": "What?", "images": ["a.png"], "validated": note})
    fsspec.filesystem("memory").pipe_file("/inputs/rows.jsonl", line.encode())
    assert failure(read(dataset=f"{memory}/rows.jsonl")[0]) == "image_missing"


@pytest.mark.parametrize(
    "address", ["../a.png", "/a.png", "s3://other/a.png", "memory://inputs-2/a.png", "memory://inputs/../a.png"]
)
def test_no_address_leads_out_of_a_remote_folder(memory: str, address: str) -> None:
    fsspec.filesystem("memory").pipe_file("/inputs/list.txt", address.encode())
    (row,) = read(images=f"{memory}/list.txt", prompt="Read.")
    with pytest.raises(ImageError) as caught:
        load(row)
    assert caught.value.kind in ("path_escape", "url_not_allowed")


def test_the_digest_of_a_remote_folder_changes_with_its_files(memory: str) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/inputs/a.png", png(3))
    source = InputSource(images=memory, prompt="Read.")
    digests = [input_digest(source), input_digest(source)]
    store.pipe_file("/inputs/b.png", png(3))
    digests.append(input_digest(source))
    store.pipe_file("/inputs/b.png", png(3, size=(99, 98)))
    digests.append(input_digest(source))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_an_image_behind_a_url_counts_by_what_may_be_told_of_the_url(tmp_path: Path) -> None:
    """Without a question to anybody: nothing listens there."""

    def digest(form: str, url: str) -> str:
        path = tmp_path / f"a.{form}"
        path.write_text(json.dumps({"query": "Read.", "images": [url]}) if form == "jsonl" else url)
        return input_digest(InputSource(dataset=str(path)) if form == "jsonl" else InputSource(images=str(path), prompt="Read."))

    for form in ("jsonl", "txt"):
        known = digest(form, "http://127.0.0.1:9/a.png?size=1&token=one")
        assert digest(form, "http://ann:pw@127.0.0.1:9/a.png?size=1&token=two#top") == known
        others = {digest(form, f"http://127.0.0.1:9/{end}") for end in ("a.png?size=2&token=one", "b.png?size=1&token=one")}
        assert len(others - {known}) == 2


# Questions


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("task", ["caption", "ocr", "count"])
def test_each_task_has_a_question_of_its_own(task: Any, language: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    (row,) = read(images=str(tmp_path), task=task, language=language)
    assert row.record is not None
    assert row.record.query == find_question(task, language)
    assert any("\u4e00" <= character <= "\u9fff" for character in row.record.query) == (language == "zh")
    assert "{" not in row.record.query


def test_what_is_counted_is_asked_for() -> None:
    assert find_question("count", "en", "sheep") == "How many sheep are there in this image? Answer with the number only."
    assert "多少只羊" in find_question("count", "zh", "只羊")


def test_an_image_without_a_question_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    with pytest.raises(ConfigurationError, match="without a `prompt` or `task`"):
        read(images=str(tmp_path))
