"""YiVLConfig: the shapes of a Yi-VL model, read from either layout of a checkpoint."""

from pathlib import Path
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, PreTrainedConfig

from yivl_core.model.config_keys import IMAGE_TOKEN_INDEX
from yivl_core.model.files import CheckpointFiles, open_checkpoint


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
        CheckpointError: as `open_checkpoint`.
    """
    files = checkpoint if isinstance(checkpoint, CheckpointFiles) else open_checkpoint(checkpoint)
    return YiVLConfig(
        text_config=LlamaConfig(**files.text_config, pad_token_id=None, use_cache=True),
        vision_config=CLIPVisionConfig(**files.vision_config),
        mm_vision_select_layer=files.mm_vision_select_layer,
        tie_word_embeddings=False,
    )
