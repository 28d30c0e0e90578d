"""YiVLForConditionalGeneration: the model of record, on transformers' CLIP tower and Llama decoder.

Shapes: N images, P patches (tokens of an image), C width of the tower, B batch, S tokens, D width of the decoder, V vocabulary.

Module names follow the published tensor names where those are good; `weights.py` maps the rest.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, CLIPVisionModel, GenerationMixin, LlamaModel, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

from yivl_core.model.configuration import YiVLConfig


class YiVLProjector(nn.Sequential):
    """`mlp2x_gelu_Norm`: Linear, LayerNorm, GELU (exact), Linear, LayerNorm; with biases, eps 1e-5 (01-ai/Yi, folder VL)."""

    def __init__(self, vision_size: int, hidden_size: int) -> None:
        super().__init__(
            nn.Linear(vision_size, hidden_size),
            nn.LayerNorm(hidden_size, eps=1e-5),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
            nn.LayerNorm(hidden_size, eps=1e-5),
        )


class YiVLPreTrainedModel(PreTrainedModel):
    """What transformers wants to know of every model of the family."""

    config_class = YiVLConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer", "CLIPEncoderLayer"]  # noqa: RUF012  (transformers' own form)
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True


class YiVLModel(YiVLPreTrainedModel):
    """Vision tower, projector and decoder, without the head."""

    def __init__(self, config: YiVLConfig) -> None:
        super().__init__(config)
        self.vision_tower = CLIPVisionModel(config.vision_config)
        self.mm_projector = YiVLProjector(config.vision_config.hidden_size, config.text_config.hidden_size)
        self.language_model = LlamaModel(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The decoder's token embedding."""
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the decoder's token embedding."""
        self.language_model.embed_tokens = value

    def get_vision_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The tower's patch features: the selected hidden state without the class token.

        Only the layers that this state needs are run: for Yi-VL all but the last.

        Args:
            pixel_values: `[N, 3, H, W]`, normalised.

        Returns:
            `[N, P, C]`.
        """
        tower = self.vision_tower
        hidden = tower.pre_layrnorm(self.embed_patches(pixel_values))  # [N, 1 + P, C]
        for layer in tower.encoder.layers[: self.config.num_vision_layers]:
            hidden = layer(hidden, None)
        return hidden[:, 1:]  # [N, P, C]

    def embed_patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What the tower's own embeddings give, with a matrix product in place of a convolution whose windows do not overlap.

        cuDNN has no fast one for such windows (a third of a training step of a small model), and rounds float32 to 10 bits there.

        Returns:
            `[N, 1 + P, C]`.
        """
        embeddings = self.vision_tower.embeddings
        start = embeddings.class_embedding.expand(len(pixel_values), 1, -1)
        if type(embeddings.patch_embedding) is not nn.Conv2d:  # an adapter is on it
            features = embeddings.patch_embedding(pixel_values.to(embeddings.class_embedding.dtype)).flatten(2).transpose(1, 2)
            return torch.cat([start.to(features.dtype), features], dim=1) + embeddings.position_embedding.weight
        weight = embeddings.patch_embedding.weight  # [C, 3, H/side, W/side], square
        size, side = weight.shape[-1], self.config.vision_config.image_size // weight.shape[-1]
        patches = (
            pixel_values.to(weight.dtype)[..., : side * size, : side * size].unflatten(3, (side, size)).unflatten(2, (side, size))
        )
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [N, P, 3 * H/side * W/side]
        features = nn.functional.linear(patches, weight.flatten(1))  # [N, P, C]
        return torch.cat([start.to(features.dtype), features], dim=1) + embeddings.position_embedding.weight

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What stands in the prompt for each image.

        Args:
            pixel_values: `[N, 3, H, W]`, normalised.

        Returns:
            `[N, P, D]`.
        """
        features: torch.Tensor = self.mm_projector(self.get_vision_features(pixel_values))
        return features

    def embed(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        image_places: torch.Tensor | None = None,
        vision_features: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token embeddings with image features in their places.

        Args:
            input_ids: int64 `[B, S]`; an image takes P places of `image_token_index`, the images in reading order.
            pixel_values: `[N, 3, H, W]`, normalised, in the same order; None where there is no image.
            image_places: int64 `[N * P]`, the places of images in the flattened `input_ids`; None: they are looked for, which
                waits for the GPU.
            vision_features: `[N, P, C]`, what `get_vision_features` gave before; `pixel_values` are not needed then.

        Returns:
            `[B, S, D]`.

        Raises:
            ValueError: the number of places is not N times P.
        """
        is_image = input_ids == self.config.image_token_index  # [B, S]
        embeds: torch.Tensor = self.get_input_embeddings()(input_ids.masked_fill(is_image, 0))  # [B, S, D]
        if image_places is None:
            image_places = is_image.flatten().nonzero().flatten()
        features = embeds.new_empty(0, 1, embeds.shape[-1])  # [N, P, D]
        if vision_features is not None:
            features = self.mm_projector(vision_features)
        elif pixel_values is not None and len(pixel_values):
            features = self.get_image_features(pixel_values)
        features = features.to(embeds.dtype).flatten(0, 1)  # [N * P, D]
        if len(image_places) != len(features):
            raise ValueError(f"{len(image_places)} places for image tokens in input_ids, but {len(features)} image features")
        # A copy to places that are known needs no count of them, neither here nor in the backward pass.
        return embeds.flatten(0, 1).index_copy(0, image_places, features).view_as(embeds)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states after the final norm; give either `input_ids` (with `pixel_values`) or `inputs_embeds`."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, pixel_values)
        outputs: BaseModelOutputWithPast = self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            **kwargs,
        )
        return outputs


@dataclass
class YiVLOutput(ModelOutput):
    """What the model returns.

    Attributes:
        loss: mean cross entropy over labels that are not -100; None without labels.
        logits: `[B, S, V]`, or only the last positions where `logits_to_keep` says so.
        past_key_values: keys and values for going on.
        hidden_states: of each layer, where asked for.
        attentions: of each layer, where asked for.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class YiVLForConditionalGeneration(YiVLPreTrainedModel, GenerationMixin):
    """Yi-VL with its language-model head: images and text in, logits out."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012  (transformers' own form)

    def __init__(self, config: YiVLConfig) -> None:
        super().__init__(config)
        self.model = YiVLModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        """The language-model head."""
        return self.lm_head

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> YiVLOutput:
        """Logits, and the loss where labels are given.

        Args:
            input_ids: int64 `[B, S]` with `image_token_index` in the places of image tokens.
            pixel_values: `[N, 3, H, W]`, normalised, in reading order.
            attention_mask: `[B, S]`, 1 for tokens, 0 for padding.
            position_ids: int64 `[B, S]`.
            past_key_values: keys and values of earlier tokens.
            inputs_embeds: `[B, S, D]` in place of input_ids and pixel_values.
            labels: int64 `[B, S]`, -100 where nothing is learned; shifted here.
            logits_to_keep: compute logits for the last so many positions (0: all) or for these positions.
            kwargs: passed to the decoder.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept])  # [B, S, V]
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        return YiVLOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *args: Any, pixel_values: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Inputs of the next step of `generate`: images belong to the first step alone, whose tokens hold their places."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        step_ids = inputs.get("input_ids")
        has_places = step_ids is not None and bool((step_ids == self.config.image_token_index).any())
        inputs["pixel_values"] = pixel_values if has_places else None
        return inputs


AutoConfig.register("yi_vl", YiVLConfig)
AutoModelForImageTextToText.register(YiVLConfig, YiVLForConditionalGeneration)
