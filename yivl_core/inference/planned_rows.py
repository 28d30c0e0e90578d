"""The rows of shards as they were planned, read as they are needed."""

from collections.abc import Iterator, Sequence
from itertools import islice

from yivl_core.data.inputs import Input, ListedImages, row_text
from yivl_core.data.reading import InputRow
from yivl_core.errors import DatasetError
from yivl_core.inference.preparation import PlannedRow
from yivl_core.outputs.input_scan import ShardDigest
from yivl_core.outputs.record_table import PlannedRecord
from yivl_core.outputs.shards import Shard, ShardPlan


def planned_rows(plan: ShardPlan, shards: Sequence[Shard], source: Input) -> Iterator[PlannedRow]:
    """The rows of shards, which are in record order.

    Files that were listed come from the plan, so that no worker lists a million files for its thousand. Rows of a dataset, and
    the URLs of a list, are read again, since a plan holds no secrets of URLs; they have to say what they said.

    Raises:
        DatasetError: the dataset or the list has been changed since the split was planned.
        OutputError, StorageError: plan or input cannot be read.
    """
    if isinstance(source, ListedImages):
        lines = source.lines()
        for shard in shards:
            for index, record in zip(shard.records, plan.records(shard), strict=True):
                assert record.file is not None
                yield _planned(index, record, source.planned_row(record.file, record.line, lines))
        return
    if shards:
        place = shards[0].first_record
        rows = source.rows(place)
        for shard in shards:
            if shard.first_record > place and source.is_seekable:
                place = shard.first_record
                rows = source.rows(place)
            skipped = shard.first_record - place
            yield from _checked(plan, shard, islice(rows, skipped, skipped + shard.num_records))
            place = shard.first_record + shard.num_records


def _checked(plan: ShardPlan, shard: Shard, rows: Iterator[InputRow]) -> Iterator[PlannedRow]:
    digest, num_rows, last = ShardDigest(), 0, None
    for index, record, row in zip(shard.records, plan.records(shard), rows, strict=False):
        if last is not None:
            yield last
        digest.update(row_text(row))
        num_rows += 1
        last = _planned(index, record, row)
    if num_rows < shard.num_records:
        raise DatasetError(
            f"the input ends at record {shard.first_record + num_rows}, and the plan counts {plan.num_records}; it was changed "
            "during the run: bring it back and resume, or start again with an empty output folder"
        )
    if digest.hexdigest() != plan.shard_digests[shard.index]:
        raise DatasetError(
            f"records {shard.first_record} to {shard.first_record + num_rows - 1} are not those that were planned; the dataset "
            "was changed: bring it back and resume, or start again with an empty output folder"
        )
    if last is not None:  # only now, so that a shard of other rows can never be whole
        yield last


def _planned(index: int, record: PlannedRecord, row: InputRow) -> PlannedRow:
    return PlannedRow(record_index=index, occurrence=record.occurrence, was_found=record.is_found, row=row, images=row.images)
