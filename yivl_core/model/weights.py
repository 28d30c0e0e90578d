"""Published checkpoint <-> our modules: the one table of names, both ways, loading and writing.

| ours                    | main weight files                                | `vit/` folder    |
|---|---|---|
| `lm_head.`              | `lm_head.`                                       |                  |
| `model.mm_projector.`   | `model.mm_projector.`                            |                  |
| `model.vision_tower.`   | `model.vision_tower.vision_tower.vision_model.`  | `vision_model.`  |
| `model.language_model.` | `model.`                                         |                  |

The published repositories hold the vision tower twice, in bfloat16 in the main files and in float32 in `vit/`. The original code
reads `vit/` and ignores the other (01-ai/Yi, VL/llava/model/multimodal_encoder); so does this module, and it writes both.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

from yivl_core.errors import CheckpointError
from yivl_core.model.configuration import YiVLConfig, read_config
from yivl_core.model.files import CheckpointFiles, open_checkpoint
from yivl_core.model.modeling import YiVLForConditionalGeneration
from yivl_core.model.tensors import LazyTensor, open_tensors, save_tensors

_VISION = "model.vision_tower."
_TABLE = (  # ours, main weight files; the first prefix that fits counts
    ("lm_head.", "lm_head."),
    ("model.mm_projector.", "model.mm_projector."),
    (_VISION, "model.vision_tower.vision_tower.vision_model."),
    ("model.language_model.", "model."),
)
_VIT_PREFIX = "vision_model."
# Buffers that older versions of transformers stored; they follow from the configuration.
_DERIVED = ("position_ids", "rotary_emb.inv_freq")
_ROTARY, _POSITION_IDS = "model.language_model.rotary_emb.inv_freq", "model.vision_tower.embeddings.position_ids"
_COPIED_SUFFIXES = (".json", ".model", ".txt")


def main_name(our_name: str) -> str:
    """The name of one of our parameters in the main weight files."""
    return next(theirs + our_name.removeprefix(ours) for ours, theirs in _TABLE if our_name.startswith(ours))


def our_name(main_name: str) -> str | None:
    """The name among our parameters of a tensor in the main weight files; None for one that belongs to no module of ours."""
    return next((ours + main_name.removeprefix(theirs) for ours, theirs in _TABLE if main_name.startswith(theirs)), None)


def read_tensors(files: CheckpointFiles) -> dict[str, LazyTensor]:
    """Every parameter of a checkpoint under our names, strictly: the vision tower from `vit/` where that holds weights.

    Raises:
        CheckpointError: tensors are missing, unexpected or misshapen; all of them are listed by name.
    """
    expected = expected_shapes(read_config(files))
    main = {name: tensor for name, tensor in open_tensors(files.weight_paths).items() if not name.endswith(_DERIVED)}
    if files.layout == "transformers":
        _compare(files.folder, expected, main, {name: name for name in main})
        return main
    renamed = {name: our_name(name) or name for name in main}
    tensors = {renamed[name]: tensor for name, tensor in main.items()}
    vision: dict[str, LazyTensor] = {}
    if files.vision_weight_paths:
        found = open_tensors(files.vision_weight_paths)
        vision = {_VISION + name.removeprefix(_VIT_PREFIX): value for name, value in found.items() if not name.endswith(_DERIVED)}
        vision_expected = {name: shape for name, shape in expected.items() if name.startswith(_VISION)}
        _compare(
            files.vision_weight_paths[0].parent,
            vision_expected,
            vision,
            {name: _VIT_PREFIX + name.removeprefix(_VISION) for name in vision},
        )
        if not any(name.startswith(_VISION) for name in tensors):
            expected = {name: shape for name, shape in expected.items() if not name.startswith(_VISION)}
    _compare(files.folder, expected, tensors, {ours: theirs for theirs, ours in renamed.items()})
    return tensors | vision


def expected_shapes(config: YiVLConfig) -> dict[str, tuple[int, ...]]:
    """Our parameters by name, with their shapes."""
    with torch.device("meta"):
        model = YiVLForConditionalGeneration(config)
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def set_parameter(model: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    """Puts a frozen parameter in the place of the one of this name."""
    path, _, last = name.rpartition(".")
    setattr(model.get_submodule(path), last, torch.nn.Parameter(value, requires_grad=False))


def load_model(
    checkpoint: CheckpointFiles | str | Path,
    *,
    dtype: torch.dtype | Callable[[str], torch.dtype] = torch.float32,
    device: torch.device | str | Callable[[str], torch.device] = "cpu",
    put: Callable[[YiVLForConditionalGeneration, str, torch.Tensor], None] = set_parameter,
) -> YiVLForConditionalGeneration:
    """The model of a checkpoint folder, in evaluation mode.

    Tensors are read, converted and moved one at a time, so that no second copy of the model is ever held.

    Args:
        checkpoint: a folder in either layout, or a hub cache folder.
        dtype: of all parameters, or a function that gives it by their names.
        device: where they go, or a function that gives it by their names and those of buffers.
        put: gives a parameter, read and moved, its place in the model.

    Raises:
        CheckpointError: the folder is no Yi-VL checkpoint, or its tensors do not fit its configuration.
    """
    files = checkpoint if isinstance(checkpoint, CheckpointFiles) else open_checkpoint(checkpoint)
    tensors = read_tensors(files)
    with torch.device("meta"):
        model = YiVLForConditionalGeneration(read_config(files))
    for name, parameter in list(model.named_parameters()):
        value = torch.empty(
            parameter.shape,
            dtype=dtype if isinstance(dtype, torch.dtype) else dtype(name),
            device=device(name) if callable(device) else device,
        )
        value.copy_(tensors.pop(name).load())
        put(model, name, value)
    restore_buffers(model, device if callable(device) else torch.device(device))
    model.name_or_path = str(files.folder.resolve())  # PEFT writes it into the adapter's configuration
    return model.eval()


def write_checkpoint(
    folder: Path,
    source: CheckpointFiles,
    tensors: Mapping[str, LazyTensor],
    *,
    layout: str = "published",
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write a checkpoint folder whose weights are `tensors` and whose other files are those of `source`.

    The tensors keep their dtypes; the main files' copy of the vision tower has the dtype of the language model.

    Args:
        folder: an existing, empty folder.
        source: the checkpoint to take configuration, tokenizer and preprocessor files from.
        tensors: all parameters under our names.
        layout: `published` or `transformers`.
        max_shard_bytes: most bytes of tensors in one file.
    """
    if layout == "transformers":
        _write_transformers_config(folder, source, tensors["lm_head.weight"].dtype)
        _write_shards(folder, dict(tensors), max_shard_bytes)
        return
    assert source.vision_folder is not None, "the published layout cannot be made from the transformers layout"
    _copy_small_files(source.folder, folder)
    (folder / "config.json").write_text(
        json.dumps({**source.config, "mm_vision_tower": f"./vit/{source.vision_folder.name}"}, indent=2, ensure_ascii=False)
        + "\n",
        encoding="utf-8",
    )
    vision_folder = folder / "vit" / source.vision_folder.name
    vision_folder.mkdir(parents=True)
    _copy_small_files(source.vision_folder, vision_folder)
    write_published_weights(folder, vision_folder, tensors, max_shard_bytes)


def write_published_weights(folder: Path, vision_folder: Path, tensors: Mapping[str, LazyTensor], max_shard_bytes: int) -> None:
    """Write the weight files of the published layout: all tensors in `folder`, the vision tower in `vision_folder` too."""
    dtype = tensors["lm_head.weight"].dtype
    vision = {name: tensor for name, tensor in tensors.items() if name.startswith(_VISION)}
    main = dict(tensors) | {name: _as_dtype(tensor, dtype) for name, tensor in vision.items()}
    _write_shards(folder, {main_name(name): tensor for name, tensor in main.items()}, max_shard_bytes)
    _write_shards(
        vision_folder, {_VIT_PREFIX + name.removeprefix(_VISION): tensor for name, tensor in vision.items()}, max_shard_bytes
    )


def _compare(
    folder: Path, expected: Mapping[str, tuple[int, ...]], given: Mapping[str, LazyTensor], shown: Mapping[str, str]
) -> None:
    """Names are shown as they stand in the files."""
    lines = [f"missing: {name}" for name in expected if name not in given]
    lines += [f"unexpected: {shown[name]}" for name in given if name not in expected]
    lines += [
        f"misshapen: {shown[name]} is {list(given[name].shape)}, the configuration asks for {list(shape)}"
        for name, shape in expected.items()
        if name in given and given[name].shape != shape
    ]
    if lines:
        raise CheckpointError(
            f"{folder}: {len(lines)} tensor(s) do not fit its config.json; fetch the folder again\n  " + "\n  ".join(lines)
        )


def restore_buffers(model: YiVLForConditionalGeneration, device: torch.device | Callable[[str], torch.device]) -> None:
    """Buffers are not in the files: they follow from the configuration, and have to be made again after the meta device."""
    rotary_device, ids_device = (device(name) if callable(device) else device for name in (_ROTARY, _POSITION_IDS))
    rotary = model.model.language_model.rotary_emb
    model.model.language_model.rotary_emb = type(rotary)(config=model.config.text_config).to(rotary_device)
    embeddings = model.model.vision_tower.embeddings
    embeddings.position_ids = torch.arange(embeddings.position_ids.shape[-1], device=ids_device).unsqueeze(0)
    left = [name for name, buffer in model.named_buffers() if buffer.is_meta]
    assert not left, f"buffers without content: {left}"


def _as_dtype(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    return LazyTensor(tensor.shape, dtype, lambda: tensor.load().to(dtype))


def _write_shards(folder: Path, tensors: Mapping[str, LazyTensor], max_shard_bytes: int) -> None:
    """Weight files with an index, or `model.safetensors` alone where one file is enough; one file is in memory at a time."""
    shards = list(_split(tensors, max_shard_bytes))
    names = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    )
    for file_name, shard in zip(names, shards, strict=True):
        save_tensors(folder / file_name, {name: tensors[name].load() for name in shard})
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(tensor.num_bytes for tensor in tensors.values())},
            "weight_map": {name: file_name for file_name, shard in zip(names, shards, strict=True) for name in shard},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _split(tensors: Mapping[str, LazyTensor], max_shard_bytes: int) -> Iterable[list[str]]:
    shard: list[str] = []
    shard_bytes = 0
    for name, tensor in tensors.items():
        if shard and shard_bytes + tensor.num_bytes > max_shard_bytes:
            yield shard
            shard, shard_bytes = [], 0
        shard.append(name)
        shard_bytes += tensor.num_bytes
    if shard:
        yield shard


def _copy_small_files(source: Path, target: Path) -> None:
    """Configuration, tokenizer and preprocessor files: all but weights, their index, and what describes another checkpoint."""
    for path in sorted(source.iterdir()):
        is_copied = path.suffix in _COPIED_SUFFIXES and not path.name.endswith(".index.json") and path.name != "yivl.json"
        if path.is_file() and is_copied:
            shutil.copyfile(path, target / path.name)


def _write_transformers_config(folder: Path, source: CheckpointFiles, dtype: torch.dtype) -> None:
    _copy_small_files(source.folder, folder)
    config = read_config(source)
    config.architectures = [YiVLForConditionalGeneration.__name__]
    config.dtype = dtype
    config.save_pretrained(folder)
    shutil.copyfile(source.preprocessor_path, folder / "preprocessor_config.json")
