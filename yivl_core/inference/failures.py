"""How many rows may fail before a run stops."""

from collections import Counter

from yivl_core.errors import DatasetError

_MAX_SHOWN_CHARS = 300


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
        raise DatasetError(
            f"{number} rows have failed, more than max_failures {self._max_failures} allows ({', '.join(kinds)}){first}. "
            "Mend the input, or resume with a higher max_failures; what had been published is kept"
        )
