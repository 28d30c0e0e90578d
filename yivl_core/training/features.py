"""Features of a frozen vision tower on disk, a file for each image, so that decoding and the tower are paid for once.

They lie in a folder named by what they depend on: the tower's weights and configuration, how images are prepared, and the dtype
of the arithmetic. A file is named by the sha256 of the image file, so that a name never means two contents.

Shapes: N images, P patches, C width of the tower.
"""

import hashlib
import shutil
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from yivl_core.digests import digest_file, digest_json
from yivl_core.errors import ConfigurationError, StorageError
from yivl_core.model.files import CheckpointFiles
from yivl_core.model.gpu_memory import gigabytes
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.tensors import save_tensors
from yivl_core.model.weights import read_tensors
from yivl_core.processing.image import ImagePreprocessor
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.progress import OnProgress, Progress
from yivl_core.storage import local_path, publish_file, storage_errors
from yivl_core.training.attending import best_attention
from yivl_core.training.tuning import part_of

_VERSION = 1  # of how images are prepared, which no file says
_NAME = "features"
_MAX_IMAGES = 16  # that a tower takes at a time: more are not faster, and take memory
_NUM_WRITERS, _MAX_UNWRITTEN = 8, 64

UnseenImages = tuple[list[str], UnpaddedPixels]  # sha256 of each, and what the tower reads of them


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureFiles:
    """The features of one tower; goes to other processes as a place.

    Attributes:
        folder: where they are.
        dtype: that they have.
        num_bytes: size of a file.
    """

    folder: Path
    dtype: torch.dtype
    num_bytes: int

    def has(self, sha256: str) -> bool:
        """Whether there is a whole file for an image."""
        try:
            return self._path(sha256).stat().st_size == self.num_bytes
        except OSError:
            return False

    def read(self, sha256: str) -> torch.Tensor:
        """The features `[P, C]` of an image.

        Raises:
            StorageError: they are gone, or damaged.
        """
        path = self._path(sha256)
        try:
            with storage_errors(str(path)):
                return load_file(path)[_NAME]
        except (StorageError, SafetensorError) as error:
            raise StorageError(
                f"{path}: features of an image cannot be read ({error}); remove that file and resume the run, which makes it anew"
            ) from error

    def write(self, sha256: str, features: torch.Tensor) -> None:
        """Store the features of an image in one step.

        Raises:
            StorageError: they cannot be written.
        """
        with publish_file(self._path(sha256)) as temporary:
            save_tensors(temporary, {_NAME: features})

    def require_room(self, num_images: int) -> None:
        """Nothing, if the features of so many images fit onto the disk.

        Raises:
            ConfigurationError: they do not.
        """
        existing = next(place for place in (self.folder, *self.folder.parents) if place.exists())
        wanted, free = num_images * self.num_bytes, shutil.disk_usage(existing).free
        if wanted > free:
            raise ConfigurationError(
                f"{self.folder}: the features of {num_images} images take {gigabytes(wanted)}, and {gigabytes(free)} are free on "
                "that disk; choose a feature_cache on a larger one, or leave it out"
            )

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / f"{sha256}.safetensors"


def open_features(folder: str, base: CheckpointFiles, dtype: torch.dtype) -> FeatureFiles:
    """Where the features are that the tower of a checkpoint gives in a dtype.

    Args:
        folder: with features of any towers; it need not exist.
        base: the checkpoint, whose tower is read.
        dtype: of the arithmetic.
    """
    depends_on = {
        "tower": _tower_digest(base),
        "config": base.vision_config,
        "layer": base.mm_vision_select_layer,
        "preprocessor": digest_file(base.preprocessor_path),
        "dtype": str(dtype),
        "version": _VERSION,
    }
    one = torch.zeros(base.num_image_tokens, base.vision_config["hidden_size"], dtype=dtype)
    return FeatureFiles(
        folder=local_path(folder, "a cache of features") / digest_json(depends_on)[:32],
        dtype=dtype,
        num_bytes=len(save({_NAME: one}, metadata={"format": "pt"})),
    )


def write_features(
    files: FeatureFiles,
    model: YiVLForConditionalGeneration,
    preprocessor: ImagePreprocessor,
    images: Iterable[UnseenImages],
    num_images: int,
    on_progress: OnProgress,
) -> None:
    """Store what a tower gives of images.

    Args:
        files: where to.
        model: with the tower.
        preprocessor: of its checkpoint.
        images: a few at a time.
        num_images: how many in all.
        on_progress: is told.

    Raises:
        ImageError: as `images`.
        StorageError: features cannot be written.
    """
    device, done = model.lm_head.weight.device, 0
    unwritten: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_NUM_WRITERS) as pool:
        for digests, pixels in images:
            pixel_values = preprocessor.normalise(pixels.to(device).squares())
            features = tower_features(model, pixel_values).to(files.dtype).cpu()
            unwritten.extend(pool.submit(files.write, *each) for each in zip(digests, features, strict=True))
            while len(unwritten) > _MAX_UNWRITTEN:
                unwritten.popleft().result()
            done = min(done + len(digests), num_images)
            on_progress(Progress(stage="features", done=done, total=num_images, unit="image"))
        for future in unwritten:
            future.result()


@torch.no_grad()
def tower_features(model: YiVLForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """What a frozen tower gives, `[N, P, C]`, of `[N, 3, H, W]`."""
    with best_attention(pixel_values.device):
        return torch.cat([model.model.get_vision_features(part) for part in pixel_values.split(_MAX_IMAGES)])


def _tower_digest(base: CheckpointFiles) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(read_tensors(base).items()):
        if part_of(name) == "vision":
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(tensor.load().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
