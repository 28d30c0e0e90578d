"""The name of a sample: the same in every run over the same input, wherever the files lie and however the work is split.

It is the record's `id`, else a digest of what the model is shown, where of an image behind a URL the URL counts. Where a name
occurs again, the second row gets `#2`, the third `#3`. That number depends on the whole input, which the worker of a single shard
does not see, so it is found once, when the split is planned (`input_scan.py`), and stored beside the plan.
"""

from collections.abc import Iterable

from yivl_core.data.images import ImageError, ImageReference, ImageStore
from yivl_core.data.reading import InputRow
from yivl_core.data.records import sample_digest
from yivl_core.digests import digest_json


def base_sample_id(row: InputRow, image_digests: Iterable[str]) -> str:
    """The name of a row, before its occurrences are told apart.

    Args:
        row: a record; or an input line that is none, of which there is but the kind of its error to digest.
        image_digests: what `image_digest` gives for each of `row.images`, in order; looked at only if the record has no `id`.
    """
    if row.record is None:
        return digest_json(["no record", row.error_kind])
    if row.record.id is not None:
        return row.record.id
    return sample_digest(row.record, tuple(image_digests))


def image_digest(image: ImageReference, store: ImageStore) -> str:
    """sha256 (hex) of an image's bytes, decodable or not; as validation saw them, or as they are; `unreadable` without any.

    One behind a URL goes by the URL: nobody fetches a million images only to name their records.

    Raises:
        StorageError: the disk or network failed.
    """
    if image.public_name is not None:
        return image.public_name
    try:
        return store.digest(image)
    except ImageError:
        return "unreadable"


def numbered(name: str, number: int) -> str:
    """A name with its occurrence number, from 2 on."""
    return f"{name}#{number}" if number > 1 else name
