"""Where the tokens of a step stand: in the batch, in their prompts, and in the key-value cache.

```
batch        | a4 a5 a6 a7 | b3 b4 b5 |            prompts side by side, without what was computed before them
position_ids    4  5  6  7    3  4  5
cache        ... a0 a1 a2 a3 a4 a5 a6 a7 ... b0 b1 b2 b3 b4 b5 ...
store_rows                   ^  ^  ^  ^               ^  ^  ^      where keys and values go
```
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

# Tokens of one prompt whose attention is computed together.
BLOCK_QUERIES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One prompt in a prefill.

    Attributes:
        start: of its slot in the cache.
        num_cached: tokens of it that stand in the cache already.
        num_tokens: all its tokens.
    """

    start: int
    num_cached: int
    num_tokens: int

    @property
    def num_new(self) -> int:
        """Tokens that are computed now."""
        return self.num_tokens - self.num_cached


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """A size that every prefill has, so that its matrix products are always the same; what fills it up is attended to by nobody.

    Attributes:
        num_tokens: S.
        num_prompts: N.
        cache_row: where the keys and values of what fills up go.
    """

    num_tokens: int
    num_prompts: int
    cache_row: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillLayout:
    """The places of a prefill, on the device. S tokens of N prompts are computed.

    Attributes:
        segments: the prompts.
        position_ids: int64 `[S]`.
        store_rows: int64 `[S]`.
        last: int64 `[N]`, the last token of each prompt among S.
        blocks: int64 `[4, blocks]`, the prompts in blocks of `BLOCK_QUERIES` tokens at most: where a block starts among S, where
            it ends, the position of its first token in its prompt, and where the prompt's slot starts in the cache.
        last_blocks: the same for the last tokens alone, among N.
    """

    segments: Sequence[Segment]
    position_ids: torch.Tensor
    store_rows: torch.Tensor
    last: torch.Tensor
    blocks: torch.Tensor
    last_blocks: torch.Tensor

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """All that is on the device."""
        return self.position_ids, self.store_rows, self.last, self.blocks, self.last_blocks

    def with_tensors(self, tensors: Sequence[torch.Tensor]) -> "PrefillLayout":
        """The same with other tensors, in the order of `tensors`."""
        position_ids, store_rows, last, blocks, last_blocks = tensors
        return replace(self, position_ids=position_ids, store_rows=store_rows, last=last, blocks=blocks, last_blocks=last_blocks)

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device, padding: "Padding | None" = None) -> "PrefillLayout":
        """The layout of these prompts, in this order, filled up to a fixed size where that is asked for."""
        positions = [np.arange(each.num_cached, each.num_tokens) for each in segments]
        rows = [each.start + place for each, place in zip(segments, positions, strict=True)]
        ends = np.cumsum([each.num_new for each in segments])
        last = np.arange(len(segments))
        starts, last_positions = (
            np.array([each.start for each in segments]),
            np.array([each.num_tokens - 1 for each in segments]),
        )
        position_ids, store_rows, last_tokens = np.concatenate(positions), np.concatenate(rows), ends - 1
        blocks = np.array(_blocks(segments, ends.tolist())).T
        last_blocks = np.stack([last, last + 1, last_positions, starts])
        if padding is not None:
            # A block from 0 to 0 has no queries.
            blocks = _filled(blocks, padding.num_tokens // BLOCK_QUERIES + padding.num_prompts, 0)
            last_blocks = _filled(last_blocks, padding.num_prompts, 0)
            position_ids = _filled(position_ids, padding.num_tokens, 0)
            store_rows = _filled(store_rows, padding.num_tokens, padding.cache_row)
            last_tokens = _filled(last_tokens, padding.num_prompts, 0)
        return cls(
            segments=segments,
            position_ids=send(position_ids, device),
            store_rows=send(store_rows, device),
            last=send(last_tokens, device),
            blocks=send(np.ascontiguousarray(blocks), device),
            last_blocks=send(last_blocks, device),
        )


def _filled(values: npt.NDArray[np.int64], size: int, value: int) -> npt.NDArray[np.int64]:
    """Values `[..., n]` filled up at their end."""
    missing = size - values.shape[-1]
    assert missing >= 0
    return np.concatenate([values, np.full((*values.shape[:-1], missing), value)], axis=-1)


def _blocks(segments: Sequence[Segment], ends: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """The longest first: the last blocks of prompts attend to the most keys, and nothing should wait for them at the end."""
    blocks = []
    for segment, end in zip(segments, ends, strict=True):
        for offset in range(0, segment.num_new, BLOCK_QUERIES):
            first = end - segment.num_new + offset
            blocks.append((first, min(first + BLOCK_QUERIES, end), segment.num_cached + offset, segment.start))
    return sorted(blocks, key=lambda block: -block[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeLayout:
    """The places of a decode: one token for each of B rows, on the device.

    Attributes:
        positions: int64 `[B]`, of the token in its request.
        starts: int64 `[B]`, of the slot in the cache.
        on_host: start and number of tokens that each row attends to, its own included; None where only the device knows them.
        max_keys: most tokens that any row attends to, or more.
        is_apart: whether each row's attention has to be computed without a look at the others.
    """

    positions: torch.Tensor
    starts: torch.Tensor
    on_host: Sequence[tuple[int, int]] | None
    max_keys: int
    is_apart: bool = False


def send(values: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """The values on the device; a GPU is not waited for."""
    tensor = torch.from_numpy(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
