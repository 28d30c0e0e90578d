import io
import json
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from yivl_core.data.findings import KINDS, Source
from yivl_core.data.rows import json_document
from yivl_core.data.rows.json_items import list_items, named_items
from yivl_core.data.rows.raw_row import RawRow, parse_raw_row
from yivl_core.data.rows.strict_json import StrictJsonReader

MAX_BYTES = 10_000


@pytest.fixture(autouse=True)
def _narrow_window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every few characters the window ends, so that each kind of text is cut off somewhere."""
    monkeypatch.setattr(json_document, "_BLOCK_BYTES", 7)


def rows_of(document: bytes | str, max_bytes: int = MAX_BYTES) -> list[RawRow]:
    data = document.encode(errors="surrogatepass") if isinstance(document, str) else document
    reader = StrictJsonReader()
    return [parse_raw_row(row, reader) for row in list_items(io.BytesIO(data), max_bytes)]


def places(rows: list[RawRow]) -> list[tuple[int | None, list[str]]]:
    return [(Source.of_place("", row.line).line, [finding.kind for finding in row.findings]) for row in rows]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(items=st.lists(JSON, max_size=6), indent=st.sampled_from([None, 0, 2]), ensure_ascii=st.booleans())
def test_items_are_those_that_json_reads_each_with_its_line(items: list[Any], indent: int | None, ensure_ascii: bool) -> None:
    text = json.dumps(items, indent=indent, ensure_ascii=ensure_ascii)
    data = text.encode(errors="surrogatepass")
    rows = list(list_items(io.BytesIO(data), 10**6))
    assert [json.loads((row.json or b"").decode(errors="surrogatepass")) for row in rows] == items
    assert [row.num_bytes for row in rows] == [len(row.json or b"") for row in rows]
    lines, position = [], 0
    for row in rows:
        assert row.json is not None
        position = data.index(row.json, position)
        lines.append(data.count(b"\n", 0, position) + 1)
        position += len(row.json)
    if indent is not None:
        assert [row.line for row in rows] == lines


PIECES = st.sampled_from(
    ["[", "]", "{", "}", ",", ":", '"', '"a"', "\\", '{"a": 1}', '{"b": [1, "]"]}', "1e5", "-", "12", "true", "NaN",
     " ", "\n", "\xff", "中"]
)  # fmt: skip


@given(pieces=st.lists(PIECES, max_size=14), max_bytes=st.sampled_from([4, MAX_BYTES]))
@example(pieces=['[{"a": "', "x" * 30, '"}, ', "1" * 40, " , 1]"], max_bytes=4)
def test_text_of_any_kind_gives_what_json_reads_or_a_finding(pieces: list[str], max_bytes: int) -> None:
    text = "[" + "".join(pieces)
    rows = rows_of(text, max_bytes)
    assert all(finding.kind in KINDS for row in rows for finding in row.findings)
    numbers = [(place.line or 0, place.item) for place in (Source.of_place("", row.line) for row in rows)]
    assert numbers == sorted(set(numbers)), "no two items have the same place"
    findings = [finding for row in rows for finding in row.findings]
    is_whole = not any("nothing behind it" in str(finding) or finding.kind == "trailing_garbage" for finding in findings)
    try:
        items = json.loads(text)
    except ValueError:
        assert not is_whole or max_bytes == 4  # what is passed over is not checked
    else:
        assert is_whole
        assert len(rows) == len(items)


@given(document=st.binary(max_size=60))
def test_bytes_of_any_kind_give_rows_and_never_an_exception(document: bytes) -> None:
    for data in (document, b"[" + document, b'{"a": [' + document):
        assert all(row.findings or row.values is not None for row in rows_of(data))
        list(named_items(io.BytesIO(data), {"a"}, MAX_BYTES))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", []),
        (" \n[]\n", []),
        ('{"query": "a"}\n', [(None, ["invalid_json"])]),
        ('[\n{"query": "a"},\n{"query": \n', [(2, []), (4, ["invalid_json"])]),
        ('[{"query": "a"}\n', [(1, []), (2, ["invalid_json"])]),
        ('[{"query": "a"},\n]', [(1, []), (2, ["invalid_json"])]),
        ('[{"query": "a"}\n{"query": "b"}]', [(1, []), (2, ["invalid_json"])]),
        ('[{"query": "a"}]\n[', [(1, []), (2, ["trailing_garbage"])]),
        ('[{"query": "a", "query": "b"},\n{"query": "c", "x": NaN},\n{"query": "d"}]', [
            (1, ["duplicate_key"]), (2, ["invalid_json"]), (3, []),
        ]),
        ('[{"query": "' + "x" * 20_000 + '"},\n{"query": "d"}]', [(1, ["line_too_long"]), (2, [])]),
        ('[\n\n {"query": "a",\n  "id": "1"},\n {"query": "b"}, 7,\n null]\n', [
            (3, []), (5, []), (5, ["not_an_object"]), (6, ["not_an_object"]),
        ]),
        ('[{"n": ' + "9" * 5000 + '},\n{"n": 1}]', [(1, ["invalid_json"]), (2, [])]),
        (f'[{{"n": {"[" * 900}{"]" * 900}}},\n{{"n": 1}}]', [(1, ["invalid_json"]), (2, [])]),
        ("[" + "[" * 200_000, [(1, ["invalid_json"])]),
        ("[" + "1" * 20_000 + ",\n{}]", [(1, ["line_too_long"]), (2, [])]),
        ('[{"a": "' + r"\"" * 20_000 + '"},\n{}]', [(1, ["line_too_long"]), (2, [])]),
    ],
)  # fmt: skip
def test_a_broken_list_is_read_as_far_as_its_items_end(content: str, expected: list[tuple[int | None, list[str]]]) -> None:
    assert places(rows_of(content)) == expected


def test_messages_say_what_stands_where_and_that_nothing_behind_it_was_read() -> None:
    (row,) = rows_of('[\n{"query": "a",\n\n "b"}, {"query": "c"}]')
    assert row.line == 4
    assert str(row.findings[0]) == (
        "this is not JSON: Expecting ':' delimiter at character 21, "
        'before "}, {\\"query\\": \\"c\\"}]", in what starts on line 2; '
        "nothing behind it was read; write the items of the list as JSON objects"
    )
    assert row.text.startswith('{"query": "a"')
    assert str(rows_of('[{"a": 1} x')[1].findings[0]) == (
        "behind an item of the list there is neither a comma nor a bracket; nothing behind it was read; "
        "write a comma, or ] at the end of the list"
    )
    assert str(rows_of('[{"a": 1}] x')[1].findings[0]) == 'behind the list there is more text: "x"; remove it'
    (_, row) = rows_of('[{},\n"' + "x" * 20_000)
    assert row.findings[0].message == "a string, list or object that starts here has no end; nothing behind it was read"


def test_bytes_that_are_not_utf_8_concern_their_item_alone() -> None:
    rows = rows_of(b'[{"query": "caf\xe9"},\n{"query": "caf\xc3\xa9"}]')
    assert places(rows) == [(1, ["bad_encoding"]), (2, [])]
    assert rows[0].findings[0].message == "byte 15 (0xe9) is not UTF-8"
    assert rows[0].text == '{"query": "caf\\xe9"}'
    assert rows[1].values == {"query": "café"}


def test_the_limit_counts_the_bytes_of_an_item() -> None:
    item = '{"query": "中中中"}'
    num_bytes = len(item.encode())
    assert places(rows_of(f"[{item}]", num_bytes)) == [(1, [])]
    (row,) = rows_of(f"[{item}]", num_bytes - 1)
    assert row.findings[0].message == f"the row is longer than {num_bytes - 1:,} bytes"


class _Repeated(io.RawIOBase):
    """A document that is made while it is read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces

    def read(self, size: int = -1) -> bytes:
        return next(self._pieces, b"")


def test_memory_depends_on_the_longest_item_and_not_on_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_document, "_BLOCK_BYTES", 1 << 16)

    def pieces() -> Iterator[bytes]:
        yield b"["
        for _ in range(100):
            yield b'{"query": "' + b"x" * 100_000 + b'"},\n'
        yield b'{"query": "'
        for _ in range(100):
            yield b"y" * 100_000
        yield b'"}, {"query": "z"}]'

    tracemalloc.start()
    num_rows = sum(not row.findings for row in list_items(_Repeated(pieces()), 200_000))  # type: ignore[arg-type]
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert num_rows == 101
    assert peak_bytes < 3_000_000


def test_named_lists_are_read_whatever_stands_around_them() -> None:
    document = b'{"info": {"year": 2017, "x": [1]},\n"images": [{"id": 1},\n{"id": 2}],\n"n": 1.5, "rest": [], "captions": []}\n'
    rows = list(named_items(io.BytesIO(document), {"images", "captions"}, MAX_BYTES))
    assert [(name, row.line, row.json) for name, row in rows] == [("images", 2, b'{"id": 1}'), ("images", 3, b'{"id": 2}')]
    assert list(named_items(io.BytesIO(b" {} "), {"images"}, MAX_BYTES)) == []


@pytest.mark.parametrize(
    ("document", "line", "message"),
    [
        ("[]", None, "the file is not a JSON object"),
        ("", None, "the file is not a JSON object"),
        ('{"a": [],\n"a": []}', 2, 'the key "a" stands twice in one object'),
        ('{"b": 1,\n"a": {"x": 1}}', 2, '`a` is not a list: "{\\"x\\": 1}"'),
        ('{"a": [1', 1, "behind an item of the list there is neither a comma nor a bracket; nothing behind it was read"),
        ('{"a": [1] "b"', 1, "behind a field of the object there is neither a comma nor a brace; nothing behind it was read"),
        ('{"a": [1],\n}', 2, "this is not JSON: Expecting value"),
        ('{"a": [1],\n7: 3}', 2, 'a field of an object has to be "NAME": VALUE; nothing behind it was read'),
        ('{"a": [1]}\n{}', 2, 'behind the object there is more text: "{}"'),
        ('{"c": tru', 1, "this is not JSON"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_document_is_told_under_no_name(document: str, line: int | None, message: str) -> None:
    rows = [row for name, row in named_items(io.BytesIO(document.encode()), {"a"}, MAX_BYTES) if name is None]
    assert rows[-1].line == line
    assert rows[-1].findings[0].message.startswith(message)


def test_a_name_that_is_not_utf_8_ends_the_reading() -> None:
    ((name, row),) = named_items(io.BytesIO(b'{"\xff": 1, "a": [1]}'), {"a"}, MAX_BYTES)
    assert name is None
    assert row.findings[0].message == 'a field of an object has to be "NAME": VALUE; nothing behind it was read'


@settings(max_examples=50)
@given(other=JSON, max_bytes=st.sampled_from([3, MAX_BYTES]))
def test_a_field_of_any_value_is_passed_over(other: Any, max_bytes: int) -> None:
    document = json.dumps({"other": other, "a": [1]}).encode()
    rows = list(named_items(io.BytesIO(document), {"a"}, max_bytes if max_bytes > 3 else 7))
    assert [(name, row.json) for name, row in rows] == [("a", b"1")]
