"""Laws of the split into training and held-out records."""

from hypothesis import assume, given
from hypothesis import strategies as st

from yivl_core.training.held_out import split_held_out

keys_of_records = st.lists(st.lists(st.sampled_from("abcdefghijklmnopqrst"), min_size=1, max_size=3), min_size=1, max_size=30)


@given(keys_of_records, st.floats(0, 0.99), st.integers(0, 1000))
def test_every_record_is_on_one_side(keys: list[list[str]], fraction: float, seed: int) -> None:
    train, held_out = split_held_out(keys, fraction, seed)
    assert sorted(train + held_out) == list(range(len(keys)))
    assert train == sorted(train)
    assert held_out == sorted(held_out)
    assert train, "there is always something to train on"


@given(keys_of_records, st.floats(0, 0.99), st.integers(0, 1000))
def test_no_image_is_on_both_sides(keys: list[list[str]], fraction: float, seed: int) -> None:
    train, held_out = split_held_out(keys, fraction, seed)
    assert not {key for index in train for key in keys[index]} & {key for index in held_out for key in keys[index]}


@given(keys_of_records, st.floats(0.001, 0.99), st.integers(0, 1000))
def test_at_least_one_record_is_held_out_unless_all_hang_together(keys: list[list[str]], fraction: float, seed: int) -> None:
    _, held_out = split_held_out(keys, fraction, seed)
    tied, others = set(keys[0]), keys[1:]
    while touching := [one for one in others if tied & set(one)]:
        others = [one for one in others if one not in touching]
        tied |= {key for one in touching for key in one}
    assert bool(held_out) == bool(others)


@given(st.integers(2, 300), st.floats(0.001, 0.99), st.integers(0, 1000))
def test_with_an_image_each_the_share_is_kept(num_records: int, fraction: float, seed: int) -> None:
    _, held_out = split_held_out([[str(number)] for number in range(num_records)], fraction, seed)
    assert len(held_out) == min(max(1, round(fraction * num_records)), num_records - 1)


@given(keys_of_records, st.floats(0, 0.99), st.integers(0, 1000), st.randoms(use_true_random=False))
def test_the_order_of_records_and_of_their_images_does_not_matter(
    keys: list[list[str]], fraction: float, seed: int, random: object
) -> None:
    numbers = list(range(len(keys)))
    random.shuffle(numbers)  # type: ignore[attr-defined]
    _, held_out = split_held_out(keys, fraction, seed)
    _, other = split_held_out([keys[number][::-1] for number in numbers], fraction, seed)
    assert sorted(numbers[place] for place in other) == held_out


@given(st.integers(0, 1000))
def test_the_seed_decides_which(seed: int) -> None:
    keys = [[str(number)] for number in range(200)]
    one, other = (split_held_out(keys, 0.1, seed + offset)[1] for offset in (0, 1))
    assert one == split_held_out(keys, 0.1, seed)[1]
    assert one != other


def test_none_is_held_out_where_none_is_wanted() -> None:
    assert split_held_out([["a"], ["b"]], 0, 42) == ([0, 1], [])


@given(st.integers(2, 6))
def test_records_are_tied_through_others(length: int) -> None:
    chain = [[str(number), str(number + 1)] for number in range(length)]
    assume(len(chain) > 1)
    train, held_out = split_held_out([*chain, ["x"]], 0.9, 0)
    assert (train, held_out) in ((list(range(length)), [length]), ([length], list(range(length))))
