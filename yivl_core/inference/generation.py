"""Answers for a batch of prompts with the model of record: padded on the left, keys and values cached, one token a step.

A row's tokens do not depend on its neighbours: padding is masked, positions count real tokens, and each row draws from its own
stream of random numbers. What remains is rounding, which differs with the shape of a batch in the last bits.

Shape letters: B rows, S longest prompt, D width of the decoder, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from transformers import DynamicCache

from yivl_core.inference.sampling import SamplingParams, mark_seen, sample
from yivl_core.inference.stopping import StopChecker
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.processing.padding import UnpaddedPixels
from yivl_core.processing.processor import ModelInputs, Processor

_NO_TOKEN = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to answer.

    Attributes:
        sample_id: names the record; with the seed it decides what is drawn.
        inputs: the prompt, without a response.
    """

    sample_id: str
    inputs: ModelInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One answer.

    Attributes:
        text: without the stop and without white space around it.
        finish_reason: `stop`, or `length` where it was cut at the limit.
        num_tokens: tokens written, the stop included.
    """

    text: str
    finish_reason: Literal["stop", "length"]
    num_tokens: int


@torch.inference_mode()
def generate(
    model: YiVLForConditionalGeneration,
    processor: Processor,
    requests: Sequence[Request],
    params: SamplingParams,
    max_new_tokens: int,
) -> list[Completion | None]:
    """An answer to each request, in order; None where the logits were no finite numbers, as overflowing float16 gives them.

    Args:
        model: with or without an adapter, in evaluation mode.
        processor: of the model's checkpoint.
        requests: at least one; answered together.
        params: how tokens are chosen.
        max_new_tokens: most tokens of an answer; fewer where the model's positions end before.
    """
    lengths = [len(request.inputs.input_ids) for request in requests]
    limits = [min(max_new_tokens, model.config.text_config.max_position_embeddings - length) for length in lengths]
    assert min(limits) > 0, "a prompt has to leave room for an answer"
    checkers = [StopChecker(processor.tokenizer, limit) for limit in limits]
    generators = [params.make_generator(request.sample_id) for request in requests]
    device = model.lm_head.weight.device
    input_ids, attention_mask = (tensor.to(device) for tensor in _pad_left(requests))  # [B, S]
    lost: set[int] = set()
    seen = _seen(model, requests) if params.repetition_penalty != 1 else None
    decoder, cache = model.model.language_model, DynamicCache(config=model.config.text_config)
    embeds = model.model.embed(input_ids, _pixel_values(model, processor, requests))  # [B, S, D]
    position_ids = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
    while True:
        outputs = decoder(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        logits = model.lm_head(outputs.last_hidden_state[:, -1]).float()  # [B, V]
        is_finite = logits.isfinite().all(dim=-1)  # [B]
        token_ids = sample(logits.masked_fill(~is_finite[:, None], 0.0), params, generators, seen)  # [B]
        for row, token_id in enumerate(torch.where(is_finite, token_ids, _NO_TOKEN).tolist()):  # waits for the GPU
            if row in lost or checkers[row].finish_reason:
                continue
            if token_id == _NO_TOKEN:
                lost.add(row)
                continue
            checkers[row].append(token_id)
            if seen is not None:
                mark_seen(seen, row, [token_id])
        if all(row in lost or checker.finish_reason for row, checker in enumerate(checkers)):
            return [None if row in lost else _completion(checker) for row, checker in enumerate(checkers)]
        embeds = model.model.get_input_embeddings()(token_ids.unsqueeze(1))  # [B, 1, D]
        attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(requests), 1)], dim=1)
        position_ids = position_ids[:, -1:] + 1


def _completion(checker: StopChecker) -> Completion:
    assert checker.finish_reason is not None
    return Completion(text=checker.text, finish_reason=checker.finish_reason, num_tokens=checker.num_tokens)


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
    weight = model.lm_head.weight
    return processor.preprocessor.normalise(pixels.to(weight.device).squares()).to(weight.dtype)


def _seen(model: YiVLForConditionalGeneration, requests: Sequence[Request]) -> torch.Tensor:
    """Which tokens each prompt holds: bool `[B, V]`."""
    seen = torch.zeros(len(requests), model.config.text_config.vocab_size, dtype=torch.bool, device=model.lm_head.weight.device)
    for row, request in enumerate(requests):
        mark_seen(seen, row, request.inputs.input_ids.tolist())
    return seen
