"""Laws of packing: nothing lost, nothing doubled, and in each row what a sample would have had alone."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.processing.processor import ModelInputs
from yivl_core.processing.tokenization import IGNORE_INDEX
from yivl_core.training.packing import PackedBatch, pack

SIZE_PX = 2
PADDING = (50, 50, 50)  # the second image of sample 0 is nothing else


def make_samples(shapes: Sequence[tuple[int, int]]) -> list[ModelInputs]:
    """Samples of (tokens, images) whose every token and pixel tells which sample and place it is."""
    samples = []
    for number, (length, num_images) in enumerate(shapes):
        input_ids = 1000 * number + np.arange(length)
        labels = np.where(np.arange(length) % 3 == 1, IGNORE_INDEX, input_ids)
        squares = np.full((num_images, SIZE_PX, SIZE_PX, 3), number, dtype=np.uint8)
        squares += np.arange(num_images, dtype=np.uint8)[:, None, None, None] * 50
        pixels = UnpaddedPixels.of([(square, 0) for square in squares], SIZE_PX, PADDING)
        samples.append(ModelInputs(input_ids=input_ids, labels=labels, pixels=pixels))
    return samples


def documents(row: PackedBatch) -> list[slice]:
    return [slice(start, end) for start, end in pairwise(row.cu_seq_lens.tolist())]


shapes_of_samples = st.lists(st.tuples(st.integers(1, 30), st.integers(0, 2)), min_size=1, max_size=20)


@given(shapes_of_samples, st.integers(1, 70))
def test_each_sample_is_in_exactly_one_row(shapes: list[tuple[int, int]], row_tokens: int) -> None:
    samples, rows = make_samples(shapes), pack(make_samples(shapes), row_tokens)
    packed = [row.input_ids[document].tolist() for row in rows for document in documents(row)]
    assert sorted(packed) == [sample.input_ids.tolist() for sample in samples]
    assert sum(row.num_samples for row in rows) == len(samples)


@given(shapes_of_samples, st.integers(1, 70))
def test_a_row_keeps_its_limit_unless_a_sample_alone_is_longer(shapes: list[tuple[int, int]], row_tokens: int) -> None:
    rows = pack(make_samples(shapes), row_tokens)
    assert all(len(row.input_ids) <= row_tokens or row.num_samples == 1 for row in rows)


@given(shapes_of_samples, st.integers(1, 70))
def test_no_two_rows_would_fit_into_one(shapes: list[tuple[int, int]], row_tokens: int) -> None:
    lengths = sorted(len(row.input_ids) for row in pack(make_samples(shapes), row_tokens))
    assert len(lengths) < 2 or lengths[0] + lengths[1] > row_tokens


@given(shapes_of_samples, st.integers(1, 70))
def test_positions_restart_and_the_ends_say_where(shapes: list[tuple[int, int]], row_tokens: int) -> None:
    for row in pack(make_samples(shapes), row_tokens):
        assert row.cu_seq_lens.dtype == torch.int32
        assert row.cu_seq_lens[0] == 0
        assert row.cu_seq_lens[-1] == len(row.input_ids) == len(row.position_ids)
        lengths = [document.stop - document.start for document in documents(row)]
        assert row.position_ids.tolist() == [place for length in lengths for place in range(length)]
        assert row.max_length == max(lengths)


@given(shapes_of_samples, st.integers(1, 70))
def test_labels_are_those_of_the_samples_but_for_the_first(shapes: list[tuple[int, int]], row_tokens: int) -> None:
    samples = make_samples(shapes)
    for row in pack(samples, row_tokens):
        labels = np.full(len(row.input_ids), IGNORE_INDEX)
        labels[row.learned + 1] = row.targets
        assert IGNORE_INDEX not in row.targets
        assert row.num_learned == len(row.learned) == len(row.targets)
        for document in documents(row):
            sample = samples[int(row.input_ids[document][0]) // 1000]
            assert sample.labels is not None
            assert labels[document].tolist() == [IGNORE_INDEX, *sample.labels[1:].tolist()]
    assert all(sample.labels is None or sample.labels[0] != IGNORE_INDEX for sample in samples), "the samples were changed"


@given(shapes_of_samples, st.integers(1, 70))
def test_images_stand_in_the_order_of_their_samples(shapes: list[tuple[int, int]], row_tokens: int) -> None:
    samples = make_samples(shapes)
    for row in pack(samples, row_tokens):
        numbers = [int(row.input_ids[document][0]) // 1000 for document in documents(row)]
        expected = np.concatenate([samples[number].pixels.squares() for number in numbers])
        assert row.pixels.rows.dtype == torch.uint8
        assert np.array_equal(row.pixels.squares().numpy(), expected)


def test_rows_of_many_samples_occur() -> None:
    lengths = np.random.default_rng(0).integers(5, 25, 64)
    rows = pack(make_samples([(int(length), 1) for length in lengths]), 64)
    num_samples = Counter(row.num_samples for row in rows)
    assert sum(count for samples, count in num_samples.items() if samples >= 3) >= len(rows) // 2
    assert lengths.sum() / (64 * len(rows)) > 0.9, "first-fit, longest first, leaves next to nothing free"


def test_the_same_samples_give_the_same_rows() -> None:
    one, other = (pack(make_samples([(length, 0) for length in (7, 5, 7, 3, 5)]), 12) for _ in range(2))
    assert [row.input_ids.tolist() for row in one] == [row.input_ids.tolist() for row in other]
