"""The engine's loop: streams, stops, many kinds of requests in one batch, kept starts of prompts, and what is given up."""

import copy
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, cycle, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from yivl_core.data.records import Record
from yivl_core.inference import prefixes as prefixes_module
from yivl_core.inference.engine import InferenceEngine, Update
from yivl_core.inference.generation import RecordEngine
from yivl_core.inference.layout import PrefillLayout
from yivl_core.inference.prefixes import prefix_length
from yivl_core.inference.requests import Completion, Request
from yivl_core.inference.runner import ModelRunner
from yivl_core.inference.sampling import SamplingParams
from yivl_core.inference.steps import RunnerSettings, RunningRequest, StepResult
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.processing.processor import ModelInputs, Processor

MAX_NEW_TOKENS = 16
PROMPTS = (2, 1, 6, 9)  # numbers of some whose answers are longer
SHARED_START = "This is how a long text begins that many prompts share, word by word."

MakeEngine = Callable[..., InferenceEngine]
Ask = Callable[..., Request]
ForcedLogprobs = Callable[[YiVLForConditionalGeneration, Processor, ModelInputs, Sequence[int]], torch.Tensor]


@pytest.fixture(scope="module")
def make_engine(model: YiVLForConditionalGeneration, processor: Processor) -> MakeEngine:
    """An engine of its own; unless told otherwise, with five rows that are refilled three at a time."""

    def make(
        *, num_rows: int = 5, cache_tokens: int = 1000, prefill_rows: int = 3, prefill_tokens: int = 400, **settings: Any
    ) -> InferenceEngine:
        sizes = RunnerSettings(
            num_rows=num_rows, cache_tokens=cache_tokens, prefill_rows=prefill_rows, prefill_tokens=prefill_tokens, **settings
        )
        return InferenceEngine(ModelRunner(copy.deepcopy(model), processor.preprocessor, sizes), processor.tokenizer)

    return make


@pytest.fixture(scope="module")
def engine(make_engine: MakeEngine) -> InferenceEngine:
    """One for all tests that leave it as it was: whatever they asked, it has to answer the next."""
    return make_engine()


@pytest.fixture(scope="module")
def ask(processor: Processor, reference: Path) -> Ask:
    """A request of a number, which decides its text, and its image if it has any."""
    pictures = []
    for path in sorted((reference / "images").iterdir()):
        with Image.open(path) as image:
            pictures.append(image.convert("RGB"))

    def make(number: int, *, num_images: int | None = None, system: str = "Be brief.", **settings: Any) -> Request:
        num_images = (1, 0, 2)[number % 3] if num_images is None else num_images
        record = Record(query="<image>" * num_images + f"What is it? ({number})", images=("x",) * num_images, system=system)
        images = [pictures[(number + place) % len(pictures)] for place in range(num_images)]
        inputs = processor.process(record, images, with_response=False)
        return Request(sample_id=str(number), inputs=inputs, **{"max_new_tokens": MAX_NEW_TOKENS, **settings})

    return make


def answers(engine: InferenceEngine | RecordEngine, requests: Sequence[Request]) -> list[Completion]:
    """All of them, in the order of the requests."""
    completions = dict(engine.generate(requests))
    assert sorted(completions) == list(range(len(requests)))
    found = [completions[number] for number in range(len(requests))]
    assert None not in found
    return [completion for completion in found if completion is not None]


def ids(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.token_ids for completion in completions]


# Company


def test_invariant_steps_give_the_same_numbers_to_the_last_bit_in_any_company(make_engine: MakeEngine, ask: Ask) -> None:
    requests = [
        ask(number, num_images=1, with_logprobs=True, params=SamplingParams(temperature=1.0, seed=number)) for number in range(8)
    ]
    slot = len(requests[0].inputs.input_ids) + MAX_NEW_TOKENS - 1
    for is_invariant in (True, False):
        engine = make_engine(num_rows=4, cache_tokens=4 * slot, prefill_rows=2, is_invariant=is_invariant)
        together = answers(engine, requests)
        ways = [answers(engine, requests[::-1])[::-1], [answers(engine, [request])[0] for request in requests]]
        assert ids(together) == ids(ways[0]) == ids(ways[1])
        assert (ways == [together, together]) is is_invariant, "the slots stand in a grid, which usual steps make use of"


def test_numbers_that_are_not_finite_do_not_outlive_their_request(
    make_engine: MakeEngine, ask: Ask, model: YiVLForConditionalGeneration
) -> None:
    spoilt, cuts = (
        model.config.text_config.vocab_size - 1,
        (0, 6, 0, 6),
    )  # who is shorter has more room in a slot of the same size
    whole = ask(0, num_images=0).inputs
    requests = [
        ask(0, num_images=0, max_new_tokens=MAX_NEW_TOKENS + cut, params=SamplingParams(temperature=1.0, seed=number))
        for number, cut in enumerate(cuts)
    ]
    requests = [
        replace(request, inputs=replace(whole, input_ids=whole.input_ids[: len(whole.input_ids) - cut]))
        for request, cut in zip(requests, cuts, strict=True)
    ]
    bad_ids = whole.input_ids.copy()
    bad_ids[-4:] = spoilt
    bad = replace(requests[0], inputs=replace(whole, input_ids=bad_ids))
    engine = make_engine(num_rows=4, cache_tokens=4 * (len(whole.input_ids) + MAX_NEW_TOKENS - 1), prefill_rows=4)
    engine.runner.decoder.embedding[spoilt] = torch.nan
    expected = answers(engine, requests)
    assert dict(engine.generate([bad] * 4)) == dict.fromkeys(range(4))
    assert answers(engine, requests) == expected


# Streams and stops


def test_streamed_texts_joined_are_the_answer(engine: InferenceEngine, ask: Ask) -> None:
    num_parts = []
    for number in range(6):
        request = ask(number, max_new_tokens=32)
        updates = list(engine.stream(request))
        assert [update.is_finished for update in updates] == [False] * (len(updates) - 1) + [True]
        assert [update.completion for update in updates[:-1]] == [None] * (len(updates) - 1)
        assert [updates[-1].completion] == answers(engine, [request])
        assert "".join(update.text for update in updates) == updates[-1].completion.text
        num_parts.append(len([update for update in updates if update.text]))
    assert max(num_parts) > 10, "it comes in parts"


def test_news_of_many_at_a_time_tell_whose_they_are(engine: InferenceEngine, ask: Ask) -> None:
    requests = [ask(number) for number in range(9)]
    texts, completions, order = defaultdict[int, str](str), {}, []
    for update in engine.run(requests):
        assert update.number not in completions, "an answer that has ended has no more news"
        texts[update.number] += update.text
        order.append(update.number)
        if update.is_finished:
            completions[update.number] = update.completion
    assert [completions[number] for number in range(9)] == answers(engine, requests)
    assert [texts[number] for number in range(9)] == [completion.text for completion in answers(engine, requests)]
    assert order != sorted(order), "they come side by side"


def stop_strings_within(text: str) -> list[str]:
    """Pieces of an answer of which none is at its start."""
    return [text[start : start + length] for start in range(2, len(text) - 12, 3) for length in (1, 2, 5, 12)]


def test_a_stop_string_of_a_user_ends_the_answer_and_no_part_of_it_is_ever_shown(engine: InferenceEngine, ask: Ask) -> None:
    num_stops = num_over_tokens = 0
    for number in PROMPTS:
        whole = answers(engine, [ask(number, max_new_tokens=24)])[0]
        stops = stop_strings_within(whole.text)
        updates = defaultdict[int, list[Update]](list)
        for update in engine.run(ask(number, max_new_tokens=24, stop_strings=("never written", stop)) for stop in stops):
            updates[update.number].append(update)
        for place, stop in enumerate(stops):
            completion = updates[place][-1].completion
            assert completion is not None
            assert completion.text == whole.text[: whole.text.find(stop)].rstrip()
            assert completion.finish_reason == "stop"
            assert completion.token_ids == whole.token_ids[: completion.num_tokens]
            shown = list(accumulate(update.text for update in updates[place]))
            assert all(completion.text.startswith(text) for text in shown)
            assert shown[-1] == completion.text
            num_stops += 1
            num_over_tokens += len(stop) >= 5
    assert num_stops >= 40
    assert num_over_tokens >= 10


def test_the_answer_ends_with_the_token_that_completes_the_stop(engine: InferenceEngine, ask: Ask, processor: Processor) -> None:
    num_stops = 0
    for number in PROMPTS:
        token_ids = answers(engine, [ask(number)])[0].token_ids
        texts = [processor.tokenizer.decode(token_ids[:end]) for end in range(len(token_ids) + 1)]
        for num_tokens, (before, text) in enumerate(pairwise(texts), 1):
            stop = text[max(len(before) - 1, 0) :]
            if not text.startswith(before) or len(stop) < 2 or "\N{REPLACEMENT CHARACTER}" in stop or stop in text[:-1]:
                continue
            completion = answers(engine, [ask(number, stop_strings=(stop,))])[0]
            assert (completion.num_tokens, completion.finish_reason) == (num_tokens, "stop")
            num_stops += 1
    assert num_stops >= 20


def test_a_stop_token_of_a_user_ends_the_answer_and_its_text_is_left_out(engine: InferenceEngine, ask: Ask) -> None:
    num_stops = 0
    for number in range(3):
        whole = answers(engine, [ask(number)])[0]
        for place, token_id in enumerate(whole.token_ids):
            stopped = answers(engine, [ask(number, stop_token_ids=(1279, token_id))])[0]
            first = whole.token_ids.index(token_id)
            assert stopped.token_ids == whole.token_ids[: first + 1]
            assert stopped.finish_reason == "stop"
            if first == place > 0:
                num_stops += 1
                assert stopped.text == answers(engine, [ask(number, max_new_tokens=first)])[0].text.rstrip()
    assert num_stops >= 20


def test_every_reason_to_end_can_be_met_in_one_batch(engine: InferenceEngine, ask: Ask) -> None:
    whole = answers(engine, [ask(number) for number in PROMPTS])
    assert [completion.finish_reason for completion in whole] == ["length"] * 4
    changed = [
        ask(PROMPTS[0], max_new_tokens=5),
        ask(PROMPTS[1], stop_token_ids=(whole[1].token_ids[3],)),
        ask(PROMPTS[2], stop_strings=(whole[2].text[4:6],)),
        ask(PROMPTS[3], stop_strings=("never written",), stop_token_ids=(1279,)),
    ]
    completions = answers(engine, changed)
    assert [completion.finish_reason for completion in completions] == ["length", "stop", "stop", "length"]
    assert [completion.num_tokens for completion in completions[:2]] == [5, 4]
    assert completions[3] == whole[3]


def test_of_one_token_the_first_is_the_last(engine: InferenceEngine, ask: Ask) -> None:
    whole = answers(engine, [ask(number) for number in range(7)])
    single = answers(engine, [ask(number, max_new_tokens=1) for number in range(7)])
    assert ids(single) == [completion.token_ids[:1] for completion in whole]


# Requests of many kinds in one batch


KINDS: tuple[dict[str, Any], ...] = (
    {},
    {"params": SamplingParams(temperature=0.8, seed=1)},
    {"params": SamplingParams(temperature=1.2, top_k=5, seed=2), "with_logprobs": True},
    {"params": SamplingParams(temperature=1.0, top_p=0.7, seed=3)},
    {"params": SamplingParams(repetition_penalty=3.0)},
    {"params": SamplingParams(temperature=1.5, repetition_penalty=1.8, seed=4)},
    {"with_logprobs": True},
    {"max_new_tokens": 3},
    {"params": SamplingParams(temperature=0.8, seed=9)},
)


@pytest.fixture(scope="module")
def kinds(ask: Ask) -> list[Request]:
    """The same prompts with and without chance, penalties and log-probabilities."""
    return [ask(PROMPTS[number % 4], **kind) for number, kind in enumerate(KINDS)]


@pytest.fixture(scope="module")
def alone(kinds: list[Request], engine: InferenceEngine) -> list[Completion]:
    """The answer to each with nobody beside it."""
    found = [answers(engine, [request])[0] for request in kinds]
    assert len({completion.token_ids for completion in found}) == len(found), "each kind has an answer of its own"
    return found


def assert_alike(completions: Sequence[Completion], expected: Sequence[Completion]) -> None:
    """All of them equal, but for the rounding of log-probabilities, which differs with the size of a batch."""
    plain, expected_plain = ([replace(each, logprobs=None) for each in given] for given in (completions, expected))
    assert plain == expected_plain
    for completion, other in zip(completions, expected, strict=True):
        assert (completion.logprobs is None) == (other.logprobs is None)
        np.testing.assert_allclose(completion.logprobs or (), other.logprobs or (), rtol=0, atol=1e-4)


@settings(max_examples=15)
@given(order=st.permutations(range(len(KINDS))))
def test_a_request_gets_in_a_batch_what_it_gets_alone_in_any_order(
    order: list[int], kinds: list[Request], alone: list[Completion], engine: InferenceEngine
) -> None:
    assert_alike(answers(engine, [kinds[number] for number in order]), [alone[number] for number in order])


def test_the_model_of_record_answers_all_kinds_alike(
    kinds: list[Request], alone: list[Completion], model: YiVLForConditionalGeneration, processor: Processor
) -> None:
    assert_alike(answers(RecordEngine(model, processor, len(KINDS)), kinds), alone)


def test_what_is_drawn_does_not_depend_on_neighbours(
    kinds: list[Request], alone: list[Completion], engine: InferenceEngine
) -> None:
    for number, request in enumerate(kinds):
        for params in (SamplingParams(), SamplingParams(temperature=2.0, seed=77), SamplingParams(repetition_penalty=9.0)):
            neighbours = [replace(other, params=params, sample_id=f"neighbour {other.sample_id}") for other in kinds[:3]]
            assert_alike([answers(engine, [*neighbours, request])[-1]], [alone[number]])


def test_to_look_a_step_later_as_on_a_gpu_changes_no_answer(
    kinds: list[Request], alone: list[Completion], make_engine: MakeEngine, ask: Ask
) -> None:
    late = make_engine(num_rows=3, prefill_rows=2)
    late.runner.lag = 1
    order = [3, 0, 8, 7, 5, 1, 4, 2, 6]
    assert_alike(answers(late, [kinds[number] for number in order]), [alone[number] for number in order])
    stopped = [
        ask(PROMPTS[number % 4], **{**kind, "stop_token_ids": (completion.token_ids[2],)})
        for number, (kind, completion) in enumerate(zip(KINDS, alone, strict=True))
    ]
    assert ids(answers(late, stopped)) == [
        completion.token_ids[: completion.token_ids.index(completion.token_ids[2]) + 1] for completion in alone
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_logprobs_are_those_of_the_model_of_records_own_logits(
    kind: dict[str, Any],
    ask: Ask,
    engine: InferenceEngine,
    model: YiVLForConditionalGeneration,
    processor: Processor,
    forced_logprobs: ForcedLogprobs,
) -> None:
    requests = [ask(number, **{**kind, "with_logprobs": True}) for number in PROMPTS]
    for request, completion in zip(requests, answers(engine, requests), strict=True):
        expected = forced_logprobs(model, processor, request.inputs, completion.token_ids)
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=0, atol=1e-4)


# Rows and slots


@pytest.fixture(scope="module")
def twelve(ask: Ask) -> list[Request]:
    return [ask(number, max_new_tokens=3 + 5 * number % 14) for number in range(12)]


@pytest.fixture(scope="module")
def expected(twelve: list[Request], model: YiVLForConditionalGeneration, processor: Processor) -> list[Completion]:
    """The answers of the model of record."""
    return answers(RecordEngine(model, processor, 12), twelve)


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_rows": 1},
        {"num_rows": 2, "prefill_rows": 1},
        {"num_rows": 12, "cache_tokens": 130, "prefill_rows": 1},
        {"num_rows": 12, "cache_tokens": 260},
        {"num_rows": 12, "cache_tokens": 5000, "prefill_rows": 12, "prefill_tokens": 5000},
        {"num_rows": 4, "prefill_tokens": 1},
        {"vision_images": 1},
        {"vision_images": 4, "is_invariant": True},
    ],
    ids=str,
)
def test_rows_and_slots_are_used_again_and_sizes_never_change_an_answer(
    sizes: dict[str, Any], twelve: list[Request], expected: list[Completion], make_engine: MakeEngine
) -> None:
    engine = make_engine(**sizes)
    for requests, completions in ((twelve, expected), (twelve[::-1], expected[::-1])):
        assert answers(engine, requests) == completions


def test_without_onednns_own_products_the_answers_are_the_same(
    twelve: list[Request], expected: list[Completion], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert answers(make_engine(), twelve) == expected


@pytest.fixture
def num_decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each decode, as they are ordered."""
    sizes: list[int] = []
    whole = ModelRunner.decode

    def watch(self: ModelRunner, running: Sequence[RunningRequest]) -> StepResult:
        sizes.append(len(running))
        return whole(self, running)

    monkeypatch.setattr(ModelRunner, "decode", watch)
    return sizes


def test_what_was_done_is_counted(
    twelve: list[Request], expected: list[Completion], make_engine: MakeEngine, num_decoded: list[int]
) -> None:
    engine = make_engine(num_rows=4, prefill_rows=2)
    assert engine.mean_slot_use == 0
    answers(engine, twelve)
    assert engine.counts.num_tokens == sum(completion.num_tokens for completion in expected)
    assert (engine.counts.num_decodes, engine.counts.num_decoded_rows) == (len(num_decoded), sum(num_decoded))
    assert 6 <= engine.counts.num_prefills <= 12
    assert sum(num_decoded) == sum(completion.num_tokens - 1 for completion in expected)
    assert engine.mean_slot_use == pytest.approx(sum(num_decoded) / (4 * len(num_decoded)))
    assert 0.5 < engine.mean_slot_use < 1
    assert max(num_decoded) == 4


def test_requests_are_taken_as_there_is_room_for_them(twelve: list[Request], make_engine: MakeEngine) -> None:
    engine, num_taken, num_ended = make_engine(num_rows=4, prefill_rows=2), 0, 0

    def endless() -> Iterator[Request]:
        nonlocal num_taken
        for request in cycle(twelve):
            num_taken += 1
            assert num_taken - num_ended <= 4 + 2
            yield request

    answered = engine.generate(endless())
    assert num_taken == 0
    for _, _ in islice(answered, 30):
        num_ended += 1
    assert num_taken <= num_ended + 6
    answered.close()
    updates = engine.run(endless())
    before = num_taken = num_ended
    next(updates)
    assert num_taken - before == 2, "no more than the first step starts"


def test_no_requests_have_no_answers(engine: InferenceEngine) -> None:
    assert list(engine.generate([])) == []


@pytest.mark.parametrize("lag", [0, 1])
def test_who_stops_listening_frees_all_that_ran_and_waited(
    lag: int, twelve: list[Request], expected: list[Completion], make_engine: MakeEngine
) -> None:
    engine = make_engine(num_rows=3, prefill_rows=3, cache_tokens=360)
    engine.runner.lag = lag
    for num_heard in (1, 2, 3, 5, 11, 30):
        updates = engine.run(twelve)
        assert len(list(islice(updates, num_heard))) == num_heard
        updates.close()
        assert engine._scheduler.num_running == 0
    answered = engine.generate(twelve)
    next(answered)
    answered.close()
    stream = engine.stream(twelve[0])
    next(stream)
    del stream
    assert engine._scheduler.num_running == 0
    assert answers(engine, twelve) == expected


def test_an_error_of_who_asks_reaches_them_and_the_engine_goes_on(
    twelve: list[Request], expected: list[Completion], make_engine: MakeEngine
) -> None:
    engine = make_engine(num_rows=3, prefill_rows=2)

    def broken() -> Iterator[Request]:
        yield from twelve[:7]
        raise OSError("the disk is gone")

    completions = []
    with pytest.raises(OSError, match="the disk is gone"):
        completions += [completion for _, completion in engine.generate(broken())]
    assert engine._scheduler.num_running == 0
    assert answers(engine, twelve) == expected


@pytest.mark.parametrize("step", ["prefill", "decode"])
def test_an_error_of_the_device_reaches_who_asked_and_the_engine_goes_on(
    step: str, twelve: list[Request], expected: list[Completion], make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(num_rows=3, prefill_rows=2)
    whole, num_calls = getattr(engine.runner, step), 0

    def fail_once(running: Sequence[RunningRequest]) -> StepResult:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            raise torch.OutOfMemoryError("no memory left")
        result: StepResult = whole(running)
        return result

    monkeypatch.setattr(engine.runner, step, fail_once)
    with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
        answers(engine, twelve)
    assert engine._scheduler.num_running == 0
    assert answers(engine, twelve) == expected


def test_a_request_that_is_larger_than_the_cache_is_our_own_mistake(ask: Ask, make_engine: MakeEngine) -> None:
    engine = make_engine(cache_tokens=100)
    large, small = ask(0, max_new_tokens=90), ask(1, max_new_tokens=1)
    with pytest.raises(AssertionError, match="the cache is smaller than one request"):
        answers(engine, [small, large])
    assert answers(engine, [small])


# Starts of prompts that are kept


@pytest.fixture
def num_prefixes(monkeypatch: pytest.MonkeyPatch, make_engine: MakeEngine) -> Callable[[InferenceEngine], list[int]]:
    """Watches an engine: lengths of the starts of prompts as they are computed by themselves."""

    def watch(engine: InferenceEngine) -> list[int]:
        lengths: list[int] = []
        whole = engine.runner.decoder.prefill

        def prefill(embeds: torch.Tensor, layout: PrefillLayout, cache: Any) -> torch.Tensor:
            if layout.segments[0].start >= engine.runner.settings.cache_tokens:
                lengths.append(layout.segments[0].num_tokens)
            return whole(embeds, layout, cache)

        monkeypatch.setattr(engine.runner.decoder, "prefill", prefill)
        return lengths

    return watch


@pytest.fixture(scope="module")
def sharing(ask: Ask) -> list[Request]:
    """Seven with one start of 16 tokens and more, two with another, and two without an image."""
    systems = [SHARED_START] * 4 + [SHARED_START[::-1]] + [SHARED_START] * 2 + [SHARED_START[::-1]] + [SHARED_START] * 3
    num_images = [1, 2, 1, 1, 1, 0, 1, 2, 1, 0, 1]
    return [
        ask(number, system=system, num_images=images, with_logprobs=True)
        for number, (system, images) in enumerate(zip(systems, num_images, strict=True))
    ]


def test_a_shared_start_is_computed_once_and_changes_no_answer(
    sharing: list[Request],
    make_engine: MakeEngine,
    model: YiVLForConditionalGeneration,
    processor: Processor,
    num_prefixes: Callable[[InferenceEngine], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = answers(RecordEngine(model, processor, 4), sharing)
    lengths = sorted({prefix_length(request) for request in sharing})
    assert len(lengths) == 3
    assert lengths[0] == 0, "no image"
    assert lengths[1] >= 16
    keeping = make_engine()
    computed = num_prefixes(keeping)
    for _ in range(2):
        assert_alike(answers(keeping, sharing), expected)
    assert sorted(computed) == lengths[1:]
    monkeypatch.setattr(prefixes_module, "MIN_PREFIX_TOKENS", 10_000)
    plain = make_engine()
    computed = num_prefixes(plain)
    assert_alike(answers(plain, sharing), expected)
    assert computed == []


def test_a_start_is_kept_if_it_is_neither_too_short_nor_too_long(ask: Ask) -> None:
    inputs = ask(1).inputs
    for length, kept in ((0, 0), (1, 0), (15, 0), (16, 16), (17, 17), (1024, 1024), (1025, 0)):
        input_ids = np.concatenate([np.arange(10, 10 + length), np.full(36, -200), np.arange(5), np.full(36, -200)])
        assert prefix_length(Request(sample_id="", inputs=replace(inputs, input_ids=input_ids, num_shared=length))) == kept


def with_start(request: Request, length: int, seed: int) -> Request:
    """The request with other tokens before its first image, of which the first ones are those of any longer start of the seed."""
    start = np.random.default_rng(seed).integers(300, 1200, 60)[:length]
    first = int(np.flatnonzero(request.inputs.input_ids < 0)[0])
    inputs = replace(request.inputs, input_ids=np.concatenate([start, request.inputs.input_ids[first:]]), num_shared=length)
    return replace(request, inputs=inputs, sample_id=f"{request.sample_id} {length} {seed}")


def test_a_start_that_could_not_be_computed_is_not_kept(
    sharing: list[Request],
    make_engine: MakeEngine,
    model: YiVLForConditionalGeneration,
    processor: Processor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = make_engine()

    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory left")

    with monkeypatch.context() as broken:
        broken.setattr(engine.runner.decoder, "prefill", fail)
        with pytest.raises(torch.OutOfMemoryError, match="no memory left"):
            answers(engine, sharing)
    assert_alike(answers(engine, sharing), answers(RecordEngine(model, processor, 4), sharing))


@pytest.mark.parametrize(
    ("kept_tokens", "prefill_rows"),
    [(1024, 1), (1024, 3), (130, 1), (61, 1), (61, 3)],
)
def test_more_starts_than_there_is_room_for_give_way_to_each_other(
    kept_tokens: int,
    prefill_rows: int,
    ask: Ask,
    make_engine: MakeEngine,
    model: YiVLForConditionalGeneration,
    processor: Processor,
    num_prefixes: Callable[[InferenceEngine], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Starts of 20 to 60 tokens, some the beginning of others."""
    shapes = [(20, 1), (40, 1), (60, 1), (60, 2), (20, 1), (40, 3), (60, 2), (20, 2), (50, 4), (40, 1), (60, 1), (20, 1)]
    requests = [with_start(ask(0), length, seed) for length, seed in shapes]
    expected = answers(RecordEngine(model, processor, 12), requests)
    assert len(set(ids(expected))) >= 5
    monkeypatch.setattr(prefixes_module, "PREFIX_CACHE_TOKENS", kept_tokens)
    engine = make_engine(prefill_rows=prefill_rows)
    computed = num_prefixes(engine)
    assert ids(answers(engine, requests)) == ids(expected)
    if kept_tokens == 1024:
        assert Counter(computed) == Counter(length for length, _ in set(shapes))
    elif prefill_rows == 1:
        assert len(set(shapes)) < len(computed) <= len(shapes)


def test_the_start_that_was_not_used_for_longest_gives_way(
    ask: Ask,
    make_engine: MakeEngine,
    num_prefixes: Callable[[InferenceEngine], list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefixes_module, "PREFIX_CACHE_TOKENS", 60)
    engine = make_engine(prefill_rows=1)
    computed = num_prefixes(engine)
    one, two, three = (with_start(ask(0, max_new_tokens=1), length, seed) for length, seed in ((21, 1), (22, 2), (23, 3)))
    answers(engine, [one, two, one, three, one, two])
    assert computed == [21, 22, 23, 22]
