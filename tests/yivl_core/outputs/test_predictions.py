import errno
import io
import os
import uuid
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.data.findings import Source
from yivl_core.data.reading import InputRow
from yivl_core.data.records import Record
from yivl_core.errors import OutputError, StorageError
from yivl_core.outputs.predictions import (
    Prediction,
    PredictionImage,
    content_digest,
    count_failures,
    list_parts,
    read_predictions,
    record_columns,
    write_part,
)
from yivl_core.outputs.schema import COLUMNS, PREDICTION_SCHEMA, columns_table

MakePrediction = Callable[..., Prediction]

texts = st.text(max_size=20)
images = st.builds(
    PredictionImage,
    uri=texts,
    sha256=st.none() | st.just("0f" * 32),
    width=st.none() | st.integers(1, 10**6),
    height=st.none() | st.integers(1, 10**6),
)


@st.composite
def outcomes(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        return {"finish_reason": "error", "response": None, "error_kind": draw(texts), "error": draw(texts)}
    finish_reason = draw(st.sampled_from(["stop", "length"]))
    logprobs = draw(st.none() | st.lists(st.floats(-1e6, 0), max_size=5).map(tuple))
    num_tokens = draw(st.integers(0, 4096)) if logprobs is None else len(logprobs)
    return {
        "finish_reason": finish_reason,
        "response": draw(texts),
        "prompt_tokens": draw(st.integers(1, 4096)),
        "completion_tokens": num_tokens,
        "completion_logprobs": logprobs,
    }


@st.composite
def predictions(draw: st.DrawFn) -> list[Prediction]:
    return [
        Prediction(
            sample_id=draw(texts),
            cluster_id=draw(st.none() | texts),
            record_index=record_index,
            source=draw(texts),
            query=draw(st.none() | texts),
            history=tuple(draw(st.lists(st.tuples(texts, texts), max_size=2))),
            system=draw(st.none() | texts),
            images=tuple(draw(st.lists(images, max_size=2))),
            reference=draw(st.none() | texts),
            references=tuple(draw(st.lists(texts, max_size=2))),
            meta="{}",
            preprocess_s=draw(st.none() | st.floats(0, 1e6)),
            generate_s=draw(st.none() | st.floats(0, 1e6)),
            **draw(outcomes()),
        )
        for record_index in range(draw(st.integers(1, 6)))
    ]


def new_folder() -> str:
    return f"memory://{uuid.uuid4().hex}"


def write_in_parts(rows: list[Prediction], cuts: set[int]) -> str:
    output = new_folder()
    bounds = [0, *sorted(cuts), len(rows)]
    for number, (first, end) in enumerate(pairwise(bounds)):
        write_part(output, f"part-{number:05d}.parquet", rows[first:end])
    return output


@settings(deadline=None, max_examples=50)
@given(rows=predictions(), data=st.data())
def test_reading_gives_what_was_written_and_one_digest_however_it_is_split(rows: list[Prediction], data: st.DataObject) -> None:
    cuts = data.draw(st.sets(st.integers(1, len(rows) - 1))) if len(rows) > 1 else set()
    whole, split = write_in_parts(rows, set()), write_in_parts(rows, cuts)
    assert list(read_predictions(split)) == rows
    assert content_digest(split) == content_digest(whole)
    assert len(list_parts(split)) == len(cuts) + 1


CHANGES: dict[str, Any] = {
    "sample_id": "other",
    "cluster_id": "page-2",
    "record_index": 7,
    "source": "elsewhere.jsonl:1",
    "query": "And now?",
    "history": (("Hello", "Hi!"),),
    "system": "",
    "images": (PredictionImage(uri="a.png", sha256="cd" * 32, width=8, height=9),),
    "reference": "12.31",
    "references": (),
    "meta": "{}",
    "response": "answer 0 ",
    "finish_reason": "length",
    "prompt_tokens": 1105,
    "completion_tokens": 5,
    "completion_logprobs": (-0.25, -1e-9, 0.0, -12.25),
    "preprocess_s": 0.75,
    "generate_s": 1.0,
}
UNDIGESTED = ("source", "completion_logprobs", "preprocess_s", "generate_s")
ERROR_CHANGES = {"error_kind": "corrupt", "error": "b.png is cut off"}


@pytest.mark.parametrize("column", COLUMNS, ids=lambda column: column.name)
def test_digest_covers_every_column_but_timings_logprobs_and_source(column: Any, make_prediction: MakePrediction) -> None:
    is_of_error = column.name in ERROR_CHANGES
    # Where their number changes, so would that of the log-probabilities.
    given = {} if is_of_error or column.name != "completion_tokens" else {"completion_logprobs": None}
    before = make_prediction(finish_reason="error" if is_of_error else "stop", **given)
    changes: dict[str, Any] = {column.name: (ERROR_CHANGES if is_of_error else CHANGES)[column.name]}
    after = replace(before, **changes)
    digests = {content_digest(write_in_parts([row], set())) for row in (before, after)}
    assert len(digests) == (1 if column.name in UNDIGESTED else 2)


def test_equal_rows_give_equal_bytes(tmp_path: Path, make_prediction: MakePrediction) -> None:
    for name in ("a", "b"):
        write_part(str(tmp_path / name), "part-00000.parquet", [make_prediction(number) for number in range(50)])
    assert (tmp_path / "a/predictions/part-00000.parquet").read_bytes() == (
        tmp_path / "b/predictions/part-00000.parquet"
    ).read_bytes()


def test_other_readers_see_the_documented_columns(tmp_path: Path, make_prediction: MakePrediction) -> None:
    write_part(str(tmp_path), "part-00000.parquet", [make_prediction(0), make_prediction(1, finish_reason="error")])
    table = pq.read_table(tmp_path / "predictions/part-00000.parquet")
    assert table.schema.equals(PREDICTION_SCHEMA, check_metadata=True)
    assert table.schema.metadata == {b"yivl.schema": b"predictions", b"yivl.schema_version": b"2"}
    frame = table.to_pandas()
    assert list(frame["record_index"]) == [0, 1]
    assert list(frame["response"].isna()) == [False, True]
    assert list(frame["error_kind"].isna()) == [True, False]
    assert (frame["response"][0], frame["error_kind"][1]) == ("answer 0", "truncated")
    assert frame["images"][0][0] == {"uri": "a.png", "sha256": "ab" * 32, "width": 8, "height": 9}
    assert frame["history"][0][0] == {"query": "Hello", "response": "Hi"}
    assert table.schema.field("completion_logprobs").type.value_type == pa.float64()
    assert list(frame["completion_logprobs"][0]) == [-0.25, -1e-9, 0.0, -12.5]
    assert frame["completion_logprobs"][1] is None


def test_null_stands_only_where_the_table_says(make_prediction: MakePrediction) -> None:
    with pytest.raises(AssertionError, match="sample_id"):
        write_part(new_folder(), "part-00000.parquet", [make_prediction(sample_id=None)])
    with pytest.raises(AssertionError):
        write_part(new_folder(), "part-00000.parquet", [make_prediction(finish_reason="error", response="half an answer")])
    with pytest.raises(AssertionError):
        write_part(new_folder(), "part-00000.parquet", [make_prediction(response=None)])
    with pytest.raises(AssertionError):
        write_part(new_folder(), "part-00000.parquet", [make_prediction(completion_logprobs=(-1.0, -2.0))])
    with pytest.raises(AssertionError):
        write_part(new_folder(), "part-00000.parquet", [make_prediction(finish_reason="error", completion_logprobs=(-1.0,))])


def test_columns_table_has_a_line_for_each_column_of_a_prediction() -> None:
    lines = columns_table().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(Prediction.__dataclass_fields__)
    assert "| `history` | list of (query string, response string) | earlier rounds, oldest first | never |" in lines
    assert all(line.count("|") == 5 for line in lines)


def test_row_of_a_record_keeps_all_that_it_says() -> None:
    record = Record(
        query="q",
        response="right",
        history=(("a", "b"),),
        images=("x.png", None),
        system="",
        references=("also right",),
        cluster_id="c",
        meta={"z": 1, "a": "é"},
    )
    assert record_columns(InputRow(source=Source(file="rows.jsonl", line=3), record=record)) == {
        "cluster_id": "c",
        "source": "rows.jsonl:3",
        "query": "q",
        "history": (("a", "b"),),
        "system": "",
        "reference": "right",
        "references": ("also right",),
        "meta": '{"a":"é","z":1}',
    }
    of_no_record = record_columns(InputRow(source=Source(file="rows.jsonl", line=4)))
    assert (of_no_record["query"], of_no_record["history"], of_no_record["meta"]) == (None, (), "{}")


def test_file_name_that_is_not_utf8_is_kept_readable(make_prediction: MakePrediction) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    output = new_folder()
    row = make_prediction(finish_reason="error", source=name, error=f"{name} is cut off", images=(PredictionImage(uri=name),))
    write_part(output, "part-00000.parquet", [row])
    (read,) = read_predictions(output)
    assert (read.source, read.images[0].uri, read.error) == (
        "caf\\udce9.png",
        "caf\\udce9.png",
        "caf\\udce9.png is cut off",
    )


def test_parts_come_in_number_order_beyond_five_digits(make_prediction: MakePrediction) -> None:
    output = new_folder()
    write_part(output, "part-100000.parquet", [make_prediction(1)])
    write_part(output, "part-99999.parquet", [make_prediction(0)])
    assert [row.record_index for row in read_predictions(output)] == [0, 1]


def test_full_disk_leaves_no_part(tmp_path: Path, make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="the disk is full; free some space"):
        write_part(str(tmp_path), "part-00000.parquet", [make_prediction()])
    assert list((tmp_path / "predictions").iterdir()) == []


def test_folder_without_predictions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"holds no predictions/part-\*\.parquet; give the folder that `yivl infer --output`"):
        list(read_predictions(str(tmp_path)))


def test_parts_of_two_runs_in_one_folder_are_refused(tmp_path: Path, make_prediction: MakePrediction) -> None:
    write_part(str(tmp_path), "part-00000.parquet", [make_prediction(number) for number in range(3)])
    write_part(str(tmp_path), "part-00001.parquet", [make_prediction(2)])
    with pytest.raises(OutputError, match=r"part-00001\.parquet: record 2 comes after record 2, so parts of different runs"):
        list(read_predictions(str(tmp_path)))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (None, "has the prediction schema version none, and this yivl reads 1 and 2"),
        ({"yivl.schema_version": "3"}, "has the prediction schema version 3, and this yivl reads 1 and 2"),
        ({"yivl.schema_version": "1"}, "has other columns than version 1, and this yivl reads 1 and 2"),
        ({"yivl.schema_version": "2"}, "has other columns than version 2, and this yivl reads 1 and 2"),
    ],
)
def test_parquet_of_another_schema_is_refused(tmp_path: Path, metadata: dict[str, str] | None, message: str) -> None:
    (tmp_path / "predictions").mkdir()
    table = pa.table({"a": [1]}).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "predictions/part-00000.parquet")
    with pytest.raises(OutputError, match=rf"part-00000\.parquet {message}"):
        list(read_predictions(str(tmp_path)))


def write_version_1(part: Path) -> None:
    """Gives a part the form that it had before there were log-probabilities."""
    table = pq.read_table(part).drop_columns("completion_logprobs")
    pq.write_table(table.replace_schema_metadata({"yivl.schema": "predictions", "yivl.schema_version": "1"}), part)


def test_parts_of_version_1_are_read_beside_later_ones_and_keep_their_digest(
    tmp_path: Path, make_prediction: MakePrediction
) -> None:
    rows = [make_prediction(0), make_prediction(1, finish_reason="error"), make_prediction(2), make_prediction(3)]
    for number in (0, 1):
        write_part(str(tmp_path), f"part-0000{number}.parquet", rows[2 * number : 2 * number + 2])
    digest = content_digest(str(tmp_path))
    write_version_1(tmp_path / "predictions/part-00000.parquet")
    assert pq.read_schema(tmp_path / "predictions/part-00000.parquet").names == [
        column.name for column in COLUMNS if column.name != "completion_logprobs"
    ]
    assert list(read_predictions(str(tmp_path))) == [replace(row, completion_logprobs=None) for row in rows[:2]] + rows[2:]
    assert content_digest(str(tmp_path)) == digest
    assert count_failures(str(tmp_path), "part-00000.parquet", range(2)) == 1
    assert count_failures(str(tmp_path), "part-00000.parquet", range(1, 3)) is None


def test_the_digest_of_rows_is_that_of_earlier_versions(make_prediction: MakePrediction) -> None:
    """As version 1 of the schema gave it; manifests hold it."""
    rows = [make_prediction(0), make_prediction(1, finish_reason="error")]
    assert content_digest(write_in_parts(rows, set())) == "7b8160b766ddb8c0ff3e2027b7a5817d774f44c49ac005ae83aa39d4c02a0fee"


@pytest.mark.parametrize("kept", [0, 100, -4])
def test_damaged_part_is_named_with_a_remedy(tmp_path: Path, make_prediction: MakePrediction, kept: int) -> None:
    write_part(str(tmp_path), "part-00000.parquet", [make_prediction()])
    path = tmp_path / "predictions/part-00000.parquet"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(OutputError, match=r"part-00000\.parquet is damaged .*run the same `yivl infer` with --resume"):
        list(read_predictions(str(tmp_path)))


def test_part_with_a_flipped_bit_in_its_data_is_never_read_as_something_else(
    tmp_path: Path, make_prediction: MakePrediction
) -> None:
    rows = [make_prediction(number, response=f"{number * 7919}") for number in range(50)]
    write_part(str(tmp_path), "part-00000.parquet", rows)
    path = tmp_path / "predictions/part-00000.parquet"
    data = path.read_bytes()
    metadata_start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    noticed: list[str] = []
    for place in range(4, metadata_start, 23):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            assert list(read_predictions(str(tmp_path))) == rows, place
        except OutputError as error:
            noticed.append(str(error))
    assert len(noticed) > 20
    assert all("part-00000.parquet is damaged" in message for message in noticed)


def test_failing_disk_is_not_taken_for_a_damaged_part(
    tmp_path: Path, make_prediction: MakePrediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailingFile(io.BytesIO):
        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    write_part(str(tmp_path), "part-00000.parquet", [make_prediction()])
    data = (tmp_path / "predictions/part-00000.parquet").read_bytes()
    monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.open", lambda *_, **__: FailingFile(data))
    with pytest.raises(StorageError, match=r"part-00000\.parquet: Input/output error"):
        list(read_predictions(str(tmp_path)))
