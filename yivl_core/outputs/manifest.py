"""What decided a run, written beside its results, so that every figure can be traced and defended later.

A manifest is one JSON object with sorted keys. `times` is the only block that differs between two runs of the same thing, and the
only one that `digest` leaves out. A digest names content; a path beside it only tells where that lay.

| key | what it holds | written by |
|---|---|---|
| `command` | which run: `sft`, `infer` | each |
| `code` | `code()`: version, digest of the source, git commit | each |
| `environment` | `environment()`: Python, platform, packages, image libraries, GPUs, CUDA and driver | each |
| `settings` | every setting that can move the result, after defaults were filled in: not `resume` | each |
| `data` | `digest` of the input; in training its size, and the held-out part; in inference `images`: number and digest | each |
| `model` | `digest` of the base or merged checkpoint; `files`: sha256 of each of its files | each |
| `adapter` | the same of the adapter; null without one | `infer` |
| `prompt` | `describe_prompt()`: version, system text, stop, an example, and their sha256 | each |
| `numerics` | dtype, device, attention kernel and what else moves the last bits | each |
| `decoding` | how tokens are chosen, and the seed | `infer` |
| `content_digest` | of the predictions | `infer` |
| `errors` | rows with an error by what went wrong | `infer` |
| `result` | the figures of the summary | each |
| `digest` | over all of the above | each, by `write_manifest` |
| `times` | when it began and ended, seconds of its stages | each |
"""

import json
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yivl_core
from yivl_core.digests import digest_files, digest_json
from yivl_core.errors import OutputError
from yivl_core.outputs.machine import describe_gpus, image_libraries
from yivl_core.storage import exists, publish_bytes, read_bytes

MANIFEST_NAME = "manifest.json"
RESULT_PACKAGES = (
    "accelerate",
    "bitsandbytes",
    "numpy",
    "peft",
    "pillow",
    "pyarrow",
    "rapidfuzz",
    "sacrebleu",
    "safetensors",
    "sentencepiece",
    "torch",
    "transformers",
    "triton",
)

_SOURCE = Path(yivl_core.__file__).parent


def write_manifest(url: str, content: Mapping[str, Any], times: Mapping[str, Any]) -> str:
    """Publish a manifest.

    Args:
        url: the file, `manifest.json` in the folder of the results.
        content: JSON values by key, as the table above says; the same for the same run.
        times: when and how long, in their own block.

    Returns:
        sha256 (hex) of the content.
    """
    digest = digest_json(content)
    manifest = {**content, "digest": digest, "times": times}
    text = json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    publish_bytes(url, text.encode() + b"\n")
    return digest


def read_manifest(url: str) -> dict[str, Any] | None:
    """A manifest, or None where there is none.

    Raises:
        OutputError: the file is no manifest, or was changed after it was written.
    """
    if not exists(url):
        return None
    try:
        manifest: dict[str, Any] = json.loads(read_bytes(url))
        content = {key: value for key, value in manifest.items() if key not in ("digest", "times")}
        is_intact = manifest["digest"] == digest_json(content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise OutputError(f"{url} is not a manifest ({error}); restore the file, or run again what wrote it") from error
    if not is_intact:
        raise OutputError(f"{url} was changed after it was written: its digest does not fit; restore the file, or run again")
    return manifest


def environment() -> dict[str, Any]:
    """Python, platform, what decides results of packages and image libraries, and GPUs if torch is in use; it loads no torch."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _package_version(name) for name in RESULT_PACKAGES},
        "image_libraries": image_libraries(),
        **describe_gpus(),
    }


def code() -> dict[str, Any]:
    """Which code ran: version, digest of the source files, and the git commit if they are a checkout.

    Looked up once: a process runs the code that it has loaded, whatever becomes of the files.
    """
    return {"version": _package_version("yivl"), "digest": code_digest(), **_git_state()}


@cache
def code_digest() -> str:
    """sha256 (hex) over the names and contents of the source files of `yivl_core`."""
    return digest_files(_SOURCE, [path.relative_to(_SOURCE).as_posix() for path in _SOURCE.rglob("*.py")])


@cache
def _package_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def _git_state() -> dict[str, Any]:
    """The commit and whether tracked files differ from it; both null where the source is not a git checkout of its own."""
    if not (_SOURCE.parent / ".git").exists():
        return {"git_commit": None, "is_changed": None}
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {"git_commit": commit, "is_changed": None if changes is None else bool(changes)}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_SOURCE.parent), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git on this machine, or a repository of another user: the code digest still tells the code
    return done.stdout.strip()
