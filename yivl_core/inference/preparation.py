"""Rows -> what the model reads, beside it and ahead of it: images read, checked, decoded, resized; prompts tokenised.

Beside a GPU this is done in processes. Sixteen threads on as many cores make fewer images ready than four processes
(`tests/benchmarks/RESULTS.md`): each takes the interpreter some hundred times an image, and whoever gives the GPU its orders
waits among them.
"""

import io
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from typing import Any, TypeVar

import torch

from yivl_core.ahead import NUM_AHEAD, request_threads, work_ahead
from yivl_core.data.images import ImageError, ImageReference, ImageStore, LoadedImage
from yivl_core.data.reading import InputRow
from yivl_core.errors import ChildFailedError, DatasetError
from yivl_core.model.config_keys import IMAGE_TOKEN_INDEX
from yivl_core.outputs.predictions import PredictionImage
from yivl_core.outputs.sample_ids import base_sample_id, image_digest, numbered
from yivl_core.processing.processor import ModelInputs, Processor
from yivl_core.workers import end_with_parent, start_server, worker_context

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRow:
    """A row with its place in the plan.

    Attributes:
        record_index: place in the input.
        occurrence: which row of its name it is, from 1.
        was_found: whether all of its images were there when the split was planned.
        row: as it was read.
        images: where its images are now: as the row says, or what was fetched of them, or why it could not be.
    """

    record_index: int
    occurrence: int
    was_found: bool
    row: InputRow
    images: tuple[ImageReference | ImageError, ...]

    @property
    def num_bytes(self) -> int:
        """Memory that the files of its images take, before they are decoded."""
        return sum(image.num_bytes for image in self.images if isinstance(image, ImageReference))


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRow:
    """A row that is ready for the model, or that has failed already.

    Attributes:
        record_index: place in the input.
        row: as it was read.
        sample_id: names it in the predictions.
        images: what is known of them.
        inputs: what the model reads; None where it failed.
        error_kind: what went wrong, in one word; None: nothing.
        error: the same in a sentence.
        has_vanished: whether an image is missing that was there when the split was planned.
        preprocess_s: seconds that this took.
    """

    record_index: int
    row: InputRow
    sample_id: str
    images: tuple[PredictionImage, ...]
    inputs: ModelInputs | None
    error_kind: str | None
    error: str | None
    has_vanished: bool
    preprocess_s: float


class RowPreparer:
    """Makes rows ready.

    Args:
        store: of the images.
        processor: of the checkpoint.
        max_positions: tokens that the model reads.
    """

    def __init__(self, store: ImageStore, processor: Processor, max_positions: int) -> None:
        self._store, self._processor, self._max_positions = store, processor, max_positions

    def fetch(self, planned: PlannedRow) -> PlannedRow:
        """The row with the bytes of those of its images that lie on an object store.

        Raises:
            StorageError: the store failed.
        """
        images = planned.images
        return replace(
            planned, images=tuple(self._store.fetch(one) if isinstance(one, ImageReference) else one for one in images)
        )

    def prepare(self, planned: PlannedRow) -> PreparedRow:
        """Everything about a row that needs no model; what is wrong with it becomes its error."""
        started = time.perf_counter()
        row = planned.row
        images: list[LoadedImage] = []
        kind, error, inputs = row.error_kind, row.error, None
        if row.record is not None:
            try:
                for reference in planned.images:
                    if isinstance(reference, ImageError):
                        raise reference
                    images.append(self._store.load(reference))  # those before one that fails stay known
                inputs = self._processor.process(row.record, [image.image for image in images], with_response=False)
                if len(inputs.input_ids) >= self._max_positions:
                    kind = "too_long"
                    error = _too_long(inputs, self._max_positions)
            except ImageError as problem:
                kind, error = problem.kind, str(problem)
            except DatasetError as problem:
                kind, error = "unusable_record", str(problem)
        return PreparedRow(
            record_index=planned.record_index,
            row=_without_data(row),
            sample_id=numbered(base_sample_id(row, self._names(planned, images)), planned.occurrence),
            images=_prediction_images(row, images),
            inputs=inputs if kind is None else None,
            error_kind=kind,
            error=error,
            has_vanished=kind == "image_missing" and planned.was_found and row.record is not None,
            preprocess_s=time.perf_counter() - started,
        )

    def _names(self, planned: PlannedRow, images: Sequence[LoadedImage]) -> Iterator[str]:
        """What `image_digest` gave of each image when the split was planned, of those that are loaded without another look."""
        for reference, found, image in zip_longest(planned.row.images, planned.images, images):
            known = reference.public_name or (image.info.sha256 if image else None)
            yield known or image_digest(reference if isinstance(found, ImageError) else found, self._store)


def _without_data(row: InputRow) -> InputRow:
    """The row as predictions need it: bytes of images would be sent back and held until the shard is written."""
    if all(image.data is None for image in row.images):
        return row
    return replace(row, images=tuple(replace(image, data=None) for image in row.images))


def start_early(device: torch.device) -> None:
    """Begins what `preparing` would have to wait for seconds, while a model is loaded."""
    if device.type != "cpu":
        start_server(__name__)


@contextmanager
def preparing(
    prepare: Callable[[Item], Prepared],
    device: torch.device,
    num_ahead: int = NUM_AHEAD,
    fetch: Callable[[Item], Item] | None = None,
) -> Iterator[Callable[[Iterable[Item]], Iterator[Prepared]]]:
    """Helpers that make items ready for a model.

    Args:
        prepare: makes one ready; beside a GPU it goes to other processes, and so do items and results.
        device: where the model runs. On a CPU there is one thread: the model loses more by further ones than they bring.
        num_ahead: most items that are ready, or being made so, before they are taken.
        fetch: brings what an item needs over a network, before it is made ready; None: nothing is needed. It waits most of the
            time, so it is done in threads of this process.

    Yields:
        What gives items, made ready, in their order. It raises what `prepare` raises, and `ChildFailedError` where a helper dies.
    """
    pool: Executor
    if device.type == "cpu":
        pool = ThreadPoolExecutor(1)
        ahead = partial(_ahead, pool, prepare, num_ahead)
    else:
        pool = ProcessPoolExecutor(min(16, os.cpu_count() or 1), worker_context(__name__), _start_worker, (prepare,))
        ahead = partial(_unpacked, partial(_ahead, pool, _prepare_in_worker, num_ahead))
    with ExitStack() as stack:
        threads = stack.enter_context(request_threads()) if fetch else None
        stack.callback(pool.shutdown, cancel_futures=True)

        def ready(items: Iterable[Item]) -> Iterator[Prepared]:
            return ahead(_ahead(threads, fetch, num_ahead, items) if threads and fetch else items)

        yield ready


def _unpacked(ahead: Callable[[Iterable[Item]], Iterator[bytes]], items: Iterable[Item]) -> Iterator[Any]:
    return map(pickle.loads, ahead(items))


def _ahead(pool: Executor, work: Callable[[Item], Prepared], num_ahead: int, items: Iterable[Item]) -> Iterator[Prepared]:
    try:
        yield from work_ahead(pool, work, items, num_ahead, _num_bytes)
    except BrokenProcessPool as cause:
        raise ChildFailedError(
            "a process that prepares images has died; what had been published is kept. If it was killed because memory ran out, "
            "free some and continue with --resume; if it said that it was started too early, a script of your own has to start "
            'this below `if __name__ == "__main__":`'
        ) from cause


def _num_bytes(item: object) -> int:
    return item.num_bytes if isinstance(item, PlannedRow) else 0


_worker_prepares: Callable[[Any], Any]


def _start_worker(prepare: Callable[[Any], Any]) -> None:
    global _worker_prepares
    _worker_prepares = prepare
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):  # which reach the whole group; the parent ends its helpers itself
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


def _prepare_in_worker(item: Any) -> bytes:
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(_worker_prepares(item))
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Sends tensors as arrays; torch would put each into shared memory, of which a container has little."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, torch.Tensor) else NotImplemented


def _too_long(inputs: ModelInputs, max_positions: int) -> str:
    num_tokens, num_of_images = len(inputs.input_ids), int((inputs.input_ids == IMAGE_TOKEN_INDEX).sum())
    parts, remedy = "", "shorten the text"
    if num_of_images:
        parts, remedy = f" ({num_of_images} of them for images)", "shorten the text, or give fewer images"
    return f"{num_tokens} tokens{parts}, and the model reads {max_positions}, an answer included; {remedy}"


def _prediction_images(row: InputRow, images: Sequence[LoadedImage]) -> tuple[PredictionImage, ...]:
    """What is known of each image of a row; of those behind the first that failed, only their address."""
    known = [
        PredictionImage(uri=reference.uri, sha256=image.info.sha256, width=image.info.width, height=image.info.height)
        for reference, image in zip(row.images, images, strict=False)
    ]
    return (*known, *(PredictionImage(uri=reference.uri, sha256=reference.sha256) for reference in row.images[len(known) :]))
