r"""A list of messages, as OpenAI, transformers, ShareGPT or LLaVA write it -> system, history, query, response and images.

```
[{"role": "system", ...},  system
 {"role": "user", ...},    history[0][0]
 {"role": "assistant"...}, history[0][1]
 {"role": "user", ...},    query
 {"role": "assistant"...}] response, left out where the list ends with the user
```
An image part becomes a tag: images in front of a message's text are n tags and one newline, others stand exactly where they are.
A tag in a text stays where it is written, as LLaVA's `<image>\n` does. A tag, and an image part without an address, take the next
of the row's `images`. Whether tags and images are equal in number is left to `parse_record` where no image is a part.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from yivl_core.data.findings import Finding, error, shown, warning, wrong_type
from yivl_core.data.records import IMAGE_TAG, Role

_SYSTEM, _USER, _ASSISTANT = Role.SYSTEM, Role.USER, Role.ASSISTANT
_ROLES = {
    "system": _SYSTEM, "developer": _SYSTEM,
    "user": _USER, "human": _USER,
    "assistant": _ASSISTANT, "gpt": _ASSISTANT, "chatgpt": _ASSISTANT, "bot": _ASSISTANT, "model": _ASSISTANT,
}  # fmt: skip
_TOOL_ROLES = frozenset({"tool", "tool_call", "tool_response", "function", "function_call", "observation", "ipython"})
_TOOL_FIELDS = ("tool_calls", "function_call", "audio")
_READ_FIELDS = frozenset({"role", "from", "content", "value"})
_IMAGE_TYPES = frozenset({"image_url", "input_image", "image"})
_PART_TYPES = frozenset({"text", "input_text", "output_text"}) | _IMAGE_TYPES
_ADDRESS_FIELDS = ("image_url", "image", "url", "path")
_CONTENT_FIELDS = ("file_id", "base64", "file")
_TAG = "<image>"
_WANTED_MESSAGE = 'an object such as {"role": "user", "content": "..."}'
_WANTED_ADDRESS = "the image's address: a path, a URL or a data: URI"


class _Image(NamedTuple):
    """An image among the parts of a message; without an address it is the next of the row's `images`."""

    address: str | None


class _Turn(NamedTuple):
    """A message whose author is known."""

    role: Role
    content: str | list[str | _Image]
    name: str


def read_messages(messages: Any, name: str, images: Sequence[Any], findings: list[Finding]) -> dict[str, Any]:
    """The fields of a record that a list of messages makes.

    Args:
        messages: the list, or whatever stands in its place.
        name: of the field that it is in.
        images: addresses that the row has beside it.
        findings: what is wrong is added here; with an error, what is returned is not to be used.
    """
    if not isinstance(messages, list):
        findings.append(wrong_type(name, messages, f"a list of messages, each {_WANTED_MESSAGE}"))
        return {}
    num_before = len(findings)
    turns = []
    for index, message in enumerate(messages):
        turn = _turn(message, f"{name}[{index}]", findings)
        if turn is not None:
            turns.append(turn)
    if len(turns) == len(messages):  # who is in turn cannot be told where a message has no author
        _check_order(turns, name, findings)
    if any(finding.severity == "error" for finding in findings[num_before:]):
        return {}
    if any(type(turn.content) is list for turn in turns):
        turns, images = _with_tags(turns, images, findings)
    return _fields(turns, images)


def _fields(turns: Sequence[_Turn], images: Sequence[Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if turns and turns[0].role is _SYSTEM:
        fields["system"] = turns[0].content
        turns = turns[1:]
    texts = [turn.content for turn in turns]
    if len(texts) % 2 == 0 and texts:
        fields["response"] = texts.pop()
    if texts:
        fields["query"] = texts.pop()
    if texts:
        fields["history"] = [texts[index : index + 2] for index in range(0, len(texts), 2)]
    if images:
        fields["images"] = list(images)
    return fields


def _turn(message: Any, name: str, findings: list[Finding]) -> _Turn | None:
    if not isinstance(message, dict):
        findings.append(wrong_type(name, message, _WANTED_MESSAGE))
        return None
    role_field = "role" if "role" in message else "from"
    content_field = "content" if "content" in message else "value"
    author = message.get(role_field)
    role = _ROLES.get(author) if isinstance(author, str) else None
    if len(message) > 2:
        _check_further_fields(message, name, findings)
    if role is None:
        findings.append(_unknown_role(message, role_field, name))
        return None
    content = message.get(content_field)
    if type(content) is str:
        return _Turn(role, content, name)
    if isinstance(content, list):
        return _Turn(role, _parts(content, f"{name}.{content_field}", findings), name)
    if content_field in message:
        findings.append(wrong_type(f"{name}.{content_field}", content, "a string, or a list of text and image parts"))
    else:
        findings.append(error("missing_field", f"there is no `{name}.content`", "add what is said"))
    return _Turn(role, "", name)


def _unknown_role(message: dict[str, Any], field: str, name: str) -> Finding:
    role = message.get(field)
    if isinstance(role, str) and role in _TOOL_ROLES:
        message_text = f"`{name}` is from {shown(role)}: the model knows no tools"
        return error("unsupported_content", message_text, "leave calls of tools and their results out")
    if field not in message:
        return error("unknown_role", f"`{name}` has neither `role` nor `from`", 'write "role": "user", "assistant" or "system"')
    return error("unknown_role", f"`{name}.{field}` is {shown(role)}", "write user, assistant or system")


def _check_further_fields(message: dict[str, Any], name: str, findings: list[Finding]) -> None:
    further = [field for field, value in message.items() if field not in _READ_FIELDS and value not in (None, [])]
    for field in _TOOL_FIELDS:
        if field in further:
            message_text = f"`{name}.{field}` is {shown(message[field])}: the model knows neither tools nor sound"
            findings.append(error("unsupported_content", message_text, "leave the row out, or this field of the message"))
    if unknown := [field for field in further if field not in _TOOL_FIELDS]:
        message_text = f"`{name}` has fields that are not read: {shown(unknown)}"
        findings.append(warning("unknown_field", message_text, "they are left out; check the spelling"))


def _check_order(turns: Sequence[_Turn], name: str, findings: list[Finding]) -> None:
    expected = _USER
    for index, turn in enumerate(turns):
        role = turn.role
        if role is _SYSTEM:
            if index:
                message = f"`{turn.name}` is from system, which speaks first or not at all"
                findings.append(error("role_order", message, "let the system text be the first message, and only one"))
            continue
        if role is not expected:
            message = f"`{turn.name}` is from {role.value}, where it is the turn of {expected.value}"
            findings.append(error("role_order", message, "let user and assistant speak in turn, the user first"))
        expected = _ASSISTANT if role is _USER else _USER
    if not any(turn.role is _USER for turn in turns):
        findings.append(error("role_order", f"`{name}` holds no message of the user", "add what is asked"))


def _parts(parts: list[Any], name: str, findings: list[Finding]) -> str | list[str | _Image]:
    """The content of a message: its text, or with images text and images as they come."""
    content: list[str | _Image] = []
    has_image = False
    for index, part in enumerate(parts):
        if type(part) is dict and part.get("type") == "text" and type(part.get("text")) is str:
            content.append(part["text"])  # most are so, and need no name for a finding
            continue
        piece = _part(part, f"{name}[{index}]", findings)
        if piece is not None:
            content.append(piece)
            has_image |= isinstance(piece, _Image)
    return content if has_image else "".join(map(str, content))


def _part(part: Any, name: str, findings: list[Finding]) -> str | _Image | None:
    if not isinstance(part, dict):
        findings.append(wrong_type(name, part, 'a part such as {"type": "text", "text": "..."}'))
        return None
    kind = part["type"] if "type" in part else _type_by_fields(part)
    if not isinstance(kind, str) or kind not in _PART_TYPES:
        message = f"`{name}` is of type {shown(kind)}"
        findings.append(error("unsupported_content", message, "leave it out; the model is shown text and images alone"))
        return None
    if kind in _IMAGE_TYPES:
        return _image(part, name, findings)
    text = part.get("text")
    if isinstance(text, str):
        return text
    findings.append(wrong_type(f"{name}.text", text, "a string"))
    return None


def _type_by_fields(part: dict[str, Any]) -> str | None:
    """Of a part that does not tell its type: `{"image": ...}` and `{"text": ...}`, as early Qwen models have them."""
    return next((field for field in ("text", "image", "image_url") if part.get(field) is not None), None)


def _image(part: dict[str, Any], name: str, findings: list[Finding]) -> _Image:
    for field in _ADDRESS_FIELDS:
        if part.get(field) is not None:
            return _Image(read_address(part[field], f"{name}.{field}", findings))
    for field in _CONTENT_FIELDS:
        if part.get(field) is not None:
            message = f"`{name}.{field}` is {shown(part[field])}, which is no address"
            findings.append(error("unsupported_content", message, f"write {_WANTED_ADDRESS}"))
    return _Image(None)


def read_address(value: Any, name: str, findings: list[Finding]) -> str | None:
    """An image's address, given as text or in an object with `url` or `path`."""
    if isinstance(value, dict):
        field = "path" if value.get("url") is None and value.get("path") is not None else "url"
        name, value = f"{name}.{field}", value.get(field)
    if isinstance(value, str):
        return value
    findings.append(wrong_type(name, value, _WANTED_ADDRESS))
    return None


def _with_tags(
    turns: Sequence[_Turn], images: Sequence[Any], findings: list[Finding]
) -> tuple[list[_Turn], Sequence[str | None]]:
    """The messages with a tag in the place of each image part, and the images in the order of all tags."""
    last = turns[-1]
    slots: list[str | None] = []
    tagged = []
    for turn in turns:
        is_shown = turn.role is not _SYSTEM and not (turn is last and turn.role is _ASSISTANT)
        if not is_shown and isinstance(turn.content, list):
            message = f"`{turn.name}` is from {turn.role.value} and holds an image"
            findings.append(error("unsupported_content", message, "let images stand in messages of the user"))
        elif is_shown:
            for piece in [turn.content] if isinstance(turn.content, str) else turn.content:
                if isinstance(piece, _Image):
                    slots.append(piece.address)
                elif "<image" in piece:
                    slots += [None] * len(IMAGE_TAG.findall(piece))
        tagged.append(_Turn(turn.role, _tagged_text(turn.content), turn.name))
    given = [address for address in images if address is not None]
    num_open = slots.count(None)
    if num_open != len(given):
        message = f"{num_open} image(s) without an address of their own (tags in texts, parts) for {len(given)} in `images`"
        remedy = "give each image part its address and take <image> out of the texts, or list in `images` what the tags stand for"
        findings.append(error("image_count_mismatch", message, remedy))
        return tagged, []
    rest = iter(given)
    return tagged, [next(rest) if slot is None else slot for slot in slots]


def _tagged_text(content: str | list[str | _Image]) -> str:
    if isinstance(content, str):
        return content
    num_leading = next((index for index, piece in enumerate(content) if isinstance(piece, str)), len(content))
    text = "".join(piece if isinstance(piece, str) else _TAG for piece in content[num_leading:])
    return _TAG * num_leading + ("\n" + text if num_leading and text else text)
