"""Rows -> what the model reads, in other threads and ahead of it: images read, checked, decoded, resized; prompts tokenised."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch

from yivl_core.data.images import ImageError, ImageStore, LoadedImage
from yivl_core.data.reading import InputRow
from yivl_core.errors import DatasetError
from yivl_core.outputs.predictions import PredictionImage
from yivl_core.outputs.sample_ids import base_sample_id, image_digest
from yivl_core.outputs.shards import ShardPlan
from yivl_core.processing.processor import ModelInputs, Processor

# Rows that wait for the model, at 0.6 MB an image of Yi-VL.
NUM_AHEAD = 64

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


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
        preprocess_s: seconds that this took.
    """

    record_index: int
    row: InputRow
    sample_id: str
    images: tuple[PredictionImage, ...]
    inputs: ModelInputs | None
    error_kind: str | None
    error: str | None
    preprocess_s: float


class RowPreparer:
    """Makes rows ready.

    Args:
        plan: of the shards, which knows how often a sample occurs.
        store: of the images.
        processor: of the checkpoint.
        max_positions: tokens that the model reads.
    """

    def __init__(self, plan: ShardPlan, store: ImageStore, processor: Processor, max_positions: int) -> None:
        self._plan, self._store, self._processor, self._max_positions = plan, store, processor, max_positions

    def prepare(self, item: tuple[int, InputRow]) -> PreparedRow:
        """Everything about a numbered row that needs no model; what is wrong with it becomes its error."""
        started = time.perf_counter()
        record_index, row = item
        images: list[LoadedImage] = []
        kind, error, inputs = row.error_kind, row.error, None
        if row.record is not None:
            try:
                for reference in row.images:
                    images.append(self._store.load(reference))  # noqa: PERF401  (those before one that fails stay known)
                inputs = self._processor.process(row.record, [image.image for image in images], with_response=False)
                if len(inputs.input_ids) >= self._max_positions:
                    kind = "too_long"
                    error = f"{len(inputs.input_ids)} tokens, and the model reads {self._max_positions}; shorten the text"
            except ImageError as problem:
                kind, error = problem.kind, str(problem)
            except DatasetError as problem:
                kind, error = "unusable_record", str(problem)
        known = [image.info.sha256 for image in images]
        digests = known + [image_digest(reference, self._store) for reference in row.images[len(known) :]]
        return PreparedRow(
            record_index=record_index,
            row=row,
            sample_id=self._plan.sample_id(record_index, base_sample_id(row, digests)),
            images=_prediction_images(row, images),
            inputs=inputs if kind is None else None,
            error_kind=kind,
            error=error,
            preprocess_s=time.perf_counter() - started,
        )


def num_threads(device: torch.device) -> int:
    """How many threads to prepare rows with; PIL lets go of the interpreter while it decodes and resizes, so they are enough.

    A model that runs on the CPU itself loses more by further threads than they bring.
    """
    return 1 if device.type == "cpu" else min(16, os.cpu_count() or 1)


def prepare_ahead(
    pool: ThreadPoolExecutor, prepare: Callable[[Item], Prepared], items: Iterable[Item], num_ahead: int = NUM_AHEAD
) -> Iterator[Prepared]:
    """Items made ready by the threads of a pool, in order, some ahead of who takes them."""
    source = iter(items)
    futures = deque(pool.submit(prepare, item) for item in islice(source, num_ahead))
    while futures:
        prepared = futures.popleft().result()
        futures.extend(pool.submit(prepare, item) for item in islice(source, 1))
        yield prepared


def _prediction_images(row: InputRow, images: Sequence[LoadedImage]) -> tuple[PredictionImage, ...]:
    """What is known of each image of a row; of those behind the first that failed, only their address."""
    known = [
        PredictionImage(uri=reference.uri, sha256=image.info.sha256, width=image.info.width, height=image.info.height)
        for reference, image in zip(row.images, images, strict=False)
    ]
    return (*known, *(PredictionImage(uri=reference.uri, sha256=reference.sha256) for reference in row.images[len(known) :]))
