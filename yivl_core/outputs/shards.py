"""The fixed split of the input: decided once, stored in the output folder, and the same for every worker.

```
records   0 ............ 999 | 1000 ......... 1999 | 2000 .. 2345
parts     part-00000.parquet | part-00001.parquet  | part-00002.parquet
```
A published part is the mark that its shard is done. Two workers that write the same shard write the same rows.
"""

import json
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from yivl_core.data.images import ImageStore
from yivl_core.data.inputs import Input
from yivl_core.digests import canonical_json
from yivl_core.errors import DatasetError, IncompleteError, OutputError
from yivl_core.outputs.input_scan import InputScan, scan_input
from yivl_core.outputs.plan_differences import describe_changes
from yivl_core.outputs.predictions import PARTS_FOLDER, Prediction, count_failures, list_parts, write_part
from yivl_core.outputs.record_table import PlannedRecord, read_planned_records
from yivl_core.progress import OnProgress, ignore_progress
from yivl_core.storage import exists, join, list_files, publish_from_file, publish_new, read_bytes

PLAN_NAME = "plan.json"
PLAN_VERSION = 2
_RECORDS_PREFIX = "records-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """A run of neighbouring records, done by one worker and stored in one file."""

    index: int
    first_record: int
    num_records: int

    @property
    def records(self) -> range:
        """The record indices in it."""
        return range(self.first_record, self.first_record + self.num_records)

    @property
    def file_name(self) -> str:
        """The name of its part."""
        return f"part-{self.index:05d}.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """The split of one output folder.

    Attributes:
        output: the folder that it is stored in.
        num_records: input rows in all, defective ones too.
        shard_size: records in each shard but the last.
        fingerprint: what decides the content of the rows, as JSON values by name (data, weights, prompt, decoding, numerics).
        records_name: file in the folder that tells of each record what was found when the split was planned; None in plans of
            version 1, which tell which parts belong to a run but cannot be gone on with.
        shard_digests: of what the rows of each shard say, as `ShardDigest` gives them.
    """

    output: str
    num_records: int
    shard_size: int
    fingerprint: dict[str, Any]
    records_name: str | None
    shard_digests: tuple[str, ...]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, in record order."""
        firsts = range(0, self.num_records, self.shard_size)
        return tuple(
            Shard(index=index, first_record=first, num_records=min(self.shard_size, self.num_records - first))
            for index, first in enumerate(firsts)
        )

    def records(self, shard: Shard) -> Iterator[PlannedRecord]:
        """What was found of the records of a shard.

        Raises:
            OutputError, StorageError: the file that tells it is damaged, or cannot be read.
        """
        return self._records(shard.records)

    def all_records(self) -> Iterator[PlannedRecord]:
        """As `records`, of all shards."""
        return self._records(range(self.num_records))

    def _records(self, indices: range) -> Iterator[PlannedRecord]:
        assert self.records_name is not None
        return read_planned_records(join(self.output, self.records_name), indices.start, indices.stop)


class _StoredPlan(BaseModel):
    """What `plan.json` holds."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: int
    num_records: Annotated[int, Field(ge=1)]
    shard_size: Annotated[int, Field(ge=1)]
    fingerprint: dict[str, Any]
    records_name: Annotated[str | None, Field(pattern=rf"^{_RECORDS_PREFIX}[0-9a-f]+\.parquet$")] = None
    shard_digests: tuple[str, ...] = ()
    repeats: dict[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=2)]] = {}  # of version 1

    @model_validator(mode="after")
    def _is_whole(self) -> "_StoredPlan":
        if self.version == PLAN_VERSION:
            if self.records_name is None or len(self.shard_digests) != -(-self.num_records // self.shard_size):
                raise ValueError("the records are not told of")
            if self.repeats or not isinstance(self.fingerprint.get("data"), dict):
                raise ValueError("another version wrote this")
        return self


def plan_shards(
    output: str,
    *,
    source: Input,
    store: ImageStore,
    shard_size: int,
    fingerprint: Mapping[str, Any],
    resume: bool = False,
    as_planned: bool = False,
    joins: bool = False,
    data_digest: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> ShardPlan:
    """Look at the input, plan the split and publish it as `plan.json`; or take up the plan that is there.

    Args:
        output: folder or fsspec URL.
        source: the input.
        store: what finds the images of the rows.
        shard_size: records in one part.
        fingerprint: see `ShardPlan`; values may be nested. The digest of the data is added to its block `data`.
        resume: take up the plan that is there, if everything that decides the content is the same.
        as_planned: then do not look at the input again: it is taken to be the one that was planned.
        joins: take up a plan also without `resume`: others work on the same output.
        data_digest: of the input, where that states it itself.
        on_progress: hears of the pass over the input.

    Raises:
        OutputError: the folder is not empty and `resume` is off, or it belongs to a run with other settings (each is named).
        DatasetError: the input holds no records.
    """
    stored = _find_plan(output, is_expected=resume or joins)
    wanted = json.loads(canonical_json(fingerprint))
    if stored and as_planned:
        wanted["data"]["digest"] = stored.fingerprint["data"]["digest"]
        _refuse_differences(stored, shard_size, wanted)
        return stored
    with scan_input(source, store, shard_size, on_progress) as scan:
        wanted["data"]["digest"] = data_digest or scan.digest
        if not scan.num_records:
            raise DatasetError(
                "the input holds no records, so there is nothing to answer; check the path of the dataset or the images"
            )
        if stored is None:
            if plan := _publish_plan(output, scan, shard_size, wanted):
                return plan
            stored = read_plan(output)  # somebody else was first
        _refuse_differences(stored, shard_size, wanted, scan)
        return stored


def read_plan(output: str) -> ShardPlan:
    """The plan of an output folder.

    Raises:
        OutputError: there is none, it is damaged, or another version wrote it.
    """
    url = join(output, PLAN_NAME)
    if not exists(url):
        raise OutputError(f"{output} holds no {PLAN_NAME}, so it is no output of `yivl infer`; choose another folder")
    content = read_bytes(url)
    try:
        stored = _StoredPlan.model_validate_json(content)
        canonical_json(stored.fingerprint)
    except ValueError as error:
        raise OutputError(f"{url} is not a plan of this version of yivl; run `yivl infer` with an empty output folder") from error
    if stored.version not in (1, PLAN_VERSION):
        raise OutputError(f"{url} has version {stored.version}, and this yivl reads {PLAN_VERSION}; use the yivl that wrote it")
    return ShardPlan(
        output=output,
        num_records=stored.num_records,
        shard_size=stored.shard_size,
        fingerprint=stored.fingerprint,
        records_name=stored.records_name,
        shard_digests=stored.shard_digests,
    )


def missing_shards(plan: ShardPlan) -> tuple[Shard, ...]:
    """The shards whose part is not published yet, in record order."""
    published = set(list_parts(plan.output))
    return tuple(shard for shard in plan.shards if shard.file_name not in published)


def shards_to_do(plan: ShardPlan, among: Container[int] | None = None) -> tuple[list[Shard], int]:
    """The shards whose part is not published yet, or is damaged, in record order; published parts are read from end to end.

    Args:
        plan: of the output folder.
        among: the shards that are asked about; None: all.

    Returns:
        These shards, and how many rows of the parts that are whole have an error in place of an answer.

    Raises:
        OutputError, StorageError: as `count_failures`.
    """
    missing = {shard.index for shard in missing_shards(plan)}
    to_do, num_failed = [], 0
    for shard in plan.shards:
        if among is None or shard.index in among:
            failed = None if shard.index in missing else count_failures(plan.output, shard.file_name, shard.records)
            num_failed += failed or 0
            if failed is None:
                to_do.append(shard)
    return to_do, num_failed


def publish_shard(plan: ShardPlan, shard: Shard, predictions: Sequence[Prediction]) -> None:
    """Publish the rows of a shard in one step: just its records, each once, in record order.

    Raises:
        StorageError: the part cannot be written.
    """
    assert [prediction.record_index for prediction in predictions] == list(shard.records), shard
    write_part(plan.output, shard.file_name, predictions)


def require_complete(plan: ShardPlan) -> None:
    """Nothing, if all parts are there.

    Raises:
        IncompleteError: some are missing.
    """
    missing = missing_shards(plan)
    if missing:
        raise IncompleteError(
            f"{plan.output}: {len(missing)} of {len(plan.shards)} parts are missing, the first is {missing[0].file_name}; "
            "finish the run with the same `yivl infer` and --resume"
        )


def _find_plan(output: str, is_expected: bool) -> ShardPlan | None:
    """The plan that is there; None for a folder that is empty, or in which planning was interrupted.

    Raises:
        OutputError: the folder holds something else, or a plan that is not expected.
    """
    names = [*list_files(output), *(f"{PARTS_FOLDER}/{name}" for name in list_files(join(output, PARTS_FOLDER)))]
    names = [name for name in names if not name.startswith(_RECORDS_PREFIX)]
    if names and not is_expected:
        found = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        raise OutputError(f"{output} is not empty ({found}); add --resume to go on with that run, or choose another folder")
    plan = read_plan(output) if names else None
    if plan is not None and plan.records_name is None:
        raise OutputError(
            f"{output}: this run was begun by an earlier version of yivl; finish it with that one, or choose another folder"
        )
    return plan


def _refuse_differences(plan: ShardPlan, shard_size: int, wanted: dict[str, Any], scan: InputScan | None = None) -> None:
    there, here = (
        _flat({"shard_size": size, **fingerprint})
        for size, fingerprint in ((plan.shard_size, plan.fingerprint), (shard_size, wanted))
    )
    differences = [
        f"{name} was {_shown(there, name)} and is {_shown(here, name)}"
        for name in sorted(there.keys() | here.keys())
        if _shown(there, name) != _shown(here, name)
    ]
    if not differences:
        return
    changes = ""
    if scan is not None and plan.fingerprint["data"] != wanted["data"]:
        changes = describe_changes(plan.all_records(), scan)
    raise OutputError(
        f"{plan.output} belongs to a run with other settings: {'; '.join(differences)}{changes}. "
        "Set them as they were to go on with that run, or choose another folder"
    )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _shown(values: dict[str, Any], name: str) -> str:
    return canonical_json(values[name]) if name in values else "not set"


def _publish_plan(output: str, scan: InputScan, shard_size: int, fingerprint: dict[str, Any]) -> ShardPlan | None:
    """The plan, unless there is one by now."""
    records_name = f"{_RECORDS_PREFIX}{scan.digest[:16]}.parquet"  # whoever else finds the same writes the same
    with publish_from_file(join(output, records_name)) as path:
        scan.table.write(path)
    stored = {
        "version": PLAN_VERSION,
        "num_records": scan.num_records,
        "shard_size": shard_size,
        "fingerprint": fingerprint,
        "records_name": records_name,
        "shard_digests": scan.shard_digests,
    }
    text = json.dumps(stored, indent=1, sort_keys=True, ensure_ascii=False)
    return read_plan(output) if publish_new(join(output, PLAN_NAME), text.encode() + b"\n") else None
