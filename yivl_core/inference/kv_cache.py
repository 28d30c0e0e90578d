"""Keys and values of past positions: one long row of tokens for each layer, of which requests hold stretches (`slots.py`).

Shapes: T tokens of the cache, G key-value heads, E head width.
"""

import torch


class KeyValueCache:
    """The tensors.

    Args:
        num_layers, num_heads, head_dim: of the decoder; key-value heads.
        num_tokens: T.
        dtype, device: of the tensors.
    """

    def __init__(
        self, *, num_layers: int, num_heads: int, head_dim: int, num_tokens: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        # Zeros: what is never written must not be a NaN, since a weight of nought does not hide one.
        self._all = torch.zeros(num_layers, 2, num_tokens, num_heads, head_dim, dtype=dtype, device=device)
        self.num_tokens = num_tokens
        self.keys = [layer[0] for layer in self._all]  # [T, G, E] each
        self.values = [layer[1] for layer in self._all]

    @staticmethod
    def bytes_per_token(*, num_layers: int, num_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        """Bytes that one token takes over all layers."""
        return 2 * num_layers * num_heads * head_dim * dtype.itemsize

    def clear(self, start: int, num_tokens: int) -> None:
        """Puts noughts into a stretch of all layers."""
        self._all[:, :, start : start + num_tokens] = 0

    def copy(self, sources: torch.Tensor, targets: torch.Tensor) -> None:
        """Keys and values of all layers from some tokens to others; both int64 `[N]`."""
        self._all.index_copy_(2, targets, self._all.index_select(2, sources))
