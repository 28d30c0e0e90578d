"""`data:` URIs (RFC 2397): images that stand in the text of a dataset itself."""

import base64
import binascii
import hashlib
import re
from urllib.parse import unquote_to_bytes

_DATA_URI = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)


def is_data_uri(address: str) -> bool:
    """Whether an address is the image itself."""
    return address[:5].lower() == "data:"


def read_data_uri(address: str) -> tuple[bytes, str] | None:
    """The bytes that stand in a `data:` URI, and a short name for them: `data:image/png;sha256=...`.

    Returns:
        None where it is malformed.
    """
    match = _DATA_URI.match(address)
    if match is None:
        return None
    media_type, parameters = match[1].strip().lower(), match[2].lower().split(";")
    try:
        data = unquote_to_bytes(address[match.end() :])
        if "base64" in (parameter.strip() for parameter in parameters):
            data = base64.b64decode(b"".join(data.split()), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    return data, f"data:{media_type or 'unknown'};sha256={hashlib.sha256(data).hexdigest()}"
