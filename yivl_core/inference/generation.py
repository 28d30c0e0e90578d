"""Answers for a batch of prompts with the model of record: padded on the left, keys and values cached, one token a step.

A row's tokens do not depend on its neighbours: padding is masked, positions count real tokens, and each row draws from its own
stream of random numbers. What remains is rounding, which differs with the shape of a batch in the last bits.

Shape letters: B rows, S longest prompt, D width of the decoder, V vocabulary.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from transformers import DynamicCache

from yivl_core.inference.requests import NO_TOKEN, Answer, Completion, Request
from yivl_core.inference.sampling import SamplingColumns, mark_seen, sample
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.processing.processor import Processor

RECORD_BATCH_SIZE = 8


class RecordEngine:
    """Answers requests with the model of record, some at a time: slow, but for every kind of adapter.

    Args:
        model: with or without an adapter, in evaluation mode.
        processor: of the model's checkpoint.
        batch_size: how many are answered together.
    """

    def __init__(self, model: YiVLForConditionalGeneration, processor: Processor, batch_size: int) -> None:
        self._model, self._processor, self._batch_size = model, processor, batch_size

    def generate(self, requests: Iterable[Request]) -> Iterator[tuple[int, Completion | None]]:
        """As `InferenceEngine.generate`."""
        numbered = enumerate(requests)
        while batch := list(islice(numbered, self._batch_size)):
            completions = generate(self._model, self._processor, [request for _, request in batch])
            yield from ((number, completion) for (number, _), completion in zip(batch, completions, strict=True))


@torch.inference_mode()
def generate(model: YiVLForConditionalGeneration, processor: Processor, requests: Sequence[Request]) -> list[Completion | None]:
    """An answer to each request, in order; None where the logits were no finite numbers, as overflowing float16 gives them.

    Args:
        model: with or without an adapter, in evaluation mode.
        processor: of the model's checkpoint.
        requests: at least one; answered together.
    """
    max_positions = model.config.text_config.max_position_embeddings
    answers = [Answer(request, processor.tokenizer, max_positions) for request in requests]
    device = model.device  # of embeddings; further layers of a model that is spread run elsewhere
    columns = SamplingColumns.of([request.params for request in requests], model.config.text_config.vocab_size, device)
    input_ids, attention_mask = (tensor.to(device) for tensor in _pad_left(requests))  # [B, S]
    seen = _seen(model, requests) if columns.repetition_penalty is not None else None
    decoder, cache = model.model.language_model, DynamicCache(config=model.config.text_config)
    embeds = model.model.embed(input_ids, _pixel_values(model, processor, requests))  # [B, S, D]
    position_ids = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
    while True:
        outputs = decoder(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        logits = model.lm_head(outputs.last_hidden_state[:, -1]).to(device).float()  # [B, V]
        is_finite = logits.isfinite().all(dim=-1)  # [B]
        logits = logits.masked_fill(~is_finite[:, None], 0.0)
        numbers = torch.tensor(
            [0.0 if answer.is_finished else answer.draw() for answer in answers], dtype=torch.float64, device=device
        )
        token_ids = sample(logits, columns, numbers, seen)  # [B]
        logprobs: list[float] | list[None] = [None] * len(requests)
        if any(request.with_logprobs for request in requests):
            logprobs = logits.log_softmax(dim=-1).gather(-1, token_ids[:, None]).squeeze(-1).tolist()
        if seen is not None:
            seen[torch.arange(len(requests), device=device), token_ids] = True
        taken = torch.where(is_finite, token_ids, NO_TOKEN).tolist()  # waits for the GPU
        for answer, token_id, logprob in zip(answers, taken, logprobs, strict=True):
            if not answer.is_finished:
                answer.append(token_id, logprob)
        if all(answer.is_finished for answer in answers):
            return [answer.completion for answer in answers]
        embeds = model.model.get_input_embeddings()(token_ids.unsqueeze(1))  # [B, 1, D]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(requests), 1)], dim=1)
        position_ids = position_ids[:, -1:] + 1


def _pad_left(requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and the mask that says which are real, both int64 `[B, S]`."""
    length = max(len(request.inputs.input_ids) for request in requests)
    input_ids = np.zeros((len(requests), length), dtype=np.int64)
    attention_mask = np.zeros_like(input_ids)
    for row, request in enumerate(requests):
        start = length - len(request.inputs.input_ids)
        input_ids[row, start:] = request.inputs.input_ids
        attention_mask[row, start:] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def _pixel_values(model: YiVLForConditionalGeneration, processor: Processor, requests: Sequence[Request]) -> torch.Tensor | None:
    """All images in the order of their places, `[N, 3, H, W]`; None where there is none."""
    pixels = UnpaddedPixels.joined([request.inputs.pixels for request in requests])
    if not pixels.num_images:
        return None
    return processor.preprocessor.normalise(pixels.to(model.device).squares()).to(model.dtype)


def _seen(model: YiVLForConditionalGeneration, requests: Sequence[Request]) -> torch.Tensor:
    """Which tokens each prompt holds: bool `[B, V]`."""
    seen = torch.zeros(len(requests), model.config.text_config.vocab_size, dtype=torch.bool, device=model.device)
    for row, request in enumerate(requests):
        mark_seen(seen, row, request.inputs.input_ids.tolist())
    return seen
