"""Rows of a predictions folder -> what each metric counts in each row that has a reference, as columns of whole numbers.

Only the columns of a part that decide its figures are read, and texts are not kept: a row takes a kilobyte at most. Large
folders are measured by several processes, a part at a time; what they find is put together in the order of the parts.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from yivl_core.errors import ChildFailedError, OutputError
from yivl_core.evaluation.metrics.metric import Counts, Metric, RowBatch
from yivl_core.evaluation.metrics.names import HYGIENE
from yivl_core.evaluation.rows import no_references
from yivl_core.evaluation.slices import Slice, slice_names, slice_values, to_slice
from yivl_core.evaluation.texts.extraction import VERBATIM, find_extractor
from yivl_core.evaluation.texts.normalisation import find_normaliser
from yivl_core.outputs.predictions import list_parts, read_chosen_columns
from yivl_core.workers import end_with_parent, worker_context

ALONE_PARTS = 40
"""Folders with fewer parts are measured by this process alone: helpers take a second or two to start."""

_COLUMNS = ("sample_id", "cluster_id", "record_index", "reference", "references", "meta", "response", "finish_reason")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """How rows are measured.

    Attributes:
        metrics: of answers as the extractor gives them; those of `HYGIENE` of answers as they were written.
        verbatim: of answers as they were written.
        normaliser: by which references are looked at for slices.
        extractor: name of it.
        fields: of `meta` that are slices.
        training_texts: normalised; None: they are not known.
    """

    metrics: tuple[Metric, ...]
    verbatim: tuple[Metric, ...]
    normaliser: str
    extractor: str = VERBATIM
    fields: tuple[str, ...] = ()
    training_texts: Collection[str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredRows:
    """The rows that have a reference, in record order.

    Attributes:
        metrics: in the order of the report, those of verbatim answers last.
        counts: of each metric, int64 [num_rows, num_columns].
        sample_ids, cluster_ids: of each row.
        record_indices: int64 [num_rows].
        has_failed: bool [num_rows], whether there is an error in place of an answer.
        slices: ways to divide the rows.
        num_without_reference: rows that are left out.
    """

    metrics: tuple[Metric, ...]
    counts: tuple[Counts, ...]
    sample_ids: list[str]
    cluster_ids: list[str | None]
    record_indices: Counts
    has_failed: np.ndarray[tuple[int], np.dtype[np.bool_]]
    slices: tuple[Slice, ...]
    num_without_reference: int

    def __len__(self) -> int:
        return len(self.sample_ids)

    def counts_of(self, name: str) -> Counts:
        """The counts of the metric of this name."""
        return next(counts for metric, counts in zip(self.metrics, self.counts, strict=True) if metric.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PartScores:
    counts: list[Counts]
    rows: list[tuple[str, str | None, int, bool]]
    values: list[tuple[str, ...]]
    num_without_reference: int


def score_rows(predictions: str, measuring: Measuring, meanwhile: Callable[[], None]) -> ScoredRows:
    """Measure all rows of a folder that have a reference.

    Args:
        predictions: folder or fsspec URL.
        measuring: how.
        meanwhile: what this process does while others measure, or before it does so itself.

    Raises:
        ChildFailedError: a helping process died.
        DatasetError: no row has a reference.
        OutputError: a part cannot be read, two rows have the same sample id, or one has no fields that slices could be made by.
        StorageError: a part cannot be opened.
    """
    file_names = list_parts(predictions)
    with _executor(measuring, len(file_names)) as executor:
        if executor is None:
            meanwhile()
            parts = [_measure_part(predictions, file_name, measuring) for file_name in file_names]
            return _put_together(predictions, measuring, parts)
        try:
            pending = [executor.submit(_measure_part, predictions, file_name) for file_name in file_names]
            meanwhile()
            parts = [future.result() for future in pending]
        except BrokenProcessPool as cause:
            raise ChildFailedError(
                f"a process that measured rows of {predictions} died, perhaps since memory ran out; run the same again"
            ) from cause
        finally:
            executor.shutdown(wait=False, cancel_futures=True)
    return _put_together(predictions, measuring, parts)


@contextmanager
def _executor(measuring: Measuring, num_parts: int) -> Iterator[ProcessPoolExecutor | None]:
    """Processes that measure parts; None where this one is to do it alone."""
    num_workers = min(len(os.sched_getaffinity(0)), num_parts)
    if num_parts < ALONE_PARTS or num_workers < 2:
        yield None
        return
    context: Any = worker_context(__name__)
    with ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(measuring,)) as executor:
        yield executor


_measuring: Measuring | None = None  # of a helping process


def _start_worker(measuring: Measuring) -> None:
    global _measuring
    _measuring = measuring
    end_with_parent()


def _measure_part(predictions: str, file_name: str, measuring: Measuring | None = None) -> _PartScores:
    measuring = measuring or _measuring
    assert measuring is not None
    extract, normalise = find_extractor(measuring.extractor), find_normaliser(measuring.normaliser)
    counts: list[list[Counts]] = [[] for _ in (*measuring.metrics, *measuring.verbatim)]
    rows: list[tuple[str, str | None, int, bool]] = []
    values: list[tuple[str, ...]] = []
    num_without_reference = 0
    for columns in read_chosen_columns(predictions, file_name, _COLUMNS):
        found = [row for row in columns if row["reference"] is not None or row["references"]]
        num_without_reference += len(columns) - len(found)
        references = [_references(row) for row in found]
        reasons = [row["finish_reason"] for row in found]
        texts = [row["response"] for row in found]
        metas = [row["meta"] for row in found]
        verbatim = RowBatch(texts, references, reasons, metas)
        extracted = [None if text is None else extract(text) for text in texts]
        batch = RowBatch(extracted, references, reasons, metas)
        measured = [metric.measure(verbatim if metric.name in HYGIENE else batch) for metric in measuring.metrics]
        measured += [metric.measure(verbatim) for metric in measuring.verbatim]
        for all_counts, part in zip(counts, measured, strict=True):
            all_counts.append(part)
        rows += [(row["sample_id"], row["cluster_id"], row["record_index"], row["response"] is None) for row in found]
        for row, right in zip(found, references, strict=True):
            try:
                values.append(slice_values(normalise(right[0]), row["meta"], measuring.fields, measuring.training_texts))
            except OutputError as error:
                raise OutputError(
                    f"{predictions}: record {row['record_index']} ({row['sample_id']!r}): {error}, so there are no slices by it; "
                    "leave out `slice_by`, or run `yivl infer` again with an empty output folder"
                ) from error
    widths = [len(metric.columns) for metric in (*measuring.metrics, *measuring.verbatim)]
    joined = [np.concatenate([np.zeros((0, width), np.int64), *part]) for width, part in zip(widths, counts, strict=True)]
    return _PartScores(counts=joined, rows=rows, values=values, num_without_reference=num_without_reference)


def _references(row: dict[str, Any]) -> tuple[str, ...]:
    own = () if row["reference"] is None else (row["reference"],)
    return (*own, *row["references"])


def _put_together(predictions: str, measuring: Measuring, parts: Sequence[_PartScores]) -> ScoredRows:
    rows = [row for part in parts for row in part.rows]
    num_without = sum(part.num_without_reference for part in parts)
    if not rows:
        raise no_references(predictions, num_without)
    sample_ids = [row[0] for row in rows]
    _refuse_repeated(predictions, sample_ids)
    values = [value for part in parts for value in part.values]
    names = slice_names(measuring.fields, has_training_texts=measuring.training_texts is not None)
    return ScoredRows(
        metrics=(*measuring.metrics, *measuring.verbatim),
        counts=tuple(np.concatenate(columns) for columns in zip(*(part.counts for part in parts), strict=True)),
        sample_ids=sample_ids,
        cluster_ids=[row[1] for row in rows],
        record_indices=np.fromiter((row[2] for row in rows), np.int64, len(rows)),
        has_failed=np.fromiter((row[3] for row in rows), np.bool_, len(rows)),
        slices=tuple(to_slice(name, [value[place] for value in values]) for place, name in enumerate(names)),
        num_without_reference=num_without,
    )


def _refuse_repeated(predictions: str, sample_ids: Sequence[str]) -> None:
    if len(set(sample_ids)) == len(sample_ids):
        return
    seen: set[str] = set()
    for sample_id in sample_ids:
        if sample_id in seen:
            raise OutputError(
                f"{predictions}: two rows have the sample_id {sample_id!r}, so nobody can tell which is meant; "
                "keep the parts of one run in a folder, or run `yivl infer` again with an empty output folder"
            )
        seen.add(sample_id)
