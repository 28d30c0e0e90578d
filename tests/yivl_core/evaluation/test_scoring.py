"""Rows are measured once each, by one process or by several, in the order of the records."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from yivl_core.errors import ChildFailedError, DatasetError, OutputError
from yivl_core.evaluation import scoring
from yivl_core.evaluation.metrics.names import make_metrics, resolve_names
from yivl_core.evaluation.scoring import Measuring, ScoredRows, score_rows
from yivl_core.evaluation.texts.normalisation import MAIN
from yivl_core.outputs.predictions import write_part

ROWS: list[tuple[Any, ...]] = [
    ("TOTAL 12.30", "total 12.30", {"meta": '{"shop": "a"}', "cluster_id": "r1"}),
    (None, "x", {"cluster_id": "r1"}),
    ("nobody asked", None),
    ("b", None, {"references": ("a", "b")}),
    ("", "c", {"finish_reason": "length"}),
]


def measuring(**changes: Any) -> Measuring:
    metrics = make_metrics(resolve_names(["ocr"]), normaliser=MAIN, bleu_tokenizer="13a", document_frequencies=None)
    return Measuring(**{"metrics": metrics, "verbatim": (), "normaliser": MAIN, "fields": ("shop",)} | changes)


def figures(rows: ScoredRows) -> Iterator[Any]:
    yield [counts.tolist() for counts in rows.counts]
    yield rows.sample_ids, rows.cluster_ids, rows.record_indices.tolist(), rows.has_failed.tolist(), rows.num_without_reference
    yield [(part.name, part.values, part.codes.tolist()) for part in rows.slices]


@pytest.fixture
def with_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "ALONE_PARTS", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def test_rows_with_a_reference_are_measured_in_record_order(write_rows: Callable[..., str]) -> None:
    """CER by hand: equal but for case; failed, so its character is missing; equal to the second reference; empty."""
    rows = score_rows(write_rows(ROWS, num_parts=2), measuring(), lambda: None)
    assert (rows.sample_ids, rows.num_without_reference) == (["id-0", "id-1", "id-3", "id-4"], 1)
    assert rows.cluster_ids == ["r1", "r1", None, None]
    assert rows.record_indices.tolist() == [0, 1, 3, 4]
    assert rows.has_failed.tolist() == [False, True, False, False]
    assert rows.counts_of("cer").tolist() == [[1, 11, 0, 0, 0], [1, 1, 0, 1, 0], [1, 1, 0, 0, 0], [1, 1, 0, 1, 0]]
    assert [rows.counts_of(name)[:, 1].tolist() for name in ("failed", "empty", "cut", "exact_match")] == [
        [0, 1, 0, 0],
        [0, 0, 0, 1],
        [0, 0, 0, 1],
        [1, 0, 1, 0],
    ]
    assert rows.slices[-1].values == ("(none)", "a")


def test_several_processes_find_what_one_does(write_rows: Callable[..., str], with_helpers: None) -> None:
    predictions, told = write_rows(ROWS * 4, num_parts=4), list[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "ALONE_PARTS", 10)
        alone = score_rows(predictions, measuring(), lambda: told.append(os.getpid()))
    helped = score_rows(predictions, measuring(), lambda: told.append(os.getpid()))
    assert list(figures(helped)) == list(figures(alone))
    assert told == [os.getpid()] * 2


class Deadly:
    """Ends the process that it arrives in."""

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_death_of_a_helper_is_told(write_rows: Callable[..., str], with_helpers: None) -> None:
    predictions = write_rows(ROWS, num_parts=5)
    with pytest.raises(ChildFailedError, match=r"a process that measured rows of .* died, .*; run the same again"):
        score_rows(predictions, measuring(training_texts=Deadly()), lambda: None)


def test_an_error_of_a_helper_is_that_of_one_process(write_rows: Callable[..., str], with_helpers: None) -> None:
    predictions = write_rows(ROWS, num_parts=5)
    Path(predictions, "predictions", "part-00003.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(OutputError, match=r"part-00003\.parquet is damaged"):
        score_rows(predictions, measuring(), lambda: None)


def test_what_goes_wrong_meanwhile_ends_the_helpers_work(write_rows: Callable[..., str], with_helpers: None) -> None:
    def fail() -> None:
        raise OutputError("no such plan")

    with pytest.raises(OutputError, match="no such plan"):
        score_rows(write_rows(ROWS, num_parts=5), measuring(), fail)


def test_a_sample_id_that_stands_twice_is_refused(write_rows: Callable[..., str]) -> None:
    predictions = write_rows([("a", "a"), ("b", "b"), ("c", "c", {"sample_id": "id-0"})])
    with pytest.raises(OutputError, match=r"two rows have the sample_id 'id-0', so nobody can tell which is meant"):
        score_rows(predictions, measuring(), lambda: None)


@pytest.mark.parametrize("meta", ["", "{oops", "[1]", "null", '{"shop": ' + "[" * 5000, '{"shop": ' + "9" * 5000 + "}"])
def test_fields_that_cannot_be_read_are_told_with_their_row(write_rows: Callable[..., str], meta: str) -> None:
    predictions = write_rows([ROWS[0], ("a", "a", {"meta": meta})])
    with pytest.raises(OutputError, match=r"record 1 \('id-1'\): `meta` .* leave out `slice_by`"):
        score_rows(predictions, measuring(), lambda: None)
    assert len(score_rows(predictions, measuring(fields=()), lambda: None)) == 2


def test_rows_without_any_reference_are_refused(write_rows: Callable[..., str]) -> None:
    with pytest.raises(DatasetError, match=r"none of the 2 rows has a reference .*; give the records a `response`"):
        score_rows(write_rows([("a", None), (None, None)]), measuring(), lambda: None)


def test_the_extractor_is_for_figures_and_not_for_what_is_told_of_answers(write_rows: Callable[..., str]) -> None:
    loop = "ab " * 30
    predictions = write_rows([(f"A\n{loop}", "a"), ("A", "a")])
    metrics = measuring().metrics
    rows = score_rows(predictions, measuring(extractor="first-line", verbatim=metrics[:1], metrics=metrics[1:]), lambda: None)
    assert rows.counts_of("exact_match").tolist() == [[1, 1], [1, 1]]
    assert rows.counts_of("looping").tolist() == [[1, 1], [1, 0]]
    assert rows.counts_of("cer")[:, 2].tolist() == [len(f" {loop}".rstrip()), 0]


def test_a_part_without_references_counts_too(write_rows: Callable[..., str], make_prediction: Callable[..., Any]) -> None:
    predictions = write_rows([("a", "a"), ("b", "b")])
    write_part(predictions, "part-00001.parquet", [make_prediction(2, "c", None)])
    write_part(predictions, "part-00002.parquet", [make_prediction(3, "d", "d")])
    rows = score_rows(predictions, measuring(), lambda: None)
    assert (len(rows), rows.num_without_reference) == (3, 1)
    assert np.array_equal(rows.counts_of("exact_match"), [[1, 1]] * 3)
