"""The fixed split of the input: decided once, stored in the output folder, and the same for every worker.

```
records   0 ............ 999 | 1000 ......... 1999 | 2000 .. 2345
parts     part-00000.parquet | part-00001.parquet  | part-00002.parquet
```
A published part is the mark that its shard is done. Two workers that write the same shard write the same rows.
"""

import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from yivl_core.data.images import ImageStore
from yivl_core.data.reading import InputRow
from yivl_core.digests import canonical_json
from yivl_core.errors import DatasetError, IncompleteError, OutputError
from yivl_core.outputs.predictions import PARTS_FOLDER, Prediction, is_part_whole, list_parts, write_part
from yivl_core.outputs.sample_ids import find_repeats, numbered
from yivl_core.progress import OnProgress, ignore_progress
from yivl_core.storage import exists, join, list_files, publish_bytes, read_bytes

PLAN_NAME = "plan.json"
PLAN_VERSION = 1
# What earlier plans lack, with what it was when they were made.
_ADDED_SETTINGS = {"decoding.logprobs": False}


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
        repeats: occurrence numbers from 2, by record index, of the rows whose sample id has occurred before.
    """

    output: str
    num_records: int
    shard_size: int
    fingerprint: dict[str, Any]
    repeats: dict[int, int]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """All shards, in record order."""
        firsts = range(0, self.num_records, self.shard_size)
        return tuple(
            Shard(index=index, first_record=first, num_records=min(self.shard_size, self.num_records - first))
            for index, first in enumerate(firsts)
        )

    def sample_id(self, record_index: int, base_sample_id: str) -> str:
        """The row's own id: its base id, with the occurrence number where that has occurred before."""
        return numbered(base_sample_id, self.repeats.get(record_index, 1))


class _StoredPlan(BaseModel):
    """What `plan.json` holds."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: int
    num_records: Annotated[int, Field(ge=1)]
    shard_size: Annotated[int, Field(ge=1)]
    fingerprint: dict[str, Any]
    repeats: dict[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=2)]]


def plan_shards(
    output: str,
    *,
    read_rows: Callable[[], Iterable[InputRow]],
    store: ImageStore,
    shard_size: int,
    fingerprint: Mapping[str, Any],
    resume: bool,
    on_progress: OnProgress = ignore_progress,
) -> ShardPlan:
    """Plan the split and publish it as `plan.json`; or take up the plan that is there.

    Args:
        output: folder or fsspec URL.
        read_rows: starts reading the input at its first row; called once or twice, and not at all if there is a plan.
        store: what opens the images of the rows.
        shard_size: records in one part.
        fingerprint: see `ShardPlan`; values may be nested.
        resume: take up the plan that is there, if everything that decides the content is the same.
        on_progress: hears of the pass over the input.

    Raises:
        OutputError: the folder is not empty and `resume` is off, or it belongs to a run with other settings (each is named).
        DatasetError: the input holds no records.
    """
    wanted = json.loads(canonical_json(fingerprint))
    if _is_in_use(output, resume):
        plan = read_plan(output)
        _refuse_differences(plan, {"shard_size": shard_size, **wanted})
        return plan
    num_records, repeats = find_repeats(read_rows, store, on_progress)
    if not num_records:
        raise DatasetError(
            "the input holds no records, so there is nothing to answer; check the path of the dataset or the images"
        )
    plan = ShardPlan(output=output, num_records=num_records, shard_size=shard_size, fingerprint=wanted, repeats=repeats)
    _publish_plan(plan)
    return plan


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
    if stored.version != PLAN_VERSION:
        raise OutputError(f"{url} has version {stored.version}, and this yivl reads {PLAN_VERSION}; use the yivl that wrote it")
    return ShardPlan(
        output=output,
        num_records=stored.num_records,
        shard_size=stored.shard_size,
        fingerprint=stored.fingerprint,
        repeats=stored.repeats,
    )


def missing_shards(plan: ShardPlan) -> tuple[Shard, ...]:
    """The shards whose part is not published yet, in record order."""
    published = set(list_parts(plan.output))
    return tuple(shard for shard in plan.shards if shard.file_name not in published)


def shards_to_do(plan: ShardPlan, among: Container[int] | None = None) -> tuple[Shard, ...]:
    """The shards whose part is not published yet, or is damaged, in record order; published parts are read from end to end.

    Args:
        plan: of the output folder.
        among: the shards that are asked about; None: all.

    Raises:
        OutputError, StorageError: as `is_part_whole`.
    """
    missing = {shard.index for shard in missing_shards(plan)}
    asked = (shard for shard in plan.shards if among is None or shard.index in among)
    return tuple(
        shard for shard in asked if shard.index in missing or not is_part_whole(plan.output, shard.file_name, shard.records)
    )


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


def _is_in_use(output: str, resume: bool) -> bool:
    names = [*list_files(output), *(f"{PARTS_FOLDER}/{name}" for name in list_files(join(output, PARTS_FOLDER)))]
    if names and not resume:
        found = ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
        raise OutputError(f"{output} is not empty ({found}); add --resume to go on with that run, or choose another folder")
    return bool(names)


def _refuse_differences(plan: ShardPlan, wanted: dict[str, Any]) -> None:
    stored = {"shard_size": plan.shard_size, **plan.fingerprint}
    there, here = (_ADDED_SETTINGS | _flat(values) for values in (stored, wanted))
    differences = [
        f"{name} was {_shown(there, name)} and is {_shown(here, name)}"
        for name in sorted(there.keys() | here.keys())
        if _shown(there, name) != _shown(here, name)
    ]
    if differences:
        raise OutputError(
            f"{plan.output} belongs to a run with other settings: {'; '.join(differences)}. "
            "Set them as they were to go on with that run, or choose another folder"
        )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _shown(values: dict[str, Any], name: str) -> str:
    return canonical_json(values[name]) if name in values else "not set"


def _publish_plan(plan: ShardPlan) -> None:
    stored = {
        "version": PLAN_VERSION,
        "num_records": plan.num_records,
        "shard_size": plan.shard_size,
        "fingerprint": plan.fingerprint,
        "repeats": {str(index): number for index, number in plan.repeats.items()},
    }
    text = json.dumps(stored, indent=1, sort_keys=True, ensure_ascii=False)
    publish_bytes(join(plan.output, PLAN_NAME), text.encode() + b"\n")
