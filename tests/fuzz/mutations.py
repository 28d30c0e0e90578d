"""Random changes of bytes and of JSON, for inputs that stay near real ones. The same seed gives the same change."""

import json
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any

JSON_TOKENS: tuple[bytes, ...] = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\n", b"\r", b"\t", b" ", b"null", b"true", b"NaN", b"-Infinity",
    b"1e999", b"-0", b"0.5", b"{}", b"[]", b'""', b"\\u0000", b"\\ud83d", b"\\u0022", b"\\n", b"\x7f", b"\x00", b"\x0c",
    b"\xef\xbb\xbf", b"\xff", b"\xc3", b"\xe2\x80\xa8", b"\x1f\x8b", b"PAR1", b"PK\x03\x04", b",,", b"]]", b"}}", b"/*", b"'",
)  # fmt: skip
FIELDS: tuple[str, ...] = (
    "query", "response", "history", "images", "image", "system", "id", "references", "cluster_id", "meta", "validated",
    "messages", "role", "content", "type", "text", "image_url", "url", "path", "bytes", "file_id", "tool_calls", "audio",
    "conversations", "conversation", "from", "value", "instruction", "input", "output", "video", "info", "annotations",
    "image_id", "caption", "file_name", "file", "line", "sha256", "width",
)  # fmt: skip
TEXTS: tuple[str, ...] = (
    "", " ", "a", "a.png", "b.png", "<image>", "<image_placeholder>", "<image", "user", "assistant", "system", "human", "gpt",
    "tool", "text", "image_url", "input_image", "input_audio", "中文", "\u2028", "\x00", "\x1f", "\x7f", "\ud83d", "\udc80", "🧾",
    '"', "\\", "\n", "../a.png", "/etc/hostname", "~/a.png", "C:\\a.png", "a\\b.png", ".", "missing.png",
    "http://ann:pw@host/a.png?token=5#x", "s3://bucket/a.png", "file:///a.png", "http://[::1]/a.png", "http://0x7f/a.png",
    "data:image/png;base64,iVBORw0KGgo=", "data:,x", "data:image/png;base64,%", "DATA:;base64", "x" * 300,
)  # fmt: skip
NUMBERS: tuple[Any, ...] = (0, 1, -1, 3, 2**63, 2**64, -(2**70), 0.5, -0.0, 1e308, 10**400)

Mutate = Callable[[bytes, random.Random], bytes]


def mutate_bytes(data: bytes, chance: random.Random, tokens: Sequence[bytes] = JSON_TOKENS) -> bytes:
    """Some bytes changed, left out, doubled, moved, or a token put in."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((1, 1, 2, 4, 16, 64)))
        kind = chance.randrange(6)
        if kind == 0 and start < len(data):
            data = data[:start] + bytes([data[start] ^ 1 << chance.randrange(8)]) + data[start + 1 :]
        elif kind == 1:
            data = data[:start] + data[end:]
        elif kind == 2:
            data = data[:end] + data[start:end] + data[end:]
        elif kind == 3:
            place = chance.randrange(len(data) + 1)
            data = data[:place] + data[start:end] + data[place:]
        elif kind == 4:
            data = data[:start] + chance.choice(tokens) + data[start:]
        else:
            data = data[:start] + chance.choice(tokens) + data[end:]
    return data


def mutate_json_line(data: bytes, chance: random.Random) -> bytes:
    """One line, or all of it where it is a document, with its values changed; where it is no JSON, with its bytes changed."""
    lines = data.split(b"\n")
    number = chance.randrange(len(lines))
    for place in (number, None):
        text = data if place is None else lines[place]
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        changed = write_json(mutate_json(value, chance), chance)
        return changed if place is None else b"\n".join([*lines[:place], changed, *lines[place + 1 :]])
    return mutate_bytes(data, chance)


def write_json(value: Any, chance: random.Random) -> bytes:
    """JSON in one of the forms that writers give it."""
    separators = chance.choice(((", ", ": "), (",", ":")))
    is_ascii = chance.random() < 0.5
    text = json.dumps(value, ensure_ascii=is_ascii, separators=separators, indent=chance.choice((None, None, None, 1)))
    return text.encode(errors="surrogatepass")


def mutate_json(value: Any, chance: random.Random) -> Any:
    """A JSON value with a few of its parts changed."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        value = _changed(value, chance)
    return value


def _changed(value: Any, chance: random.Random) -> Any:
    """The value with a change in it: at a place further down, or here."""
    if isinstance(value, dict) and value and chance.random() < 0.8:
        name = chance.choice(list(value))
        kind = chance.randrange(8)
        if kind == 0:
            return {key: item for key, item in value.items() if key != name}
        if kind == 1:
            return {**value, chance.choice((*FIELDS, *TEXTS)): value[name]}
        if kind == 2:
            return {chance.choice(FIELDS) if key == name else key: item for key, item in value.items()}
        return {**value, name: _changed(value[name], chance)}
    if isinstance(value, list) and value and chance.random() < 0.8:
        index = chance.randrange(len(value))
        kind = chance.randrange(8)
        if kind == 0:
            return value[:index] + value[index + 1 :]
        if kind == 1:
            return [*value[:index], value[index], *value[index:]]
        if kind == 2:
            return value[::-1]
        return [*value[:index], _changed(value[index], chance), *value[index + 1 :]]
    if isinstance(value, str) and chance.random() < 0.4:
        place = chance.randrange(len(value) + 1)
        return value[:place] + chance.choice(TEXTS) + value[place:]
    return _new_value(value, chance)


def _new_value(value: Any, chance: random.Random) -> Any:
    kind = chance.randrange(9)
    if kind < 3:
        return chance.choice(TEXTS)
    if kind == 3:
        return chance.choice(NUMBERS)
    if kind == 4:
        return chance.choice((None, True, False, [], {}))
    if kind == 5:
        return [value]
    if kind == 6:
        return {chance.choice(FIELDS): value}
    if kind == 7:
        return {chance.choice(FIELDS): chance.choice(TEXTS), chance.choice(FIELDS): value}
    return [value, chance.choice(TEXTS)]


def with_png_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks have the sums that belong to them, so that a change in one is not all that a reader sees."""
    place, parts = 8, [data[:8]]
    while place + 12 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        body = data[place + 4 : place + 8 + length]
        if len(body) < 4 + length or place + 12 + length > len(data):
            break
        parts += [data[place : place + 4], body, zlib.crc32(body).to_bytes(4, "big")]
        place += 12 + length
    return b"".join(parts) + data[place:]
