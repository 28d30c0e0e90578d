"""Attention of training on tokens `[S, H, E]`: of packed rows, each sample to itself, and of images, all patches to all.

Shapes: S rows of the layout, H query heads, G key-value heads, E head width, N samples or images, L length of a slot.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from yivl_core.model.attention import packed_attention
from yivl_core.training.layout import RowLayout

# cuDNN's kernels are nearly twice as fast on an H100; what it does not have, the next one does.
_BEST_FIRST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend_in_samples(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout) -> torch.Tensor:
    """Causal attention within each sample, `[S, H, E]` of `[S, H, E]` and `[S, G, E]`."""
    if layout.slots is None:
        return packed_attention(query, key, value, layout.cu_seq_lens, layout.max_length, query.shape[-1] ** -0.5)
    return _attend_in_slots(query, key, value, layout.num_samples, is_causal=True)


def attend_in_images(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: RowLayout) -> torch.Tensor:
    """Attention of all patches of an image to all of them, `[S, H, E]`."""
    return _attend_in_slots(query, key, value, layout.num_samples, is_causal=False)


@contextmanager
def best_attention(device: torch.device) -> Iterator[None]:
    """Within it, the fastest attention that a device has comes first."""
    if device.type != "cuda":
        yield
        return
    with sdpa_kernel(_BEST_FIRST, set_priority=True):
        yield


def _attend_in_slots(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_slots: int, *, is_causal: bool
) -> torch.Tensor:
    query, key, value = (part.unflatten(0, (num_slots, -1)).transpose(1, 2) for part in (query, key, value))  # [N, H or G, L, E]
    with best_attention(query.device):
        output = scaled_dot_product_attention(query, key, value, is_causal=is_causal, enable_gqa=query.shape[1] != key.shape[1])
    return output.transpose(1, 2).flatten(0, 1)
