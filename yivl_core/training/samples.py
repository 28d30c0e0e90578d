"""Validated records -> samples in memory, one step ahead of the model."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

from yivl_core.data.configuration import MAX_PIXELS_LIMIT
from yivl_core.data.dataset import ValidatedDataset, ValidatedRecord
from yivl_core.data.images import ImageError, ImageStore
from yivl_core.data.indexed import IndexedRecords
from yivl_core.digests import digest_json
from yivl_core.errors import DatasetError
from yivl_core.processing.processor import ModelInputs, Processor, TooLongError
from yivl_core.progress import OnProgress, Progress, ignore_progress
from yivl_core.training.configuration import TrainingSettings
from yivl_core.training.packing import PackedBatch, pack

_NUM_WORKERS = 4
_PROGRESS_RECORDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedRecord:
    """A record that is too long to be learned.

    Attributes:
        source: where it was written.
        num_tokens: its length, image tokens counted; None where even cut texts do not fit.
    """

    source: str
    num_tokens: int | None


class Samples:
    """The records of a dataset that fit, ready to be read by number.

    Args:
        dataset: where the records are.
        processor: of the base checkpoint.
        settings: length limits.
        max_length: longest sample in tokens.

    Raises:
        DatasetError: a record has no response, or a text that cannot be used.

    Attributes:
        indices: of the records that fit, in the dataset.
        keys: for each of them what ties it to other records: its images, or itself.
        dropped: the records that do not fit.
    """

    def __init__(
        self,
        dataset: ValidatedDataset,
        processor: Processor,
        settings: TrainingSettings,
        max_length: int,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        self._records = IndexedRecords(dataset)
        self._processor = processor
        self._store = ImageStore(MAX_PIXELS_LIMIT)
        self._limit = max_length if settings.too_long == "truncate" else None
        self.indices: list[int] = []
        self.keys: list[tuple[str, ...]] = []
        self.dropped: list[DroppedRecord] = []
        for index, validated in enumerate(dataset):
            if index % _PROGRESS_RECORDS == 0:
                on_progress(Progress(stage="measure", done=index, total=dataset.num_records, unit="record"))
            num_tokens = self._count(validated)
            if num_tokens is None or num_tokens > max_length:
                self.dropped.append(DroppedRecord(source=str(validated.source), num_tokens=num_tokens))
            else:
                self.indices.append(index)
                self.keys.append(_keys(validated))

    def validated(self, index: int) -> ValidatedRecord:
        """A record of the dataset."""
        return self._records[index]

    def load(self, index: int) -> ModelInputs:
        """The sample of a record, its images decoded.

        Raises:
            ImageError: an image is gone, or is not what it was when the dataset was validated; the record is named.
        """
        validated = self.validated(index)
        try:
            images = [self._store.load(image.reference).image for image in validated.images]
        except ImageError as error:
            raise ImageError(error.kind, f"{validated.source}: {error.message}", error.remedy) from error
        return self._processor.process(validated.record, images, with_response=True, max_length=self._limit)

    def rows(self, groups: Iterable[Sequence[int]], row_tokens: int) -> Iterator[list[PackedBatch]]:
        """The packed rows of each group of records, the next group being prepared while one is used."""
        with ThreadPoolExecutor(_NUM_WORKERS) as pool:
            ahead: list[Future[ModelInputs]] = []
            for group in chain(groups, [[]]):
                futures, ahead = ahead, [pool.submit(self.load, index) for index in group]
                if futures:
                    yield pack([future.result() for future in futures], row_tokens)

    def _count(self, validated: ValidatedRecord) -> int | None:
        try:
            return self._processor.count_tokens(validated.record, with_response=True, max_length=self._limit)
        except TooLongError:
            return None
        except DatasetError as error:
            raise DatasetError(f"{validated.source}: {error}") from error


def _keys(validated: ValidatedRecord) -> tuple[str, ...]:
    return tuple(image.sha256 for image in validated.images) or (digest_json([validated.record.query, validated.record.history]),)
