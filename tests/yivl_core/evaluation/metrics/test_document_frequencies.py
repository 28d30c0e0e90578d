import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from yivl_core.errors import OutputError, StorageError
from yivl_core.evaluation.metrics.document_frequencies import DocumentFrequencies, count_ngrams

texts = st.lists(st.sampled_from(["a", "the", "Dog", "狗", "🐶", "."]), max_size=6).map(" ".join)
documents = st.lists(st.lists(texts, min_size=1, max_size=3), max_size=5)


def gathered(documents: list[list[str]]) -> DocumentFrequencies:
    frequencies = DocumentFrequencies()
    frequencies.add(documents)
    return frequencies


def content(frequencies: DocumentFrequencies) -> tuple[int, dict[str, int]]:
    return frequencies.num_documents, dict(frequencies.counts)


SOME = [["a dog runs", "A dog, a dog"], ["the dog"], ["..."], ["一只狗"]]


def test_ngrams_are_counted_by_their_length() -> None:
    assert count_ngrams(["a", "b", "a", "b", "a"]) == (
        {"a": 3, "b": 2},
        {"a b": 2, "b a": 2},
        {"a b a": 2, "b a b": 1},
        {"a b a b": 1, "b a b a": 1},
    )
    assert count_ngrams(["a"]) == ({"a": 1}, {}, {}, {})
    assert count_ngrams([]) == ({}, {}, {}, {})


def test_an_ngram_counts_once_in_a_document() -> None:
    """By hand."""
    assert content(gathered(SOME)) == (
        4,
        {"a": 1, "dog": 2, "runs": 1, "a dog": 1, "dog runs": 1, "dog a": 1, "a dog runs": 1, "a dog a": 1, "dog a dog": 1}
        | {"a dog a dog": 1, "the": 1, "the dog": 1}
        | {"一": 1, "只": 1, "狗": 1, "一 只": 1, "只 狗": 1, "一 只 狗": 1},
    )


def test_digest_is_of_the_content() -> None:
    """sha256 of what its docstring says, written out by hand."""
    written = '{"num_documents":2,"words":"yivl-words-1"}\n2 dog\n1 the\n1 the dog'
    frequencies = gathered([["the dog"], ["Dog!"]])
    assert frequencies.digest == hashlib.sha256(written.encode()).hexdigest()
    frequencies.add([[""]])
    assert frequencies.digest != hashlib.sha256(written.encode()).hexdigest()


@settings(deadline=None)
@given(documents=documents, data=st.data())
def test_order_batches_and_merging_decide_nothing(documents: list[list[str]], data: st.DataObject) -> None:
    whole = gathered(documents)
    cut = data.draw(st.integers(0, len(documents)))
    batched = gathered(documents[:cut])
    batched.add(documents[cut:])
    merged = gathered(documents[cut:])
    merged.merge(gathered(documents[:cut]))
    shuffled = gathered(data.draw(st.permutations(documents)))
    assert content(whole) == content(batched) == content(merged) == content(shuffled)
    assert whole.digest == batched.digest == merged.digest == shuffled.digest


def test_a_file_gives_back_what_was_written_and_has_the_same_bytes(tmp_path: Path) -> None:
    for name, documents in (("some", SOME), ("backwards", SOME[::-1]), ("none", []), ("wordless", [["..."]])):
        gathered(documents).write(str(tmp_path / name))
        read = DocumentFrequencies.read(str(tmp_path / name))
        assert content(read) == content(gathered(documents))
        assert read.digest == gathered(documents).digest
    assert (tmp_path / "some").read_bytes() == (tmp_path / "backwards").read_bytes()


def test_what_was_read_can_be_added_to(tmp_path: Path) -> None:
    gathered(SOME[:2]).write(str(tmp_path / "half"))
    read = DocumentFrequencies.read(str(tmp_path / "half"))
    read.add(SOME[2:])
    assert read.digest == gathered(SOME).digest


def test_every_damaged_byte_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    gathered(SOME).write(str(tmp_path / "whole"))
    whole = (tmp_path / "whole").read_bytes()
    url, num_refused = str(tmp_path / "damaged"), 0
    for place in range(len(whole)):
        Path(url).write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            read = DocumentFrequencies.read(url)
        except OutputError:
            num_refused += 1
        else:
            assert content(read) == content(gathered(SOME))
    assert num_refused > len(whole) // 2


@pytest.mark.parametrize("num_bytes", [0, 3, 100, -1])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, num_bytes: int) -> None:
    gathered(SOME).write(str(tmp_path / "whole"))
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:num_bytes])
    with pytest.raises(OutputError, match=r"cut is damaged \(.*\); gather and write the document frequencies again"):
        DocumentFrequencies.read(str(tmp_path / "cut"))


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        DocumentFrequencies.read(str(tmp_path / "missing"))


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other")
    with pytest.raises(OutputError, match="other holds no document frequencies; give a file that was written as such"):
        DocumentFrequencies.read(str(tmp_path / "other"))


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"version": 2}, "holds document frequencies of version 2, and this yivl reads 1"),
    ({"words": "yivl-words-9"}, "holds document frequencies of words yivl-words-9, and this yivl reads yivl-words-1"),
    ({"num_documents": 5}, "the digest of its content is not the one that was written"),
    ({"num_documents": "4"}, "the digest of its content is not the one that was written"),
]


def changed(path: Path, described: dict[str, Any]) -> Path:
    """The file with other metadata."""
    key = b"yivl.document_frequencies"
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[key]) | described
    pq.write_table(table.replace_schema_metadata({key: json.dumps(metadata).encode()}), path)
    return path


@pytest.mark.parametrize(("described", "message"), CHANGES)
def test_what_a_file_says_of_itself_is_checked(tmp_path: Path, described: dict[str, Any], message: str) -> None:
    gathered(SOME).write(str(tmp_path / "file"))
    with pytest.raises(OutputError, match=message):
        DocumentFrequencies.read(str(changed(tmp_path / "file", described)))


@pytest.mark.parametrize(
    ("num_documents", "counts", "message"),
    [
        (1, {"a": 2}, "n-grams are in 2 to 2 of 1 documents"),
        (3, {"a": 0, "b": 1}, "n-grams are in 0 to 1 of 3 documents"),
        (-1, {}, "it is of -1 documents"),
        (2.0, {"a": 1}, "it is of 2.0 documents"),
    ],
)
def test_counts_that_cannot_be_are_refused(tmp_path: Path, num_documents: Any, counts: dict[str, int], message: str) -> None:
    DocumentFrequencies(num_documents, counts).write(str(tmp_path / "file"))
    with pytest.raises(OutputError, match=message):
        DocumentFrequencies.read(str(tmp_path / "file"))
