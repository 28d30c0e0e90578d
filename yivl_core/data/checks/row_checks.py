"""Blocks of rows -> what a validation writes of them: each row parsed, each of its images decoded in full.

Nothing here looks at two rows at once but for images, so blocks can be checked side by side, in threads and processes.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.data.cache.verdicts import VERDICTS_NAME, Verdicts, is_lasting
from yivl_core.data.checks.checked_rows import CheckedBlock, Fetched, NotedRow, RowBlock
from yivl_core.data.checks.image_checks import ImageChecker, Outcome, image_finding
from yivl_core.data.checks.key_table import KEY_BYTES
from yivl_core.data.checks.policies import Policies
from yivl_core.data.checks.token_lengths import open_token_counter
from yivl_core.data.data_uris import is_data_uri
from yivl_core.data.dataset import ValidatedRecord, record_line, record_to_json
from yivl_core.data.decoding import Depth
from yivl_core.data.findings import MAX_LINE, MAX_ROW_FINDINGS, Finding, Source, warning
from yivl_core.data.images import ImageError, ImageInfo, ImageReference, ImageStore
from yivl_core.data.notes import NOTE_FIELD, image_note
from yivl_core.data.reading import InputRow, RowReader
from yivl_core.data.records import Record
from yivl_core.data.rows.plain_json import read_plain_object
from yivl_core.data.rows.plain_records import plain_content
from yivl_core.data.rows.raw_row import RawRow, lines_of
from yivl_core.data.rows.strict_json import StrictJsonReader

_NO_KEY = bytes(KEY_BYTES)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings:
    """How rows are checked, in this process and in those that help it.

    Attributes:
        max_pixels: most pixels of an image.
        depth: whether images are decoded in full, or only their headers read.
        max_worker_bytes: memory that a process which helps may take.
        cache: folder that keeps images which the dataset itself holds, and what was found out about others; None: nowhere.
        policy: what is done about kinds of findings, as `Policies.of` reads it.
        wants_questions: whether `CheckedBlock.questions` is needed.
        model: folder of a checkpoint with whose tokenizer records are counted; None: they are not.
        with_response: whether the response counts.
        max_length: most tokens of a record; None: as many as the model reads.
    """

    max_pixels: int = 64_000_000
    depth: Depth = "full"
    max_worker_bytes: int = 2_000_000_000
    cache: str | None = None
    policy: tuple[str, ...] = ()
    wants_questions: bool = False
    model: str | None = None
    with_response: bool = True
    max_length: int | None = None


class RowChecker:
    """Checks blocks of rows, for all threads of this process.

    Args:
        settings: how.
        images: looks at the images.

    Attributes:
        settings: as they were given.
        images: likewise.
        max_length: most tokens of a record; None: any number.

    Raises:
        CheckpointError: the settings name a model whose tokenizer cannot be read.
    """

    def __init__(self, settings: CheckSettings, images: ImageChecker) -> None:
        self.settings = settings
        self.images = images
        self._policies = Policies.of(settings.policy)
        self.max_length = settings.max_length
        self._count_tokens = None
        if settings.model is not None:
            self._count_tokens = open_token_counter(settings.model, with_response=settings.with_response)
            self.max_length = min(settings.max_length or self._count_tokens.max_positions, self._count_tokens.max_positions)

    def check(self, block: RowBlock) -> CheckedBlock:
        """What there is to say about the rows of a block.

        Raises:
            StorageError: the disk or network failed.
        """
        check = _BlockCheck(block.reader, self, block.fetched)
        for row in block.rows:
            check.add(row)
        if block.lines is not None:
            for row in lines_of(block.lines, block.reader.max_line_bytes):
                check.add(row)
        return check.result()

    def length(self, content: Mapping[str, Any]) -> int:
        """Tokens of a record; 0 where they are not counted."""
        return 0 if self._count_tokens is None else self._count_tokens(content)

    def is_too_long(self, num_tokens: int) -> bool:
        """Whether a record has more tokens than it may."""
        return self.max_length is not None and num_tokens > self.max_length

    def judged(self, findings: tuple[Finding, ...], num_tokens: int = 0) -> tuple[Finding, ...]:
        """Findings, and what there is to say about a length, each as severe as the user takes it."""
        if self.is_too_long(num_tokens):
            message = f"the record has {num_tokens:,} tokens, images included, {self.max_length:,} may be read"
            remedy = "shorten it, leave out rounds or images, or raise max_length as far as the model goes"
            findings = (*findings, warning("too_long", message, remedy))
        return self._policies.apply(findings)


@contextmanager
def open_checker(settings: CheckSettings) -> Iterator[RowChecker]:
    """A checker with what it remembers.

    Raises:
        CheckpointError: as `RowChecker`.
    """
    store = ImageStore(settings.max_pixels)
    if settings.cache is None:
        yield RowChecker(settings, ImageChecker(store, settings.depth))
        return
    folder = Path(settings.cache)
    with closing(Verdicts(folder / VERDICTS_NAME, f"{settings.depth} {settings.max_pixels}")) as verdicts:
        yield RowChecker(settings, ImageChecker(store, settings.depth, verdicts, ImageCache(folder)))


class _BlockCheck:
    """Collects what is found out about the rows of a block."""

    def __init__(self, reader: RowReader, checker: RowChecker, fetched: Mapping[str, Fetched]) -> None:
        self._fetched = fetched
        self._reader = reader
        self._checker = checker
        self._json_reader = StrictJsonReader()
        self._converts = not reader.is_plain
        self._num_rows = 0
        self._noted: list[NotedRow] = []
        self._lines: list[int] = []
        self._records: list[bytes] = []
        self._contents: list[bytes] = []
        self._keys: list[bytes] = []
        self._answers: list[bytes] = []
        self._lengths: list[int] = []
        self._questions: list[bytes] = []
        self._num_tokens: list[int] = []
        self._image_values: list[Sequence[Any]] = []
        self._image_files: dict[str, str] = {}
        self._num_unsettled = 0
        # The note of a record, as `note_json` has it, up to the numbers of its place.
        self._note = b', "%b": {"file": %b, ' % (NOTE_FIELD.encode(), orjson.dumps(reader.file))

    def add(self, raw: RawRow) -> None:
        """Check a row."""
        self._num_rows += raw.line is not None
        if raw.json is None or raw.findings or not self._add_plain(raw.json, raw.line):
            self._add_other(raw)

    def _add_plain(self, data: bytes, line: int | None) -> bool:
        """Take a row about which there is nothing to say, as nearly all are; False for any other."""
        values = read_plain_object(data)
        if values is None or line is None:
            return False
        if self._converts:
            values, findings = self._reader.convert(values)
            if findings:
                return False
        content = plain_content(values, self._reader.purpose)
        if content is None:
            return False
        if self._converts or b"\n" in data:  # the latter: an item of a JSON document, written over several lines
            data = orjson.dumps(content)
        infos: list[ImageInfo] = []
        if "images" in content:
            addresses = [address for address in content["images"] if address is not None]
            if any(map(_is_no_path, addresses)):
                return False
            for image in self._reader.locate(addresses):
                outcome = self._look(image)
                if outcome.info is None or outcome.findings:
                    return False
                infos.append(outcome.info)
                self._note_file(outcome)
        num_tokens = self._checker.length(content)
        if self._checker.is_too_long(num_tokens):
            return False
        if infos:
            digests = iter(infos)
            content = {**content, "images": [None if address is None else next(digests).sha256 for address in content["images"]]}
        notes = b"".join([b"[", orjson.dumps([image_note(info) for info in infos])[1:-1], b"]"]) if infos else b"[]"
        numbers = b'"line": %d' % line if line <= MAX_LINE else orjson.dumps(Source.of_place("", line).numbers)[1:-1]
        self._add_clean(
            line=line,
            record=b"".join([data[:-1], self._note, numbers, b', "images": ', notes, b"}}\n"]),
            canonical=orjson.dumps(content, option=orjson.OPT_SORT_KEYS),
            content=content,
            infos=infos,
            num_tokens=num_tokens,
        )
        return True

    def _add_other(self, raw: RawRow) -> None:
        row = self._reader.read(raw, self._json_reader)
        # Those of a rejected row, too, so that all is mended at once.
        outcomes = [self._look(image) for image in row.images]
        for outcome in outcomes:
            self._note_file(outcome)
        findings = _findings(row, outcomes)
        record = row.record
        num_tokens = 0
        if record is not None and not _has_error(findings):
            num_tokens = self._checker.length(record_to_json(record))
        findings = self._checker.judged(findings, num_tokens)
        if record is None or _has_error(findings):
            self._noted.append(NotedRow(raw.line, None if record is None else record.id, findings, row.text))
            return
        assert raw.line is not None
        if findings:
            self._noted.append(NotedRow(raw.line, record.id, findings, None))
        infos = tuple(outcome.info for outcome in outcomes if outcome.info is not None)
        record = _with_public_addresses(record, infos)
        validated = ValidatedRecord(record=record, source=row.source, images=infos)
        self._add_clean(
            line=raw.line,
            record=record_line(validated).encode(),
            canonical=validated.canonical.encode(),
            content=record_to_json(record),
            infos=infos,
            num_tokens=num_tokens,
        )

    def _add_clean(
        self,
        *,
        line: int,
        record: bytes,
        canonical: bytes,
        content: Mapping[str, Any],
        infos: Sequence[ImageInfo],
        num_tokens: int,
    ) -> None:
        response: str | None = content.get("response")
        self._image_values += [(len(self._lines), *info.values) for info in infos]
        self._lines.append(line)
        self._records.append(record)
        self._contents.append(canonical + b"\n")
        self._keys.append(hashlib.sha256(canonical).digest()[:KEY_BYTES])
        self._answers.append(_NO_KEY if response is None else hashlib.sha256(response.encode()).digest()[:KEY_BYTES])
        self._lengths.append(-1 if response is None else len(response))
        self._num_tokens.append(num_tokens)
        if self._checker.settings.wants_questions:
            self._questions.append(_question_key(content, infos))

    def _look(self, image: ImageReference) -> Outcome:
        """What there is to say about an image, which was fetched already where it has a URL that may be fetched."""
        try:
            fetched = self._fetched.get(image.url or "")
        except ImageError as cause:
            return Outcome(None, (image_finding(cause),), None, "")
        if fetched is None:
            outcome = self._checker.images.check(image)
            self._num_unsettled += not is_lasting(outcome.findings)
            return outcome
        if fetched.path is None:
            is_refused = fetched.failure is not None and fetched.failure.kind == "url_not_allowed"
            self._num_unsettled += not is_refused
            return Outcome(None, () if fetched.failure is None else (fetched.failure,), None, "")
        path = Path(fetched.path)
        here = ImageReference(uri=image.uri, address=fetched.path, root=path.parent, sha256=fetched.sha256)
        return self._checker.images.check(here)

    def _note_file(self, outcome: Outcome) -> None:
        if outcome.path is not None:
            self._image_files[outcome.path] = outcome.state

    def result(self) -> CheckedBlock:
        """What was found out."""
        return CheckedBlock(
            file=self._reader.file,
            file_number=self._reader.file_number,
            num_rows=self._num_rows,
            noted=self._noted,
            lines=np.array(self._lines, np.int64),
            records=b"".join(self._records),
            canonical=b"".join(self._contents),
            keys=b"".join(self._keys),
            answers=b"".join(self._answers),
            answer_lengths=np.array(self._lengths, np.int32),
            questions=b"".join(self._questions),
            num_tokens=np.array([] if self._checker.settings.model is None else self._num_tokens, np.int32),
            images=self._image_values,
            image_files=self._image_files,
            num_unsettled=self._num_unsettled,
        )


def _findings(row: InputRow, outcomes: Sequence[Outcome]) -> tuple[Finding, ...]:
    if not any(outcome.findings for outcome in outcomes):
        return row.findings
    # Text that cannot be stored was found in the row already, whether it is an address or not.
    text_kinds = {finding.kind for finding in row.findings} & {"control_char", "bad_unicode"}
    of_images = (finding for outcome in outcomes for finding in outcome.findings if finding.kind not in text_kinds)
    return (*row.findings, *islice(of_images, MAX_ROW_FINDINGS))


def _is_no_path(address: str) -> bool:
    return "://" in address or is_data_uri(address)


def _with_public_addresses(record: Record, infos: Sequence[ImageInfo]) -> Record:
    """The record with its URLs as they may be stored, and with short names for images that stood in it."""
    if not any(map(_is_no_path, record.image_addresses)):
        return record
    uris = iter(infos)
    return record.model_copy(update={"images": tuple(None if one is None else next(uris).uri for one in record.images)})


def _has_error(findings: Sequence[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


def _question_key(content: Mapping[str, Any], infos: Sequence[ImageInfo]) -> bytes:
    """The start of what `sample_digest` gives of the record."""
    is_image = [address is not None for address in content.get("images", ())]
    shown_parts = [[info.sha256 for info in infos], content.get("history", []), content["query"], content.get("system"), is_image]
    return hashlib.sha256(orjson.dumps(shown_parts)).digest()[:KEY_BYTES]
