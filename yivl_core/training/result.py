"""Whether what a finished training run left is unharmed. No torch here: tasks ask it too."""

from pathlib import Path

from yivl_core.data.dataset import digest_records, read_records
from yivl_core.errors import CheckpointError, DatasetError, OutputError, StorageError
from yivl_core.model.files import HELD_OUT_FILE, TUNED_FOLDER, adapter_digest, checkpoint_digest, read_about
from yivl_core.outputs.manifest import MANIFEST_NAME, read_manifest

RESULT_FOLDERS = {"lora": "adapter", "full": TUNED_FOLDER}  # by tuner


def result_digest(run_folder: Path, tuner: str) -> str:
    """sha256 (hex) of the content of a run's adapter or model.

    Raises:
        CheckpointError: it is not there, or is damaged.
    """
    return (checkpoint_digest if tuner == "full" else adapter_digest)(run_folder / RESULT_FOLDERS[tuner])


def is_result_whole(run_folder: Path, digest: str) -> bool:
    """Whether a run folder holds its manifest, the result of this digest, and, in both places, the rows that were held out."""
    held_out = run_folder / HELD_OUT_FILE
    try:
        manifest = read_manifest(str(run_folder / MANIFEST_NAME)) or {}
        tuner = manifest.get("settings", {}).get("tuner", "lora")
        result = run_folder / RESULT_FOLDERS[tuner]
        return (
            digest == result_digest(run_folder, tuner) == manifest.get("result", {}).get("result_digest")
            and manifest.get("data", {}).get("held_out_digest") == digest_records(read_records(held_out))
            and held_out.read_bytes() == (result / HELD_OUT_FILE).read_bytes()
            and bool(read_about(result))
        )
    except (CheckpointError, DatasetError, OutputError, StorageError, OSError, KeyError, TypeError, AttributeError):
        return False


def are_held_out_images_there(run_folder: Path) -> bool:
    """Whether the images of the held-out rows lie where the run folder says, as far as their sizes show."""
    rows = read_records(run_folder / HELD_OUT_FILE)
    try:
        return all(Path(image.path).stat().st_size == image.num_bytes for row in rows for image in row.images)
    except OSError:
        return False
