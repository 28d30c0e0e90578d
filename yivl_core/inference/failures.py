"""How many rows may fail before a run stops, and when it is the input that has gone."""

from collections import Counter, deque
from collections.abc import Iterator

from yivl_core.errors import DatasetError, StorageError
from yivl_core.inference.preparation import PreparedRow

_MAX_SHOWN_CHARS = 300
# So many images one after the other that have gone since the split was planned are no accident of single files.
_NUM_VANISHED = 20


class Peekable(Iterator[PreparedRow]):
    """Rows of which the next ones can be looked at before they are taken.

    Args:
        rows: all of them.
    """

    def __init__(self, rows: Iterator[PreparedRow]) -> None:
        self._rows = rows
        self._seen: deque[PreparedRow] = deque()

    def __next__(self) -> PreparedRow:
        """The next row."""
        return self._seen.popleft() if self._seen else next(self._rows)

    def coming(self) -> Iterator[PreparedRow]:
        """The next rows, which stay to be taken."""
        yield from tuple(self._seen)
        for row in self._rows:
            self._seen.append(row)
            yield row


class FailureLimit:
    """Counts rows with an error.

    Args:
        max_failures: most of them; None: any number.
    """

    def __init__(self, max_failures: int | None) -> None:
        self._max_failures = max_failures
        self._num_earlier = 0
        self._by_kind = Counter[str]()
        self._first = ""

    def count_earlier(self, number: int) -> None:
        """Take in the failed rows of parts that are published already.

        Raises:
            DatasetError: there are too many.
        """
        self._num_earlier += number
        self._check()

    def count(self, kind: str, error: str) -> None:
        """Take in a failed row.

        Args:
            kind: what went wrong, in one word.
            error: the same in a sentence, with its place.

        Raises:
            DatasetError: there are too many now.
        """
        self._by_kind[kind] += 1
        self._first = self._first or error[:_MAX_SHOWN_CHARS]
        self._check()

    def _check(self) -> None:
        number = self._num_earlier + self._by_kind.total()
        if self._max_failures is None or number <= self._max_failures:
            return
        kinds = [f"{count} {kind}" for kind, count in self._by_kind.most_common()]
        kinds += [f"{self._num_earlier} in parts published before"] if self._num_earlier else []
        first = f"; the first: {self._first}" if self._first else ""
        failed = "1 row has" if number == 1 else f"{number} rows have"
        raise DatasetError(
            f"{failed} failed, more than max_failures {self._max_failures} allows ({', '.join(kinds)}){first}. Mend the input "
            "or resume with a higher max_failures; what had been published is kept"
        )


class VanishedInput:
    """Notices that a disk, folder or bucket is gone, so that its images do not end as a million rows that say so."""

    def __init__(self) -> None:
        self._num_gone = 0

    def see(self, item: PreparedRow) -> None:
        """Take in the next row, in record order.

        Raises:
            StorageError: the images of many rows together have gone.
        """
        if not item.images:
            return
        self._num_gone = self._num_gone + 1 if item.has_vanished else 0
        if self._num_gone >= _NUM_VANISHED:
            raise StorageError(
                f"the images of {self._num_gone} records one after the other are gone, and were there when the run was planned; "
                f"the last: {item.error}. Bring the folder, disk or bucket back and resume; what had been published is kept"
            )

    def look_ahead(self, coming: Iterator[PreparedRow]) -> None:
        """See whether the rows to come go on as the last ones: only then is it known what these are, and may be published.

        Raises:
            StorageError: as `see`.
        """
        num_gone = self._num_gone
        while self._num_gone and (item := next(coming, None)) is not None:  # a row is waited for only where it has to be known
            self.see(item)
        self._num_gone = num_gone
