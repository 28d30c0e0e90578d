"""Attention over packed sequences: several samples in one row, none of which sees another.

```
row          | sample 0      | sample 1 | sample 2        |      S = total tokens of the row
cu_seq_lens  0               5          8                 14     S + 1 ends, int32
```

On a GPU one variable-length kernel does the row (`torch.nn.attention.varlen`, torch >= 2.11); on the CPU, and for dtypes that the
kernel does not have, plain SDPA does one sample after the other. Both are causal within each sample.

Shapes: B batch (1), H query heads, G key-value heads, S tokens, E head width.
"""

from itertools import pairwise
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

PACKED_ATTENTION = "yivl_packed"
_KERNEL_DTYPES = (torch.float16, torch.bfloat16)


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_lens: torch.Tensor, max_length: int, scaling: float
) -> torch.Tensor:
    """Causal attention within each sample of a packed row.

    Args:
        query: `[S, H, E]`.
        key: `[S, G, E]`; H is a multiple of G.
        value: `[S, G, E]`.
        cu_seq_lens: int32 `[num_samples + 1]`, where each sample starts, and S at the end.
        max_length: tokens of the longest sample.
        scaling: factor on query times key.

    Returns:
        `[S, H, E]`.
    """
    if query.is_cuda and query.dtype in _KERNEL_DTYPES:
        return _kernel_attention(query, key, value, cu_seq_lens, max_length, scaling)
    outputs = []
    for start, end in pairwise(cu_seq_lens.tolist()):
        q, k, v = (tensor[start:end].transpose(0, 1).unsqueeze(0) for tensor in (query, key, value))  # [1, H or G, length, E]
        output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scaling, enable_gqa=True)
        outputs.append(output.squeeze(0).transpose(0, 1))  # [length, H, E]
    return torch.cat(outputs)


def rotation_table(rotary: Any, num_positions: int, device: torch.device) -> torch.Tensor:
    """Cosines and sines of all positions, float32 `[2, num_positions, E / 2]`, as transformers computes them.

    Args:
        rotary: the decoder's `rotary_emb`.
        num_positions: how many.
        device: of the result.
    """
    angles = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * rotary.inv_freq.float().to(device)
    scaling: float = rotary.attention_scaling
    return torch.stack([angles.cos(), angles.sin()]) * scaling


def _kernel_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, cu_seq_lens: torch.Tensor, max_length: int, scaling: float
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn  # needs a GPU build

    # torch 2.11 takes grouped heads as they are; later versions ask for it by name.
    grouped: dict[str, Any] = {"enable_gqa": True} if _has_enable_gqa() and query.shape[1] != key.shape[1] else {}
    output = varlen_attn(
        query, key, value, cu_seq_lens, cu_seq_lens, max_length, max_length, scale=scaling, window_size=(-1, 0), **grouped
    )
    assert isinstance(output, torch.Tensor)
    return output


def _has_enable_gqa() -> bool:
    return tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 12)


def _packed_attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, H, S, E]
    key: torch.Tensor,  # [1, G, S, E]
    value: torch.Tensor,  # [1, G, S, E]
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The attention interface of transformers; `cu_seq_lens_q` and `max_length_q` come from the call of the model."""
    assert attention_mask is None
    assert dropout == 0.0, "Yi-VL has no attention dropout"
    # Under autocast the rotation by positions has made float32 of queries and keys, which the kernel does not have.
    query, key, value = (tensor.squeeze(0).transpose(0, 1).to(value.dtype) for tensor in (query, key, value))  # [S, H or G, E]
    return packed_attention(query, key, value, cu_seq_lens_q, max_length_q, scaling).unsqueeze(0), None  # [1, S, H, E]


# It is registered for attention alone: without a function for its mask transformers makes none, and does not look for packed
# samples on its own, which waits for the GPU.
AttentionInterface.register(PACKED_ATTENTION, _packed_attention_forward)
