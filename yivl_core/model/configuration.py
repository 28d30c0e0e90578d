"""YiVLConfig: the shapes of a Yi-VL model, read from either layout of a checkpoint."""

from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from yivl_core.errors import CheckpointError
from yivl_core.model.files import IMAGE_TOKEN_INDEX, CheckpointFiles, open_checkpoint

_TEXT_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "rope_theta", "rope_scaling",
    "attention_bias", "tie_word_embeddings", "bos_token_id", "eos_token_id",
)  # fmt: skip
_VISION_KEYS = (
    "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads", "num_channels",
    "image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout", "initializer_range", "initializer_factor",
)  # fmt: skip


class YiVLConfig(PreTrainedConfig):
    """Configuration of `YiVLForConditionalGeneration`.

    Args:
        text_config: the Llama decoder.
        vision_config: the CLIP vision tower.
        mm_vision_select_layer: which hidden state of the tower is the feature; -2 is the output of the last layer but one.
        image_token_index: the number that stands for an image token in input_ids.
    """

    model_type = "yi_vl"
    sub_configs = {"text_config": LlamaConfig, "vision_config": CLIPVisionConfig}  # noqa: RUF012  (transformers' own form)

    def __init__(
        self,
        text_config: LlamaConfig | dict[str, Any] | None = None,
        vision_config: CLIPVisionConfig | dict[str, Any] | None = None,
        mm_vision_select_layer: int = -2,
        image_token_index: int = IMAGE_TOKEN_INDEX,
        **kwargs: Any,
    ) -> None:
        self.text_config = LlamaConfig(**text_config) if isinstance(text_config, dict) else text_config or LlamaConfig()
        self.vision_config = (
            CLIPVisionConfig(**vision_config) if isinstance(vision_config, dict) else vision_config or CLIPVisionConfig()
        )
        self.mm_vision_select_layer = mm_vision_select_layer
        self.image_token_index = image_token_index
        super().__init__(**kwargs)

    @property
    def num_image_tokens(self) -> int:
        """How many tokens an image takes: one a patch, the class token left out."""
        return int((self.vision_config.image_size // self.vision_config.patch_size) ** 2)

    @property
    def num_vision_layers(self) -> int:
        """How many layers of the vision tower the feature needs."""
        layer, num_layers = self.mm_vision_select_layer, self.vision_config.num_hidden_layers
        return int(layer if layer >= 0 else num_layers + 1 + layer)


def read_config(checkpoint: CheckpointFiles | str | Path) -> YiVLConfig:
    """The configuration of a checkpoint in either layout.

    Raises:
        CheckpointError: the folder is no Yi-VL checkpoint, or a key that decides a shape is missing.
    """
    files = checkpoint if isinstance(checkpoint, CheckpointFiles) else open_checkpoint(checkpoint)
    if files.layout == "transformers":
        return YiVLConfig(**{key: value for key, value in files.config.items() if key != "model_type"})
    missing = [key for key in (*_TEXT_KEYS[:6], "rope_theta", "rms_norm_eps") if key not in files.config]
    if missing:
        raise CheckpointError(f"{files.folder / 'config.json'}: lacks {', '.join(missing)}; fetch the file again")
    if files.config.get("mm_vision_select_feature", "patch") != "patch":
        raise CheckpointError(f"{files.folder / 'config.json'}: mm_vision_select_feature is not 'patch', the only one of Yi-VL")
    text = {key: files.config[key] for key in _TEXT_KEYS if files.config.get(key) is not None}
    vision = {key: files.vision_config[key] for key in _VISION_KEYS if key in files.vision_config}
    return YiVLConfig(
        text_config=LlamaConfig(**text, pad_token_id=None, use_cache=True),
        vision_config=CLIPVisionConfig(**vision),
        mm_vision_select_layer=files.config.get("mm_vision_select_layer", -2),
        tie_word_embeddings=bool(files.config.get("tie_word_embeddings", False)),
    )
