"""Held-out records answered while training: how many characters of the answers are wrong."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from yivl_core.evaluation.metrics.edits import Score, score_answer
from yivl_core.evaluation.texts.normalisation import normalise
from yivl_core.inference.generation import RECORD_BATCH_SIZE, generate
from yivl_core.inference.requests import Request
from yivl_core.model.attention import PACKED_ATTENTION
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.training.samples import SampleReader

# An answer that is longer than twice the longest right one is wrong anyway.
_SPARE_TOKENS, _TIMES_AS_LONG = 16, 2


def score_answers(model: YiVLForConditionalGeneration, reader: SampleReader, indices: Sequence[int]) -> Score:
    """The score of greedy answers to some records, normalised as reports normalise them.

    Args:
        model: of record, with its adapter, in evaluation mode.
        reader: of the records.
        indices: which of them.

    Raises:
        ImageError: as `SampleReader.load`.
    """
    references = {index: _references(reader, index) for index in indices}
    if not references:
        return Score()
    longest = max(len(reader.processor.tokenizer.encode(text)) for texts in references.values() for text in texts)
    limit, size, total = _TIMES_AS_LONG * longest + _SPARE_TOKENS, RECORD_BATCH_SIZE, Score()
    left = list(indices)
    with _plain_attention(model):
        while left:
            batch = left[:size]
            prompts = [reader.load(index, with_response=False) for index in batch]
            requests = [Request(sample_id="", inputs=prompt, max_new_tokens=limit) for prompt in prompts]
            try:
                completions = generate(model, reader.processor, requests)
            except torch.OutOfMemoryError:  # the plan of a training has no room for answers
                if size == 1:
                    raise
                size //= 2
                continue
            for completion, index in zip(completions, batch, strict=True):
                answer = None if completion is None else normalise(completion.text)
                total += score_answer(answer, [normalise(text) for text in references[index]])
            left = left[size:]
    return total


def _references(reader: SampleReader, index: int) -> Sequence[str]:
    record = reader.records[index].record
    return (record.response or "", *record.references)


@contextmanager
def _plain_attention(model: YiVLForConditionalGeneration) -> Iterator[None]:
    """Within it padding is masked, and nothing is compiled for the lengths of answers."""
    decoder = model.model.language_model
    is_packed = decoder.config._attn_implementation == PACKED_ATTENTION
    if is_packed:
        decoder.set_attn_implementation("sdpa")
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        if is_packed:
            decoder.set_attn_implementation(PACKED_ATTENTION)
