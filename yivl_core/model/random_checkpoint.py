"""A small Yi-VL checkpoint with random weights in the published layout: what a model starts from that is trained from nothing.

Unless another is given, its tokenizer is trained on a few sentences with the settings of Yi's (BPE, byte fallback, single digits,
no normalisation, no prefix). Yi's special tokens are at Yi's places. It cannot read: what it writes is noise until it is trained.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import CLIPVisionConfig, LlamaConfig

from yivl_core.model.configuration import YiVLConfig
from yivl_core.model.files import ABOUT_FILE, PUBLISHED_PROJECTOR
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.tensors import lazy
from yivl_core.model.weights import write_published_weights
from yivl_core.storage import publish_folder

VISION_FOLDER = "vit/clip-vit-random"
# Places in the vocabulary: added_tokens.json of 01-ai/Yi-VL-6B; 3 to 5 are not published, their names are ours.
_SPECIAL_TOKENS = {"<unk>": 0, "<|startoftext|>": 1, "<|endoftext|>": 2, "<|im_start|>": 6, "<|im_end|>": 7, "<|im_sep|>": 8}
MARKERS = ["<|Human|>", "<|Assistant|>", "<|System|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"]
# For `sentencepiece.SentencePieceTrainer.train`, whatever the kind of model; the markers are its first user-defined symbols.
TOKENIZER_SETTINGS: dict[str, Any] = {
    "hard_vocab_limit": True,
    "character_coverage": 1.0,
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": False,
    "remove_extra_whitespaces": False,
    "unk_piece": "<unk>",
    "bos_piece": "<|startoftext|>",
    "eos_piece": "<|endoftext|>",
    "pad_id": -1,
    "num_threads": 1,
    "minloglevel": 2,
}
_TOKENIZER_CONFIG = {
    "tokenizer_class": "LlamaTokenizer",
    "add_bos_token": False,
    "add_eos_token": False,
    "add_prefix_space": False,
    "legacy": True,
    "bos_token": "<|startoftext|>",
    "eos_token": "<|endoftext|>",
    "pad_token": "<unk>",
    "unk_token": "<unk>",
}
_SENTENCES = (
    "### Human: Read the number in the image.",
    "### Assistant: 0123456789",
    "### Human: Read the text in the image.",
    "### Assistant: TOTAL CASH CHANGE DATE 12/03/2018 RM 9.00",
    "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant.",
    "Read all the images carefully, and respond to the human's questions with informative, helpful, detailed and polite answers.",
    "这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。",
    "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。",
    "Describe the picture. What is written here? How many are there? Which colour is it?",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomShape:
    """Sizes of the random model."""

    hidden_size: int = 64
    intermediate_size: int = 176
    num_layers: int = 3
    num_heads: int = 4
    num_key_value_heads: int = 2
    vision_hidden_size: int = 48
    vision_num_layers: int = 3
    vision_num_heads: int = 3
    image_size: int = 84
    patch_size: int = 14
    max_positions: int = 4096
    vocab_size: int = 512


def write_random_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    shape: RandomShape | None = None,
    dtype: torch.dtype = torch.bfloat16,
    vision_dtype: torch.dtype = torch.float32,
    tokenizer_model: bytes | None = None,
) -> None:
    """Write the checkpoint in one step; the same seed and shape give the same bytes.

    Args:
        folder: replaced if it is there.
        seed: of the weights.
        shape: sizes; default: about 0.3 million parameters, 36 tokens an image.
        dtype: of the main weights.
        vision_dtype: of the tower in `vit/`; float32 in the published repositories.
        tokenizer_model: a SentencePiece model of the shape's vocabulary size, by `TOKENIZER_SETTINGS`; None: one of BPE,
            trained on a few sentences.
    """
    shape = shape or RandomShape()
    config = YiVLConfig(text_config=_text_config(shape), vision_config=_vision_config(shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = YiVLForConditionalGeneration(config)
    tensors = {
        name: lazy(parameter.detach().to(vision_dtype if name.startswith("model.vision_tower.") else dtype))
        for name, parameter in model.named_parameters()
    }
    with publish_folder(folder) as temporary_folder:
        vision_folder = write_small_files(
            temporary_folder, shape, dtype, vision_dtype, tokenizer_model or _train_tokenizer(shape)
        )
        _write_json(temporary_folder / ABOUT_FILE, {"kind": "random", "seed": seed})
        write_published_weights(temporary_folder, vision_folder, tensors, max_shard_bytes=5_000_000_000)


def write_small_files(
    folder: Path, shape: RandomShape, dtype: torch.dtype, vision_dtype: torch.dtype, tokenizer_model: bytes
) -> Path:
    """Write all files of a checkpoint but its weights; the folder for those of the tower.

    Args:
        folder: an existing, empty folder.
        shape: sizes.
        dtype: of the main weights.
        vision_dtype: of the tower's.
        tokenizer_model: a SentencePiece model.
    """
    vision_folder = folder / VISION_FOLDER
    vision_folder.mkdir(parents=True)
    _write_tokenizer(folder, tokenizer_model)
    _write_json(folder / "config.json", _published_config(shape, dtype))
    _write_json(vision_folder / "config.json", _published_vision_config(shape, vision_dtype))
    _write_json(vision_folder / "preprocessor_config.json", _preprocessor_config(shape))
    return vision_folder


def _text_config(shape: RandomShape) -> LlamaConfig:
    published = _published_config(shape, torch.float32)
    return LlamaConfig(**{key: published[key] for key in published if not key.startswith(("mm_", "model_type", "torch_dtype"))})


def _vision_config(shape: RandomShape) -> CLIPVisionConfig:
    published = _published_vision_config(shape, torch.float32)
    return CLIPVisionConfig(**{key: value for key, value in published.items() if key != "model_type"})


def _published_config(shape: RandomShape, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava",
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "image_aspect_ratio": "pad",
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_positions,
        "mm_hidden_size": shape.vision_hidden_size,
        "mm_projector_type": PUBLISHED_PROJECTOR,
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": f"./{VISION_FOLDER}",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_key_value_heads,
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 5_000_000.0,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": False,
        "vocab_size": shape.vocab_size,
    }


def _published_vision_config(shape: RandomShape, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "attention_dropout": 0.0,
        "hidden_act": "gelu",
        "hidden_size": shape.vision_hidden_size,
        "image_size": shape.image_size,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": 4 * shape.vision_hidden_size,
        "layer_norm_eps": 1e-5,
        "num_attention_heads": shape.vision_num_heads,
        "num_channels": 3,
        "num_hidden_layers": shape.vision_num_layers,
        "patch_size": shape.patch_size,
        "projection_dim": shape.vision_hidden_size,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def _preprocessor_config(shape: RandomShape) -> dict[str, Any]:
    """CLIP's means and deviations, as in the published preprocessor_config.json."""
    return {
        "crop_size": shape.image_size,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": shape.image_size,
    }


def _train_tokenizer(shape: RandomShape) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_SENTENCES * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=shape.vocab_size,
        user_defined_symbols=MARKERS,
        **TOKENIZER_SETTINGS,
    )
    return model.getvalue()


def _write_tokenizer(folder: Path, model: bytes) -> None:
    (folder / "tokenizer.model").write_bytes(model)
    _write_json(folder / "added_tokens.json", _SPECIAL_TOKENS)
    _write_json(folder / "tokenizer_config.json", _TOKENIZER_CONFIG)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
