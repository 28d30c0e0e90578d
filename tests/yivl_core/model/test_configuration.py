import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.activations import ACT2FN

from yivl_core.errors import CheckpointError
from yivl_core.model.config_keys import Activation, PublishedKeys, VisionKeys
from yivl_core.model.configuration import YiVLConfig, read_config
from yivl_core.model.modeling import YiVLForConditionalGeneration

# config.json of the repositories 01-ai/Yi-VL-6B and -34B, the keys that decide shapes; the tower's config is the same for both.
PUBLISHED_6B = {
    "model_type": "llava", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 64000, "max_position_embeddings": 4096, "rope_theta": 5000000.0, "rope_scaling": None,
    "rms_norm_eps": 1e-05, "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False, "bos_token_id": 1,
    "eos_token_id": 2, "mm_projector_type": "mlp2x_gelu_Norm", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
    "mm_vision_tower": "./vit/clip", "torch_dtype": "bfloat16",
}  # fmt: skip
PUBLISHED_34B = PUBLISHED_6B | {
    "hidden_size": 7168, "intermediate_size": 20480, "num_hidden_layers": 60, "num_attention_heads": 56, "num_key_value_heads": 8,
}  # fmt: skip
VISION = {
    "model_type": "clip_vision_model", "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16,
    "intermediate_size": 5120, "hidden_act": "gelu", "image_size": 448, "patch_size": 14, "num_channels": 3,
    "layer_norm_eps": 1e-05, "projection_dim": 1024,
}  # fmt: skip


def write_folder(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "vit" / "clip").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vit" / "clip" / "config.json").write_text(json.dumps(VISION))
    (folder / "vit" / "clip" / "preprocessor_config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(("published", "num_parameters"), [(PUBLISHED_6B, 6_714_829_312), (PUBLISHED_34B, 35_081_264_640)])
def test_the_published_configurations_have_the_published_sizes(
    published: dict[str, Any], num_parameters: int, tmp_path: Path
) -> None:
    config = read_config(write_folder(tmp_path, published))
    with torch.device("meta"):
        model = YiVLForConditionalGeneration(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters
    assert config.num_image_tokens == 1024
    assert config.num_vision_layers == 31


def test_what_is_read_decides_the_modules(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = YiVLForConditionalGeneration(read_config(write_folder(tmp_path, PUBLISHED_6B)))
    assert model.config.text_config.rope_parameters["rope_theta"] == 5_000_000
    assert model.model.language_model.layers[0].input_layernorm.variance_epsilon == 1e-5
    assert model.model.vision_tower.config.hidden_act == "gelu"
    assert [type(module).__name__ for module in model.model.mm_projector] == [
        "Linear",
        "LayerNorm",
        "GELU",
        "Linear",
        "LayerNorm",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mm_projector_type": "mlp2x_gelu"}, "mm_projector_type is 'mlp2x_gelu'; Yi-VL has 'mlp2x_gelu_Norm'"),
        ({"mm_vision_select_feature": "cls_patch"}, "mm_vision_select_feature is 'cls_patch'; Yi-VL has 'patch'"),
    ],
)
def test_other_models_of_the_family_are_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_config(write_folder(tmp_path, PUBLISHED_6B | change))


@pytest.mark.parametrize("published", [PUBLISHED_6B, PUBLISHED_34B])
def test_the_published_values_reach_transformers_as_they_stand(published: dict[str, Any], tmp_path: Path) -> None:
    others = {
        "architectures": ["LlavaLlamaForCausalLM"], "moe_layer": None, "moe_mode": "easy", "image_grid_pinpoints": None,
        "pretraining_tp": 1, "use_cache": False, "mm_use_im_start_end": False, "use_mm_proj": True, "mm_hidden_size": 1280,
    }  # fmt: skip
    config = read_config(write_folder(tmp_path, published | others))
    keys = [key for key in published if not key.startswith(("mm_", "model_", "torch_"))]
    assert config.text_config.to_dict() == LlamaConfig(**{key: published[key] for key in keys}).to_dict()
    assert config.vision_config.to_dict() == CLIPVisionConfig(**{k: VISION[k] for k in VISION if k != "model_type"}).to_dict()
    assert config.mm_vision_select_layer == -2


def test_defaults_are_those_of_transformers() -> None:
    """A key that a file leaves out means what it means there."""
    for keys, defaults, num_optional in ((PublishedKeys, LlamaConfig(), 6), (VisionKeys, CLIPVisionConfig(), 6)):
        optional = {name: field.default for name, field in keys.model_fields.items() if not field.is_required()}
        shared = {name: value for name, value in optional.items() if value is not None and hasattr(defaults, name)}
        assert shared == {name: getattr(defaults, name) for name in shared}
        assert len(shared) == num_optional


def test_every_activation_exists_and_has_no_parameters() -> None:
    assert not any(list(ACT2FN[name].parameters()) for name in get_args(Activation))
    assert {"silu", "gelu", "quick_gelu"} <= set(get_args(Activation))


def test_missing_keys_are_named(tmp_path: Path) -> None:
    published = {key: value for key, value in PUBLISHED_6B.items() if key not in ("rope_theta", "num_key_value_heads")}
    with pytest.raises(CheckpointError, match=r"config\.json: lacks num_key_value_heads, rope_theta; correct it, or fetch"):
        read_config(write_folder(tmp_path, published))


def test_the_configuration_survives_json(tmp_path: Path) -> None:
    config = read_config(write_folder(tmp_path, PUBLISHED_6B))
    again = YiVLConfig.from_dict(json.loads(json.dumps(config.to_dict(), default=str)))
    assert again.text_config.rope_parameters == config.text_config.rope_parameters
    assert again.vision_config.to_dict() == config.vision_config.to_dict()
