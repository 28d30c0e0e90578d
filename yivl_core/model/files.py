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

import re
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from yivl_core.digests import canonical_json, digest_each, digest_json, digest_of_digests
from yivl_core.errors import CheckpointError
from yivl_core.model.adapter_keys import keys_of
from yivl_core.model.config_keys import PublishedKeys, TransformersKeys, VisionKeys
from yivl_core.model.json_files import FileKeys, check_keys, read_json, read_keys

PUBLISHED_PROJECTOR = "mlp2x_gelu_Norm"
ABOUT_FILE = "yivl.json"  # beside an adapter and a merged checkpoint: what they were made of, and which rows were held out
HELD_OUT_FILE = "val.jsonl"
TUNED_FOLDER = "model"  # of the run folder of a full tuning
TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json", "added_tokens.json", "special_tokens_map.json")
_PLACE_OF_ADAPTER = ("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode")
_WEIGHT_STEMS = ("model.safetensors", "pytorch_model.bin")
_WEIGHT_SUFFIXES = (".safetensors", ".bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class DigestedFiles:
    """What a checkpoint or an adapter holds, each file read once.

    Attributes:
        digest: sha256 (hex) of the content.
        files: sha256 (hex) of each file that decides it, by its path in the folder.
    """

    digest: str
    files: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFiles:
    """Where the parts of one checkpoint lie.

    Attributes:
        folder: the checkpoint folder, a hub cache resolved to its snapshot.
        layout: which of the two layouts it has.
        config: content of config.json, all of it.
        text_config: the keys of the decoder that are read, checked; under the names of LlamaConfig.
        vision_config: the same of the vision tower; under the names of CLIPVisionConfig.
        mm_vision_select_layer: which hidden state of the tower is the feature.
        preprocessor_path: the preprocessor_config.json of the vision tower.
        weight_paths: weight files, in the order of their names.
        vision_folder: `vit/NAME` of the published layout.
        vision_weight_paths: weight files in it; empty where the tower is stored in the main files alone.
    """

    folder: Path
    layout: Literal["published", "transformers"]
    config: dict[str, Any]
    text_config: dict[str, Any]
    vision_config: dict[str, Any]
    mm_vision_select_layer: int
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
        return int(self.text_config["max_position_embeddings"])

    def digest(self) -> str:
        """sha256 (hex) over the files that decide what the model computes: configs, weights, tokenizer, preprocessor."""
        return self.digested().digest

    def digested(self) -> DigestedFiles:
        """The same, with the sha256 of each of these files."""
        paths = [self.folder / "config.json", self.preprocessor_path, *self.weight_paths, *self.vision_weight_paths]
        paths += [self.folder / name for name in TOKENIZER_FILES if (self.folder / name).is_file()]
        if self.vision_folder is not None:
            paths.append(self.vision_folder / "config.json")
        files = digest_each(self.folder, {path.relative_to(self.folder).as_posix() for path in paths})
        return DigestedFiles(digest=digest_of_digests(files), files=files)


def open_checkpoint(folder: str | Path) -> CheckpointFiles:
    """The files of a checkpoint folder, or of a Hugging Face hub cache folder (`models--OWNER--NAME` or a snapshot in it).

    Raises:
        CheckpointError: the folder is not there, is not a Yi-VL checkpoint, lacks a file, or has a configuration with a value
            that cannot be right; the message names file, key and value.
    """
    path = _resolve_hub_cache(_expand_user(Path(folder)))
    if not _is_folder(path):
        raise CheckpointError(f"{folder}: there is no such folder; give the folder that holds config.json and the weights")
    model = path / TUNED_FOLDER
    remedy = f"give {model}" if _is_file(model / "config.json") else "is this the folder of a model?"
    config = read_json(path / "config.json", f"every checkpoint has one; {remedy}")
    if config.get("model_type") == "yi_vl":
        return _open_transformers(path, config)
    if "mm_vision_tower" not in config:
        is_adapter = (path / "adapter_config.json").exists()
        remedy = "an adapter is given as --adapter, with its base as --model" if is_adapter else "fetch a Yi-VL model's folder"
        raise CheckpointError(
            f"{path / 'config.json'}: no Yi-VL checkpoint (model_type {reprlib.repr(config.get('model_type'))} "
            f"without mm_vision_tower); {remedy}"
        )
    return _open_published(path, config)


def checkpoint_digest(folder: str | Path) -> str:
    """sha256 (hex) of a checkpoint's content; see `CheckpointFiles.digest`."""
    return open_checkpoint(folder).digest()


def adapter_digest(folder: str | Path) -> str:
    """sha256 (hex) of what an adapter computes: its tensors and settings, not the place of its base or the version of PEFT.

    Raises:
        CheckpointError: the folder is no adapter folder; the message names the file that is missing or broken.
    """
    return digested_adapter(folder).digest


def digested_adapter(folder: str | Path) -> DigestedFiles:
    """The same, with the sha256 of its two files as they are.

    Raises:
        CheckpointError: as `adapter_digest`.
    """
    path = Path(folder)
    config = read_adapter_config(path)
    weights = _existing(path / "adapter_model.safetensors", "it holds the adapter's weights").name
    settings = {key: sorted(value) if _is_set(value) else value for key, value in config.items() if key not in _PLACE_OF_ADAPTER}
    files = digest_each(path, ("adapter_config.json", weights))
    return DigestedFiles(digest=digest_json([files[weights], settings]), files=files)


def _is_set(value: Any) -> bool:
    """Whether a setting is a list of names, which PEFT writes in any order."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter_config.json of an adapter folder, all of it.

    Raises:
        CheckpointError: there is none, or a key has a value that cannot be right; the message names file, key and value.
    """
    path = folder / "adapter_config.json"
    models = [model for model in (folder, folder / TUNED_FOLDER) if _is_file(model / "config.json")]
    if models and not _is_file(path):
        raise CheckpointError(
            f"{folder}: there is no adapter here, but a model, which needs no base: give {models[0]} as --model"
        )
    config = read_json(path, "give the folder `adapter` of a training run")
    check_keys(keys_of(config), config, path)
    for key, value in config.items():
        _check_digestible(path, key, value)
    return config


def _check_digestible(path: Path, key: str, value: Any) -> None:
    try:
        canonical_json({key: value}).encode()
    except (ValueError, RecursionError) as error:
        message = f"{path}: {key} is {reprlib.repr(value)}; it should hold finite numbers and whole characters; fetch it again"
        raise CheckpointError(message.encode(errors="backslashreplace").decode()) from error


def has_held_out_rows_of(adapter: Path, merged: Path) -> bool:
    """Whether a merged checkpoint names the same held-out rows as the adapter, or neither names any."""
    files = [folder / HELD_OUT_FILE for folder in (adapter, merged)]
    contents = [path.read_bytes() if path.is_file() else None for path in files]
    return contents[0] == contents[1]


def read_about(folder: Path) -> dict[str, Any]:
    """What the file beside an adapter or a merged checkpoint says of its making; empty for checkpoints of others."""
    path = folder / ABOUT_FILE
    return read_json(path, "it says what this was made of") if path.exists() else {}


def _check_weight_name(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.suffix not in _WEIGHT_SUFFIXES:
        raise ValueError(f"it should be a {' or '.join(_WEIGHT_SUFFIXES)} file in this folder")
    return name


class _WeightIndex(FileKeys):
    weight_map: dict[str, Annotated[str, AfterValidator(_check_weight_name)]] = Field(min_length=1)


def _open_published(path: Path, config: dict[str, Any]) -> CheckpointFiles:
    projector = config.get("mm_projector_type")
    if projector != PUBLISHED_PROJECTOR:
        raise CheckpointError(
            f"{path / 'config.json'}: mm_projector_type is {reprlib.repr(projector)}; Yi-VL has {PUBLISHED_PROJECTOR!r}, "
            "other LLaVA models are not read"
        )
    keys = check_keys(PublishedKeys, config, path / "config.json")
    vision_folder = _find_vision_folder(path, keys.mm_vision_tower)
    vision = read_keys(VisionKeys, vision_folder / "config.json", "the vision tower needs its config")
    _check_select_layer(path / "config.json", keys.mm_vision_select_layer, vision)
    return CheckpointFiles(
        folder=path,
        layout="published",
        config=config,
        text_config={key: value for key, value in _dump(keys).items() if not key.startswith("mm_")},
        vision_config=_dump(vision),
        mm_vision_select_layer=keys.mm_vision_select_layer,
        preprocessor_path=_existing(vision_folder / "preprocessor_config.json", "it says how images are prepared"),
        weight_paths=_find_weights(path),
        vision_folder=vision_folder,
        vision_weight_paths=_find_weights(vision_folder, optional=True),
    )


def _open_transformers(path: Path, config: dict[str, Any]) -> CheckpointFiles:
    keys = check_keys(TransformersKeys, config, path / "config.json")
    _check_select_layer(path / "config.json", keys.mm_vision_select_layer, keys.vision_config)
    return CheckpointFiles(
        folder=path,
        layout="transformers",
        config=config,
        text_config=_dump(keys.text_config),
        vision_config=_dump(keys.vision_config),
        mm_vision_select_layer=keys.mm_vision_select_layer,
        preprocessor_path=_existing(path / "preprocessor_config.json", "it says how images are prepared"),
        weight_paths=_find_weights(path),
        vision_folder=None,
        vision_weight_paths=(),
    )


def _dump(keys: FileKeys) -> dict[str, Any]:
    return keys.model_dump(exclude_none=True)


def _check_select_layer(path: Path, layer: int, vision: VisionKeys) -> None:
    """The hidden states are the tower's input and the output of each layer; they may be counted from the end."""
    num_states = vision.num_hidden_layers + 1
    if not -num_states <= layer < num_states:
        raise CheckpointError(
            f"{path}: mm_vision_select_layer is {layer}; with the vision tower's {num_states - 1} layers it should be "
            f"{-num_states} to {num_states - 1} (Yi-VL has -2); correct it, or fetch the file again"
        )


def _expand_user(path: Path) -> Path:
    """With the home folder for `~`; as it is, where there is no such user."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def _resolve_hub_cache(path: Path) -> Path:
    """`models--OWNER--NAME` holds `refs/main` (a commit) and `snapshots/COMMIT`, which is the checkpoint folder."""
    if not _is_folder(path / "snapshots"):
        return path
    reference = path / "refs" / "main"
    if reference.is_file():
        commit = reference.read_text(encoding="utf-8", errors="replace").strip()
        if not re.fullmatch(r"\w[\w.-]*", commit):
            raise CheckpointError(
                f"{reference}: holds {reprlib.repr(commit)} where the name of a commit belongs; correct it, or give a folder of "
                f"{path / 'snapshots'}"
            )
        return path / "snapshots" / commit
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
        if relative.name not in ("", "..") and _is_folder(candidate):
            return candidate
    raise CheckpointError(
        f"{path}: vision tower {mm_vision_tower!r} of config.json is missing (key mm_vision_tower); fetch the folder vit/ of the "
        "repository too"
    )


def _find_weights(folder: Path, *, optional: bool = False) -> tuple[Path, ...]:
    for stem in _WEIGHT_STEMS:
        index_path = folder / f"{stem}.index.json"
        if index_path.exists():
            names = set(read_keys(_WeightIndex, index_path, "it names the weight files").weight_map.values())
            return tuple(_existing(folder / name, f"{index_path.name} names it") for name in sorted(names))
        if (folder / stem).exists():
            return (_existing(folder / stem, "it holds the weights"),)
    if optional:
        return ()
    raise CheckpointError(
        f"{folder}: no weights ({' or '.join(_WEIGHT_STEMS)}, or their index); fetch the repository's large files"
    )


def _existing(path: Path, reason: str) -> Path:
    if _is_folder(path):
        raise CheckpointError(f"{path}: is a folder where a file belongs ({reason}); remove it and fetch the file")
    if not _is_file(path):
        raise CheckpointError(f"{path}: file is missing ({reason}); fetch it again")
    return path


def _is_folder(path: Path) -> bool:
    return _is(path, Path.is_dir)


def _is_file(path: Path) -> bool:
    return _is(path, Path.is_file)


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    """Names that come from a file can be ones that no file can have, too long for instance."""
    try:
        return kind(path)
    except OSError:
        return False
