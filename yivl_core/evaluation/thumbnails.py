"""Small pictures of the images of a validated dataset, found by their content."""

from collections.abc import Iterator
from pathlib import Path

from yivl_core.data.cache.cache_configuration import default_cache_folder
from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.data.dataset import RECORDS_NAME, read_records
from yivl_core.data.images import ImageInfo, ImageStore
from yivl_core.outputs.predictions import PredictionImage
from yivl_core.outputs.thumbnails import UNREADABLE, Thumbnail, load_thumbnail


class Thumbnails:
    """Makes small pictures of the images of a dataset.

    Args:
        dataset: folder of a validated dataset, or file of records that `write_records` wrote.
        sha256s: content (hex) of the images that will be asked for; the places of others are not kept.

    Raises:
        DatasetError: the records are none of a validated dataset.
        StorageError: they cannot be read.
    """

    def __init__(self, dataset: str, sha256s: set[str]) -> None:
        self._images = {image.sha256: image for image in _images(dataset) if image.sha256 in sha256s}
        self._store = ImageStore(cache=ImageCache(default_cache_folder()))

    def make(self, image: PredictionImage) -> Thumbnail:
        """The picture of an image that a model was shown.

        Raises:
            StorageError: the disk failed; a file that is missing, changed or no image is told of in the thumbnail.
        """
        if image.sha256 is None:
            return UNREADABLE
        info = self._images.get(image.sha256)
        if info is None:
            return Thumbnail(problem="is not in the dataset")
        return load_thumbnail(self._store, info.reference, since="it was validated")


def _images(dataset: str) -> Iterator[ImageInfo]:
    path = Path(dataset)
    for validated in read_records(path / RECORDS_NAME if path.is_dir() else path):
        yield from validated.images
