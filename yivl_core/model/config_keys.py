"""The keys of config.json that are read, in either layout, with type and bounds. No torch here.

Names, meaning and defaults are those of transformers' LlamaConfig and CLIPVisionConfig. The bounds leave room for models many
times the size of Yi-VL-34B; they keep a broken number from being taken for a shape.
"""

from typing import Annotated, Literal

from pydantic import AliasChoices, Field, ValidationInfo, field_validator

from yivl_core.model.json_files import FileKeys, only

# Marks the place of an image token in input_ids; the original code's number (01-ai/Yi, VL/llava/model/constants.py).
IMAGE_TOKEN_INDEX = -200

Size = Annotated[int, Field(ge=1, le=2**24)]
SidePx = Annotated[int, Field(ge=1, le=2**14)]
TokenId = Annotated[int, Field(ge=0, lt=2**24)]
_NumLayers = Annotated[int, Field(ge=1, le=1024)]
_Epsilon = Annotated[float, Field(gt=0, lt=1)]
_Dropout = Annotated[float, Field(ge=0, lt=1)]
_Deviation = Annotated[float, Field(ge=0, le=1)]
_RopeTheta = Annotated[float, Field(gt=1)]
# Those of transformers without parameters of their own.
Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish"]


class RopeScaling(FileKeys):
    """How rotary positions are stretched; the kinds that transformers 4.34 knew, with which the models were published."""

    rope_type: Literal["default", "linear", "dynamic"] = Field(validation_alias=AliasChoices("rope_type", "type"))
    factor: Annotated[float, Field(ge=1)] | None = Field(default=None, validate_default=True)

    @field_validator("factor")
    @classmethod
    def _belongs_to_its_kind(cls, factor: float | None, info: ValidationInfo) -> float | None:
        if factor is None and info.data.get("rope_type", "default") != "default":
            raise ValueError(f"rope_type {info.data['rope_type']!r} needs a number")
        return factor


class RopeParameters(RopeScaling):
    """The same in the transformers layout, where it holds the base too."""

    rope_theta: _RopeTheta


class _TextKeys(FileKeys):
    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: _NumLayers
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: int | None = None
    hidden_act: Activation = "silu"
    max_position_embeddings: Size
    initializer_range: _Deviation = 0.02
    rms_norm_eps: _Epsilon
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_dropout: _Dropout = 0.0
    tie_word_embeddings: Annotated[bool, only(False)] = False
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | None = None

    @field_validator("num_attention_heads")
    @classmethod
    def _divides_hidden_size(cls, num_heads: int, info: ValidationInfo) -> int:
        size = info.data.get("hidden_size")
        if size is not None and size % (2 * num_heads):
            raise ValueError(f"hidden_size {size} has to be an even multiple of it")
        return num_heads

    @field_validator("num_key_value_heads")
    @classmethod
    def _divides_heads(cls, num_heads: int, info: ValidationInfo) -> int:
        return _check_divisor(num_heads, "num_attention_heads", info)

    @field_validator("head_dim")
    @classmethod
    def _is_what_follows(cls, head_dim: int | None, info: ValidationInfo) -> int | None:
        if head_dim is not None and {"hidden_size", "num_attention_heads"} <= info.data.keys():
            expected = info.data["hidden_size"] // info.data["num_attention_heads"]
            if head_dim != expected:
                raise ValueError(f"hidden_size / num_attention_heads is {expected}")
        return head_dim


class VisionKeys(FileKeys):
    """The CLIP vision tower."""

    hidden_size: Size
    intermediate_size: Size
    projection_dim: Size = 512
    num_hidden_layers: _NumLayers
    num_attention_heads: Size
    num_channels: Annotated[int, only(3)] = 3
    image_size: SidePx
    patch_size: SidePx
    hidden_act: Activation
    layer_norm_eps: _Epsilon = 1e-5
    attention_dropout: _Dropout = 0.0
    initializer_range: _Deviation = 0.02
    initializer_factor: Annotated[float, Field(gt=0)] = 1.0

    @field_validator("num_attention_heads")
    @classmethod
    def _divides_hidden_size(cls, num_heads: int, info: ValidationInfo) -> int:
        return _check_divisor(num_heads, "hidden_size", info)

    @field_validator("patch_size")
    @classmethod
    def _divides_image_size(cls, patch_size: int, info: ValidationInfo) -> int:
        return _check_divisor(patch_size, "image_size", info)


class PublishedKeys(_TextKeys):
    """config.json of the published layout: the decoder's keys and LLaVA's side by side."""

    rope_theta: _RopeTheta
    rope_scaling: RopeScaling | None = None
    mm_vision_tower: str
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: Annotated[str, only("patch")] = "patch"


class NestedTextKeys(_TextKeys):
    """`text_config` of the transformers layout."""

    rope_parameters: RopeParameters


class TransformersKeys(FileKeys):
    """config.json of the transformers layout."""

    text_config: NestedTextKeys
    vision_config: VisionKeys
    mm_vision_select_layer: int = -2
    image_token_index: Annotated[int, only(IMAGE_TOKEN_INDEX)] = IMAGE_TOKEN_INDEX
    tie_word_embeddings: Annotated[bool, only(False)] = False


def _check_divisor(divisor: int, key: str, info: ValidationInfo) -> int:
    """`key` stands earlier in the table; where it is broken itself, that is said of it alone."""
    if info.data.get(key, 0) % divisor:
        raise ValueError(f"it has to divide {key} {info.data[key]}")
    return divisor
