"""The records of a validated dataset by number, for reading in any order without holding them in memory."""

import os
import weakref
from pathlib import Path

import numpy as np

from yivl_core.data.dataset import RECORDS_NAME, ValidatedDataset, ValidatedRecord, parse_line
from yivl_core.errors import DatasetError


class IndexedRecords:
    """Reads single records; eight bytes a record are held in memory. Safe to share between threads.

    Args:
        dataset: whose records are meant.
    """

    def __init__(self, dataset: ValidatedDataset) -> None:
        self._path = Path(dataset.folder) / RECORDS_NAME
        # The file stays open, so that a dataset that is validated again meanwhile does not change under a training.
        self._descriptor = os.open(self._path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            self._ends = np.cumsum(np.fromiter((len(line) for line in file), dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> ValidatedRecord:
        """A record.

        Raises:
            DatasetError: its line has been changed.
        """
        start = int(self._ends[index - 1]) if index else 0
        line = os.pread(self._descriptor, int(self._ends[index]) - start, start)
        validated = parse_line(line.decode(errors="replace"))
        if validated is None:
            raise DatasetError(f"{self._path}:{index + 1}: this line was changed after validation; run `yivl validate` again")
        return validated
