"""The records of a validated dataset by number, for reading in any order without holding them in memory."""

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
        with self._path.open("rb") as file:
            self._ends = np.cumsum(np.fromiter((len(line) for line in file), dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> ValidatedRecord:
        """A record.

        Raises:
            DatasetError: its line has been changed.
        """
        start = int(self._ends[index - 1]) if index else 0
        with self._path.open("rb") as file:
            file.seek(start)
            line = file.read(int(self._ends[index]) - start)
        validated = parse_line(line.decode(errors="replace"))
        if validated is None:
            raise DatasetError(f"{self._path}:{index + 1}: this line was changed after validation; run `yivl validate` again")
        return validated
