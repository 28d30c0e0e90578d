"""The Llama decoder as the engine runs it: prompts side by side without padding, then one token for each row.

Equal to the model of record but for rounding; what differs is the order of work. Linear layers that read the same input are one
matrix product, sums go into the products' results, and the last layer answers for the tokens alone that are sampled from.

Shapes: S tokens, D width, V vocabulary, N prompts, B rows, H query heads, G key-value heads, E head width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from yivl_core.inference.kv_cache import KeyValueCache
from yivl_core.inference.layout import DecodeLayout, PrefillLayout
from yivl_core.inference.linear import FusedLinear
from yivl_core.inference.operations import Operations
from yivl_core.model.attention import rotation_table
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.quantised import Quantised


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    """One layer; the last has queries in a product of their own."""

    input_norm: torch.Tensor  # [D]
    queries: FusedLinear | None
    qkv: FusedLinear  # keys and values alone where queries are apart
    output: FusedLinear
    mlp_norm: torch.Tensor  # [D]
    gate_up: FusedLinear
    down: FusedLinear

    @property
    def takes_fp8(self) -> bool:
        """Whether all that reads the first norm had better read it in 8 bits."""
        return self.qkv.takes_fp8 and (self.queries is None or self.queries.takes_fp8)


class Decoder:
    """Embedding, layers and head of a model, which is emptied of them.

    Args:
        model: the model of record, with or without a plain LoRA, in evaluation mode.
        operations: how what lies between the matrix products is done.
        is_fp8: whether the layers' matrix products are in 8 bits.
    """

    def __init__(self, model: YiVLForConditionalGeneration, operations: Operations, *, is_fp8: bool = False) -> None:
        decoder, config = model.model.language_model, model.config.text_config
        self._operations = operations
        self._epsilon: float = config.rms_norm_eps
        self.head_dim: int = config.hidden_size // config.num_attention_heads
        self.num_key_value_heads: int = config.num_key_value_heads
        self.vocab_size: int = config.vocab_size
        self.embedding = decoder.embed_tokens.weight.detach()  # [V, D]
        self._final_norm = decoder.norm.weight.detach()
        self._rotation = rotation_table(decoder.rotary_emb, config.max_position_embeddings, self.embedding.device)
        self._activation = _activation(config.hidden_act)
        last = len(decoder.layers) - 1
        self._layers = [_fused(layer, is_last=number == last, is_fp8=is_fp8) for number, layer in enumerate(decoder.layers)]
        self._head = FusedLinear(model.lm_head)

    @property
    def num_layers(self) -> int:
        """Layers, each of which has keys and values."""
        return len(self._layers)

    def prefill(self, embeds: torch.Tensor, layout: PrefillLayout, cache: KeyValueCache) -> torch.Tensor:
        """Computes prompts and stores their keys and values.

        Args:
            embeds: `[S, D]`; may be overwritten.
            layout: of the prompts.
            cache: where keys and values go.

        Returns:
            Logits after the last token of each prompt, `[N, V]`.
        """
        hidden: torch.Tensor = embeds
        pending: torch.Tensor | None = None
        for layer, keys, values in zip(self._layers[:-1], cache.keys[:-1], cache.values[:-1], strict=True):
            hidden, pending = self._attend(layer, hidden, pending, layout, keys, values)
            hidden, pending = self._apply_mlp(layer, hidden, pending)
        return self._last_of_prefill(hidden, pending, layout, cache.keys[-1], cache.values[-1])

    def decode(self, token_ids: torch.Tensor, layout: DecodeLayout, cache: KeyValueCache) -> torch.Tensor:
        """Computes one token for each row and stores its key and value.

        Args:
            token_ids: int64 `[B]`.
            layout: where they stand.
            cache: of keys and values.

        Returns:
            Logits after them, `[B, V]`.
        """
        operations, hidden = self._operations, self.embedding[token_ids]  # [B, D]
        pending: torch.Tensor | None = None
        store_rows = layout.starts + layout.positions
        for layer, keys, values in zip(self._layers, cache.keys, cache.values, strict=True):
            normed = operations.rms_norm(hidden, layer.input_norm, self._epsilon, pending, is_fp8=layer.takes_fp8)
            qkv = layer.qkv(normed)
            if layer.queries is not None:
                qkv = torch.cat([layer.queries(normed), qkv], dim=-1)
            queries = operations.rotate_and_store(qkv, self._rotation, layout.positions, store_rows, keys, values)
            attended = operations.decode_attention(queries, keys, values, layout)
            hidden, pending = self._apply_mlp(layer, *layer.output.add_to(hidden, attended.flatten(-2)))
        return self._logits(hidden, pending)

    def _attend(
        self,
        layer: _Layer,
        hidden: torch.Tensor,
        pending: torch.Tensor | None,
        layout: PrefillLayout,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The first half of a layer in a prefill; its memory is free again when the second begins."""
        operations = self._operations
        qkv = layer.qkv(operations.rms_norm(hidden, layer.input_norm, self._epsilon, pending, is_fp8=layer.takes_fp8))
        queries = operations.rotate_and_store(qkv, self._rotation, layout.position_ids, layout.store_rows, keys, values)
        attended = operations.prefill_attention(queries, keys, values, layout, is_last=False)
        return layer.output.add_to(hidden, attended.flatten(-2))

    def _last_of_prefill(
        self,
        hidden: torch.Tensor,
        pending: torch.Tensor | None,
        layout: PrefillLayout,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """The last layer: keys and values of all tokens, everything else for the last token of each prompt."""
        layer, operations = self._layers[-1], self._operations
        assert layer.queries is not None
        normed = operations.rms_norm(hidden, layer.input_norm, self._epsilon, pending, is_fp8=layer.takes_fp8)
        operations.rotate_and_store(layer.qkv(normed), self._rotation, layout.position_ids, layout.store_rows, keys, values)
        last = normed.rows(layout.last) if isinstance(normed, Quantised) else normed[layout.last]
        queries = layer.queries(last).unflatten(-1, (-1, self.head_dim))  # [N, H, E]
        queries = operations.rotate(queries, self._rotation, layout.position_ids[layout.last])
        attended = operations.prefill_attention(queries, keys, values, layout, is_last=True)
        hidden, pending = layer.output.add_to(hidden[layout.last], attended.flatten(-2))
        return self._logits(*self._apply_mlp(layer, hidden, pending))

    def _apply_mlp(
        self, layer: _Layer, hidden: torch.Tensor, pending: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What comes after attention; the sum is returned as `FusedLinear.add_to` does."""
        operations = self._operations
        gate_up = layer.gate_up(
            operations.rms_norm(hidden, layer.mlp_norm, self._epsilon, pending, is_fp8=layer.gate_up.takes_fp8)
        )
        if self._activation is None:
            return layer.down.add_to(hidden, operations.silu_product(gate_up, is_fp8=layer.down.takes_fp8))
        gate, up = gate_up.chunk(2, dim=-1)
        return layer.down.add_to(hidden, self._activation(gate) * up)

    def _logits(self, hidden: torch.Tensor, pending: torch.Tensor | None) -> torch.Tensor:
        return self._head(self._operations.rms_norm(hidden, self._final_norm, self._epsilon, pending))


def _fused(layer: Any, *, is_last: bool, is_fp8: bool) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    pair, joined = (attention.k_proj, attention.v_proj), partial(FusedLinear, is_fp8=is_fp8)
    return _Layer(
        input_norm=layer.input_layernorm.weight.detach(),
        queries=joined(attention.q_proj) if is_last else None,
        qkv=joined(*pair) if is_last else joined(attention.q_proj, *pair),
        output=joined(attention.o_proj),
        mlp_norm=layer.post_attention_layernorm.weight.detach(),
        gate_up=joined(mlp.gate_proj, mlp.up_proj),
        down=joined(mlp.down_proj),
    )


def _activation(name: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The MLP's activation; None for SiLU, which Yi has and which has an operation of its own."""
    if name in ("silu", "swish"):
        return None
    activation: nn.Module = ACT2FN[name]
    return activation
