"""What a layer keeps for its backward pass and takes beside, in bytes a token, and what it costs to keep less.

Shapes: D width, F width of the MLP, H query heads, G key-value heads, E head width, L layers.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from yivl_core.model.configuration import YiVLConfig
from yivl_core.training.layers import Kept
from yivl_core.training.tuning import part_of

# Attention of a sample goes over so many tokens, in the mean: half of an image's and its prompt's.
_ATTENDED_TOKENS = 550
Recompute = Literal["none", "selective", "full"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShape:
    """What decides the memory of a layer.

    Attributes:
        width: D.
        inner: outputs of the MLP's first product, gate and up together.
        active: F.
        num_heads, num_kv_heads, head_dim: H, G, E.
        num_layers: L.
        is_tuned: whether weights of the layers are.
        adapted: how many values the adapters' first halves give for a token.
        is_all_adapted: whether the inputs of all products are wanted in the backward pass.
        adapted_inputs, adapted_outputs: inputs and outputs of the adapters of a layer.
        scaled: of these, those that DoRA scales.
        decomposed: weights of a layer that DoRA decomposes.
        decomposing: values that it makes of the largest of them meanwhile.
    """

    width: int
    inner: int
    active: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    num_layers: int
    is_tuned: bool
    adapted: int
    is_all_adapted: bool
    adapted_inputs: int
    adapted_outputs: int
    scaled: int
    decomposed: int
    decomposing: int

    def kept_bytes(self, kept: Kept, itemsize: int) -> int:
        """Bytes that a layer keeps for a token."""
        values = self.width + self.adapted
        if kept.attention:
            values += (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        if kept.middle:
            values += self.width
        if kept.mlp:
            values += self.inner
        return values * itemsize + (4 * self.num_heads if kept.attention else 0)

    def working_bytes(self, kept: Kept, itemsize: int) -> int:
        """Bytes that a layer's backward pass takes for a token beside what all layers keep."""
        heads = self.num_heads * self.head_dim
        qkv = heads + 2 * self.num_kv_heads * self.head_dim
        recomputed_attention = 0 if kept.attention else qkv + heads
        recomputed_middle = 0 if kept.middle else self.width
        held = recomputed_attention if not kept.middle else 0
        mlp = self.width + (0 if kept.mlp else self.inner) + self.active + held + recomputed_middle
        mlp += self.active if self.is_all_adapted else self.width
        # Gradients of keys and values for each query head, and of queries in float32, are made before they are summed up.
        attention = 2 * self.width + recomputed_attention + 3 * heads + qkv
        return max(mlp * itemsize, attention * itemsize + 4 * heads)

    def recomputed_operations(self, kept: Kept) -> int:
        """Multiplications and additions of a token that are made twice."""
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        operations = 0
        if not kept.attention:
            operations += 2 * self.width * qkv + 4 * self.num_heads * self.head_dim * _ATTENDED_TOKENS
        if not kept.middle:
            operations += 2 * self.width * self.num_heads * self.head_dim
        if not kept.mlp:
            operations += 2 * self.width * self.inner
        return operations

    @property
    def operations(self) -> int:
        """Multiplications and additions of a token, forward and back, with frozen weights."""
        qkv = (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
        return 4 * self.width * (qkv + self.num_heads * self.head_dim + self.inner + self.active)

    def plain_bytes(self, recompute: Recompute, itemsize: int) -> tuple[int, int]:
        """Bytes for a token that autograd keeps of a layer of the model of record, and that the largest step takes beside.

        Norms keep their input in float32; each adapter its own, in float32 after dropout, and what was dropped. Weights that are
        tuned keep their inputs too.
        """
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        products = (heads + 2 * kv_heads + 2 * self.width + self.inner) * itemsize
        attention = (2 * heads + 2 * kv_heads) * itemsize + 4 * self.num_heads
        all_bytes = 8 * self.width + attention + (self.inner + self.active) * itemsize
        all_bytes += (7 * self.width + self.active) * itemsize if self.is_tuned else 0
        all_bytes += 5 * self.adapted_inputs + 8 * self.scaled
        working = 2 * self.inner * itemsize + 4 * self.width * itemsize
        if recompute == "none":
            return all_bytes, working
        kept = self.width * itemsize
        if recompute == "selective":
            kept += products + 4 * (self.adapted_outputs + self.scaled)  # of adapters B's, and of DoRA W's, in float32
        return kept, working + all_bytes

    def plain_weight_bytes(self, recompute: Recompute, itemsize: int) -> tuple[int, int]:
        """The same whatever the tokens: DoRA multiplies with a copy of its weight in float32, and measures the sum with B A."""
        is_copied = itemsize < 4
        kept = self.decomposed * {"none": 4 * is_copied, "selective": 4, "full": 0}[recompute]
        recomputed = 0 if recompute == "none" else 4 * is_copied * self.decomposed
        return kept, recomputed + 4 * self.decomposing


def decoder_shape(config: YiVLConfig, trained: Mapping[str, tuple[int, ...]]) -> LayerShape:
    """Of a model's decoder, by the names and shapes of what is trained."""
    text = config.text_config
    return LayerShape(
        width=text.hidden_size, inner=2 * text.intermediate_size, active=text.intermediate_size,
        num_heads=text.num_attention_heads, num_kv_heads=text.num_key_value_heads,
        head_dim=text.hidden_size // text.num_attention_heads, num_layers=text.num_hidden_layers,
        **_adapters(trained, "llm"),
    )  # fmt: skip


def tower_shape(config: YiVLConfig, trained: Mapping[str, tuple[int, ...]]) -> LayerShape:
    """Of its vision tower."""
    vision = config.vision_config
    return LayerShape(
        width=vision.hidden_size, inner=vision.intermediate_size, active=vision.intermediate_size,
        num_heads=vision.num_attention_heads, num_kv_heads=vision.num_attention_heads,
        head_dim=vision.hidden_size // vision.num_attention_heads, num_layers=config.num_vision_layers,
        **_adapters(trained, "vision"),
    )  # fmt: skip


def _adapters(trained: Mapping[str, tuple[int, ...]], part: str) -> dict[str, Any]:
    """What a layer's adapters are, the most of any layer."""
    names: dict[str, list[str]] = {}
    for name in trained:
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if layer and ".lora_A." in name and part_of(name) == part:
            names.setdefault(layer[1], []).append(name)
    most = max(names.values(), key=len, default=[])
    outputs = {name: trained[name.replace(".lora_A.", ".lora_B.")][0] for name in most}
    sides = [(outputs[name], trained[name][1]) for name in most if name.replace(".lora_A.", ".lora_magnitude_vector.") in trained]
    return {
        "is_tuned": any(".layers." in name and ".lora_" not in name and part_of(name) == part for name in trained),
        "adapted": sum(trained[name][0] for name in most),
        "is_all_adapted": any(".mlp." in name for name in most),
        "adapted_inputs": sum(trained[name][1] for name in most),
        "adapted_outputs": sum(outputs.values()),
        "scaled": sum(rows for rows, _ in sides),
        "decomposed": sum(rows * columns for rows, columns in sides),
        # The unit matrix that PEFT gets B A by, that itself, the weight, and their sum.
        "decomposing": max((columns * (columns + 3 * rows) for rows, columns in sides), default=0),
    }
