"""Next tokens against transformers' logits processors and the distribution that they should have."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from yivl_core.inference import sampling
from yivl_core.inference.configuration import DecodingSettings
from yivl_core.inference.sampling import (
    SamplingColumns,
    SamplingParams,
    draw_number,
    keep_top_k,
    keep_top_p,
    mark_seen,
    penalise_repetition,
)


def random_logits(seed: int, rows: int = 4, vocabulary: int = 50, *, ties: bool = False) -> torch.Tensor:
    logits = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3
    return logits.round() if ties else logits


def sample(
    logits: torch.Tensor,
    params: SamplingParams,
    generators: Sequence[torch.Generator] = (),
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """The next token of rows that have the same params, with a number of each generator."""
    numbers = torch.tensor([draw_number(generator) for generator in generators], dtype=torch.float64) if generators else None
    return sampling.sample(logits, SamplingColumns.of([params] * len(logits), logits.shape[-1]), numbers, seen)


def column(value: float, rows: int = 4, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.full((rows, 1), value, dtype=dtype)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 50), st.booleans())
def test_top_k_keeps_what_transformers_keeps(seed: int, k: int, ties: bool) -> None:
    logits = random_logits(seed, ties=ties)
    assert torch.equal(keep_top_k(logits, column(k, dtype=torch.int64)), TopKLogitsWarper(top_k=k)(torch.empty(0), logits))


@settings(deadline=None)
@given(st.integers(0, 10**6), st.floats(0.001, 0.999), st.booleans())
def test_top_p_keeps_what_transformers_keeps(seed: int, p: float, ties: bool) -> None:
    logits = random_logits(seed, ties=ties)
    assert torch.equal(keep_top_p(logits, column(p)), TopPLogitsWarper(top_p=p)(torch.empty(0), logits))


@settings(deadline=None)
@given(
    st.integers(0, 10**6),
    st.floats(0.5, 2.0),
    st.lists(st.lists(st.integers(0, 49), min_size=3, max_size=3), min_size=4, max_size=4),
)
def test_repetition_is_penalised_as_in_transformers(seed: int, penalty: float, held: list[list[int]]) -> None:
    logits, seen = random_logits(seed), torch.zeros(4, 50, dtype=torch.bool)
    for row, token_ids in enumerate(held):
        mark_seen(seen, row, token_ids)
    expected = RepetitionPenaltyLogitsProcessor(penalty=penalty)(torch.tensor(held), logits.clone())
    torch.testing.assert_close(penalise_repetition(logits, seen, column(penalty, dtype=torch.float32)), expected, rtol=0, atol=0)


def test_places_of_images_are_not_seen() -> None:
    seen = torch.zeros(2, 5, dtype=torch.bool)
    mark_seen(seen, 1, [-200, -200, 3])
    mark_seen(seen, 0, [])
    assert seen.tolist() == [[False] * 5, [False, False, False, True, False]]


def test_temperature_nought_takes_the_likeliest_and_of_equals_the_first() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, 5.0]])
    assert sample(logits, SamplingParams()).tolist() == [1, 0]
    assert sample(logits, SamplingParams()).dtype == torch.int64


def test_greedy_obeys_the_repetition_penalty() -> None:
    logits, seen = torch.tensor([[1.0, 1.9, -1.0]]), torch.tensor([[False, True, False]])
    assert sample(logits, SamplingParams(repetition_penalty=2.0), seen=seen).tolist() == [0]
    with pytest.raises(AssertionError, match="a repetition penalty needs to know what was seen"):
        sample(logits, SamplingParams(repetition_penalty=2.0))


def test_draws_follow_the_distribution_that_transformers_processors_make() -> None:
    num_draws = 20_000
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -3.0])
    seen = torch.zeros(num_draws, 7, dtype=torch.bool)
    seen[:, 1] = True
    params = SamplingParams(temperature=0.8, top_k=5, top_p=0.9, repetition_penalty=1.3)
    scores = logits[None]
    held = torch.tensor([[1]])
    for processor in (
        RepetitionPenaltyLogitsProcessor(penalty=1.3),
        TemperatureLogitsWarper(temperature=0.8),
        TopKLogitsWarper(top_k=5),
        TopPLogitsWarper(top_p=0.9),
    ):
        scores = processor(held, scores.clone())
    expected = scores.softmax(dim=-1)[0]
    assert 0 < (expected == 0).sum() < 6
    generators = [torch.Generator().manual_seed(number) for number in range(num_draws)]
    drawn = sample(logits.expand(num_draws, -1), params, generators, seen)
    counts = torch.bincount(drawn, minlength=7)
    assert (counts[expected == 0] == 0).all()
    deviation = (num_draws * expected * (1 - expected)).sqrt()
    assert ((counts - num_draws * expected).abs() <= 4 * deviation).all()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    logits, params = random_logits(3, rows=6), SamplingParams(temperature=1.5, top_p=0.95, seed=7)
    names = [f"sample-{row}" for row in range(6)]
    together = sample(logits, params, [params.make_generator(name) for name in names]).tolist()
    alone = [
        token_id
        for row in range(6)
        for token_id in sample(logits[row : row + 1], params, [params.make_generator(names[row])]).tolist()
    ]
    backwards = sample(logits.flip(0), params, [params.make_generator(name) for name in reversed(names)]).tolist()
    assert together == alone == backwards[::-1]


def test_rows_with_params_of_their_own_get_what_each_would_get_alone() -> None:
    kinds = [
        SamplingParams(),
        SamplingParams(temperature=0.7),
        SamplingParams(temperature=1.5, top_k=3),
        SamplingParams(temperature=1.1, top_p=0.6),
        SamplingParams(repetition_penalty=1.7),
        SamplingParams(temperature=2.0, top_k=40, top_p=0.9, repetition_penalty=0.8),
    ]
    for seed in range(20):
        logits = random_logits(seed, rows=len(kinds))
        seen = torch.rand(len(kinds), 50, generator=torch.Generator().manual_seed(seed)) < 0.3
        numbers = torch.rand(len(kinds), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        together = sampling.sample(logits, SamplingColumns.of(kinds, 50), numbers, seen)
        for row, params in enumerate(kinds):
            alone = sampling.sample(
                logits[row : row + 1], SamplingColumns.of([params], 50), numbers[row : row + 1], seen[row : row + 1]
            )
            assert together[row] == alone[0], params


def test_many_rows_are_drawn_in_parts_and_get_what_each_would_get_alone() -> None:
    kinds = [SamplingParams(), SamplingParams(temperature=1.2, top_k=9, repetition_penalty=1.3), SamplingParams(top_p=0.5)] * 30
    logits = random_logits(1, rows=90)
    seen = torch.rand(90, 50, generator=torch.Generator().manual_seed(2)) < 0.3
    numbers = torch.rand(90, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    together = sampling.sample(logits, SamplingColumns.of(kinds, 50), numbers, seen)
    alone = [
        sampling.sample(logits[row : row + 1], SamplingColumns.of([kinds[row]], 50), numbers[row : row + 1], seen[row : row + 1])
        for row in range(90)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_streams_depend_on_seed_and_record_and_go_on() -> None:
    def numbers(seed: int, name: str) -> list[int]:
        params = SamplingParams(temperature=1.0, seed=seed)
        generator = params.make_generator(name)
        return [int(sample(torch.zeros(1, 1000), params, [generator])) for _ in range(3)]

    streams = [numbers(0, "a"), numbers(0, "b"), numbers(1, "a")]
    assert streams[0] == numbers(0, "a")
    assert len({number for stream in streams for number in stream}) == 9


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-30, 1e-3, 1.0, 1e6]), st.integers(1, 3) | st.none())
def test_no_temperature_draws_what_top_k_left_out(seed: int, temperature: float, top_k: int | None) -> None:
    logits = random_logits(seed)
    logits[:, 10:] = -torch.inf
    params = SamplingParams(temperature=temperature, top_k=top_k, seed=seed)
    drawn = sample(logits, params, [params.make_generator(str(row)) for row in range(4)])
    allowed = logits.topk(top_k or 10).indices
    assert (allowed == drawn[:, None]).any(dim=-1).all()
    if temperature == 1e-30:
        assert torch.equal(drawn, logits.argmax(dim=-1))


def test_a_number_next_to_one_draws_the_last_possible_token(monkeypatch: pytest.MonkeyPatch) -> None:
    nearly_one = torch.tensor(1.0, dtype=torch.float64).nextafter(torch.tensor(0.0, dtype=torch.float64))
    for number in (nearly_one, torch.tensor(1.0, dtype=torch.float64)):
        monkeypatch.setattr(torch, "rand", lambda *_, result=number, **__: result)
        logits = torch.tensor([[0.0, 1.0, -1.0, -torch.inf, -torch.inf]])
        assert sample(logits, SamplingParams(temperature=1.0), [torch.Generator()]).tolist() == [2]


def test_too_few_generators_are_refused() -> None:
    with pytest.raises(AssertionError, match="one number for each row"):
        sample(torch.zeros(2, 3), SamplingParams(temperature=1.0), [torch.Generator()])


def test_every_setting_of_decoding_is_taken_over() -> None:
    chosen = DecodingSettings(temperature=0.7, top_k=9, top_p=0.5, repetition_penalty=1.1, seed=3, max_new_tokens=4)
    params = SamplingParams.from_settings(chosen)
    assert params == SamplingParams(temperature=0.7, top_k=9, top_p=0.5, repetition_penalty=1.1, seed=3)
    assert SamplingParams.from_settings(DecodingSettings()) == SamplingParams()
    assert SamplingParams().is_greedy
    assert not params.is_greedy
