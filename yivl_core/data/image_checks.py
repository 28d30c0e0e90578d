"""Rows -> the same rows in the same order, each with what was found out about its images.

Images are decoded side by side, a bounded number of rows ahead. An image that several rows name is decoded once, as long as
those rows are not too far apart.
"""

from collections import OrderedDict, deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from yivl_core.data.findings import Finding
from yivl_core.data.image_worker import Outcome
from yivl_core.data.image_workers import ImageWorkers
from yivl_core.data.images import ImageInfo, ImageReference, ImageStore
from yivl_core.data.reading import InputRow

_NUM_IMAGES_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedRow:
    """A row whose images were looked at.

    Attributes:
        row: the row as it was read.
        images: one for each of `row.images`; fewer where some cannot be used.
        findings: those of the row, and those of its images.
    """

    row: InputRow
    images: tuple[ImageInfo, ...]
    findings: tuple[Finding, ...]

    @property
    def is_clean(self) -> bool:
        """Whether nothing keeps the record from being used."""
        return not any(finding.severity == "error" for finding in self.findings)


@dataclass(slots=True)
class _Awaited:
    """The outcome of an image, which stands at some place in the answer to a request that may not have been made yet."""

    place: int
    answer: "Future[list[Outcome]] | None" = None

    @property
    def is_there(self) -> bool:
        return self.answer is not None and self.answer.done()

    @property
    def outcome(self) -> Outcome:
        assert self.answer is not None
        return self.answer.result()[self.place]


def check_images(rows: Iterable[InputRow], store: ImageStore, num_workers: int = 0) -> Generator[CheckedRow, None, None]:
    """Decode every image that a row names, also of rows that are rejected anyway, so that all is mended at once.

    Args:
        rows: what names the images.
        store: reads them.
        num_workers: processes that help where there are many images; 0: threads alone.

    Raises:
        StorageError: the disk or network failed.
        ChildFailedError: a process died.
    """
    known: OrderedDict[ImageReference, _Awaited] = OrderedDict()
    waiting: deque[tuple[InputRow, list[_Awaited]]] = deque()
    coming = iter(rows)
    with closing(ImageWorkers(store, num_workers)) as workers:
        while block := list(islice(coming, workers.rows_per_request)):
            new: dict[ImageReference, _Awaited] = {}
            for row in block:
                awaited = []
                for image in row.images:
                    if (one := known.pop(image, None)) is None:
                        one = new[image] = _Awaited(len(new))
                    known[image] = one  # behind all others, as the latest
                    awaited.append(one)
                waiting.append((row, awaited))
            if new:
                answer = workers.submit(tuple(new))
                for one in new.values():
                    one.answer = answer
            while len(known) > _NUM_IMAGES_REMEMBERED:
                known.popitem(last=False)
            while waiting and (len(waiting) > workers.num_rows_ahead or all(one.is_there for one in waiting[0][1])):
                yield _checked(*waiting.popleft())
        while waiting:
            yield _checked(*waiting.popleft())


def _checked(row: InputRow, awaited: list[_Awaited]) -> CheckedRow:
    outcomes = [one.outcome for one in awaited]
    findings = list(row.findings)
    text_kinds = {finding.kind for finding in findings} & {"control_char", "bad_unicode"}
    for _, image_findings in outcomes:
        # Text that cannot be stored was found in the row already, whether it is an address or not.
        findings += [finding for finding in image_findings if finding.kind not in text_kinds]
    infos = tuple(info for info, _ in outcomes if info is not None)
    return CheckedRow(row=row, images=infos, findings=tuple(findings))
