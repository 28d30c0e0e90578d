"""Images -> what a validation has to say of each: looked at once, however many rows name it."""

import os
import threading
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from yivl_core.data.cache.image_cache import ImageCache
from yivl_core.data.cache.verdicts import Verdict, Verdicts, file_state
from yivl_core.data.decoding import Depth
from yivl_core.data.findings import Finding, error, shown, warning
from yivl_core.data.images import IMAGE_WARNINGS, ImageError, ImageInfo, ImageReference, ImageStore
from yivl_core.data.public_urls import public_url
from yivl_core.data.references import refuse_address

_NUM_IMAGES_REMEMBERED = 4096
_ADDRESS_KINDS = frozenset({"image_missing", "path_escape", "url_not_allowed", "control_char", "bad_unicode"})


class Outcome(NamedTuple):
    """What there is to say about an image.

    Attributes:
        info: what it is; None if it cannot be used.
        findings: what was found about it.
        path: of the file on this machine that was looked at; None where there is none.
        state: of that file, as `file_state` gives it, before.
    """

    info: ImageInfo | None
    findings: tuple[Finding, ...]
    path: str | None
    state: str


class ImageChecker:
    """Looks at images for the threads of this process; what several rows name is decoded once, if they are not too far apart.

    Args:
        store: reads the images.
        depth: whether they are decoded in full.
        verdicts: remembers what was found out; None: all are looked at.
        cache: keeps images that the dataset itself holds.

    Attributes:
        num_checked: how many different images it was asked about.
    """

    def __init__(
        self,
        store: ImageStore,
        depth: Depth = "full",
        verdicts: Verdicts | None = None,
        cache: ImageCache | None = None,
    ) -> None:
        self.num_checked = 0
        self._store = store
        self._depth = depth
        self._verdicts = verdicts
        self._cache = cache
        self._known: OrderedDict[ImageReference, Future[Outcome]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, image: ImageReference) -> Outcome:
        """What there is to say about an image. Its pixels are dropped at once.

        Raises:
            StorageError: the disk or network failed.
        """
        with self._lock:
            future = self._known.pop(image, None)
            is_new = future is None
            if future is None:
                future = Future()
                self.num_checked += 1
            self._known[image] = future  # behind all others, as the latest
            if len(self._known) > _NUM_IMAGES_REMEMBERED:
                self._known.popitem(last=False)
        if is_new:
            try:
                future.set_result(self._look(image))
            except BaseException as cause:
                future.set_exception(cause)
                raise
        return future.result()

    def flush(self) -> None:
        """Write down what is to be remembered."""
        if self._verdicts is not None:
            self._verdicts.flush()

    def _look(self, image: ImageReference) -> Outcome:
        if image.data is not None:
            info, findings = _verdict(image, self._store, self._depth)
            if info is None or self._cache is None:
                return Outcome(info, findings, None, "")
            path = str(self._cache.add_bytes(image.data).path)
            return Outcome(replace(info, path=path), findings, path, file_state(path))
        if not isinstance(image.root, Path):  # of a kind that is not fetched, or it would be in the cache by now
            message = f"image {shown(image.uri)} is below {shown(public_url(image.root))}, from where nothing is fetched"
            refusal = ImageError("url_not_allowed", message, "name a folder of this machine, or an http, https or s3 address")
            return Outcome(None, (image_finding(refusal),), None, "")
        try:
            refuse_address(image.address)
        except ImageError as cause:  # whatever files there are; and a URL may hold a secret, which is noted nowhere
            return Outcome(None, (image_finding(cause),), None, "")
        path = os.path.join(image.root, image.address)  # noqa: PTH118
        state = file_state(path)
        if self._verdicts is None:
            return Outcome(*_verdict(image, self._store, self._depth), path, state)
        try:
            real_path = self._store.resolve(image)  # each time, since a link may lead out of the root by now
        except ImageError as cause:
            return Outcome(None, (image_finding(cause),), path, state)
        info, findings = self._verdicts.verdict(
            str(real_path), image.uri, state, lambda: _verdict(image, self._store, self._depth, real_path)
        )
        if info is not None and image.sha256 not in (None, info.sha256):
            info, findings = _verdict(image, self._store, self._depth)
        return Outcome(info, findings, path, state)


def _verdict(image: ImageReference, store: ImageStore, depth: Depth, path: Path | None = None) -> Verdict:
    try:
        info, kinds = store.inspect(image, depth, path)
    except ImageError as cause:
        return None, (image_finding(cause),)
    findings = []
    for kind in kinds:
        message, remedy = IMAGE_WARNINGS[kind]
        findings.append(warning(kind, f"image {shown(image.uri)}: {message}", remedy))
    return info, tuple(findings)


def image_finding(cause: ImageError) -> Finding:
    """What an image that cannot be used means for its row."""
    if cause.kind in _ADDRESS_KINDS:
        return error(cause.kind, cause.message, cause.remedy)
    return error("image_unreadable", cause.message, cause.remedy, detail=cause.kind)
