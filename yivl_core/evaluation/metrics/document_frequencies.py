"""How many documents each n-gram of words occurs in, where a document is what all references of one row say: CIDEr-D's weights.

Figures of CIDEr-D compare only where these are the same, so they can be kept in a file: gathered from all rows once, and read
wherever a part of the rows is scored.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from yivl_core.digests import canonical_json
from yivl_core.errors import OutputError
from yivl_core.evaluation.texts.words import WORDS, split_words
from yivl_core.object_stores import without_secrets
from yivl_core.storage import publish_bytes, read_bytes

MAX_ORDER = 4
"""n-grams of 1 to this many words are counted."""

_VERSION = 1  # of the file
_METADATA = b"yivl.document_frequencies"
_SCHEMA = pa.schema([pa.field("ngram", pa.string(), nullable=False), pa.field("num_documents", pa.int64(), nullable=False)])


def count_ngrams(words: Sequence[str]) -> tuple[Counter[str], ...]:
    """How often each n-gram occurs in a text, for n from 1 to `MAX_ORDER`; its words are joined by one space."""
    starts = [words[start:] for start in range(MAX_ORDER)]
    return tuple(Counter(map(" ".join, zip(*starts[:n], strict=False))) for n in range(1, MAX_ORDER + 1))


class DocumentFrequencies:
    """Document frequencies of n-grams; grows row batch by row batch, in any order.

    Args:
        num_documents: rows that were counted.
        counts: of them, those whose references hold an n-gram, by n-gram.
    """

    def __init__(self, num_documents: int = 0, counts: Mapping[str, int] | None = None) -> None:
        self._num_documents, self._counts = num_documents, Counter(counts or {})

    @property
    def num_documents(self) -> int:
        """Documents that were counted."""
        return self._num_documents

    @property
    def counts(self) -> Mapping[str, int]:
        """Documents that hold an n-gram, by n-gram; not to be changed, and it grows with these frequencies."""
        return MappingProxyType(self._counts)

    @property
    def digest(self) -> str:
        """sha256 (hex) of the content and of the rule of words, whatever the order of documents; each access works it out."""
        digest = hashlib.sha256(canonical_json({"words": WORDS, "num_documents": self._num_documents}).encode())
        digest.update("".join(f"\n{count} {ngram}" for ngram, count in sorted(self._counts.items())).encode())
        return digest.hexdigest()

    def add(self, references: Iterable[Sequence[str]]) -> None:
        """Count documents.

        Args:
            references: the texts of each document; an n-gram that is in several of them counts once.
        """
        for texts in references:
            orders = chain.from_iterable(count_ngrams(split_words(text)) for text in texts)
            self._counts.update(set(chain.from_iterable(orders)))
            self._num_documents += 1

    def merge(self, other: "DocumentFrequencies") -> None:
        """Count the documents of `other` as well, which are to be different ones."""
        self._counts.update(other._counts)
        self._num_documents += other._num_documents

    def write(self, url: str) -> None:
        """Publish them as one parquet file, in one step. Equal ones give equal bytes (with the same version of pyarrow).

        Raises:
            StorageError: the file cannot be written.
        """
        described = {"version": _VERSION, "words": WORDS, "num_documents": self._num_documents, "digest": self.digest}
        schema = _SCHEMA.with_metadata({_METADATA: canonical_json(described).encode()})
        ngrams = sorted(self._counts)
        table = pa.table([ngrams, [self._counts[ngram] for ngram in ngrams]], schema=schema)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
        publish_bytes(url, buffer.getvalue())

    @classmethod
    def read(cls, url: str) -> "DocumentFrequencies":
        """What `write` wrote.

        Raises:
            OutputError: the file is damaged, is something else, or counts other words than this version splits texts into.
            StorageError: there is no such file, or it cannot be read.
        """
        data, place = read_bytes(url), without_secrets(url)
        try:
            table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
            described = json.loads((table.schema.metadata or {}).get(_METADATA, b"null"))
            _check_kind(table.schema, described, place)
            ngrams, counts = table.column("ngram").to_pylist(), table.column("num_documents")
            frequencies = cls(described["num_documents"], dict(zip(ngrams, counts.to_pylist(), strict=True)))
            if frequencies.digest != described["digest"]:
                raise ValueError("the digest of its content is not the one that was written")
            _check_counts(counts, frequencies.num_documents)
        except (pa.ArrowException, ValueError, KeyError, TypeError, OSError) as error:
            raise OutputError(f"{place} is damaged ({error}); gather and write the document frequencies again") from error
        return frequencies


def _check_kind(schema: pa.Schema, described: object, place: str) -> None:
    """That a file was written as document frequencies, and with the rule of words that is in use."""
    remedy = "gather and write the document frequencies again, with the yivl that reads them"
    if not isinstance(described, dict) or not schema.remove_metadata().equals(_SCHEMA):
        raise OutputError(f"{place} holds no document frequencies; give a file that was written as such, or {remedy}")
    for what, written, known in (("version", described["version"], _VERSION), ("words", described["words"], WORDS)):
        if written != known:
            raise OutputError(f"{place} holds document frequencies of {what} {written}, and this yivl reads {known}; {remedy}")


def _check_counts(counts: pa.ChunkedArray, num_documents: object) -> None:
    """That no weight is infinite or below 0: what a digest does not say of a file that somebody else wrote."""
    if not isinstance(num_documents, int) or num_documents < 0:
        raise ValueError(f"it is of {num_documents!r} documents")
    bounds = pc.min_max(counts).as_py()
    if len(counts) and not 1 <= bounds["min"] <= bounds["max"] <= num_documents:
        raise ValueError(f"n-grams are in {bounds['min']} to {bounds['max']} of {num_documents} documents")
