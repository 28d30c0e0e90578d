"""JSON values of any shape as a row -> its format, our names, a record, and a line that is read again.

The first byte says how the row is read, the rest is JSON. What is no JSON is taken for a question.
"""

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from finding_invariants import check_findings
from mutations import JSON_TOKENS, mutate_bytes, mutate_json, write_json

from yivl_core.data.configuration import Purpose
from yivl_core.data.data_uris import is_data_uri, read_data_uri
from yivl_core.data.dataset import ValidatedRecord, parse_line, record_line, record_to_json
from yivl_core.data.findings import Source
from yivl_core.data.images import ImageError, ImageInfo
from yivl_core.data.network.url_parts import read_url
from yivl_core.data.public_urls import public_url, redact_urls
from yivl_core.data.records import ImageSlot, Record, conversation
from yivl_core.data.references import refuse_address
from yivl_core.data.rows.column_mapping import ColumnMapping
from yivl_core.data.rows.formats import FORMATS, detect_format, to_record_values
from yivl_core.data.rows.parsing import parse_record
from yivl_core.data.rows.plain_json import read_plain_object
from yivl_core.data.rows.plain_records import plain_content
from yivl_core.data.rows.strict_json import JsonSyntaxError, StrictJsonReader
from yivl_core.errors import ConfigurationError

_PART = {"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}}
_ROWS: tuple[dict[str, Any], ...] = (
    {"query": "a <image>", "response": "b", "history": [["c", "d"]], "images": ["a.png"], "system": "", "id": 7},
    {"query": "a", "response": "b", "references": ["c"], "cluster_id": "x", "meta": {"k": [1]}, "more": None, "images": [None]},
    {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [_PART, {"type": "text", "text": "a"}]},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": [{"type": "image"}, {"text": "<image>"}]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "c"}], "tool_calls": []},
        ],
        "images": ["b.png", {"path": "c.png"}],
    },
    {"messages": [{"role": "user", "content": "<image>a", "name": "n"}], "image": "a.png", "query": None},
    {"conversations": [{"from": "human", "value": "<image>\na"}, {"from": "gpt", "value": "b"}], "image": "a.png", "system": "s"},
    {"conversation": [{"from": "human", "value": "a"}, {"from": "tool", "value": "b"}], "video": "v.mp4"},
    {"instruction": "a", "input": "b", "output": "c", "system": "s", "history": [["d", "e"]], "images": ["a.png", None]},
    {"question": "a", "meta": {"path": "a.png"}, "answer": {"text": "b"}},
    {"messages": [{"role": "user", "content": [{"type": "image", "file_id": "f"}, {"image": "a.png"}, {"text": "a"}]}]},
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [_PART, {"type": "text", "text": "b"}]}]},
    {
        "query": "a",
        "images": ["a.png"],
        "validated": {
            "file": "a.jsonl",
            "line": 3,
            "images": [{"path": "/x/a.png", "sha256": "0", "width": 2, "height": 3, "mode": "L", "num_bytes": 4}],
        },
    },
    {"query": "a", "images": ["https://ann:pw@host/a.png?token=x#y", "data:image/png;base64,iVBORw0KGgo=", "s3://b/k", "../x"]},
)


class FormatTarget:
    """Rows of every format.

    Args:
        samples: folder of jsonl files to begin with, where there is one.
    """

    tokens = JSON_TOKENS

    def __init__(self, samples: Path | None) -> None:
        self._samples = samples

    def check(self, data: bytes) -> None:
        """Everything that has to hold of a row."""
        bits, text = data[0] if data else 0, data[1:]
        purpose: Purpose = "training" if bits & 1 else "inference"
        values = _values(text)
        if bits & 2:
            values = _mapped(values, bits)
        assert detect_format(values) in FORMATS
        assert detect_format(list(values)) == detect_format(values)
        for row_format in FORMATS:
            ours, findings = to_record_values(values, row_format)
            check_findings(findings)
            if not any(finding.severity == "error" for finding in findings):
                _check_record(ours, purpose)
        _check_fast_reader(text, purpose)

    def mutate(self, data: bytes, chance: random.Random) -> bytes:
        """A row near this one: another value in it, seldom other bytes."""
        if chance.random() < 0.1:
            return bytes([chance.randrange(256)]) + data[1:]
        if chance.random() < 0.1:
            return data[:1] + mutate_bytes(data[1:], chance)
        return data[:1] + write_json(mutate_json(_values(data[1:]), chance), chance)

    def seeds(self) -> Iterator[bytes]:
        """Rows of every format, and those of the samples."""
        for bits in range(8):
            for row in _ROWS:
                yield bytes([bits]) + json.dumps(row).encode()
        for path in sorted(self._samples.rglob("*.jsonl")) if self._samples is not None else ():
            for line in path.read_bytes().split(b"\n")[:4]:
                if 0 < len(line) < 4000:
                    yield b"\x00" + line


def _values(text: bytes) -> dict[str, Any]:
    """A row whose values JSON knows, at most as deep as a file may have them."""
    shown = text.decode(errors="surrogateescape")
    try:
        value, findings = StrictJsonReader().read_all(shown)
    except JsonSyntaxError:
        return {"query": shown}
    if findings:
        return {"query": shown}
    return value if isinstance(value, dict) else {"messages": value}


def _mapped(values: Mapping[str, Any], bits: int) -> dict[str, Any]:
    """The row with some of its columns named for fields, as far as the names can be written."""
    names = list(values)
    fields = ("query", "images", "response", "messages", "instruction")
    try:
        mapping = ColumnMapping.of_options(
            [f"{ours}={name}" for ours, name in zip(fields[(bits >> 2) % 5 :], names, strict=False)]
        )
    except ConfigurationError:
        return dict(values)
    mapped = mapping.apply(values)
    ours = to_record_values(mapped, detect_format(mapped))[0]
    check_findings([mapping.in_their_words(finding) for finding in parse_record(ours, "training").findings])
    return mapped


def _check_record(values: dict[str, Any], purpose: Purpose) -> None:
    parsed = parse_record(values, purpose)
    check_findings(parsed.findings)
    assert (parsed.record is None) == any(finding.severity == "error" for finding in parsed.findings)
    for address in parsed.addresses:
        _check_address(address)
    if parsed.record is None:
        return
    record = parsed.record
    assert parsed.addresses == record.image_addresses
    slots = [part.index for message in conversation(record) for part in message.content if isinstance(part, ImageSlot)]
    assert slots == list(range(len(record.image_addresses)))
    _check_round_trip(record)


def _check_round_trip(record: Record) -> None:
    """A record that is written is read again, and its content has one form."""
    infos = tuple(
        ImageInfo(uri=address, path=f"/x/{address}", sha256="0" * 64, width=2, height=3, mode="L", num_bytes=4)
        for address in record.image_addresses
    )
    validated = ValidatedRecord(record=record, source=Source(file="a.jsonl", line=3), images=infos)
    line = record_line(validated)
    assert line.count("\n") == 1
    assert parse_line(line) == validated
    assert parse_record(json.loads(validated.canonical), "inference").findings == ()
    assert detect_format(record_to_json(record)) == "swift"


def _check_address(address: str) -> None:
    """An address is refused with a reason, or not at all."""
    for look in (refuse_address, read_url):
        with suppress(ImageError):
            look(address)
    found = read_data_uri(address)
    assert found is None or is_data_uri(address)
    redact_urls(address)
    assert public_url(public_url(address)) == public_url(address)


def _check_fast_reader(text: bytes, purpose: Purpose) -> None:
    """What is taken at speed is what looking closely gives, with nothing to say about it."""
    line = text.strip()
    values = read_plain_object(line)
    if values is None:
        return
    assert StrictJsonReader().read_all(line.decode()) == (values, [])
    content = plain_content(values, purpose)
    if content is not None:
        parsed = parse_record(values, purpose)
        assert not parsed.findings
        assert parsed.record is not None
        assert content == record_to_json(parsed.record)
