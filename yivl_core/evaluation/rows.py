"""The rows of a predictions folder as an evaluation reads them: all there, unchanged, and each with its references."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from yivl_core.errors import DatasetError, OutputError
from yivl_core.outputs.manifest import MANIFEST_NAME, read_manifest
from yivl_core.outputs.predictions import ContentDigest, Prediction, read_columns, to_prediction
from yivl_core.outputs.shards import PLAN_NAME, read_plan, require_complete
from yivl_core.storage import exists, join


class CheckedRows:
    """The rows in record order, one batch of them in memory at a time; the checks end with the last row.

    Args:
        predictions: folder or fsspec URL.

    Attributes:
        num_planned: rows that the folder has to hold; None for parts that came here without their plan.
        manifest: what decided the run; None where there is none.
        num_rows: rows read so far.

    Raises:
        IncompleteError: parts are missing.
        OutputError: the plan or manifest cannot be read; while rows are read: there are none, or other ones than were written.
        StorageError: a file cannot be read.
    """

    def __init__(self, predictions: str) -> None:
        self._predictions = predictions
        self.num_planned = _num_planned(predictions)
        self.manifest = read_manifest(join(predictions, MANIFEST_NAME))
        self.num_rows = 0
        self._digest = ContentDigest()

    def __iter__(self) -> Iterator[Prediction]:
        return map(to_prediction, self.columns())

    def columns(self) -> Iterator[dict[str, Any]]:
        """The same rows as values by column, which takes half of the time."""
        for columns in read_columns(self._predictions):
            self.num_rows += 1
            self._digest.update_columns(columns)
            yield columns
        self._check()

    @property
    def content_digest(self) -> str:
        """The digest of the rows so far, in hex."""
        return self._digest.hexdigest()

    def _check(self) -> None:
        if self.num_planned not in (None, self.num_rows):
            raise OutputError(
                f"{self._predictions} holds {self.num_rows} rows, and its {PLAN_NAME} says {self.num_planned}; "
                "run `yivl infer` again with an empty output folder"
            )
        digest = self.content_digest
        stated = digest if self.manifest is None else self.manifest.get("content_digest", digest)
        if stated != digest:
            raise OutputError(
                f"{self._predictions}: the rows were changed after they were written: their digest is {digest}, and "
                f"{MANIFEST_NAME} says {stated}; restore the parts, or run `yivl infer` again with an empty output folder"
            )


@dataclass(slots=True)
class FailureTally:
    """How many rows with a reference failed, by what went wrong, and the first of each kind."""

    by_kind: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, columns: Mapping[str, Any]) -> None:
        """Take in the next row, by its columns."""
        if columns["error_kind"] is not None and (columns["reference"] is not None or columns["references"]):
            first = {"source": columns["source"], "error": columns["error"]}
            failure = self.by_kind.setdefault(columns["error_kind"], {"num_rows": 0, "first": first})
            failure["num_rows"] += 1


def references_of(prediction: Prediction) -> tuple[str, ...]:
    """All right answers of a row; none for a question without."""
    own = () if prediction.reference is None else (prediction.reference,)
    return (*own, *prediction.references)


def no_references(predictions: str, num_rows: int) -> DatasetError:
    """What a user is told where no row of a folder has a reference."""
    return DatasetError(
        f"{predictions}: none of the {num_rows} rows has a reference to compare its answer with; "
        "give the records a `response` (or `references`) and run `yivl infer` again"
    )


def _num_planned(predictions: str) -> int | None:
    if not exists(join(predictions, PLAN_NAME)):
        return None
    plan = read_plan(predictions)
    require_complete(plan)
    return plan.num_records
