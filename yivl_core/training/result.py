"""Whether what a finished training run left is unharmed. No torch here: tasks ask it too."""

from pathlib import Path

from yivl_core.errors import CheckpointError, OutputError
from yivl_core.model.files import ABOUT_FILE, HELD_OUT_FILE, adapter_digest
from yivl_core.outputs.manifest import MANIFEST_NAME, read_manifest

ADAPTER_FOLDER = "adapter"


def is_result_whole(run_folder: Path, digest: str) -> bool:
    """Whether a run folder holds its manifest, the adapter of this digest, and the same held-out rows beside it and in it."""
    adapter = run_folder / ADAPTER_FOLDER
    try:
        manifest = read_manifest(str(run_folder / MANIFEST_NAME)) or {}
        is_same = digest == adapter_digest(adapter) == manifest.get("result", {}).get("adapter_digest")
        held_out = [(folder / HELD_OUT_FILE).read_bytes() for folder in (run_folder, adapter)]
    except (CheckpointError, OutputError, OSError):
        return False
    return is_same and held_out[0] == held_out[1] and (adapter / ABOUT_FILE).is_file()
