"""Some rows of a finished run with their images, chosen at random, as a page (`outputs/contact_sheet.py`)."""

from collections.abc import Iterator
from dataclasses import replace

from yivl_core.data.images import ImageStore
from yivl_core.data.inputs import Input
from yivl_core.data.reading import InputRow, readable_url
from yivl_core.inference.configuration import InferenceConfig
from yivl_core.inference.planned_rows import planned_rows
from yivl_core.outputs.contact_sheet import SheetRow, chosen_records, write_contact_sheet
from yivl_core.outputs.predictions import Prediction, read_part
from yivl_core.outputs.shards import ShardPlan
from yivl_core.outputs.thumbnails import UNREADABLE, load_thumbnail
from yivl_core.storage import join

SHEET_NAME = "contact-sheet.html"


def make_contact_sheet(config: InferenceConfig, plan: ShardPlan, source: Input, store: ImageStore, content_digest: str) -> str:
    """Write the page of `config.contact_sheet` rows; returns its address.

    Args:
        config: of the run.
        plan: of its shards, all of which are published.
        source: the input, which is read again where rows of the page are.
        store: of its images.
        content_digest: of the predictions.

    Raises:
        DatasetError: the input was changed since.
        OutputError, StorageError: predictions or images cannot be read, or the page cannot be written.
    """
    assert config.contact_sheet is not None
    indices = chosen_records(plan.num_records, config.contact_sheet, config.seed)
    settings = {
        "model": config.model,
        "adapter": config.adapter or "",
        "input": readable_url(config.images or config.dataset or ""),
        "predictions": config.output,
        "content digest": content_digest,
    }
    url = join(config.output, SHEET_NAME)
    write_contact_sheet(
        url,
        (_sheet_row(row, prediction, store) for row, prediction in _chosen(plan, source, indices)),
        num_records=plan.num_records,
        seed=config.seed,
        settings={name: value for name, value in settings.items() if value},
    )
    return url


def _chosen(plan: ShardPlan, source: Input, indices: list[int]) -> Iterator[tuple[InputRow, Prediction]]:
    wanted, all_shards = set(indices), plan.shards
    shards = [all_shards[number] for number in sorted({index // plan.shard_size for index in indices})]
    predictions = (prediction for shard in shards for prediction in read_part(plan.output, shard.file_name))
    for planned, prediction in zip(planned_rows(plan, shards, source), predictions, strict=True):
        if planned.record_index in wanted:
            yield planned.row, prediction


def _sheet_row(row: InputRow, prediction: Prediction, store: ImageStore) -> SheetRow:
    pictures = [
        UNREADABLE
        if image.sha256 is None
        else load_thumbnail(store, replace(reference, sha256=image.sha256, listed=None), since="it was read")
        for reference, image in zip(row.images, prediction.images, strict=True)
    ]
    return SheetRow(prediction=prediction, pictures=tuple(pictures))
