"""The files of a checkpoint folder: which layout it has, where its parts lie, and its content digest. No torch here.

The published layout (repositories 01-ai/Yi-VL-6B and -34B) is that of LLaVA:

```
config.json                        flat, model_type "llava"
pytorch_model-0000X-of-0000Y.bin   or model-0000X-of-0000Y.safetensors, with an index.json
tokenizer.model  tokenizer_config.json  added_tokens.json  special_tokens_map.json  generation_config.json
vit/NAME/config.json  vit/NAME/preprocessor_config.json  vit/NAME/pytorch_model.bin (or model.safetensors)
```

The transformers layout is what `yivl export --layout transformers` writes: a nested config.json with model_type "yi_vl",
`model*.safetensors`, and the preprocessor and tokenizer files beside them.
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from yivl_core.digests import digest_file, digest_files, digest_json
from yivl_core.errors import CheckpointError

# Marks the place of an image token in input_ids; the original code's number (01-ai/Yi, VL/llava/model/constants.py).
IMAGE_TOKEN_INDEX = -200
PUBLISHED_PROJECTOR = "mlp2x_gelu_Norm"
ABOUT_FILE = "yivl.json"  # beside an adapter and a merged checkpoint: what they were made of, and which rows were held out
HELD_OUT_FILE = "val.jsonl"
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
_WEIGHT_STEMS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFiles:
    """Where the parts of one checkpoint lie.

    Attributes:
        folder: the checkpoint folder, a hub cache resolved to its snapshot.
        layout: which of the two layouts it has.
        config: content of config.json.
        vision_config: content of the vision tower's config.
        preprocessor_path: the preprocessor_config.json of the vision tower.
        weight_paths: weight files, in the order of their names.
        vision_folder: `vit/NAME` of the published layout.
        vision_weight_paths: weight files in it; empty where the tower is stored in the main files alone.
    """

    folder: Path
    layout: Literal["published", "transformers"]
    config: dict[str, Any]
    vision_config: dict[str, Any]
    preprocessor_path: Path
    weight_paths: tuple[Path, ...]
    vision_folder: Path | None
    vision_weight_paths: tuple[Path, ...]

    @property
    def num_image_tokens(self) -> int:
        """How many tokens an image takes in the prompt: one a patch."""
        return int((self.vision_config["image_size"] // self.vision_config["patch_size"]) ** 2)

    @property
    def max_positions(self) -> int:
        """The longest sequence that the language model was made for, in tokens."""
        text = self.config if self.layout == "published" else self.config["text_config"]
        return int(text["max_position_embeddings"])

    def digest(self) -> str:
        """sha256 (hex) over the files that decide what the model computes: configs, weights, tokenizer, preprocessor."""
        paths = [self.folder / "config.json", self.preprocessor_path, *self.weight_paths, *self.vision_weight_paths]
        paths += [self.folder / name for name in TOKENIZER_FILES if (self.folder / name).exists()]
        if self.vision_folder is not None:
            paths.append(self.vision_folder / "config.json")
        return digest_files(self.folder, {path.relative_to(self.folder).as_posix() for path in paths})


def open_checkpoint(folder: str | Path) -> CheckpointFiles:
    """The files of a checkpoint folder, or of a Hugging Face hub cache folder (`models--OWNER--NAME` or a snapshot in it).

    Raises:
        CheckpointError: the folder is not there, is not a Yi-VL checkpoint, or lacks a file; the message names it.
    """
    path = _resolve_hub_cache(Path(folder).expanduser())
    if not path.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder; give the folder that holds config.json and the weights")
    config = read_json(path / "config.json", "every checkpoint has one; is this the folder of a model?")
    if config.get("model_type") == "yi_vl":
        return _open_transformers(path, config)
    if "mm_vision_tower" not in config:
        remedy = "an adapter is given as --adapter, with its base as --model" if (path / "adapter_config.json").exists() else ""
        raise CheckpointError(
            f"{path / 'config.json'}: no Yi-VL checkpoint (model_type {config.get('model_type')!r} without mm_vision_tower)"
            + (f"; {remedy}" if remedy else "")
        )
    return _open_published(path, config)


def checkpoint_digest(folder: str | Path) -> str:
    """sha256 (hex) of a checkpoint's content; see `CheckpointFiles.digest`."""
    return open_checkpoint(folder).digest()


def adapter_digest(folder: str | Path) -> str:
    """sha256 (hex) of what an adapter computes: its tensors, rank and scale, not the place of its base.

    Raises:
        CheckpointError: the folder is no adapter folder; the message names the missing file.
    """
    path = Path(folder)
    config = read_adapter_config(path)
    weights = _existing(path / "adapter_model.safetensors", "it holds the adapter's weights")
    return digest_json(
        [digest_file(weights), {key: config.get(key) for key in ("peft_type", "r", "lora_alpha", "use_rslora", "use_dora")}]
    )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json of an adapter folder.

    Raises:
        CheckpointError: there is none.
    """
    return read_json(folder / "adapter_config.json", "give the folder `adapter` of a training run")


def read_about(folder: Path) -> dict[str, Any]:
    """What the file beside an adapter or a merged checkpoint says of its making; empty for checkpoints of others."""
    path = folder / ABOUT_FILE
    return read_json(path, "it says what this was made of") if path.exists() else {}


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: no such file (the message ends with `remedy`), or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: file is missing; {remedy}") from error
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a JSON {type(value).__name__} where an object belongs; fetch the file again")
    return value


def _open_published(path: Path, config: dict[str, Any]) -> CheckpointFiles:
    projector = config.get("mm_projector_type")
    if projector != PUBLISHED_PROJECTOR:
        raise CheckpointError(
            f"{path / 'config.json'}: mm_projector_type is {projector!r}; Yi-VL has {PUBLISHED_PROJECTOR!r}, "
            "other LLaVA models are not read"
        )
    vision_folder = _find_vision_folder(path, str(config["mm_vision_tower"]))
    return CheckpointFiles(
        folder=path,
        layout="published",
        config=config,
        vision_config=read_json(vision_folder / "config.json", "the vision tower needs its config"),
        preprocessor_path=_existing(vision_folder / "preprocessor_config.json", "it says how images are prepared"),
        weight_paths=_find_weights(path),
        vision_folder=vision_folder,
        vision_weight_paths=_find_weights(vision_folder, optional=True),
    )


def _open_transformers(path: Path, config: dict[str, Any]) -> CheckpointFiles:
    return CheckpointFiles(
        folder=path,
        layout="transformers",
        config=config,
        vision_config=config["vision_config"],
        preprocessor_path=_existing(path / "preprocessor_config.json", "it says how images are prepared"),
        weight_paths=_find_weights(path),
        vision_folder=None,
        vision_weight_paths=(),
    )


def _resolve_hub_cache(path: Path) -> Path:
    """`models--OWNER--NAME` holds `refs/main` (a commit) and `snapshots/COMMIT`, which is the checkpoint folder."""
    if not (path / "snapshots").is_dir():
        return path
    reference = path / "refs" / "main"
    if reference.is_file():
        return path / "snapshots" / reference.read_text(encoding="utf-8").strip()
    snapshots = sorted((path / "snapshots").iterdir())
    if len(snapshots) != 1:
        names = ", ".join(snapshot.name for snapshot in snapshots) or "none"
        raise CheckpointError(f"{path}: no refs/main, and {len(snapshots)} snapshots ({names}); give one of them as the folder")
    return snapshots[0]


def _find_vision_folder(path: Path, mm_vision_tower: str) -> Path:
    """The tower's folder below the checkpoint; a path of the machine that wrote the config counts by its last part."""
    relative = PurePosixPath(mm_vision_tower)
    candidates = [path / "vit" / relative.name]
    if not relative.is_absolute() and ".." not in relative.parts:
        candidates.insert(0, path / relative)
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise CheckpointError(
        f"{path}: vision tower {mm_vision_tower!r} of config.json is missing; fetch the folder vit/ of the repository too"
    )


def _find_weights(folder: Path, *, optional: bool = False) -> tuple[Path, ...]:
    for stem in _WEIGHT_STEMS:
        index_path = folder / f"{stem}.index.json"
        if index_path.exists():
            weight_map = read_json(index_path, "it names the weight files").get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise CheckpointError(f"{index_path}: has no weight_map; fetch the file again")
            return tuple(_existing(folder / name, f"{index_path.name} names it") for name in sorted(set(weight_map.values())))
        if (folder / stem).exists():
            return (folder / stem,)
    if optional:
        return ()
    raise CheckpointError(
        f"{folder}: no weights ({' or '.join(_WEIGHT_STEMS)}, or their index); fetch the repository's large files"
    )


def _existing(path: Path, reason: str) -> Path:
    if not path.is_file():
        raise CheckpointError(f"{path}: file is missing ({reason}); fetch it again")
    return path
