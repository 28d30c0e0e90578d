"""Whether what a finished training run left is unharmed. No torch here: tasks ask it too."""

from pathlib import Path

from yivl_core.data.dataset import digest_records, read_records
from yivl_core.errors import CheckpointError, DatasetError, OutputError, StorageError
from yivl_core.model.files import HELD_OUT_FILE, adapter_digest, read_about
from yivl_core.outputs.manifest import MANIFEST_NAME, read_manifest

ADAPTER_FOLDER = "adapter"


def is_result_whole(run_folder: Path, digest: str) -> bool:
    """Whether a run folder holds its manifest, the adapter of this digest, and, in both places, the rows that were held out."""
    adapter = run_folder / ADAPTER_FOLDER
    held_out = run_folder / HELD_OUT_FILE
    try:
        manifest = read_manifest(str(run_folder / MANIFEST_NAME)) or {}
        return (
            digest == adapter_digest(adapter) == manifest.get("result", {}).get("adapter_digest")
            and manifest.get("data", {}).get("held_out_digest") == digest_records(read_records(held_out))
            and held_out.read_bytes() == (adapter / HELD_OUT_FILE).read_bytes()
            and bool(read_about(adapter))
        )
    except (CheckpointError, DatasetError, OutputError, StorageError, OSError):
        return False


def are_held_out_images_there(run_folder: Path) -> bool:
    """Whether the images of the held-out rows lie where the run folder says, as far as their sizes show."""
    rows = read_records(run_folder / HELD_OUT_FILE)
    try:
        return all(Path(image.path).stat().st_size == image.num_bytes for row in rows for image in row.images)
    except OSError:
        return False
