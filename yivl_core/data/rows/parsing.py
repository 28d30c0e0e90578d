"""Named values of one row -> Record: which fields there are, their types, and which of them must be filled.

Every finding of a row is collected, so that a user mends it once. Files, lines and images are not looked at here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from yivl_core.data.configuration import Purpose
from yivl_core.data.findings import Finding, RowFindings, TooManyFindingsError, error, shown, type_name, warning, wrong_type
from yivl_core.data.notes import ValidatedNote, take_note
from yivl_core.data.records import ImageCountError, Record, untagged_images
from yivl_core.data.rows.strict_json import MAX_DEPTH, check_text, depth_exceeds, is_storable, too_deep

_TEXT_FIELDS = ("query", "response", "system", "id", "cluster_id")
_FIELDS = frozenset({*_TEXT_FIELDS, "history", "images", "references", "meta"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedRow:
    """What a row says.

    Attributes:
        record: None if a finding is an error.
        addresses: the images that it names, as far as that could be read, also where there is no record.
        note: what an earlier validation noted, if there was one.
        findings: what is wrong with it.
    """

    record: Record | None
    addresses: tuple[str, ...]
    note: ValidatedNote | None
    findings: tuple[Finding, ...]


def parse_record(values: Mapping[str, Any], purpose: Purpose) -> ParsedRow:
    """The record that named values make.

    Args:
        values: JSON values by field name; unknown ones move to `meta`, with a warning.
        purpose: training needs a response, inference does not.
    """
    given = dict(values)
    note, findings = take_note(given), RowFindings()
    try:
        return _parsed(values, given, note, purpose, findings)
    except TooManyFindingsError:
        return ParsedRow(record=None, addresses=(), note=note, findings=tuple(findings))


def _parsed(
    values: Mapping[str, Any], given: dict[str, Any], note: ValidatedNote | None, purpose: Purpose, findings: RowFindings
) -> ParsedRow:
    for name, value in given.items():
        if name not in _FIELDS:
            findings += check_text(name, "the name of a field")
        if not is_storable(value):
            findings += check_text(value, name)
    for name in _TEXT_FIELDS:
        if name in given:
            given[name] = _text(name, given[name], findings)
    given["history"] = _history(given.get("history"), findings)
    given["images"] = _images(given.get("images"), findings)
    given["references"] = _references(given.get("references"), findings)
    given["meta"] = _meta(given, findings)
    _check_filled(values, given, purpose, findings)
    addresses = tuple(address for address in given["images"] if address is not None)
    if note is not None and len(note.images) != len(addresses):
        message = f"`validated` tells of {len(note.images)} image(s), the record names {len(addresses)}"
        findings.append(error("image_count_mismatch", message, "leave `validated` out, and give the image root"))
    record = None
    if not any(finding.severity == "error" for finding in findings):
        record = Record(**{name: given[name] for name in _FIELDS if name in given})
        try:
            untagged_images(record)
        except ImageCountError as cause:
            findings.append(error("image_count_mismatch", cause.message, cause.remedy))
            record = None
    return ParsedRow(record=record, addresses=addresses, note=note, findings=tuple(findings))


def _text(name: str, value: Any, findings: list[Finding]) -> str | None:
    if isinstance(value, str):
        return value
    if name in ("id", "cluster_id") and type(value) is int:
        return str(value)  # tables number their rows
    if value is not None:
        findings.append(wrong_type(name, value, "a string"))
    return None


def _history(value: Any, findings: list[Finding]) -> tuple[tuple[str, str], ...]:
    if value is None:
        return ()
    remedy = "write [[question, answer], ...], all of them strings"
    if not isinstance(value, list):
        findings.append(error("history_shape", f"`history` is {type_name(value)}: {shown(value)}", remedy))
        return ()
    rounds = []
    for index, pair in enumerate(value):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            findings.append(error("history_shape", f"`history[{index}]` is not a pair of strings: {shown(pair)}", remedy))
            continue
        for text, part in zip(pair, ("question", "answer"), strict=True):
            if not text.strip():
                message = f"the {part} of `history[{index}]` is empty"
                findings.append(error("empty_field", message, "fill it, or leave the round out"))
        rounds.append((pair[0], pair[1]))
    return tuple(rounds)


def _images(value: Any, findings: list[Finding]) -> tuple[str | None, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(address is None or isinstance(address, str) for address in value):
        findings.append(wrong_type("images", value, 'a list of addresses, such as ["a.png"], with null for a round without'))
        return ()
    return tuple(value)


def _references(value: Any, findings: list[Finding]) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        findings.append(wrong_type("references", value, "a list of strings"))
        return ()
    return tuple(value)


def _meta(given: Mapping[str, Any], findings: list[Finding]) -> dict[str, Any]:
    meta = given.get("meta")
    if meta is None:
        meta = {}
    if not isinstance(meta, dict):
        findings.append(wrong_type("meta", meta, "an object"))
        return {}
    unknown = {name: value for name, value in given.items() if name not in _FIELDS}
    if unknown:
        message = f"fields that are not known: {shown(list(unknown))}"
        findings.append(warning("unknown_field", message, "they are kept in `meta`; check the spelling"))
        if depth_exceeds(unknown, MAX_DEPTH - 1):  # there, they are one deeper
            findings.append(too_deep("meta"))
    if both := next((name for name in unknown if name in meta), None):
        message = f"the field {shown(both)} stands in the record and in its `meta`"
        findings.append(error("duplicate_key", message, "keep one of them"))
    return {**meta, **unknown}


def _check_filled(values: Mapping[str, Any], given: Mapping[str, Any], purpose: Purpose, findings: list[Finding]) -> None:
    """Both fields are needed for training, `query` alone for inference, where an answer may be null or empty."""
    for name in ("query", "response") if purpose == "training" else ("query",):
        if name not in values:
            findings.append(error("missing_field", f"there is no `{name}`", f"add it{_for_training(name)}"))
        elif values[name] is None:
            findings.append(wrong_type(name, None, f"a string{_for_training(name)}"))
        elif given[name] is not None and not given[name].strip():
            findings.append(error("empty_field", f"`{name}` is empty", f"fill it{_for_training(name)}"))


def _for_training(name: str) -> str:
    return ", or validate for inference, which needs none" if name == "response" else ""
