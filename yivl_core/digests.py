"""Content digests: the same content gives the same sha256 wherever it lies and whenever it was written."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_NUM_READERS = 8
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no white space and no NaN, so that equal values give equal text."""
    return _CANONICAL.encode(value)


def digest_json(value: Any) -> str:
    """sha256 (hex) of a JSON value's canonical form."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """sha256 (hex) of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(root: Path, relative_paths: Iterable[str]) -> str:
    """sha256 (hex) over (relative path, sha256) of the named files under `root`, in sorted order; files are read side by side."""
    return digest_of_digests(digest_each(root, relative_paths))


def digest_each(root: Path, relative_paths: Iterable[str]) -> dict[str, str]:
    """sha256 (hex) of each of the named files under `root`, by name in sorted order; files are read side by side."""
    names = sorted(relative_paths)
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        return dict(zip(names, pool.map(lambda name: digest_file(root / name), names), strict=True))


def digest_of_digests(digests: Mapping[str, str]) -> str:
    """What `digest_files` gives of files whose sha256 is known: one digest of them all."""
    return digest_json([[name, digests[name]] for name in sorted(digests)])
