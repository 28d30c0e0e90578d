"""Features of a frozen vision tower on disk, a file for each image, so that decoding and the tower are paid for once.

They lie in a folder named by what they depend on: the tower's weights and configuration, how images are prepared, device, dtype
and packages of the arithmetic. A file is named by the sha256 of the image file, so that a name never means two contents.

Shapes: N images, P patches, C width of the tower.
"""

import hashlib
import shutil
import time
import zlib
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryFile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from yivl_core.digests import digest_file, digest_json
from yivl_core.errors import ConfigurationError, StorageError
from yivl_core.model.files import CheckpointFiles
from yivl_core.model.gpu_memory import gigabytes
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.weights import read_tensors
from yivl_core.processing.image import ImagePreprocessor
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.progress import OnProgress, Progress
from yivl_core.storage import describe_os_error, local_path, publish_bytes, storage_errors
from yivl_core.training.attending import best_attention
from yivl_core.training.tuning import part_of

_VERSION = 1  # of how images are prepared and the tower is run, which no file says
_PACKAGES = ("torch", "transformers", "pillow")
_NAME, _CHECKSUM = "features", "crc32"
_MAX_IMAGES = 16  # that a tower takes at a time: more are not faster, and take memory
_NUM_WRITERS, _MAX_UNWRITTEN = 8, 64
_LEFT_BEHIND_S = 86_400  # what was half-written so long ago is nobody's any more

UnseenImages = tuple[list[str], UnpaddedPixels]  # sha256 of each, and what the tower reads of them


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureFiles:
    """The features of one tower; goes to other processes as a place.

    Attributes:
        place: where the user has them.
        folder: where those of this tower are.
        dtype: that they have.
        num_bytes: size of a file.
    """

    place: Path
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
            StorageError: they are gone, or damaged, and then removed.
        """
        path = self._path(sha256)
        try:
            with storage_errors(str(path)), safe_open(path, framework="pt") as file:
                features: torch.Tensor = file.get_tensor(_NAME)
                if _checksum(features) == file.metadata()[_CHECKSUM]:
                    return features
                damage: Exception | None = None
        except StorageError as error:
            raise StorageError(f"{error}; features of an image are kept there; resume the run, which makes them anew") from error
        except (SafetensorError, KeyError) as error:
            damage = error
        with storage_errors(str(path)):
            path.unlink(missing_ok=True)
        raise StorageError(
            f"{path}: features of an image were damaged, and the file is removed; resume the run, which makes it anew"
        ) from damage

    def write(self, sha256: str, features: torch.Tensor) -> None:
        """Store the features of an image in one step.

        Raises:
            StorageError: they cannot be written.
        """
        publish_bytes(str(self._path(sha256)), _serialised(features))

    def require_room(self, num_images: int) -> None:
        """Nothing, if the features of so many images can be stored.

        Raises:
            ConfigurationError: the folder cannot be written to, or the disk has no room for them.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ConfigurationError(f"feature_cache {describe_os_error(error, self.place)}") from error
        for path in self.folder.glob("*/.*.tmp-*"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _LEFT_BEHIND_S:
                    path.unlink()
        wanted, free = num_images * self.num_bytes, shutil.disk_usage(self.folder).free
        if wanted > free:
            raise ConfigurationError(
                f"feature_cache {self.place}: the features of {num_images} images take {gigabytes(wanted)}, and "
                f"{gigabytes(free)} are free on that disk; choose a folder on a larger one, or leave it out"
            )

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / f"{sha256}.safetensors"


def open_features(folder: str, base: CheckpointFiles, dtype: torch.dtype, device: torch.device) -> FeatureFiles:
    """Where the features are that the tower of a checkpoint gives in a dtype on a kind of device.

    Args:
        folder: with features of any towers; it need not exist.
        base: the checkpoint, whose tower is read.
        dtype: of the arithmetic.
        device: where it is done.
    """
    place = local_path(folder, "a cache of features")
    depends_on = {
        "tower": _tower_digest(base),
        "config": base.vision_config,
        "layer": base.mm_vision_select_layer,
        "preprocessor": digest_file(base.preprocessor_path),
        "dtype": str(dtype),
        "device": device.type,
        "packages": {name: version(name) for name in _PACKAGES},
        "version": _VERSION,
    }
    one = torch.zeros(base.num_image_tokens, base.vision_config["hidden_size"], dtype=dtype)
    return FeatureFiles(
        place=place,
        folder=place / digest_json(depends_on)[:32],
        dtype=dtype,
        num_bytes=len(_serialised(one)),
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
    device, done, started = model.lm_head.weight.device, 0, time.perf_counter()
    unwritten: deque[Future[None]] = deque()
    with ThreadPoolExecutor(_NUM_WRITERS) as pool:
        for digests, pixels in images:
            if not digests:  # another run has stored them meanwhile
                continue
            pixel_values = preprocessor.normalise(pixels.to(device).squares())
            features = tower_features(model, pixel_values).to(files.dtype).cpu()
            unwritten.extend(pool.submit(files.write, *each) for each in zip(digests, features, strict=True))
            while len(unwritten) > _MAX_UNWRITTEN:
                unwritten.popleft().result()
            done = min(done + len(digests), num_images)
            remaining_s = (time.perf_counter() - started) / done * (num_images - done)
            on_progress(Progress(stage="features", done=done, total=num_images, unit="image", remaining_s=remaining_s))
        for future in unwritten:
            future.result()


@torch.no_grad()
def tower_features(model: YiVLForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """What a frozen tower gives, `[N, P, C]`, of `[N, 3, H, W]`."""
    with best_attention(pixel_values.device):
        return torch.cat([model.model.get_vision_features(part) for part in pixel_values.split(_MAX_IMAGES)])


def _serialised(features: torch.Tensor) -> bytes:
    return save({_NAME: features.contiguous()}, metadata={"format": "pt", _CHECKSUM: _checksum(features)})


def _checksum(features: torch.Tensor) -> str:
    return f"{zlib.crc32(features.contiguous().view(torch.uint8).numpy().data):08x}"


def _tower_digest(base: CheckpointFiles) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(read_tensors(base).items()):
        if part_of(name) == "vision":
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(tensor.load().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()
