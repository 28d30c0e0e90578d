"""Looking at one image, and a process that does nothing else: `python -m yivl_core.data.image_worker MAX_PIXELS`.

```
stdin   [[uri, address, root, sha256], ...]      stdout  [[info or null, [finding, ...]], ...]
        a line of JSON for a few images                  or {"error": "...", "errno": 5}, where the disk or network failed
```
The process ends with its stdin, so it never outlives the one that started it.
"""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from yivl_core.data.findings import Finding, error, shown, warning
from yivl_core.data.images import IMAGE_WARNINGS, ImageError, ImageInfo, ImageReference, ImageStore
from yivl_core.errors import StorageError

Outcome = tuple[ImageInfo | None, tuple[Finding, ...]]

_ADDRESS_KINDS = frozenset({"image_missing", "path_escape", "url_not_allowed", "control_char", "bad_unicode"})


def check_image(image: ImageReference, store: ImageStore) -> Outcome:
    """What an image is, None if it cannot be used, and what was found about it. Its pixels are dropped at once.

    Raises:
        StorageError: the disk or network failed.
    """
    try:
        loaded = store.load(image)
    except ImageError as cause:
        if cause.kind in _ADDRESS_KINDS:
            return None, (error(cause.kind, cause.message, cause.remedy),)
        return None, (error("image_unreadable", cause.message, cause.remedy, detail=cause.kind),)
    findings = []
    for kind in loaded.warnings:
        message, remedy = IMAGE_WARNINGS[kind]
        findings.append(warning(kind, f"image {shown(image.uri)}: {message}", remedy))
    return loaded.info, tuple(findings)


def write_request(images: Sequence[ImageReference]) -> bytes:
    """The line that asks a worker about images."""
    return _line([(image.uri, image.address, str(image.root), image.sha256) for image in images])


def read_reply(line: bytes) -> list[Outcome]:
    """What a worker answers, an outcome for each image.

    Raises:
        StorageError: its disk or network failed.
    """
    reply = json.loads(line)
    if isinstance(reply, dict):
        number = reply["errno"]
        raise StorageError(reply["error"]) from (None if number is None else OSError(number, os.strerror(number)))
    return [(info and ImageInfo(**info), tuple(Finding(**finding) for finding in findings)) for info, findings in reply]


def main() -> None:
    """Answer requests until stdin ends."""
    store = ImageStore(int(sys.argv[1]))
    with suppress(BrokenPipeError), os.fdopen(os.dup(1), "wb") as replies:
        os.dup2(2, 1)  # whatever a library prints is no reply
        for line in sys.stdin.buffer:
            replies.write(_line(_answer(line, store)))
            replies.flush()


def _answer(line: bytes, store: ImageStore) -> Any:
    images = [
        ImageReference(uri=uri, address=address, root=Path(root), sha256=sha256)
        for uri, address, root, sha256 in json.loads(line)
    ]
    try:
        outcomes = [check_image(image, store) for image in images]
    except StorageError as cause:
        return {"error": str(cause), "errno": getattr(cause.__cause__, "errno", None)}
    return [(info and info.to_json(), [finding.to_json() for finding in findings]) for info, findings in outcomes]


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"  # all ASCII, also half a surrogate pair


if __name__ == "__main__":
    main()
