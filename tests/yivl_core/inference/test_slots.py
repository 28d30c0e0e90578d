"""Stretches of the cache against a plain list that says of every token whether somebody has it."""

import random
from itertools import combinations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from yivl_core.inference.slots import SlotAllocator


class Ledger:
    """An allocator beside a list of its tokens; each call is held against what the list says."""

    def __init__(self, num_tokens: int) -> None:
        self.allocator, self.is_held = SlotAllocator(num_tokens), [False] * num_tokens
        self.stretches: list[tuple[int, int]] = []

    def take(self, length: int) -> int | None:
        places = range(len(self.is_held) - length + 1)
        expected = next((start for start in places if not any(self.is_held[start : start + length])), None)
        start = self.allocator.take(length)
        assert start == expected
        if start is not None:
            self._mark(start, length, is_held=True)
            self.stretches.append((start, length))
        return start

    def give_back(self, number: int) -> None:
        start, length = self.stretches.pop(number % len(self.stretches))
        self.allocator.give_back(start, length)
        self._mark(start, length, is_held=False)

    def _mark(self, start: int, length: int, *, is_held: bool) -> None:
        self.is_held[start : start + length] = [is_held] * length
        assert self.allocator.num_free == self.is_held.count(False)


calls_to_make = st.lists(st.tuples(st.booleans(), st.integers(1, 12)), max_size=60)


def make_calls(num_tokens: int, calls: list[tuple[bool, int]]) -> Ledger:
    """A ledger after some stretches of so many tokens were taken, and others, by their number, given back."""
    ledger = Ledger(num_tokens)
    for is_take, number in calls:
        if is_take:
            ledger.take(number)
        elif ledger.stretches:
            ledger.give_back(number)
    return ledger


@given(st.integers(0, 40), calls_to_make)
def test_it_gives_the_first_stretch_that_is_long_enough_and_nothing_where_none_is(
    num_tokens: int, calls: list[tuple[bool, int]]
) -> None:
    make_calls(num_tokens, calls)


@given(st.integers(0, 40), calls_to_make)
def test_what_it_gives_lies_inside_and_never_overlaps(num_tokens: int, calls: list[tuple[bool, int]]) -> None:
    tokens = [place for start, length in make_calls(num_tokens, calls).stretches for place in range(start, start + length)]
    assert len(tokens) == len(set(tokens))
    assert set(tokens) <= set(range(num_tokens))


@given(st.integers(1, 40), calls_to_make, st.randoms(use_true_random=False))
def test_when_all_is_given_back_in_any_order_it_is_whole_again(
    num_tokens: int, calls: list[tuple[bool, int]], order: random.Random
) -> None:
    ledger = make_calls(num_tokens, calls)
    while ledger.stretches:
        ledger.give_back(order.randrange(len(ledger.stretches)))
    assert ledger.allocator.num_free == num_tokens
    assert ledger.take(num_tokens) == 0
    assert ledger.take(1) is None


@given(st.integers(1, 15), calls_to_make)
@example(9, [(True, 3), (True, 3), (False, 0), (False, 0)])
def test_what_is_free_cannot_be_given_back(num_tokens: int, calls: list[tuple[bool, int]]) -> None:
    ledger = make_calls(num_tokens, calls)
    for start, end in combinations(range(num_tokens + 1), 2):
        if not all(ledger.is_held[start:end]):
            with pytest.raises(AssertionError, match="it was free already"):
                ledger.allocator.give_back(start, end - start)
    while ledger.stretches:
        ledger.give_back(0)
    assert ledger.take(num_tokens) == 0, "a refusal changes nothing"


def test_free_tokens_in_two_stretches_are_not_one() -> None:
    ledger = Ledger(9)
    assert [ledger.take(3) for _ in range(4)] == [0, 3, 6, None]
    ledger.give_back(2)
    ledger.give_back(0)
    assert ledger.allocator.num_free == 6
    assert ledger.take(4) is None
    ledger.give_back(0)
    assert ledger.take(9) == 0


def test_a_long_random_run_meets_gaps_refusals_and_an_empty_cache() -> None:
    """What the laws above are worth: the cases that they are about do come up."""
    choice, ledger = random.Random(5), Ledger(1000)
    met = {"gap filled": 0, "refused though enough is free": 0, "empty": 0}
    for turn in range(4000):
        if ledger.stretches and choice.random() < (0.9 if turn % 1000 > 900 else 0.45):
            ledger.give_back(choice.randrange(len(ledger.stretches)))
            met["empty"] += not ledger.stretches
            continue
        length, num_free = choice.randint(1, 120), ledger.allocator.num_free
        start = ledger.take(length)
        met["refused though enough is free"] += start is None and num_free >= length
        met["gap filled"] += start is not None and any(other > start for other, _ in ledger.stretches)
    assert min(met.values()) >= 10, met
