"""Datasets of known size, wanted numbers of rows and weights -> which rows of each are taken, and how often. Touches no file.

A draw depends on the seed, the dataset's name, and its numbers of rows, there and taken: datasets beside it do not change it, but
for their weights, which change how many rows are taken. It costs a byte of memory for each row, of a billion at most.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from yivl_core.data.rows.raw_row import RawRow
from yivl_core.digests import digest_json
from yivl_core.errors import ConfigurationError, DatasetError

_ROWS_PER_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class MixedDataset:
    """A dataset that is to be mixed.

    Attributes:
        name: stands for it in draws and messages. Its last part rather than its path, so that another machine draws the same.
        num_rows: how many it has.
        wanted: how many are wanted; None: all.
        weight: its part of the mixture, in proportion to the others'; None: no dataset has one.
    """

    name: str
    num_rows: int
    wanted: int | None = None
    weight: float | None = None

    @property
    def num_available(self) -> int:
        """How many rows it can give."""
        return self.num_rows if self.wanted is None else self.wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows of a dataset are taken.

    Attributes:
        name: of the dataset.
        num_rows: how many it has.
        num_taken: how many rows are taken, each counted as often as it is.
        is_drawn: bool `[num_rows]`, the rows that are taken once more than the others; None: no row is.
    """

    name: str
    num_rows: int
    num_taken: int
    is_drawn: NDArray[np.bool_] | None = field(repr=False)

    @property
    def num_times(self) -> int:
        """How often each row is taken that is not drawn."""
        return self.num_taken // max(1, self.num_rows)

    def times(self, index: int) -> int:
        """How often a row is taken, by its number from 0."""
        return self.num_times + (self.is_drawn is not None and bool(self.is_drawn[index]))


def mix(datasets: Sequence[MixedDataset], seed: int, num_rows: int | None = None) -> list[Selection]:
    """The rows to take of each dataset.

    Without weights each gives the rows that are wanted of it: N rows of n, drawn without replacement; of N > n every row
    N // n times and the others drawn. With weights the datasets give rows in these proportions, within one row, and as many as
    they can without giving one twice that is not wanted twice.

    Args:
        datasets: what to mix.
        seed: the same seed draws the same rows.
        num_rows: of the whole mixture. Datasets that are too small for it give rows several times. Without weights their
            proportions are those of the rows that are wanted.

    Returns:
        One selection for each dataset, in their order.

    Raises:
        ConfigurationError: a dataset has no row that could be taken, or weights or numbers cannot be meant.
    """
    _check(datasets, num_rows)
    counts = _counts(datasets, num_rows)
    selections = []
    occurrences: Counter[str] = Counter()
    for dataset, count in zip(datasets, counts, strict=True):
        key = (seed, dataset.name, occurrences[dataset.name])
        occurrences[dataset.name] += 1
        is_drawn = _draw(dataset.num_rows, count % dataset.num_rows, key) if dataset.num_rows else None
        selections.append(Selection(name=dataset.name, num_rows=dataset.num_rows, num_taken=count, is_drawn=is_drawn))
    return selections


def take_rows(rows: Iterable[RawRow], selection: Selection) -> Iterator[tuple[RawRow, int]]:
    """The rows of a dataset that are taken, in their order, each with how often it is.

    A row about the file as a whole, which has no line, is passed on, once, and ends the rows.

    Raises:
        DatasetError: the dataset has another number of rows than the selection was made for.
    """
    num_times, is_drawn = selection.num_times, selection.is_drawn
    index = -1
    for index, row in enumerate(rows):
        if row.line is None:
            yield row, 1
            return
        if index >= selection.num_rows:
            raise _other_size(selection, "more")
        if times := num_times if is_drawn is None else num_times + int(is_drawn[index]):
            yield row, times
    if index + 1 < selection.num_rows:
        raise _other_size(selection, f"{index + 1:,}")


def _other_size(selection: Selection, found: str) -> DatasetError:
    return DatasetError(
        f"{selection.name}: it had {selection.num_rows:,} rows when they were counted, and has {found} now; "
        "let nobody write to it meanwhile, and run it again"
    )


def _check(datasets: Sequence[MixedDataset], num_rows: int | None) -> None:
    if num_rows is not None and num_rows < 1:
        raise ConfigurationError(f"a mixture of {num_rows} rows: write a number from 1")
    unweighted = [dataset.name for dataset in datasets if dataset.weight is None]
    if unweighted and len(unweighted) < len(datasets):
        raise ConfigurationError(f"{unweighted[0]} has no weight and others have one; give each dataset one, or none")
    for dataset in datasets:
        if dataset.weight is not None and not (math.isfinite(dataset.weight) and dataset.weight >= 0):
            raise ConfigurationError(f"{dataset.name}: the weight {dataset.weight} cannot be; write a number from 0")
        if dataset.wanted is not None and dataset.wanted < 1:
            raise ConfigurationError(f"{dataset.name}: {dataset.wanted} rows are wanted of it; write a number from 1")
        if not dataset.num_rows and (dataset.wanted is not None or dataset.weight):
            raise ConfigurationError(f"{dataset.name}: rows are wanted of it, and it has none; leave it out")
    if datasets and not any(dataset.weight != 0 for dataset in datasets):
        raise ConfigurationError("every weight is 0; give a dataset that is wanted a larger one")
    if num_rows is not None and not any(dataset.num_rows for dataset in datasets):
        raise ConfigurationError(f"a mixture of {num_rows} rows is wanted of datasets that have none; check their files")


def _counts(datasets: Sequence[MixedDataset], num_rows: int | None) -> list[int]:
    weights = [_weight(dataset, num_rows) for dataset in datasets]
    if num_rows is not None:
        return _apportion(num_rows, weights)
    if not any(dataset.weight is not None for dataset in datasets):
        return [dataset.num_available for dataset in datasets]
    scale = min(dataset.num_available / weight for dataset, weight in zip(datasets, weights, strict=True) if weight)
    return [int(scale * weight) for weight in weights]


def _weight(dataset: MixedDataset, num_rows: int | None) -> Fraction:
    """The weight as it is written: 0.1 is a tenth."""
    return Fraction(dataset.num_available) if dataset.weight is None else Fraction(str(dataset.weight))


def _apportion(total: int, weights: Sequence[Fraction]) -> list[int]:
    """Whole numbers in these proportions that add up to the total: the largest remainders are rounded up."""
    sum_of_weights = sum(weights)
    exact = [total * weight / sum_of_weights for weight in weights]
    counts = [int(number) for number in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def _draw(num_rows: int, num_drawn: int, key: tuple[int, str, int]) -> NDArray[np.bool_] | None:
    """So many rows without replacement, each set of them equally likely; None for none.

    Block by block, so that no number for each row is held: how many of a block's rows are among the drawn follows the
    hypergeometric distribution, and which they are is a shuffle of the block.
    """
    if not num_drawn:
        return None
    generator = np.random.default_rng(int(digest_json(list(key)), 16))
    is_drawn = np.zeros(num_rows, dtype=np.bool_)
    for start in range(0, num_rows, _ROWS_PER_BLOCK):
        num_left = num_rows - start
        size = min(_ROWS_PER_BLOCK, num_left)
        num_here = int(generator.hypergeometric(num_drawn, num_left - num_drawn, size))
        is_drawn[start + generator.permutation(size)[:num_here]] = True
        num_drawn -= num_here
    return is_drawn
