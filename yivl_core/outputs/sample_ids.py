"""The name of a sample: the same in every run over the same input, wherever the files lie and however the work is split.

It is the record's `id`, else a digest of what the model is shown. Where a name occurs again, the second row gets `#2`, the third
`#3`. That number depends on the whole input, which the worker of a single shard does not see, so it is found once, when the split
is planned, and stored there for the rows that need one.

Finding it needs image digests, and reading every image twice would be dear. So the first pass over the input compares texts and
file sizes, in which equal samples agree; only images of rows that agree in both are read, in a second pass.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable
from io import BufferedReader

from yivl_core.data.images import ImageError, ImageReference, ImageStore
from yivl_core.data.reading import InputRow
from yivl_core.data.records import sample_digest
from yivl_core.digests import digest_json
from yivl_core.errors import StorageError
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.storage import describe_os_error

_PROGRESS_ROWS = 1000


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

    Raises:
        StorageError: the disk or network failed.
    """
    return _measure(image, store, lambda file: hashlib.file_digest(file, "sha256").hexdigest())


def find_repeats(
    read_rows: Callable[[], Iterable[InputRow]], store: ImageStore, on_progress: OnProgress = ignore_progress
) -> tuple[int, dict[int, int]]:
    """The number of rows, and for each row whose name has occurred before its occurrence number, from 2, by record index.

    Raises:
        StorageError: the disk or network failed.
    """
    num_rows, num_alike = 0, Counter[bytes]()
    for row in read_rows():
        num_alike[_rough_key(row, store)] += 1
        num_rows += 1
        _report("plan", num_rows, None, on_progress)
    repeats: dict[int, int] = {}
    if len(num_alike) == num_rows:
        return num_rows, repeats
    next_number: dict[str, int] = {}
    for record_index, row in enumerate(read_rows()):
        _report("compare", record_index + 1, num_rows, on_progress)
        if num_alike[_rough_key(row, store)] == 1:
            continue
        name = base_sample_id(row, (image_digest(image, store) for image in row.images))
        number = next_number.get(name, 1)
        while number > 1 and _key_of_id(numbered(name, number)) in num_alike:
            number += 1  # the user has given this very name to another record
        if number > 1:
            repeats[record_index] = number
        next_number[name] = number + 1
    return num_rows, repeats


def numbered(name: str, number: int) -> str:
    """A name with its occurrence number, from 2 on."""
    return f"{name}#{number}" if number > 1 else name


def _rough_key(row: InputRow, store: ImageStore) -> bytes:
    """A key in which rows of equal names agree, and others seldom, found without reading an image."""
    if row.record is None:
        return _key(["no record", row.error_kind])
    if row.record.id is not None:
        return _key_of_id(row.record.id)
    sizes = (_measure(image, store, lambda file: str(file.seek(0, os.SEEK_END))) for image in row.images)
    return _key(["sample", sample_digest(row.record, tuple(sizes))])


def _key_of_id(name: str) -> bytes:
    return _key(["id", name])


def _key(value: list[str | None]) -> bytes:
    return bytes.fromhex(digest_json(value))[:16]  # one for each row of the input is held in memory


def _measure(image: ImageReference, store: ImageStore, measure: Callable[[BufferedReader], str]) -> str:
    if image.sha256 is not None:
        return image.sha256
    try:
        path = store.resolve(image)
        with path.open("rb") as file:
            return measure(file)
    except (ImageError, PermissionError):
        return "unreadable"
    except OSError as error:
        raise StorageError(describe_os_error(error, image.uri)) from error


def _report(stage: str, done: int, total: int | None, on_progress: OnProgress) -> None:
    if done % _PROGRESS_ROWS == 0:
        on_progress(Progress(stage=stage, done=done, total=total, unit="record"))
