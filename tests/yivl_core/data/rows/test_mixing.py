from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.data.findings import error
from yivl_core.data.rows import mixing
from yivl_core.data.rows.mixing import MixedDataset, Selection, mix, take_rows
from yivl_core.data.rows.raw_row import RawRow
from yivl_core.errors import ConfigurationError, DatasetError


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws go over several blocks."""
    monkeypatch.setattr(mixing, "_ROWS_PER_BLOCK", 7)


def times(selection: Selection) -> list[int]:
    return [selection.times(index) for index in range(selection.num_rows)]


def rows(num_rows: int) -> list[RawRow]:
    return [RawRow(line=number) for number in range(1, num_rows + 1)]


SIZES = st.lists(st.integers(1, 60), min_size=1, max_size=4)
WEIGHTS = st.integers(1, 100).map(lambda number: number / 10)


@given(sizes=SIZES, wanted=st.integers(1, 200), seed=st.integers(0, 99))
def test_so_many_rows_are_taken_as_are_wanted_and_none_much_more_often_than_another(
    sizes: list[int], wanted: int, seed: int
) -> None:
    datasets = [MixedDataset(name=f"{index}", num_rows=size, wanted=wanted) for index, size in enumerate(sizes)]
    for size, selection in zip(sizes, mix(datasets, seed), strict=True):
        assert sum(times(selection)) == selection.num_taken == wanted
        assert set(times(selection)) <= {wanted // size, wanted // size + 1}
    (everything,) = mix([MixedDataset(name="a", num_rows=sizes[0])], seed)
    assert times(everything) == [1] * sizes[0]


@given(seed=st.integers(0, 2**40), num_rows=st.integers(60, 100))
def test_the_seed_and_the_name_decide_which_rows_are_drawn(seed: int, num_rows: int) -> None:
    def drawn(name: str, seed: int) -> list[int]:
        return times(mix([MixedDataset(name=name, num_rows=num_rows, wanted=num_rows // 2)], seed)[0])

    assert drawn("a", seed) == drawn("a", seed)
    assert drawn("a", seed) != drawn("a", seed + 1)
    assert drawn("a", seed) != drawn("b", seed)


def test_a_dataset_named_twice_is_drawn_twice() -> None:
    first, second = mix([MixedDataset(name="a", num_rows=100, wanted=50)] * 2, seed=1)
    assert times(first) != times(second)


@given(sizes=SIZES, wanted=st.integers(1, 100), seed=st.integers(0, 99), place=st.integers(0, 4))
def test_a_further_dataset_does_not_change_what_is_drawn_of_the_others(
    sizes: list[int], wanted: int, seed: int, place: int
) -> None:
    datasets = [MixedDataset(name=f"{index}", num_rows=size, wanted=wanted) for index, size in enumerate(sizes)]
    more = [*datasets[:place], MixedDataset(name="new", num_rows=5), *datasets[place:]]
    before = {selection.name: times(selection) for selection in mix(datasets, seed)}
    after = {selection.name: times(selection) for selection in mix(more, seed)}
    assert {name: after[name] for name in before} == before


@given(datasets=st.lists(st.tuples(st.integers(1, 200), WEIGHTS), min_size=1, max_size=4))
def test_weights_give_the_largest_mixture_in_which_no_row_stands_twice(datasets: list[tuple[int, float]]) -> None:
    mixed = mix([MixedDataset(name="a", num_rows=size, weight=weight) for size, weight in datasets], seed=1)
    counts = [selection.num_taken for selection in mixed]
    assert all(count <= size for count, (size, _) in zip(counts, datasets, strict=True))
    assert any(count == size for count, (size, _) in zip(counts, datasets, strict=True))
    assert all(max(times(selection)) <= 1 for selection in mixed)
    scale = min(size / Fraction(str(weight)) for size, weight in datasets)
    assert all(abs(count - scale * Fraction(str(weight))) < 1 for count, (_, weight) in zip(counts, datasets, strict=True))


@given(
    datasets=st.lists(st.tuples(st.integers(1, 40), WEIGHTS), min_size=1, max_size=4),
    total=st.integers(1, 500),
    is_weighted=st.booleans(),
)
def test_a_total_is_met_exactly_in_proportions_within_one_row(
    datasets: list[tuple[int, float]], total: int, is_weighted: bool
) -> None:
    given_weights = [weight if is_weighted else None for _, weight in datasets]
    mixed = mix(
        [MixedDataset(name="a", num_rows=size, weight=weight) for (size, _), weight in zip(datasets, given_weights, strict=True)],
        seed=1,
        num_rows=total,
    )
    assert sum(sum(times(selection)) for selection in mixed) == total
    parts = [Fraction(str(weight)) if is_weighted else Fraction(size) for size, weight in datasets]
    for selection, part in zip(mixed, parts, strict=True):
        assert abs(selection.num_taken - total * part / sum(parts)) < 1
        assert max(times(selection)) - min(times(selection)) <= 1


def test_a_weight_is_what_is_written_and_may_be_nothing() -> None:
    weighted = [("a", 100, 0.1), ("b", 1000, 0.3), ("c", 5, 0.0), ("d", 0, 0.0)]
    mixed = mix([MixedDataset(name=name, num_rows=size, weight=weight) for name, size, weight in weighted], seed=1)
    assert [selection.num_taken for selection in mixed] == [100, 300, 0, 0]  # with 0.1 as a binary number it would be 299
    assert list(take_rows(rows(5), mixed[2])) == []
    assert list(take_rows([], mixed[3])) == []


def test_weights_go_with_wanted_numbers() -> None:
    mixed = mix(
        [MixedDataset(name="a", num_rows=100, wanted=20, weight=1), MixedDataset(name="b", num_rows=100, weight=2)], seed=1
    )
    assert [selection.num_taken for selection in mixed] == [20, 40]


def test_each_row_is_drawn_equally_often_and_independently_of_its_block() -> None:
    num_rows, num_drawn, num_draws = 20, 6, 2000
    drawn = np.zeros(num_rows)
    pairs = np.zeros((num_rows, num_rows))
    for seed in range(num_draws):
        one = np.array(times(mix([MixedDataset(name="a", num_rows=num_rows, wanted=num_drawn)], seed)[0]))
        drawn += one
        pairs += np.outer(one, one)
    expected = num_draws * num_drawn / num_rows
    assert np.abs(drawn - expected).max() < 4.5 * np.sqrt(expected * (1 - num_drawn / num_rows))
    together = num_draws * num_drawn * (num_drawn - 1) / (num_rows * (num_rows - 1))
    off_diagonal = pairs[~np.eye(num_rows, dtype=bool)]
    assert np.abs(off_diagonal - together).max() < 5.5 * np.sqrt(together)


@given(num_rows=st.integers(1, 50), wanted=st.integers(1, 120))
def test_rows_are_taken_in_their_order_each_with_how_often(num_rows: int, wanted: int) -> None:
    (selection,) = mix([MixedDataset(name="a", num_rows=num_rows, wanted=wanted)], seed=3)
    taken = list(take_rows(rows(num_rows), selection))
    assert taken == [(row, count) for row, count in zip(rows(num_rows), times(selection), strict=True) if count]


def test_a_dataset_that_was_changed_meanwhile_is_told() -> None:
    (selection,) = mix([MixedDataset(name="a.jsonl", num_rows=5, wanted=3)], seed=3)
    for found, message in ((4, "has 4 now"), (6, "has more now")):
        with pytest.raises(DatasetError, match=rf"a\.jsonl: it had 5 rows when they were counted, and {message}; let nobody"):
            list(take_rows(rows(found), selection))


def test_what_is_wrong_with_the_file_as_a_whole_is_passed_on() -> None:
    (selection,) = mix([MixedDataset(name="a", num_rows=5, wanted=5)], seed=3)
    broken = RawRow(line=None, findings=[error("invalid_json", "broken", "mend it")])
    assert list(take_rows([*rows(2), broken], selection)) == [(rows(2)[0], 1), (rows(2)[1], 1), (broken, 1)]


@pytest.mark.parametrize(
    ("datasets", "total", "message"),
    [
        ([MixedDataset(name="a", num_rows=0, wanted=1)], None, "a: rows are wanted of it, and it has none; leave it out"),
        ([MixedDataset(name="a", num_rows=0, weight=0.5)], None, "a: rows are wanted of it, and it has none; leave it out"),
        ([MixedDataset(name="a", num_rows=0)], 7, "a mixture of 7 rows is wanted of datasets that have none; check their files"),
        ([MixedDataset(name="a", num_rows=5, wanted=0)], None, "a: 0 rows are wanted of it; write a number from 1"),
        ([MixedDataset(name="a", num_rows=5)], 0, "a mixture of 0 rows: write a number from 1"),
        (
            [MixedDataset(name="a", num_rows=5, weight=1), MixedDataset(name="b", num_rows=5)],
            None,
            "b has no weight and others have one; give each dataset one, or none",
        ),
        ([MixedDataset(name="a", num_rows=5, weight=-1)], None, "a: the weight -1 cannot be; write a number from 0"),
        ([MixedDataset(name="a", num_rows=5, weight=float("nan"))], None, "a: the weight nan cannot be"),
        ([MixedDataset(name="a", num_rows=5, weight=float("inf"))], None, "a: the weight inf cannot be"),
        ([MixedDataset(name="a", num_rows=5, weight=0)], None, "every weight is 0; give a dataset that is wanted a larger one"),
    ],
)
def test_what_cannot_be_meant_is_refused(datasets: list[MixedDataset], total: int | None, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        mix(datasets, seed=1, num_rows=total)
    assert message in str(caught.value)


def test_nothing_to_mix_is_no_error() -> None:
    assert mix([], seed=1) == []
    (selection,) = mix([MixedDataset(name="a", num_rows=0)], seed=1)
    about_the_file = RawRow(line=None, findings=[error("empty_file", "the file holds no record", "write one")])
    assert list(take_rows([about_the_file], selection)) == [(about_the_file, 1)]


def test_draws_stay_the_same_from_version_to_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixing, "_ROWS_PER_BLOCK", 1 << 16)
    (selection,) = mix([MixedDataset(name="train.jsonl", num_rows=20, wanted=6)], seed=42)
    assert [index for index in range(20) if selection.times(index)] == [1, 2, 4, 5, 8, 13]


def test_memory_is_a_byte_a_row() -> None:
    (selection,) = mix([MixedDataset(name="a", num_rows=1000, wanted=500)], seed=1)
    assert selection.is_drawn is not None
    assert selection.is_drawn.nbytes == 1000
