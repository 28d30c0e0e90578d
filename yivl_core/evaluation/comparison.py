"""write_comparison(): two models' predictions for the same records -> one HTML page that shows them side by side, with images.

A pure function of the rows, their manifests and the images: the same inputs give the same bytes, wherever they lie.
"""

from yivl_core.errors import OutputError
from yivl_core.evaluation.comparison_page import MARK, Origin, render_page
from yivl_core.evaluation.configuration import ComparisonConfig, ComparisonSummary
from yivl_core.evaluation.pairing import Group, Pairing, pair_predictions
from yivl_core.evaluation.rows import CheckedRows
from yivl_core.evaluation.thumbnails import Thumbnails
from yivl_core.outputs.thumbnails import Thumbnail
from yivl_core.storage import exists, join, publish_bytes, read_bytes

PAGE_NAME = "comparison.html"


def write_comparison(config: ComparisonConfig) -> ComparisonSummary:
    """Compare two models' predictions and publish `comparison.html`, in place of that of an earlier comparison.

    Raises:
        DatasetError: no record is in both, one has other references in the one than in the other, or `dataset` is none.
        IncompleteError: parts of the predictions are missing.
        OutputError: a folder holds no predictions, or other ones than its manifest says; or something else than a comparison
            would be overwritten.
        StorageError: something cannot be read or written. An image that is missing or was changed is told of on the page.
    """
    page = join(config.output, PAGE_NAME)
    _refuse_foreign_page(page)
    before, after = CheckedRows(config.baseline), CheckedRows(config.predictions)
    pairing = pair_predictions(before, after, config.num_samples)
    pictures = None if config.dataset is None else _pictures(config.dataset, pairing)
    publish_bytes(page, render_page(pairing, pictures, before=_origin(before), after=_origin(after)).encode())
    return _to_summary(page, pairing)


def _refuse_foreign_page(page: str) -> None:
    if exists(page) and MARK.encode() not in read_bytes(page):
        raise OutputError(f"{page} is no comparison that yivl has written, and would be overwritten; choose another folder")


def _pictures(dataset: str, pairing: Pairing) -> list[list[Thumbnail]]:
    """The pictures of each sample."""
    shown = [pair.prediction.images for pair in pairing.samples]
    thumbnails = Thumbnails(dataset, {image.sha256 for images in shown for image in images if image.sha256})
    return [[thumbnails.make(image) for image in images] for images in shown]


def _origin(rows: CheckedRows) -> Origin:
    manifest = rows.manifest or {}
    digests = {name: (manifest.get(name) or {}).get("digest") for name in ("model", "adapter", "data")}
    return Origin(**digests, content=rows.content_digest)


def _to_summary(page: str, pairing: Pairing) -> ComparisonSummary:
    return ComparisonSummary(
        page=page,
        num_matched=pairing.num_matched,
        num_only_predictions=pairing.only_after,
        num_only_baseline=pairing.only_before,
        num_mended=pairing.counts[Group.MENDED],
        num_lost=pairing.counts[Group.LOST],
        num_stayed_right=pairing.counts[Group.STAYED_RIGHT],
        num_stayed_wrong=pairing.counts[Group.STAYED_WRONG],
        num_changed=pairing.counts[Group.CHANGED],
        num_unchanged=pairing.counts[Group.UNCHANGED],
    )
