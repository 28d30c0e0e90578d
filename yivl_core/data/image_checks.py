"""Images -> what a validation has to say of each: looked at once, however many rows name it."""

import threading
from collections import OrderedDict
from concurrent.futures import Future

from yivl_core.data.decoding import Depth
from yivl_core.data.findings import Finding, error, shown, warning
from yivl_core.data.images import IMAGE_WARNINGS, ImageError, ImageInfo, ImageReference, ImageStore

Outcome = tuple[ImageInfo | None, tuple[Finding, ...]]

_NUM_IMAGES_REMEMBERED = 4096
_ADDRESS_KINDS = frozenset({"image_missing", "path_escape", "url_not_allowed", "control_char", "bad_unicode"})


class ImageChecker:
    """Looks at images for the threads of this process; what several rows name is decoded once, if they are not too far apart.

    Args:
        store: reads the images.
        depth: whether they are decoded in full.

    Attributes:
        num_checked: how many different images it was asked about.
    """

    def __init__(self, store: ImageStore, depth: Depth = "full") -> None:
        self.num_checked = 0
        self._store = store
        self._depth = depth
        self._known: OrderedDict[ImageReference, Future[Outcome]] = OrderedDict()
        self._lock = threading.Lock()

    def check(self, image: ImageReference) -> Outcome:
        """What an image is, None if it cannot be used, and what was found about it. Its pixels are dropped at once.

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
                future.set_result(_look_at(image, self._store, self._depth))
            except BaseException as cause:
                future.set_exception(cause)
                raise
        return future.result()


def _look_at(image: ImageReference, store: ImageStore, depth: Depth) -> Outcome:
    try:
        info, kinds = store.inspect(image, depth)
    except ImageError as cause:
        if cause.kind in _ADDRESS_KINDS:
            return None, (error(cause.kind, cause.message, cause.remedy),)
        return None, (error("image_unreadable", cause.message, cause.remedy, detail=cause.kind),)
    findings = []
    for kind in kinds:
        message, remedy = IMAGE_WARNINGS[kind]
        findings.append(warning(kind, f"image {shown(image.uri)}: {message}", remedy))
    return info, tuple(findings)
