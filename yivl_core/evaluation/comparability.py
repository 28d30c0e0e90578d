"""Whether two models' figures may be set beside each other: whether both were asked the same, in the same way.

What was asked stands in the rows, so rows that share a `sample_id` are compared part by part. How it was asked stands in the
manifests. Everything here is a pure function of the two.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, Literal

import orjson

from yivl_core.digests import canonical_json
from yivl_core.evaluation.rows import references_of
from yivl_core.outputs.predictions import Prediction

Kind = Literal["manifest", "data", "prompt", "decoding", "numerics", "environment", "code", "model", "adapter"]
Part = Literal["query", "history", "system", "images", "references"]

NUM_NAMED = 5  # rows whose names are told
NOT_KNOWN = "not known"
_NO_FILE = "no such file"

_PARTS: tuple[Part, ...] = ("query", "history", "system", "images", "references")
_PART_BYTES = 8
_UNKNOWN_IMAGES = bytes(_PART_BYTES)

# Blocks of a manifest, and the kind of what differs in them.
_BLOCKS: tuple[tuple[str, Kind], ...] = (
    ("data", "data"),
    ("prompt", "prompt"),
    ("decoding", "decoding"),
    ("numerics", "numerics"),
    ("settings", "numerics"),
    ("environment", "environment"),
    ("code", "code"),
    ("model", "model"),
    ("adapter", "adapter"),
)
_BLOCKING = ("prompt", "decoding")
_SUBJECTS = ("model", "adapter")  # what is compared
_MAX_SHOWN = 120
_ABSENT: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What two runs do not share, or of what nobody can say whether they do.

    Attributes:
        kind: which side of a run it belongs to; `manifest`: one of them has none.
        name: the place in the manifest, as `decoding.max_new_tokens`.
        ours: the value in the predictions' manifest as JSON, shortened where it is long; `NOT_KNOWN` where it does not tell it.
        theirs: the same of the baseline's.
        is_blocking: figures of such runs do not compare.
    """

    kind: Kind
    name: str
    ours: str
    theirs: str
    is_blocking: bool

    @property
    def is_warning(self) -> bool:
        """It may have moved figures a little, or is not known; else it blocks, or is what the comparison is about."""
        return not self.is_blocking and self.kind not in _SUBJECTS

    def __str__(self) -> str:
        """What a user is told."""
        told = f"{self.name}: {self.ours} here, {self.theirs} in the baseline"
        return f"{told}, so nothing can be said of prompt and decoding" if self.kind == "manifest" else told


def compare_manifests(predictions: dict[str, Any] | None, baseline: dict[str, Any] | None) -> list[Difference]:
    """How two runs of inference differ, value by value, in the order of importance.

    Prompt and decoding block. Data do not: `RowIdentities` says more exactly what was asked, also where one run was given more
    rows. Model and adapter are what is compared; all else is a warning. What only one manifest tells, since another version wrote
    it, is not known.

    Args:
        predictions: the manifest of the run in question; None: it has none.
        baseline: the manifest of the run that it is compared with.
    """
    if predictions is None or baseline is None:
        return [
            Difference(
                kind="manifest",
                name="manifest",
                ours="none" if predictions is None else "one",
                theirs="none" if baseline is None else "one",
                is_blocking=False,
            )
        ]
    found = []
    for block, kind in _BLOCKS:
        pair = _block_of(predictions, block), _block_of(baseline, block)
        for name, ours, theirs in _unequal(block, *pair, is_needed=kind in _BLOCKING):
            is_known = ours is not _ABSENT and theirs is not _ABSENT
            absent = _NO_FILE if ".files." in name else NOT_KNOWN
            found.append(
                Difference(
                    kind=kind,
                    name=name,
                    ours=_shown(ours, absent),
                    theirs=_shown(theirs, absent),
                    is_blocking=is_known and kind in _BLOCKING,
                )
            )
    return found


def _block_of(manifest: dict[str, Any], name: str) -> Any:
    """A block; of the settings what is not among the numerics already."""
    block = manifest.get(name, _ABSENT)
    numerics = manifest.get("numerics")
    if name == "settings" and isinstance(block, dict) and isinstance(numerics, dict):
        return {key: value for key, value in block.items() if key not in numerics}
    return block


def _unequal(name: str, ours: Any, theirs: Any, *, is_needed: bool = False) -> Iterator[tuple[str, Any, Any]]:
    """The values that differ, by their place; what both lack only where it is needed."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in sorted(ours.keys() | theirs.keys()):
            yield from _unequal(f"{name}.{key}", ours.get(key, _ABSENT), theirs.get(key, _ABSENT))
    elif ours is _ABSENT or theirs is _ABSENT:
        if ours is not theirs or is_needed:
            yield name, ours, theirs
    elif ours != theirs:
        yield name, ours, theirs


def _shown(value: Any, absent: str) -> str:
    if value is _ABSENT:
        return absent
    text = canonical_json(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[: _MAX_SHOWN - 1]}…"


def row_identity(prediction: Prediction) -> bytes:
    """What a row asks and what is right, in 40 bytes: 8 of BLAKE2b for each of query, history, system, images and references.

    An image is its sha256, wherever it lies; where that of one is not known, its bytes are nought. Other fields of the record do
    not count.
    """
    digests = [image.sha256 for image in prediction.images]
    return b"".join(
        (
            _digest_again(prediction.query),
            _digest_again(prediction.history),
            _digest_again(prediction.system),
            _UNKNOWN_IMAGES if None in digests else _digest(digests),
            _digest(references_of(prediction)),
        )
    )


def differing_parts(ours: bytes, theirs: bytes) -> tuple[Part, ...]:
    """The parts in which two rows differ by their `row_identity`; images only where those of both are known."""
    if ours == theirs:
        return ()
    found = []
    for part, start in zip(_PARTS, range(0, len(ours), _PART_BYTES), strict=True):
        one, other = ours[start : start + _PART_BYTES], theirs[start : start + _PART_BYTES]
        is_known = part != "images" or _UNKNOWN_IMAGES not in (one, other)
        if one != other and is_known:
            found.append(part)
    return tuple(found)


def _digest(value: Any) -> bytes:
    return blake2b(orjson.dumps(value), digest_size=_PART_BYTES).digest()


_digest_again = lru_cache(1000)(_digest)  # most rows ask the same of other images
_NO_REFERENCES = _digest(())


@dataclass(slots=True, kw_only=True)
class NamedRows:
    """How many rows, and the sample ids of the first `NUM_NAMED` of them."""

    num: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, sample_id: str) -> None:
        """Take in one more."""
        self.num += 1
        if len(self.names) < NUM_NAMED:
            self.names.append(sample_id)

    def __str__(self) -> str:
        """What a user is told."""
        return f"{self.num} ({', '.join(self.names)}{', ...' if self.num > len(self.names) else ''})"


@dataclass(slots=True, kw_only=True)
class RowDifferences:
    """How what was asked of two models differs. Rows without a reference on either side count nowhere: no figure is made of them.

    Attributes:
        num_both: rows that both have.
        only_here: rows that the baseline lacks, in their order.
        only_there: rows that only the baseline has, in its order.
        differing: of the rows that both have, those that differ in a part; a row may be in several.
        unknown_images: rows that both have, and an image of which one side at least could not read.
    """

    num_both: int = 0
    only_here: NamedRows = field(default_factory=NamedRows)
    only_there: NamedRows = field(default_factory=NamedRows)
    differing: dict[Part, NamedRows] = field(default_factory=lambda: {part: NamedRows() for part in _PARTS})
    unknown_images: NamedRows = field(default_factory=NamedRows)


class RowIdentities:
    """Compares the rows of a baseline, given first, with those of another run.

    Of each row of the baseline its identity is held. Measured: 0.24 GB for a million rows, most of it their sample ids. Each
    sample id occurs once on either side, as `yivl infer` makes them.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, bytes] = {}
        self._found = RowDifferences()

    def add_baseline(self, prediction: Prediction) -> None:
        """Take in the next row of the baseline."""
        self._waiting[prediction.sample_id] = row_identity(prediction)

    def add(self, prediction: Prediction) -> None:
        """Take in the next row of the run in question, when all of the baseline have been."""
        theirs = self._waiting.pop(prediction.sample_id, None)
        ours = row_identity(prediction)
        if not _has_references(ours) and (theirs is None or not _has_references(theirs)):
            return
        if theirs is None:
            self._found.only_here.add(prediction.sample_id)
            return
        self._found.num_both += 1
        for part in differing_parts(ours, theirs):
            self._found.differing[part].add(prediction.sample_id)
        if _has_unknown_images(ours) or _has_unknown_images(theirs):
            self._found.unknown_images.add(prediction.sample_id)

    def finish(self) -> RowDifferences:
        """What was found, when all rows have been taken in."""
        for sample_id, theirs in self._waiting.items():
            if _has_references(theirs):
                self._found.only_there.add(sample_id)
        self._waiting.clear()
        return self._found


def _has_references(identity: bytes) -> bool:
    return identity[_PARTS.index("references") * _PART_BYTES :] != _NO_REFERENCES


def _has_unknown_images(identity: bytes) -> bool:
    start = _PARTS.index("images") * _PART_BYTES
    return identity[start : start + _PART_BYTES] == _UNKNOWN_IMAGES
