"""Attention over slots, however it is done, against a loop over tokens; norms against PyTorch's and transformers' own."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from yivl_core.inference import operations as operations_module
from yivl_core.inference.layout import DecodeLayout, Padding, PrefillLayout, Segment
from yivl_core.inference.operations import PlainOperations, attend

CPU = torch.device("cpu")
NUM_HEADS, NUM_KEY_VALUE_HEADS, WIDTH, NUM_TOKENS = 4, 2, 8, 400


def random_values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


KEYS, VALUES = (
    random_values(NUM_TOKENS, NUM_KEY_VALUE_HEADS, WIDTH, seed=1),
    random_values(NUM_TOKENS, NUM_KEY_VALUE_HEADS, WIDTH, seed=2),
)


def by_hand(query: torch.Tensor, start: int, num_keys: int) -> torch.Tensor:
    """Attention of one token `[H, E]` to so many tokens of a slot."""
    heads = []
    for head in range(NUM_HEADS):
        group = head // (NUM_HEADS // NUM_KEY_VALUE_HEADS)
        keys, values = (tensor[start : start + num_keys, group].double() for tensor in (KEYS, VALUES))
        weights = (keys @ query[head].double() / math.sqrt(WIDTH)).softmax(dim=0)
        heads.append(weights @ values)
    return torch.stack(heads).float()


@st.composite
def slots(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Starts and lengths: at equal distances or not, in any order, with gaps."""
    if draw(st.booleans()):
        step = draw(st.integers(5, 20))
        places = draw(st.lists(st.integers(0, NUM_TOKENS // step - 2), min_size=1, max_size=12, unique=True))
        first = draw(st.integers(0, step))
        return [(first + place * step, draw(st.integers(1, step))) for place in places]
    starts = draw(st.lists(st.integers(0, NUM_TOKENS // 20 - 2), min_size=1, max_size=12, unique=True))
    return [(20 * start + draw(st.integers(0, 7)), draw(st.integers(1, 12))) for start in starts]


@settings(deadline=None)
@given(slots())
def test_a_decode_attends_to_its_slot_alone(places: list[tuple[int, int]]) -> None:
    queries = random_values(len(places), NUM_HEADS, WIDTH, seed=3)
    expected = torch.stack([by_hand(query, *place) for query, place in zip(queries, places, strict=True)])
    on_host = DecodeLayout(
        positions=torch.tensor([length - 1 for _, length in places]),
        starts=torch.tensor([start for start, _ in places]),
        on_host=places,
        max_keys=64,
    )
    on_device = DecodeLayout(positions=on_host.positions, starts=on_host.starts, on_host=None, max_keys=64)
    for layout in (on_host, on_device):
        torch.testing.assert_close(PlainOperations().decode_attention(queries, KEYS, VALUES, layout), expected)


def test_slots_at_equal_distances_are_found_and_others_are_not() -> None:
    find = operations_module._find_grid
    assert find([(10, 5), (30, 7), (50, 6)], NUM_TOKENS) == (10, 20, 3, 7)
    assert find([(90, 5), (30, 7), (10, 6), (50, 1)], NUM_TOKENS) == (10, 20, 5, 7)
    assert find([(10, 5), (30, 7)], NUM_TOKENS) is None, "too few"
    assert find([(10, 5), (30, 7), (51, 6)], NUM_TOKENS) is None, "not at one distance"
    assert find([(10, 5), (30, 21), (50, 6)], NUM_TOKENS) is None, "longer than the distance"
    assert find([(0, 1), (10, 1), (300, 1)], NUM_TOKENS) is None, "mostly gaps"
    assert find([(350, 5), (370, 5), (390, 12)], NUM_TOKENS) is None, "beyond the end"


segments = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([(0, 9), (4, 9), (0, 1), (8, 9), (2, 30)])), min_size=1, max_size=8
).map(
    lambda found: [
        Segment(start=45 * number + offset, num_cached=cached, num_tokens=tokens)
        for number, (offset, (cached, tokens)) in enumerate(found)
    ]
)


@settings(deadline=None)
@given(segments, st.booleans())
def test_a_prefill_attends_to_what_comes_before_in_its_own_prompt(prompts: list[Segment], is_padded: bool) -> None:
    padding = Padding(num_tokens=256, num_prompts=9, cache_row=NUM_TOKENS - 1) if is_padded else None
    layout = PrefillLayout.of(prompts, CPU, padding)
    num_queries = len(layout.position_ids)
    queries = random_values(num_queries, NUM_HEADS, WIDTH, seed=4)
    places = [(each.start, position + 1) for each in prompts for position in range(each.num_cached, each.num_tokens)]
    expected = torch.stack([by_hand(query, *place) for query, place in zip(queries, places, strict=False)])
    attended = PlainOperations().prefill_attention(queries, KEYS, VALUES, layout, is_last=False)
    torch.testing.assert_close(attended[: len(places)], expected)
    last = PlainOperations().prefill_attention(queries[layout.last], KEYS, VALUES, layout, is_last=True)
    for row, each in enumerate(prompts):
        torch.testing.assert_close(last[row], by_hand(queries[layout.last[row]], each.start, each.num_tokens))


@pytest.mark.parametrize("num_keys", [17, 1])
def test_products_of_bfloat16_are_attention(num_keys: int) -> None:
    query, key, value = (
        random_values(3, 4, 5, 16),
        random_values(3, 2, num_keys, 16, seed=1),
        random_values(3, 2, num_keys, 16, seed=2),
    )
    mask = torch.ones(5, num_keys, dtype=torch.bool).tril(num_keys - 5)
    mask[:, 0] = True
    for used in (None, mask):
        expected = attend(query, key, value, used)
        rounded = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), used)
        assert rounded.dtype is torch.bfloat16
        assert (rounded.float() - expected).norm() < 2e-2 * expected.norm()


@pytest.mark.parametrize("pending", [None, random_values(24, seed=5), random_values(7, 24, seed=6)])
def test_norms_add_what_is_pending_for_good(pending: torch.Tensor | None) -> None:
    hidden, weight = random_values(7, 24), random_values(24, seed=7)
    summed = hidden if pending is None else hidden + pending
    rms, layer = LlamaRMSNorm(24, eps=1e-5), nn.LayerNorm(24)
    with torch.no_grad():
        rms.weight.copy_(weight)
        layer.weight.copy_(weight)
        for expected, normed in (
            (rms(summed), lambda given: PlainOperations().rms_norm(given, weight, 1e-5, pending)),
            (layer(summed), lambda given: PlainOperations().layer_norm(given, layer, pending)),
        ):
            given = hidden.clone()
            torch.testing.assert_close(normed(given), expected)
            torch.testing.assert_close(given, summed)
