"""Validated records -> packed rows in memory, ahead of the model: in threads, or in processes where these keep a GPU waiting."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from yivl_core.data.cache.cache_configuration import default_cache_folder
from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.data.configuration import MAX_PIXELS_LIMIT
from yivl_core.data.dataset import ValidatedDataset, ValidatedRecord
from yivl_core.data.images import ImageError, ImageInfo, ImageStore
from yivl_core.data.indexed import IndexedRecords
from yivl_core.digests import digest_json
from yivl_core.errors import ChildFailedError, DatasetError, YivlError
from yivl_core.processing.processor import ModelInputs, Processor, TooLongError
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.training.configuration import TrainingSettings
from yivl_core.training.features import FeatureFiles, UnseenImages
from yivl_core.training.packing import PackedBatch, pack
from yivl_core.workers import end_with_parent, worker_context

_NUM_THREADS = 4
_MEASURED_AT_A_TIME = 1000
_RANGES_WORTH_PROCESSES = 20  # their start takes seconds
_GROUPS_AHEAD_OF_A_WORKER = 2

T = TypeVar("T")
Group = tuple[int, Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedRecord:
    """A record that is too long to be learned.

    Attributes:
        source: where it was written.
        num_tokens: its length, image tokens counted; None where even cut texts do not fit.
    """

    source: str
    num_tokens: int | None


class _Measured(NamedTuple):  # which comes from another process in half the time of a dataclass
    """How long a record is, and what ties it to other records (its images, or itself)."""

    num_tokens: int | None
    has_images: bool
    keys: tuple[str, ...]


class SampleReader:
    """Reads samples by the number of their record; goes to other processes as the places of its files.

    Args:
        dataset: where the records are.
        checkpoint: folder of the base, whose processor is used.
        limit: longer samples are cut to this many tokens; None: none is.
        features: of images, which are not opened then where they are learned; None: none.
    """

    def __init__(
        self, dataset: ValidatedDataset, checkpoint: Path, limit: int | None, features: FeatureFiles | None = None
    ) -> None:
        self._arguments = (dataset, checkpoint, limit, features)
        self._dataset, self._checkpoint, self._limit, self._features = self._arguments
        self._store = ImageStore(MAX_PIXELS_LIMIT, cache=ImageCache(default_cache_folder()))

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleReader, self._arguments

    @cached_property
    def processor(self) -> Processor:
        """The processor of the checkpoint."""
        return Processor.from_checkpoint(self._checkpoint)

    @cached_property
    def records(self) -> IndexedRecords:
        """The records of the dataset."""
        return IndexedRecords(self._dataset)

    def measure(self, index: int) -> tuple[_Measured, bytes]:
        """What has to be known of a record before it is used, and its content as a line; no image is opened.

        Raises:
            DatasetError: it has no response, or a text that cannot be used.
        """
        validated = self.records[index]
        try:
            num_tokens = self.processor.count_tokens(validated.record, with_response=True, max_length=self._limit)
        except TooLongError:
            num_tokens = None
        except DatasetError as error:
            raise DatasetError(f"{validated.source}: {error}") from error
        measured = _Measured(num_tokens=num_tokens, has_images=bool(validated.images), keys=_keys(validated))
        return measured, validated.canonical.encode() + b"\n"

    def load(self, index: int, *, with_response: bool = True) -> ModelInputs:
        """The sample of a record, its images decoded or their features read; or its prompt alone, with decoded images.

        Raises:
            ImageError: an image is gone, or is not what it was when the dataset was validated; the record is named.
            StorageError: the features of an image are gone.
        """
        validated = self.records[index]
        read = partial(self.processor.process, validated.record, with_response=with_response, max_length=self._limit)
        if with_response and self._features is not None:
            return read([], features=[self._features.read(image.sha256) for image in validated.images])
        return read([self._decoded(validated, image) for image in validated.images])

    def unseen(self, indices: Sequence[int]) -> UnseenImages:
        """The images of some records whose features are not stored, each once.

        Raises:
            ImageError: as `load`.
        """
        assert self._features is not None
        images = {
            image.sha256: self._decoded(validated, image)
            for validated in map(self.records.__getitem__, indices)
            for image in validated.images
            if not self._features.has(image.sha256)
        }
        return list(images), self.processor.preprocessor.to_squares(list(images.values()))

    def _decoded(self, validated: ValidatedRecord, image: ImageInfo) -> Image.Image:
        try:
            return self._store.load(image.reference).image
        except ImageError as error:
            raise ImageError(error.kind, f"{validated.source}: {error.message}", error.remedy) from error


class Samples:
    """The records of a dataset that fit.

    Args:
        dataset: where the records are.
        checkpoint: folder of the base.
        settings: length limits.
        max_length: longest sample in tokens.
        num_workers: processes that help; 0: none.
        features: of images, as `SampleReader`.

    Raises:
        DatasetError: a record has no response, or a text that cannot be used; or the records are not those that were validated.

    Attributes:
        reader: reads them.
        indices: of the records that fit, in the dataset.
        keys: for each of them what ties it to other records: its images, or itself.
        dropped: the records that do not fit.
        have_images: for each of them whether it has an image.
        lengths: of each of them in tokens, image tokens counted.
    """

    def __init__(
        self,
        dataset: ValidatedDataset,
        checkpoint: Path,
        settings: TrainingSettings,
        max_length: int,
        num_workers: int = 0,
        on_progress: OnProgress = ignore_progress,
        features: FeatureFiles | None = None,
    ) -> None:
        self.reader = SampleReader(dataset, checkpoint, max_length if settings.too_long == "truncate" else None, features)
        self.indices: list[int] = []
        self.keys: list[tuple[str, ...]] = []
        self.dropped: list[DroppedRecord] = []
        self.have_images: list[bool] = []
        self.lengths: list[int] = []
        digest, num_records = hashlib.sha256(), len(self.reader.records)
        ranges = [
            range(start, min(start + _MEASURED_AT_A_TIME, num_records)) for start in range(0, num_records, _MEASURED_AT_A_TIME)
        ]
        on_progress(Progress(stage="measure", done=0, total=num_records, unit="record"))
        for indices, (measured, content) in zip(ranges, _measure(self.reader, ranges, num_workers), strict=True):
            digest.update(content)
            for index, record in zip(indices, measured, strict=True):
                if record.num_tokens is None or record.num_tokens > max_length:
                    self.dropped.append(DroppedRecord(source=str(self.validated(index).source), num_tokens=record.num_tokens))
                else:
                    self.indices.append(index)
                    self.keys.append(record.keys)
                    self.have_images.append(record.has_images)
                    self.lengths.append(record.num_tokens)
            on_progress(Progress(stage="measure", done=indices.stop, total=num_records, unit="record"))
        if digest.hexdigest() != dataset.digest:
            raise DatasetError(f"{dataset.folder}: records were changed after validation; run `yivl validate` again")

    def validated(self, index: int) -> ValidatedRecord:
        """A record of the dataset."""
        return self.reader.records[index]


def load_rows(
    readers: Sequence[SampleReader],
    groups: Iterable[Group],
    row_tokens: int,
    num_workers: int,
    *,
    has_slots: bool = False,
    gpu: torch.device | None = None,
) -> Iterator[list[PackedBatch]]:
    """The packed rows of each group of records, later groups being prepared while one is used.

    Args:
        readers: of the datasets that the groups are from.
        groups: the number of a reader, and numbers of its records.
        row_tokens: most tokens in a row.
        num_workers: processes that prepare a group each; 0: threads of this process, for one group ahead. The rows are the same.
        has_slots: whether attention may have slots of one length (`pack`).
        gpu: for which what the processes prepare is brought to memory that it reads by itself, in a thread; None: for none.

    Raises:
        ImageError: as `SampleReader.load`.
        ChildFailedError: a process died while it answered.
    """
    if num_workers:
        make = partial(_load_and_pack, row_tokens=row_tokens, has_slots=has_slots)
        yield from _in_processes(make, readers, groups, num_workers, gpu=gpu)
        return
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        ahead: list[Future[ModelInputs]] = []
        for number, indices in chain(groups, [(0, ())]):
            current, ahead = ahead, [pool.submit(readers[number].load, index) for index in indices]
            if current:
                yield pack([future.result() for future in current], row_tokens, has_slots=has_slots)


def load_unseen(
    readers: Sequence[SampleReader], groups: Iterable[Group], num_workers: int, *, gpu: torch.device | None = None
) -> Iterator[UnseenImages]:
    """What `SampleReader.unseen` gives of each group; arguments as of `load_rows`."""
    if num_workers:
        return _in_processes(SampleReader.unseen, readers, groups, num_workers, gpu=gpu)
    return (readers[number].unseen(indices) for number, indices in groups)


def _measure(reader: SampleReader, ranges: Sequence[range], num_workers: int) -> Iterator[tuple[list[_Measured], bytes]]:
    if num_workers and len(ranges) >= _RANGES_WORTH_PROCESSES:
        return _in_processes(_measure_all, [reader], ((0, indices) for indices in ranges), num_workers)
    return (_measure_all(reader, indices) for indices in ranges)


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error of a user's data, on its way from a worker; torch would bring home its text alone."""

    error: YivlError


class _Results(Dataset[Any]):
    """What a worker makes of a group, in the form of torch's loader: the group stands in the place of an index."""

    def __init__(self, make: Callable[[SampleReader, Sequence[int]], Any], readers: Sequence[SampleReader]) -> None:
        self._make, self._readers = make, readers

    def __getitem__(self, group: Group) -> Any:
        number, indices = group
        try:
            return self._make(self._readers[number], indices)
        except YivlError as error:
            return _Failure(error)


def _measure_all(reader: SampleReader, indices: Sequence[int]) -> tuple[list[_Measured], bytes]:
    """What `measure` gives of each record, and the lines of all."""
    measured = [reader.measure(index) for index in indices]
    return [record for record, _ in measured], b"".join(line for _, line in measured)


def _load_and_pack(reader: SampleReader, indices: Sequence[int], *, row_tokens: int, has_slots: bool) -> list[PackedBatch]:
    return pack([reader.load(index) for index in indices], row_tokens, has_slots=has_slots)


def _in_processes(
    make: Callable[[SampleReader, Sequence[int]], T],
    readers: Sequence[SampleReader],
    groups: Iterable[Group],
    num_workers: int,
    *,
    gpu: torch.device | None = None,
) -> Iterator[T]:
    """What `make` gives for each group, in their order."""
    loader = DataLoader(
        _Results(make, readers),
        batch_size=None,
        sampler=groups,
        num_workers=num_workers,
        collate_fn=_as_it_is,
        prefetch_factor=_GROUPS_AHEAD_OF_A_WORKER,
        multiprocessing_context=worker_context(__name__),
        worker_init_fn=_start_worker,
        pin_memory=gpu is not None,
    )
    with nullcontext() if gpu is None else torch.cuda.device(gpu):  # the loader pins for the GPU that is current when it starts
        results = iter(loader)
    while True:
        try:
            result = next(results)
        except StopIteration:
            return
        except (ConnectionError, EOFError) as cause:  # of a worker that died while its answer was on the way
            raise death_of_worker(repr(cause)) from cause
        if isinstance(result, _Failure):
            raise result.error
        yield result


def death_of_worker(reason: str) -> ChildFailedError:
    """What is told of a process that prepared samples."""
    return ChildFailedError(
        f"a process that prepares samples has died ({reason}); resume the run, with fewer num_workers or with 0; a script of "
        'your own has to start it below `if __name__ == "__main__":`'
    )


def _start_worker(_: int) -> None:
    end_with_parent()  # torch looks at the worker's own parent only, which lives on


def _as_it_is(result: T) -> T:
    return result


def _keys(validated: ValidatedRecord) -> tuple[str, ...]:
    return tuple(image.sha256 for image in validated.images) or (digest_json([validated.record.query, validated.record.history]),)
