"""Values of rows about which there is nothing to say, at several times the speed of `parse_record`, which decides all others."""

from typing import Any

from yivl_core.data.configuration import Purpose
from yivl_core.data.records import ImageCountError, Record, untagged_images

_TWO_FIELDS = frozenset({"query", "response"})
_TEXT_FIELDS = frozenset({"query", "response", "system", "id", "cluster_id"})
_LIST_FIELDS = frozenset({"history", "images", "references"})


def plain_content(values: dict[str, Any], purpose: Purpose) -> dict[str, Any] | None:
    """What `record_to_json` gives of the record that `parse_record` makes of the values, if that finds nothing.

    Args:
        values: as `read_plain_object` gives them, so that their text need not be looked at.
        purpose: training needs a response in each record.

    Returns:
        The values without those that say nothing; None where `parse_record` has to look.
    """
    query, response = values.get("query"), values.get("response")
    if type(query) is not str or not query or query.isspace():
        return None
    if type(response) is str:
        if purpose == "training" and (not response or response.isspace()):
            return None
    elif response is not None or purpose == "training":
        return None
    if values.keys() == _TWO_FIELDS and response is not None and "<image" not in query:
        return values
    return _with_more_fields(values)


def _with_more_fields(values: dict[str, Any]) -> dict[str, Any] | None:
    content: dict[str, Any] = {}
    for name, value in values.items():
        if value is None and name != "meta":
            if name not in _TEXT_FIELDS and name not in _LIST_FIELDS:
                return None
        elif name in _TEXT_FIELDS:
            if type(value) is not str:
                return None
            content[name] = value
        elif name not in _LIST_FIELDS or type(value) is not list or not _is_plain_list(name, value):
            return None
        elif value:
            content[name] = value
    if content.get("images") or _has_tag(content):
        try:
            untagged_images(Record.model_validate(_as_tuples(content)))
        except ImageCountError:
            return None
    return content


def _is_plain_list(name: str, value: list[Any]) -> bool:
    if name == "history":
        return all(type(pair) is list and len(pair) == 2 and all(map(_is_filled, pair)) for pair in value)
    if name == "images":
        return all(address is None or type(address) is str for address in value)
    return all(type(text) is str for text in value)


def _is_filled(text: Any) -> bool:
    return type(text) is str and bool(text) and not text.isspace()


def _has_tag(content: dict[str, Any]) -> bool:
    return "<image" in content["query"] or any("<image" in text for pair in content.get("history", ()) for text in pair)


def _as_tuples(content: dict[str, Any]) -> dict[str, Any]:
    lists: dict[str, Any] = {name: tuple(content[name]) for name in ("images", "references") if name in content}
    history = tuple((question, answer) for question, answer in content.get("history", ()))
    return {**content, **lists, "history": history}
