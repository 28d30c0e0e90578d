"""Rows -> the same rows in the same order, each with what was found out about its images.

Images are decoded in a few threads, a bounded number of rows ahead. An image that several rows name is decoded once, as long as
those rows are not too far apart. Pixels are dropped at once, so that memory does not depend on the number of images.
"""

import os
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from yivl_core.data.findings import Finding, error, shown, warning
from yivl_core.data.images import IMAGE_WARNINGS, ImageError, ImageInfo, ImageReference, ImageStore
from yivl_core.data.reading import InputRow

_NUM_ROWS_AHEAD = 64
_NUM_IMAGES_REMEMBERED = 4096
_ADDRESS_KINDS = frozenset({"image_missing", "path_escape", "url_not_allowed", "control_char", "bad_unicode"})


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


_Outcome = tuple[ImageInfo | None, tuple[Finding, ...]]


def check_images(rows: Iterable[InputRow], store: ImageStore) -> Iterator[CheckedRow]:
    """Decode every image that a row names, also of rows that are rejected anyway, so that all is mended at once.

    Raises:
        StorageError: the disk or network failed.
    """
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1), thread_name_prefix="image")
    outcomes: OrderedDict[ImageReference, Future[_Outcome]] = OrderedDict()
    waiting: deque[tuple[InputRow, list[Future[_Outcome]]]] = deque()
    try:
        for row in rows:
            futures = []
            for image in row.images:
                if image not in outcomes:
                    outcomes[image] = pool.submit(_check_image, image, store)
                outcomes.move_to_end(image)
                futures.append(outcomes[image])
            waiting.append((row, futures))
            while len(outcomes) > _NUM_IMAGES_REMEMBERED:
                outcomes.popitem(last=False)
            if len(waiting) > _NUM_ROWS_AHEAD:
                yield _checked(*waiting.popleft())
        while waiting:
            yield _checked(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _check_image(image: ImageReference, store: ImageStore) -> _Outcome:
    try:
        loaded = store.load(image)
    except ImageError as cause:
        if cause.kind in _ADDRESS_KINDS:
            return None, (error(cause.kind, cause.message, cause.remedy),)
        return None, (error("image_unreadable", cause.message, cause.remedy, detail=cause.kind),)
    findings = []
    for kind in loaded.warnings:
        message, remedy = IMAGE_WARNINGS[kind]
        findings.append(warning(kind, f"image {shown(image.uri)}: {message}", remedy))
    return loaded.info, tuple(findings)


def _checked(row: InputRow, futures: list["Future[_Outcome]"]) -> CheckedRow:
    outcomes = [future.result() for future in futures]
    findings = list(row.findings)
    text_kinds = {finding.kind for finding in findings} & {"control_char", "bad_unicode"}
    for _, image_findings in outcomes:
        # Text that cannot be stored was found in the row already, whether it is an address or not.
        findings += [finding for finding in image_findings if finding.kind not in text_kinds]
    infos = tuple(info for info, _ in outcomes if info is not None)
    return CheckedRow(row=row, images=infos, findings=tuple(findings))
