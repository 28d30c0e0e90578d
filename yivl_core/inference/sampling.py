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


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingColumns:
    """How the next token of each row is chosen: one number a row, on the device of the logits.

    Attributes:
        temperature: float32 `[B, 1]`, 1 for greedy rows; None where all rows are greedy.
        is_greedy: bool `[B]`.
        top_k: int64 `[B, 1]`, the vocabulary's size where all tokens are kept; None where no row leaves any out.
        top_p: float64 `[B, 1]`; None where it is 1 for all.
        repetition_penalty: float32 `[B, 1]`; None where it is 1 for all.
    """

    temperature: torch.Tensor | None
    is_greedy: torch.Tensor
    top_k: torch.Tensor | None
    top_p: torch.Tensor | None
    repetition_penalty: torch.Tensor | None

    @classmethod
    def of(cls, params: Sequence[SamplingParams], vocab_size: int, device: torch.device | str = "cpu") -> "SamplingColumns":
        """The columns of rows with these params."""

        def column(values: Sequence[float | int | bool], neutral: float | int, dtype: torch.dtype) -> torch.Tensor | None:
            if all(value == neutral for value in values):
                return None
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True).unsqueeze(-1)

        top_k = [vocab_size if each.top_k is None or each.is_greedy else min(each.top_k, vocab_size) for each in params]
        return cls(
            temperature=None
            if all(each.is_greedy for each in params)
            else torch.tensor([[each.temperature or 1.0] for each in params]).to(device, non_blocking=True),
            is_greedy=torch.tensor([each.is_greedy for each in params]).to(device, non_blocking=True),
            top_k=column(top_k, vocab_size, torch.int64),
            top_p=column([1.0 if each.is_greedy else each.top_p for each in params], 1.0, torch.float64),
            repetition_penalty=column([each.repetition_penalty for each in params], 1.0, torch.float32),
        )

    def rows(self, part: slice) -> "SamplingColumns":
        """The columns of some of the rows."""
        return SamplingColumns(
            temperature=_part(self.temperature, part),
            is_greedy=self.is_greedy[part],
            top_k=_part(self.top_k, part),
            top_p=_part(self.top_p, part),
            repetition_penalty=_part(self.repetition_penalty, part),
        )


# Sorting a row of Yi's vocabulary in double precision takes 4 MB with all that belongs to it.
_MAX_DRAWN_ROWS = 32


def sample(
    logits: torch.Tensor,
    columns: SamplingColumns,
    numbers: torch.Tensor | None = None,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """The next token of each row.

    Args:
        logits: float32 `[B, V]`.
        columns: how to choose, by row.
        numbers: float64 `[B]`, one for each row, evenly from 0 to 1 as `draw_number` gives them; not needed where all is greedy.
        seen: bool `[B, V]`, which tokens a row holds already (`mark_seen`); needed with a repetition penalty.

    Returns:
        int64 `[B]`. Of tokens that are equally likely, greedy takes the one with the lowest id.
    """
    if columns.temperature is not None and len(logits) > _MAX_DRAWN_ROWS:
        parts = [slice(start, start + _MAX_DRAWN_ROWS) for start in range(0, len(logits), _MAX_DRAWN_ROWS)]
        return torch.cat([sample(logits[part], columns.rows(part), _part(numbers, part), _part(seen, part)) for part in parts])
    if columns.repetition_penalty is not None:
        assert seen is not None, "a repetition penalty needs to know what was seen"
        logits = penalise_repetition(logits, seen, columns.repetition_penalty)
    likeliest = logits.argmax(dim=-1)
    if columns.temperature is None:
        return likeliest
    assert numbers is not None
    assert len(numbers) == len(logits), "one number for each row"
    # Less the largest, so that a temperature next to nothing does not overflow.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / columns.temperature
    if columns.top_k is not None:
        logits = keep_top_k(logits, columns.top_k)
    if columns.top_p is not None:
        logits = keep_top_p(logits, columns.top_p)
    return torch.where(columns.is_greedy, likeliest, _draw(logits, numbers))


def _part(tensor: torch.Tensor | None, part: slice) -> torch.Tensor | None:
    return None if tensor is None else tensor[part]


def draw_number(generator: torch.Generator) -> float:
    """The next number of a stream, evenly from 0 to 1."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def mark_seen(seen: torch.Tensor, row: int, token_ids: Iterable[int]) -> None:
    """Marks tokens as held by a row: `seen` is bool `[B, V]`. Places of images, which are negative, do not count."""
    seen[row, torch.tensor([token_id for token_id in token_ids if token_id >= 0], dtype=torch.int64, device=seen.device)] = True


def penalise_repetition(logits: torch.Tensor, seen: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor:
    """Logits `[B, V]`: those of seen tokens divided by the penalty `[B, 1]` if positive, else multiplied.

    CTRL (Keskar 2019), 4.1.
    """
    return torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)


def keep_top_k(logits: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Logits `[B, V]` with all below the k-th largest of their row at minus infinity; k is int64 `[B, 1]`, at most V."""
    smallest_kept = logits.sort(dim=-1, descending=True).values.gather(-1, k - 1)  # [B, 1]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def keep_top_p(logits: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Logits `[B, V]` of the fewest likeliest tokens with probability p together, at least one; the rest at minus infinity.

    p is float64 `[B, 1]`; a row with 1 is left as it is.
    """
    ascending, order = logits.sort(dim=-1)
    is_cut = (ascending.softmax(dim=-1).cumsum(dim=-1) <= (1 - p).to(logits.dtype)) & (p < 1)  # [B, V]
    is_cut[:, -1] = False
    return logits.masked_fill(is_cut.scatter(-1, order, is_cut), -torch.inf)


def _draw(logits: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    """One token a row by inverting the cumulative distribution, in double precision so that rounding shifts no probability."""
    descending, order = logits.double().sort(dim=-1, descending=True, stable=True)
    cumulative = descending.softmax(dim=-1).cumsum(dim=-1)  # [B, V]
    target = numbers[:, None] * cumulative[:, -1:]  # [B, 1]
    place = torch.searchsorted(cumulative, target, right=True)
    # A number just below 1 can round to the whole: the last token with any probability is then meant.
    last = descending.isfinite().sum(dim=-1, keepdim=True) - 1
    return order.gather(-1, torch.minimum(place, last)).squeeze(-1)
