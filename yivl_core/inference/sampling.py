"""SamplingParams; logits -> next token.

The steps are transformers' own, in its order: repetition penalty, temperature, top-k, top-p, draw. Every record draws from a
stream of its own that depends on the seed and the record alone, so its text does not depend on what it is batched with.

Shape letters: B rows of the batch, V vocabulary.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from yivl_core.inference.configuration import DecodingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token; else the logits are divided by it before one is drawn.
        top_k: draw among the k likeliest; None: among all.
        top_p: draw among the likeliest that together have this probability; 1: among all.
        repetition_penalty: above 1, tokens already in prompt or answer become less likely; 1: they do not.
        seed: together with a record's id, the start of its stream of random numbers.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0

    @classmethod
    def from_settings(cls, settings: DecodingSettings) -> "SamplingParams":
        """The part of a user's settings that chooses tokens."""
        return cls(
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            repetition_penalty=settings.repetition_penalty,
            seed=settings.seed,
        )

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0

    def make_generator(self, sample_id: str) -> torch.Generator:
        """The record's own stream of random numbers, on the CPU whatever the device of the model."""
        digest = hashlib.sha256(f"{self.seed}:{sample_id}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))


def sample(
    logits: torch.Tensor,
    params: SamplingParams,
    generators: Sequence[torch.Generator] = (),
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """The next token of each row.

    Args:
        logits: float32 `[B, V]`.
        params: how to choose, the same for all rows.
        generators: one for each row, as `SamplingParams.make_generator` makes them; each gives one number. Not used if greedy.
        seen: bool `[B, V]`, which tokens a row holds already (`mark_seen`); needed with a repetition penalty.

    Returns:
        int64 `[B]`. Of tokens that are equally likely, greedy takes the one with the lowest id.
    """
    if params.repetition_penalty != 1:
        assert seen is not None, "a repetition penalty needs to know what was seen"
        logits = penalise_repetition(logits, seen, params.repetition_penalty)
    if params.is_greedy:
        return logits.argmax(dim=-1)
    # Less the largest, so that a temperature next to nothing does not overflow.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / params.temperature
    if params.top_k is not None:
        logits = keep_top_k(logits, params.top_k)
    if params.top_p < 1:
        logits = keep_top_p(logits, params.top_p)
    return _draw(logits, generators)


def mark_seen(seen: torch.Tensor, row: int, token_ids: Iterable[int]) -> None:
    """Marks tokens as held by a row: `seen` is bool `[B, V]`. Places of images, which are negative, do not count."""
    seen[row, torch.tensor([token_id for token_id in token_ids if token_id >= 0], dtype=torch.int64, device=seen.device)] = True


def penalise_repetition(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
    """Logits `[B, V]`: those of seen tokens divided by the penalty if positive, else multiplied (CTRL, Keskar 2019, 4.1)."""
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Logits `[B, V]` with all below the k-th largest of their row at minus infinity."""
    smallest_kept = logits.topk(min(k, logits.shape[-1])).values[:, -1:]  # [B, 1]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def keep_top_p(logits: torch.Tensor, p: float) -> torch.Tensor:
    """Logits `[B, V]` of the fewest likeliest tokens with probability p together, at least one; the rest at minus infinity."""
    ascending, order = logits.sort(dim=-1)
    is_cut = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - p  # [B, V]
    is_cut[:, -1] = False
    return logits.masked_fill(is_cut.scatter(-1, order, is_cut), -torch.inf)


def _draw(logits: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """One token a row by inverting the cumulative distribution, in double precision so that rounding shifts no probability."""
    assert len(generators) == len(logits), "one generator for each row"
    numbers = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])  # [B]
    descending, order = logits.double().sort(dim=-1, descending=True, stable=True)
    cumulative = descending.softmax(dim=-1).cumsum(dim=-1)  # [B, V]
    target = numbers.to(logits.device)[:, None] * cumulative[:, -1:]  # [B, 1]
    place = torch.searchsorted(cumulative, target, right=True)
    # A number just below 1 can round to the whole: the last token with any probability is then meant.
    last = descending.isfinite().sum(dim=-1, keepdim=True) - 1
    return order.gather(-1, torch.minimum(place, last)).squeeze(-1)
