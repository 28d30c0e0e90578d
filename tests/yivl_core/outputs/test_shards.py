import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.data.findings import Source
from yivl_core.data.images import ImageStore
from yivl_core.data.reading import InputRow
from yivl_core.data.records import Record
from yivl_core.errors import DatasetError, IncompleteError, OutputError
from yivl_core.outputs.predictions import Prediction, content_digest, read_predictions
from yivl_core.outputs.sample_ids import numbered
from yivl_core.outputs.shards import (
    ShardPlan,
    missing_shards,
    plan_shards,
    publish_shard,
    read_plan,
    require_complete,
)
from yivl_core.storage import publish_new

MakePrediction = Callable[..., Prediction]
FINGERPRINT: dict[str, Any] = {"data": {"prompt": "p"}, "weights": "w1", "decoding": {"temperature": 0.0, "seed": 0}}


REST: dict[str, Any] = {"fingerprint": {}, "records_name": "r", "shard_digests": ()}


def make_rows(num_rows: int) -> list[InputRow]:
    return [InputRow(source=Source(file="f", line=n + 1), record=Record(query=f"q{n % 5}")) for n in range(num_rows)]


class GivenRows:
    """An input of rows that are there."""

    is_remote = is_seekable = False

    def __init__(self, rows: list[InputRow]) -> None:
        self._rows = rows

    def rows(self, first: int = 0) -> Iterator[InputRow]:
        return iter(self._rows[first:])


def plan(output: str, num_rows: int = 10, **changes: Any) -> ShardPlan:
    values: dict[str, Any] = {"shard_size": 4, "fingerprint": FINGERPRINT, "resume": False}
    return plan_shards(output, source=GivenRows(make_rows(num_rows)), store=ImageStore(), **(values | changes))


@settings(deadline=None)
@given(num_records=st.integers(1, 3000), shard_size=st.integers(1, 4000))
def test_each_record_is_in_one_shard_and_all_are_in_order(num_records: int, shard_size: int) -> None:
    shards = ShardPlan(
        output="x", num_records=num_records, shard_size=shard_size, fingerprint={}, records_name="r", shard_digests=()
    ).shards
    bounds = [(shard.records.start, shard.records.stop) for shard in shards]
    assert [0, *(end for _, end in bounds)] == [*(start for start, _ in bounds), num_records]
    assert all(0 < shard.num_records <= shard_size for shard in shards)
    assert len({shard.file_name for shard in shards}) == len(shards)
    assert [shard.index for shard in shards] == list(range(len(shards)))


@settings(deadline=None, max_examples=30)
@given(
    num_records=st.integers(1, 30),
    shard_sizes=st.tuples(st.integers(1, 31), st.integers(1, 31)),
    killed_after=st.integers(0, 10),
    data=st.data(),
)
def test_killed_and_resumed_run_equals_an_uninterrupted_one_of_any_split(
    make_prediction: MakePrediction, num_records: int, shard_sizes: tuple[int, int], killed_after: int, data: st.DataObject
) -> None:
    def work(current: ShardPlan, max_shards: int | None = None) -> None:
        missing = data.draw(st.permutations(missing_shards(current)))
        for shard in missing[:max_shards]:
            found = zip(shard.records, current.records(shard), strict=True)
            rows = [make_prediction(n, sample_id=numbered(f"q{n % 5}", record.occurrence)) for n, record in found]
            publish_shard(current, shard, rows)

    outputs = [f"memory://{uuid.uuid4().hex}" for _ in shard_sizes]
    work(plan(outputs[0], num_records, shard_size=shard_sizes[0]))
    work(plan(outputs[1], num_records, shard_size=shard_sizes[1]), killed_after)
    resumed = plan(outputs[1], num_records, shard_size=shard_sizes[1], resume=True)
    work(resumed)
    require_complete(resumed)
    rows = list(read_predictions(outputs[1]))
    assert [row.record_index for row in rows] == list(range(num_records))
    assert len({row.sample_id for row in rows}) == num_records
    assert content_digest(outputs[0]) == content_digest(outputs[1])


def test_resuming_takes_up_the_stored_plan(tmp_path: Path) -> None:
    first = plan(str(tmp_path), num_rows=12)
    assert [record.occurrence for record in first.all_records()] == [1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3]
    assert [[record.occurrence for record in first.records(shard)] for shard in first.shards] == [
        [1] * 4,
        [1, 2, 2, 2],
        [2, 2, 3, 3],
    ]
    assert read_plan(str(tmp_path)) == first == plan(str(tmp_path), num_rows=12, resume=True)
    assert plan(str(tmp_path), num_rows=12, joins=True) == first


def test_an_input_that_was_changed_is_refused_unless_it_is_taken_as_planned(tmp_path: Path) -> None:
    first = plan(str(tmp_path), num_rows=12)
    with pytest.raises(OutputError, match=r"other settings: data\.digest was \"\w+\" and is \"\w+\"\. Set them"):
        plan(str(tmp_path), num_rows=11, resume=True)
    assert plan(str(tmp_path), num_rows=11, resume=True, as_planned=True) == first
    with pytest.raises(OutputError, match=r"other settings: shard_size was 4 and is 5\. Set them"):
        plan(str(tmp_path), shard_size=5, resume=True, as_planned=True)


def test_plan_has_the_same_bytes_wherever_it_is_made(tmp_path: Path) -> None:
    plan(str(tmp_path / "a"))
    plan(str(tmp_path / "b"), fingerprint=dict(reversed(FINGERPRINT.items())))
    assert (tmp_path / "a/plan.json").read_bytes() == (tmp_path / "b/plan.json").read_bytes()


def test_published_part_is_the_mark_that_its_shard_is_done(tmp_path: Path, make_prediction: MakePrediction) -> None:
    current = plan(str(tmp_path))
    assert missing_shards(current) == current.shards
    publish_shard(current, current.shards[1], [make_prediction(n) for n in range(4, 8)])
    assert [shard.index for shard in missing_shards(current)] == [0, 2]
    (tmp_path / "predictions/.part-00000.parquet.tmp-0123456789ab").write_bytes(b"a killed worker leaves this")
    assert [shard.index for shard in missing_shards(current)] == [0, 2]
    with pytest.raises(IncompleteError, match=r"2 of 3 parts are missing, the first is part-00000\.parquet; .* --resume"):
        require_complete(current)
    assert IncompleteError.exit_code == 4


@pytest.mark.parametrize("indices", [[4, 5, 6], [4, 5, 6, 6], [5, 4, 6, 7], [0, 1, 2, 3], [4, 5, 6, 7, 8]])
def test_shard_with_records_lost_doubled_or_misplaced_is_never_published(
    tmp_path: Path, make_prediction: MakePrediction, indices: list[int]
) -> None:
    current = plan(str(tmp_path))
    with pytest.raises(AssertionError):
        publish_shard(current, current.shards[1], [make_prediction(n) for n in indices])
    assert len(missing_shards(current)) == 3


def test_each_differing_setting_is_named_with_both_values(tmp_path: Path) -> None:
    plan(str(tmp_path))
    changed = {"data": {"prompt": "p"}, "weights": "w2", "decoding": {"temperature": 0.5, "seed": 0}, "prompt": "v2"}
    with pytest.raises(OutputError) as caught:
        plan(str(tmp_path), resume=True, fingerprint=changed, shard_size=5)
    message = str(caught.value)
    for part in (
        "decoding.temperature was 0.0 and is 0.5",
        'prompt was not set and is "v2"',
        "shard_size was 4 and is 5",
        'weights was "w1" and is "w2"',
        "Set them as they were to go on with that run, or choose another folder",
    ):
        assert part in message
    assert "seed" not in message
    assert "data" not in message
    stored = read_plan(str(tmp_path)).fingerprint
    del stored["data"]["digest"]
    assert stored == FINGERPRINT


def test_folder_in_use_is_refused_without_resume(tmp_path: Path) -> None:
    plan(str(tmp_path))
    with pytest.raises(OutputError, match=r"is not empty \(plan\.json\); add --resume to go on with that run, or choose"):
        plan(str(tmp_path))


def test_folder_of_something_else_is_refused_even_with_resume(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    for resume, message in ((False, r"is not empty \(thesis\.tex\)"), (True, r"holds no plan\.json, so it is no output of")):
        with pytest.raises(OutputError, match=message):
            plan(str(tmp_path), resume=resume)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_resume_in_an_empty_or_absent_folder_starts(tmp_path: Path) -> None:
    assert plan(str(tmp_path / "new"), resume=True).num_records == 10


def test_input_without_records_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no records, so there is nothing to answer; check the path"):
        plan(str(tmp_path), num_rows=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"version": 1, "repeats": {}, "num_records": 3}'])
def test_damaged_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(OutputError, match=r"plan\.json is not a plan of this version of yivl"):
        read_plan(str(tmp_path))


@pytest.mark.parametrize(
    "change",
    [
        {"shard_size": 0}, {"shard_size": -1}, {"shard_size": "x"}, {"shard_size": 2.0}, {"shard_size": True},
        {"shard_size": None}, {"num_records": "8"}, {"num_records": 0}, {"num_records": float("inf")}, {"num_records": [8]},
        {"fingerprint": []}, {"fingerprint": None}, {"fingerprint": {"data": {"digest": float("nan")}}},
        {"fingerprint": {"data": "d"}}, {"fingerprint": {}},
        {"records_name": "../x.parquet"}, {"records_name": None}, {"shard_digests": []}, {"shard_digests": [1, 2, 3]},
        {"repeats": []}, {"repeats": {"x": 2}}, {"repeats": {"3": "2"}}, {"repeats": {"3": 1}}, {"repeats": {"-1": 2}},
        {"version": "1"}, {"version": None}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_plan_with_a_value_that_cannot_be_right_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    plan(str(tmp_path))
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for read in (read_plan, lambda output: plan(output, resume=True)):
        with pytest.raises(OutputError, match=r"plan\.json is not a plan of this version of yivl; run `yivl infer` with"):
            read(str(tmp_path))


def test_a_plan_of_version_1_tells_its_parts_but_cannot_be_gone_on_with(tmp_path: Path) -> None:
    stored = {"version": 1, "num_records": 9, "shard_size": 4, "fingerprint": {"data": {"digest": "d"}}, "repeats": {"3": 2}}
    (tmp_path / "plan.json").write_text(json.dumps(stored))
    with pytest.raises(IncompleteError, match="3 of 3 parts are missing"):
        require_complete(read_plan(str(tmp_path)))
    with pytest.raises(OutputError, match="was begun by an earlier version of yivl; finish it with that one"):
        plan(str(tmp_path), resume=True)


def test_planning_that_was_killed_before_the_plan_was_there_begins_again(tmp_path: Path) -> None:
    first = plan(str(tmp_path / "a"))
    (tmp_path / "b").mkdir()
    assert first.records_name is not None
    (tmp_path / "b" / first.records_name).write_bytes(b"PAR1")
    (tmp_path / "b" / ".plan.json.tmp-0123").write_bytes(b"{")
    assert plan(str(tmp_path / "b")).fingerprint == first.fingerprint
    assert (tmp_path / "b" / first.records_name).read_bytes() == (tmp_path / "a" / first.records_name).read_bytes()


def test_who_comes_second_to_plan_takes_up_the_plan_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def publish_late(url: str, data: bytes) -> bool:
        monkeypatch.undo()
        assert plan(str(tmp_path), shard_size=4) == read_plan(str(tmp_path))
        return publish_new(url, data)

    monkeypatch.setattr("yivl_core.outputs.shards.publish_new", publish_late)
    assert plan(str(tmp_path)) == read_plan(str(tmp_path))
    (tmp_path / "plan.json").unlink()
    monkeypatch.setattr("yivl_core.outputs.shards.publish_new", publish_late)
    with pytest.raises(OutputError, match="shard_size was 4 and is 5"):
        plan(str(tmp_path), shard_size=5)


def test_plan_of_another_version_is_refused(tmp_path: Path) -> None:
    plan(str(tmp_path))
    stored = json.loads((tmp_path / "plan.json").read_text()) | {"version": 3}
    (tmp_path / "plan.json").write_text(json.dumps(stored))
    with pytest.raises(OutputError, match=r"plan\.json has version 3, and this yivl reads 2"):
        read_plan(str(tmp_path))
