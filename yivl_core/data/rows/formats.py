"""Rows as other programs write them -> the values of which `parse_record` makes a record.

| format | is told by | what is read |
|---|---|---|
| swift | `query`, or none of the others | our own fields, as they are |
| messages | `messages` | OpenAI, transformers, ms-swift: role and content, text or parts, and `images` |
| conversations | `conversations` | ShareGPT, LLaVA: from and value, `image` or `images`, `system` |
| alpaca | `instruction` | `instruction`, `input`, `output`, `system`, `history`, `images` |
| vlmevalkit | `question` and `index` | VLMEvalKit's tables, by `benchmarks` |
| lmms_eval | `question` and an answer, image or id; `doc` and `doc_id` | lmms-eval's records and samples, by `benchmarks` |

A row with `query` is one of ours whatever else it holds: what is mapped to `query`, or was read before, is not reinterpreted, and
`messages` beside it end in `meta` with a warning. Values are JSON of any shape; nothing here raises an exception because of them.
"""

from collections.abc import Collection, Mapping
from typing import Any, Literal, get_args

from yivl_core.data.findings import Finding, RowFindings, TooManyFindingsError, error, shown, wrong_type
from yivl_core.data.rows.benchmarks import is_lmms_eval, is_vlmevalkit, read_benchmark_row
from yivl_core.data.rows.messages import read_address, read_messages

Format = Literal["swift", "messages", "conversations", "alpaca", "vlmevalkit", "lmms_eval"]
FORMATS: tuple[Format, ...] = get_args(Format)
BENCHMARK_FORMATS: tuple[Format, ...] = ("vlmevalkit", "lmms_eval")

_OWN_FIELDS = ("query", "response", "history")
_FOREIGN_MEDIA = ("video", "videos", "audio", "audios")


def detect_format(values: Collection[str]) -> Format:
    """The format of a row, by the names of its fields.

    Args:
        values: the row, or the names alone: the header of a csv file, the columns of a parquet file.
    """
    if "query" in values:
        return "swift"
    if "messages" in values:
        return "messages"
    if "conversations" in values or "conversation" in values:
        return "conversations"
    if "instruction" in values:
        return "alpaca"
    if is_vlmevalkit(values):
        return "vlmevalkit"
    return "lmms_eval" if is_lmms_eval(values) else "swift"


def to_record_values(values: Mapping[str, Any], row_format: Format) -> tuple[dict[str, Any], list[Finding]]:
    """A row under the names that `parse_record` reads; fields of no meaning here are kept, so that they land in `meta`.

    Args:
        values: JSON values by field name, of any shape.
        row_format: that of the dataset.

    Returns:
        The values, and what is wrong with them. With an error among the findings the values are not to be used.
    """
    if row_format == "swift":
        return dict(values), _other_format(values, "swift") if "query" not in values else []
    findings = RowFindings()
    try:
        return _converted(values, row_format, findings), findings
    except TooManyFindingsError:
        return {}, findings


def _converted(values: Mapping[str, Any], row_format: Format, findings: RowFindings) -> dict[str, Any]:
    if row_format == "alpaca":
        return _from_alpaca(values, findings)
    if row_format in BENCHMARK_FORMATS:
        return _from_benchmark(values, row_format, findings)
    name = "conversation" if row_format == "conversations" and "conversations" not in values else row_format
    if name not in values:
        findings += _other_format(values, row_format) or [_missing(row_format)]
        return dict(values)
    return _from_messages(values, name, findings)


def _other_format(values: Mapping[str, Any], wanted: Format) -> list[Finding]:
    found = detect_format(values)
    if found == wanted or (found == "swift" and "query" not in values):
        return []
    message = f"the row has the format {found}, the dataset {wanted}"
    return [error("format_mismatch", message, "write rows of one format to a file")]


def _missing(name: str) -> Finding:
    return error("missing_field", f"there is no `{name}`", "add it")


def _from_messages(values: Mapping[str, Any], name: str, findings: RowFindings) -> dict[str, Any]:
    kept = {field: value for field, value in values.items() if field != name}
    images = _take_images(kept, findings)
    fields = read_messages(values[name], name, images, findings)
    for field in ("system", *_OWN_FIELDS):
        given = kept.pop(field, None)
        if given is None:
            continue
        if field == "system" and "system" not in fields:
            fields["system"] = given
        elif fields and given != fields.get(field):  # without any, the messages are in error
            message = f"`{field}` is {shown(given)} beside `{name}`, which says it too"
            findings.append(error("duplicate_key", message, "keep one of them"))
    _check_media(kept, findings)
    return {**kept, **fields}


def _from_alpaca(values: Mapping[str, Any], findings: RowFindings) -> dict[str, Any]:
    if "instruction" not in values:
        findings += _other_format(values, "alpaca") or [_missing("instruction")]
        return dict(values)
    kept = dict(values)
    images = _take_images(kept, findings)
    texts = []
    for name in ("instruction", "input"):
        text = kept.pop(name, None)
        if isinstance(text, str):
            texts.append(text)
        elif text is not None or name == "instruction":
            findings.append(wrong_type(name, text, "a string"))
    fields: dict[str, Any] = {"query": "\n".join(text for text in texts if text.strip())}
    if "output" in kept:
        fields["response"] = kept.pop("output")
    for name in ("query", "response"):
        if kept.pop(name, None) is not None:
            message = f"`{name}` stands beside `instruction` and `output`, which say it too"
            findings.append(error("duplicate_key", message, "keep one of them"))
    if images:
        fields["images"] = images
    _check_media(kept, findings)
    return {**kept, **fields}


def _from_benchmark(values: Mapping[str, Any], row_format: Format, findings: RowFindings) -> dict[str, Any]:
    if detect_format(values) != row_format:
        findings += _other_format(values, row_format) or [_missing("index" if "question" in values else "question")]
        return dict(values)
    fields = read_benchmark_row(values, findings)
    _check_media(values, findings)
    return fields


def _take_images(kept: dict[str, Any], findings: list[Finding]) -> list[str | None]:
    """The addresses in `image` or `images`, taken out of the row: one, or a list; null for a round without."""
    addresses: list[str | None] = []
    names = [name for name in ("image", "images") if name in kept]
    for name in names:
        value = kept.pop(name)
        if value is None:
            continue
        if addresses:
            findings.append(error("duplicate_key", "images stand in `image` and in `images`", "keep one of them"))
        for index, item in enumerate(value if isinstance(value, list) else [value]):
            place = f"{name}[{index}]" if isinstance(value, list) else name
            addresses.append(item if item is None else read_address(item, place, findings))
    return addresses


def _check_media(kept: Mapping[str, Any], findings: list[Finding]) -> None:
    for name in _FOREIGN_MEDIA:
        if kept.get(name):
            message = f"`{name}` is {shown(kept[name])}"
            findings.append(error("unsupported_content", message, "leave it out; the model is shown text and images alone"))
