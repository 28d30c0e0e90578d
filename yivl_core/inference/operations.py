"""What a decoder does between its matrix products, in plain PyTorch: on any device, in any dtype.

`kernels.py` has the same operations for GPUs that can do better, and a test holds one against the other.

Shapes: S tokens, D width, F width of the MLP, H query heads, G key-value heads, E head width, T tokens of the cache, B rows.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise
from typing import Protocol

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu

from yivl_core.inference.layout import DecodeLayout, PrefillLayout, Segment
from yivl_core.model.quantised import Activations, Quantised

# Fewer slots are attended to one by one.
_MIN_GRID_SLOTS = 3
# Rows whose keys and values are gathered at a time: 0.3 GB of Yi-VL-6B's at its full length.
_MAX_GATHERED_ROWS = 32


class Operations(Protocol):
    """The operations, whichever way they are done.

    `pending` is what a matrix product has left to be added to `hidden`: `[S, D]`, or `[D]` for all rows, or None. The norms add
    it first, for good. With `is_fp8` the result is rounded to 8 bits on its way out.
    """

    def rms_norm(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        pending: torch.Tensor | None = None,
        *,
        is_fp8: bool = False,
    ) -> Activations:
        """Root mean square norm `[S, D]` of hidden `[S, D]` (Zhang and Sennrich, arXiv 1910.07467)."""

    def layer_norm(
        self, hidden: torch.Tensor, norm: nn.LayerNorm, pending: torch.Tensor | None = None, *, is_fp8: bool = False
    ) -> Activations:
        """Layer norm `[S, D]` (Ba et al., arXiv 1607.06450) of hidden `[S, D]`."""

    def silu_product(self, gate_up: torch.Tensor, *, is_fp8: bool = False) -> Activations:
        """`silu(gate) * up` `[S, F]` of both side by side, `[S, 2 F]`."""

    def gelu_fp8(self, inputs: torch.Tensor) -> Quantised:
        """The exact GELU of inputs `[S, F]`, in 8 bits."""

    def rotate_and_store(
        self,
        qkv: torch.Tensor,
        rotation: torch.Tensor,
        position_ids: torch.Tensor,
        store_rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """Turns queries and keys by their positions (Su et al., arXiv 2104.09864), and stores keys and values.

        Args:
            qkv: `[S, (H + 2 G) E]`, queries, keys and values side by side; may be overwritten.
            rotation: float32 `[2, positions, E / 2]`, cosines and sines.
            position_ids: int64 `[S]`.
            store_rows: int64 `[S]`, where in the cache.
            keys: `[T, G, E]` of the cache.
            values: `[T, G, E]` of the cache.

        Returns:
            The queries `[S, H, E]`; H may be 0.
        """

    def rotate(self, queries: torch.Tensor, rotation: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Queries `[S, H, E]` turned by their positions; may be overwritten."""

    def prefill_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PrefillLayout, *, is_last: bool
    ) -> torch.Tensor:
        """What the tokens of prompts attend to: all before them in their own prompt, and themselves.

        Args:
            queries: `[S, H, E]`; with `is_last` `[N, H, E]`, those of the last token of each prompt.
            keys: `[T, G, E]` of the cache.
            values: `[T, G, E]` of the cache.
            layout: of the prefill.
            is_last: whether the queries are those of the last tokens alone.

        Returns:
            As the queries.
        """

    def decode_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: DecodeLayout
    ) -> torch.Tensor:
        """What one token for each row attends to, `[B, H, E]`; keys and values `[T, G, E]`."""


class PlainOperations:
    """The operations in plain PyTorch."""

    def rms_norm(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        epsilon: float,
        pending: torch.Tensor | None = None,
        *,
        is_fp8: bool = False,
    ) -> torch.Tensor:
        """As `Operations`."""
        assert not is_fp8, "8 bits need kernels"
        if pending is not None:
            hidden += pending
        wide = hidden.float()
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + epsilon)
        return weight * (wide * scale).to(hidden.dtype)

    def layer_norm(
        self, hidden: torch.Tensor, norm: nn.LayerNorm, pending: torch.Tensor | None = None, *, is_fp8: bool = False
    ) -> torch.Tensor:
        """As `Operations`."""
        assert not is_fp8, "8 bits need kernels"
        if pending is not None:
            hidden += pending
        normed: torch.Tensor = norm(hidden)
        return normed

    def gelu_fp8(self, inputs: torch.Tensor) -> Quantised:
        """As `Operations`."""
        raise AssertionError("8 bits need kernels")

    def silu_product(self, gate_up: torch.Tensor, *, is_fp8: bool = False) -> torch.Tensor:
        """As `Operations`."""
        assert not is_fp8, "8 bits need kernels"
        gate, up = gate_up.chunk(2, dim=-1)
        return silu(gate).mul_(up)

    def rotate_and_store(
        self,
        qkv: torch.Tensor,
        rotation: torch.Tensor,
        position_ids: torch.Tensor,
        store_rows: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """As `Operations`."""
        heads = qkv.unflatten(-1, (-1, keys.shape[-1]))  # [S, H + 2 G, E]
        num_heads = keys.shape[1]
        turned = self.rotate(heads[:, :-num_heads], rotation, position_ids)  # [S, H + G, E]
        keys.index_copy_(0, store_rows, turned[:, -num_heads:])
        values.index_copy_(0, store_rows, heads[:, -num_heads:])
        return turned[:, :-num_heads]

    def rotate(self, queries: torch.Tensor, rotation: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """As `Operations`."""
        cosine, sine = rotation[:, position_ids].unsqueeze(-2).to(queries.dtype)  # [S, 1, E / 2] each
        first, second = queries.chunk(2, dim=-1)
        return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)

    def prefill_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: PrefillLayout, *, is_last: bool
    ) -> torch.Tensor:
        """As `Operations`."""
        outputs, place = torch.zeros_like(queries), 0
        for same in _runs_of_one_size(layout.segments):
            num_queries, num_keys = 1 if is_last else same[0].num_new, same[0].num_tokens
            end = place + len(same) * num_queries
            held_keys, held_values = (
                torch.stack([tensor[each.start : each.start + num_keys] for each in same]).transpose(1, 2)  # [n, G, K, E]
                for tensor in (keys, values)
            )
            query = queries[place:end].unflatten(0, (len(same), num_queries)).transpose(1, 2)  # [n, H, S / n, E]
            attended = attend(query, held_keys, held_values, _causal_mask(num_queries, num_keys, queries.device))
            outputs[place:end] = attended.transpose(1, 2).flatten(0, 1)
            place = end
        return outputs

    def decode_attention(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: DecodeLayout
    ) -> torch.Tensor:
        """As `Operations`."""
        if layout.on_host is None:
            return self._attend_to_gathered(queries, keys, values, layout)
        grid = None if layout.is_apart else _find_grid(layout.on_host, len(keys))
        if grid is None:
            attended = [
                attend(
                    query[None, :, None],
                    keys[None, start : start + length].transpose(1, 2),
                    values[None, start : start + length].transpose(1, 2),
                    None,
                )
                for query, (start, length) in zip(queries, layout.on_host, strict=True)
            ]
            return torch.cat(attended).squeeze(2)
        # Slots at equal distances are seen as one tensor, without copying them; those between that do not run come along.
        first, step, num_slots, longest = grid
        places = torch.tensor([(start - first) // step for start, _ in layout.on_host])
        lengths = torch.ones(num_slots, 1, 1, 1, dtype=torch.int64)
        lengths[places, 0, 0, 0] = torch.tensor([length for _, length in layout.on_host])
        query = queries.new_zeros(num_slots, *queries.shape[1:]).index_copy_(0, places, queries).unsqueeze(2)  # [slots, H, 1, E]
        token = keys.stride(0)
        held_keys, held_values = (
            tensor[first:].as_strided(
                (num_slots, keys.shape[1], longest, keys.shape[2]),
                (step * token, keys.stride(1), token, keys.stride(2)),
                tensor.storage_offset() + first * token,
            )
            for tensor in (keys, values)
        )
        mask = torch.arange(longest) < lengths  # [slots, 1, 1, longest]
        return attend(query, held_keys, held_values, mask).squeeze(2)[places]

    def _attend_to_gathered(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, layout: DecodeLayout
    ) -> torch.Tensor:
        """By places that only the device knows."""
        places = torch.arange(layout.max_keys, device=queries.device)
        outputs = []
        for start in range(0, len(queries), _MAX_GATHERED_ROWS):
            part = slice(start, start + _MAX_GATHERED_ROWS)
            is_held = places <= layout.positions[part, None]  # [B, K]
            rows = layout.starts[part, None] + places * is_held  # [B, K]
            held_keys, held_values = (tensor[rows].transpose(1, 2) for tensor in (keys, values))  # [B, G, K, E]
            outputs.append(_attend_by_products(queries[part].unsqueeze(2), held_keys, held_values, is_held[:, None, None]))
        return torch.cat(outputs).squeeze(2)


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Attention in whatever way is fastest on the device.

    Args:
        query: `[B, H, S, E]`.
        key: `[B, G, K, E]`; H is a multiple of G.
        value: `[B, G, K, E]`.
        mask: bool, broadcast to `[B, H, S, K]`, true where a query sees a key; None: it sees all.

    Returns:
        `[B, H, S, E]`.
    """
    if query.device.type == "cpu" and query.dtype is torch.bfloat16:
        return _attend_by_products(query, key, value, mask)
    is_grouped = query.shape[1] != key.shape[1]
    if is_grouped and query.is_cuda and mask is not None:
        # Grouped heads and a mask together are in none of the GPU's kernels; PyTorch would keep all scores.
        key, value = (tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value))
        is_grouped = False
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=is_grouped)


def _attend_by_products(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """As two matrix products: a CPU's are twice as fast in bfloat16, of which PyTorch's own attention makes no use."""
    batch, num_heads, num_queries, width = query.shape
    groups, num_keys = key.shape[1:3]
    grouped = (query * width**-0.5).reshape(batch * groups, -1, width)  # [B * G, H / G * S, E]
    held_keys, held_values = (tensor.reshape(batch * groups, num_keys, width) for tensor in (key, value))
    scores = torch.bmm(grouped, held_keys.transpose(1, 2)).view(batch, num_heads, num_queries, num_keys)
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf)
    weights = scores.softmax(dim=-1).view(batch * groups, -1, num_keys)
    return torch.bmm(weights, held_values).view(batch, num_heads, num_queries, width)


def _runs_of_one_size(segments: Sequence[Segment]) -> Iterator[list[Segment]]:
    """Neighbours that have as many tokens, and as many new ones."""
    return (list(run) for _, run in groupby(segments, key=lambda each: (each.num_new, each.num_tokens)))


def _causal_mask(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor | None:
    """Which of the keys each of the last queries sees, bool `[S, K]`; None: a single query sees all."""
    if num_queries == 1:
        return None
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


def _find_grid(slots: Sequence[tuple[int, int]], num_tokens: int) -> tuple[int, int, int, int] | None:
    """Where slots stand at multiples of one distance: the first, the distance, how many there are, and the longest."""
    starts = sorted(start for start, _ in slots)
    longest = max(length for _, length in slots)
    if len(starts) < _MIN_GRID_SLOTS:
        return None
    step = min(later - earlier for earlier, later in pairwise(starts))
    num_slots = (starts[-1] - starts[0]) // step + 1 if step else 0
    is_grid = step >= longest and all((start - starts[0]) % step == 0 for start in starts)
    is_inside = starts[-1] + longest <= num_tokens
    if not is_grid or not is_inside or num_slots > 2 * len(slots):
        return None
    return starts[0], step, num_slots, longest
